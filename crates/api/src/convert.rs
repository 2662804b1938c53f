//! Rows and deltas of `compile` to and from their messages.

use crate::agent;
use std::{fmt::Display, net::IpAddr, str::FromStr};
use tenet_compile as c;
use tenet_model::{Mac, NetId, OtherPort, SubnetPrefix, Vsid};

/// Why a message is not a row, key or delta.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field that must be there is not.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// A field's value is illegal.
    #[error("field `{field}` is illegal: {why}")]
    Illegal {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

fn parse<T: FromStr<Err: Display>>(field: &'static str, text: &str) -> Result<T, ConvertError> {
    if text.is_empty() {
        return Err(ConvertError::Missing(field));
    }
    text.parse().map_err(|e: T::Err| ConvertError::Illegal { field, why: e.to_string() })
}

fn optional<T: FromStr<Err: Display>>(field: &'static str, text: &str) -> Result<Option<T>, ConvertError> {
    if text.is_empty() { Ok(None) } else { parse(field, text).map(Some) }
}

fn net(field: &'static str, n: u32) -> Result<NetId, ConvertError> {
    if n == 0 { Err(ConvertError::Missing(field)) } else { Ok(NetId(n)) }
}

fn vsid(n: u32) -> Result<Vsid, ConvertError> {
    Vsid::new(n).map_err(|e| ConvertError::Illegal { field: "vsid", why: e.to_string() })
}

fn udp_port(field: &'static str, n: u32) -> Result<u16, ConvertError> {
    match u16::try_from(n) {
        Ok(0) => Err(ConvertError::Missing(field)),
        Ok(port) => Ok(port),
        Err(e) => Err(ConvertError::Illegal { field, why: e.to_string() }),
    }
}

fn other_port(m: agent::OtherPort) -> Result<OtherPort, ConvertError> {
    Ok(OtherPort { method: parse("method", &m.method)?, port: udp_port("other_port", m.port)? })
}

/// A subnet has at least one.
fn prefixes(all: Vec<agent::SubnetPrefix>) -> Result<Vec<SubnetPrefix>, ConvertError> {
    if all.is_empty() {
        return Err(ConvertError::Missing("prefixes"));
    }
    let one = |p: agent::SubnetPrefix| {
        Ok(SubnetPrefix { prefix: parse("prefix", &p.prefix)?, gateway: parse("gateway", &p.gateway)? })
    };
    all.into_iter().map(one).collect()
}

impl From<&SubnetPrefix> for agent::SubnetPrefix {
    fn from(p: &SubnetPrefix) -> Self {
        Self { prefix: p.prefix.to_string(), gateway: p.gateway.to_string() }
    }
}

fn text<T: Display>(value: Option<&T>) -> String {
    value.map_or_else(String::new, ToString::to_string)
}

impl From<c::PortState> for agent::PortState {
    fn from(s: c::PortState) -> Self {
        match s {
            c::PortState::Blocked => Self::Blocked,
            c::PortState::Active => Self::Active,
            c::PortState::Prepared => Self::Prepared,
            c::PortState::Moved => Self::Moved,
        }
    }
}

impl From<agent::PortState> for c::PortState {
    fn from(s: agent::PortState) -> Self {
        match s {
            agent::PortState::Blocked => Self::Blocked,
            agent::PortState::Active => Self::Active,
            agent::PortState::Prepared => Self::Prepared,
            agent::PortState::Moved => Self::Moved,
        }
    }
}

/// A row and the generation that last changed it.
impl From<&(c::Row, u64)> for agent::Row {
    fn from((row, generation): &(c::Row, u64)) -> Self {
        use agent::row::Row as M;
        let row = match row {
            c::Row::Host(r) => M::Host(agent::HostRow {
                name: r.name.to_string(),
                pa: r.pa.to_string(),
                vxlan_port: r.vxlan_port.into(),
                geneve_port: r.geneve_port.into(),
                other_port: r
                    .other_port
                    .map(|o| agent::OtherPort { method: o.method.to_string(), port: o.port.into() }),
                pool: r.pool.iter().map(ToString::to_string).collect(),
            }),
            c::Row::Peer(r) => M::Peer(agent::PeerRow {
                name: r.name.to_string(),
                pa: r.pa.to_string(),
                any_source: r.any_source.iter().map(|n| n.0).collect(),
            }),
            c::Row::Network(r) => M::Network(agent::NetworkRow {
                id: r.id.0,
                name: r.name.to_string(),
                rdid: r.rdid.to_string(),
                method: r.method.to_string(),
                switching: text(r.switching.as_ref()),
            }),
            c::Row::Subnet(r) => M::Subnet(agent::SubnetRow {
                net: r.net.0,
                vsid: r.vsid.number(),
                name: r.name.to_string(),
                prefixes: r.prefixes.iter().map(Into::into).collect(),
            }),
            c::Row::Record(r) => M::Record(agent::RecordRow {
                net: r.net.0,
                ca: r.ca.to_string(),
                mac: r.mac.to_string(),
                vsid: r.vsid.number(),
                pa: r.pa.to_string(),
                alt_pa: text(r.alt_pa.as_ref()),
                method: r.method.to_string(),
                port: r.port.to_string(),
                rewrite_pa: text(r.rewrite_pa.as_ref()),
                other_rewrite_pa: text(r.other_rewrite_pa.as_ref()),
            }),
            c::Row::Route(r) => M::Route(agent::RouteRow {
                net: r.net.0,
                prefix: r.prefix.to_string(),
                next_hop: text(r.next_hop.as_ref()),
                metric: r.metric,
            }),
            c::Row::Port(r) => M::Port(agent::PortRow {
                net: r.net.0,
                name: r.name.to_string(),
                vsid: r.vsid.number(),
                mac: r.mac.to_string(),
                device: r.device.clone(),
                tap: r.tap,
                queues: r.queues.into(),
                state: agent::PortState::from(r.state).into(),
                peer_pa: text(r.peer_pa.as_ref()),
                security: r.security,
            }),
        };
        Self { generation: *generation, row: Some(row) }
    }
}

impl TryFrom<agent::Row> for (c::Row, u64) {
    type Error = ConvertError;
    fn try_from(m: agent::Row) -> Result<Self, ConvertError> {
        use agent::row::Row as M;
        let row = match m.row.ok_or(ConvertError::Missing("row"))? {
            M::Host(r) => c::Row::Host(c::HostRow {
                name: parse("name", &r.name)?,
                pa: parse("pa", &r.pa)?,
                vxlan_port: udp_port("vxlan_port", r.vxlan_port)?,
                geneve_port: udp_port("geneve_port", r.geneve_port)?,
                other_port: r.other_port.map(other_port).transpose()?,
                pool: r.pool.iter().map(|p| parse("pool", p)).collect::<Result<_, _>>()?,
            }),
            M::Peer(r) => c::Row::Peer(c::PeerRow {
                name: parse("name", &r.name)?,
                pa: parse("pa", &r.pa)?,
                any_source: r.any_source.iter().map(|n| net("any_source", *n)).collect::<Result<_, _>>()?,
            }),
            M::Network(r) => c::Row::Network(c::NetworkRow {
                id: net("id", r.id)?,
                name: parse("name", &r.name)?,
                rdid: parse("rdid", &r.rdid)?,
                method: parse("method", &r.method)?,
                switching: optional("switching", &r.switching)?,
            }),
            M::Subnet(r) => c::Row::Subnet(c::SubnetRow {
                net: net("net", r.net)?,
                vsid: vsid(r.vsid)?,
                name: parse("name", &r.name)?,
                prefixes: prefixes(r.prefixes)?,
            }),
            M::Record(r) => c::Row::Record(c::RecordRow {
                net: net("net", r.net)?,
                ca: parse("ca", &r.ca)?,
                mac: parse::<Mac>("mac", &r.mac)?,
                vsid: vsid(r.vsid)?,
                pa: parse("pa", &r.pa)?,
                alt_pa: optional::<IpAddr>("alt_pa", &r.alt_pa)?,
                method: parse("method", &r.method)?,
                rewrite_pa: optional("rewrite_pa", &r.rewrite_pa)?,
                other_rewrite_pa: optional("other_rewrite_pa", &r.other_rewrite_pa)?,
                port: parse("port", &r.port)?,
            }),
            M::Route(r) => c::Row::Route(c::RouteRow {
                net: net("net", r.net)?,
                prefix: parse("prefix", &r.prefix)?,
                next_hop: optional("next_hop", &r.next_hop)?,
                metric: r.metric,
            }),
            M::Port(r) => c::Row::Port(c::PortRow {
                net: net("net", r.net)?,
                name: parse("name", &r.name)?,
                vsid: vsid(r.vsid)?,
                mac: parse("mac", &r.mac)?,
                state: agent::PortState::try_from(r.state)
                    .map_err(|e| ConvertError::Illegal { field: "state", why: e.to_string() })?
                    .into(),
                device: r.device,
                tap: r.tap,
                queues: queues(r.queues)?,
                peer_pa: optional("peer_pa", &r.peer_pa)?,
                security: r.security,
            }),
        };
        Ok((row, m.generation))
    }
}

/// An older controller says nothing about queues.
fn queues(number: u32) -> Result<u16, ConvertError> {
    let queues = u16::try_from(number.max(1));
    queues.map_err(|e| ConvertError::Illegal { field: "queues", why: e.to_string() })
}

impl From<&c::RowKey> for agent::RowKey {
    fn from(key: &c::RowKey) -> Self {
        use agent::row_key::Key as M;
        let key = match key {
            c::RowKey::Host => M::Host(true),
            c::RowKey::Peer(pa) => M::Peer(pa.to_string()),
            c::RowKey::Network(n) => M::Network(n.0),
            c::RowKey::Subnet(n, v) => M::Subnet(agent::SubnetKey { net: n.0, vsid: v.number() }),
            c::RowKey::Record(n, ca) => M::Record(agent::RecordKey { net: n.0, ca: ca.to_string() }),
            c::RowKey::Route(n, p) => M::Route(agent::RouteKey { net: n.0, prefix: p.to_string() }),
            c::RowKey::Port(n, p) => M::Port(agent::PortKey { net: n.0, name: p.to_string() }),
        };
        Self { key: Some(key) }
    }
}

impl TryFrom<agent::RowKey> for c::RowKey {
    type Error = ConvertError;
    fn try_from(m: agent::RowKey) -> Result<Self, ConvertError> {
        use agent::row_key::Key as M;
        Ok(match m.key.ok_or(ConvertError::Missing("key"))? {
            M::Host(_) => Self::Host,
            M::Peer(pa) => Self::Peer(parse("peer", &pa)?),
            M::Network(n) => Self::Network(net("network", n)?),
            M::Subnet(k) => Self::Subnet(net("net", k.net)?, vsid(k.vsid)?),
            M::Record(k) => Self::Record(net("net", k.net)?, parse("ca", &k.ca)?),
            M::Route(k) => Self::Route(net("net", k.net)?, parse("prefix", &k.prefix)?),
            M::Port(k) => Self::Port(net("net", k.net)?, parse("name", &k.name)?),
        })
    }
}

impl From<&c::Delta> for agent::Delta {
    fn from(d: &c::Delta) -> Self {
        Self {
            base: d.base,
            generation: d.generation,
            upserts: d.upserts.iter().map(Into::into).collect(),
            deletes: d.deletes.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<agent::Delta> for c::Delta {
    type Error = ConvertError;
    fn try_from(m: agent::Delta) -> Result<Self, ConvertError> {
        Ok(Self {
            base: m.base,
            generation: m.generation,
            upserts: m.upserts.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            deletes: m.deletes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl agent::Full {
    /// The message of a host's full state.
    #[must_use]
    pub fn new(generation: u64, rows: &c::Rows) -> Self {
        Self { generation, rows: rows.0.values().map(Into::into).collect() }
    }

    /// The rows of the message.
    ///
    /// # Errors
    /// [`ConvertError`] if one of them is illegal.
    pub fn into_rows(self) -> Result<c::Rows, ConvertError> {
        to_rows(self.rows)
    }
}

/// Collects row messages by key.
///
/// # Errors
/// [`ConvertError`] if one of them is illegal.
pub fn to_rows(rows: Vec<agent::Row>) -> Result<c::Rows, ConvertError> {
    rows.into_iter()
        .map(|m| <(c::Row, u64)>::try_from(m).map(|(row, generation)| (row.key(), (row, generation))))
        .collect::<Result<_, _>>()
        .map(c::Rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnet::{IpNet, Ipv4Net, Ipv6Net};
    use proptest::prelude::*;
    use prost::Message as _;
    use tenet_model::{Method, Name, NetworkRef, PortRef, SubnetRef};
    use uuid::Uuid;

    fn name() -> impl Strategy<Value = Name> {
        "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?".prop_map(|t| Name::new(t).unwrap())
    }
    fn ip() -> impl Strategy<Value = IpAddr> {
        prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
    }
    fn prefix() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<[u8; 4]>(), 0u8..=32)
                .prop_map(|(a, l)| IpNet::V4(Ipv4Net::new(a.into(), l).unwrap().trunc())),
            (any::<[u8; 16]>(), 0u8..=128)
                .prop_map(|(a, l)| IpNet::V6(Ipv6Net::new(a.into(), l).unwrap().trunc())),
        ]
    }
    fn net_id() -> impl Strategy<Value = NetId> {
        (1u32..).prop_map(NetId)
    }
    fn any_vsid() -> impl Strategy<Value = Vsid> {
        (4096u32..=0xFF_FFFE).prop_map(|n| Vsid::new(n).unwrap())
    }
    fn mac() -> impl Strategy<Value = Mac> {
        any::<[u8; 6]>().prop_map(|mut o| {
            o[0] = o[0] & 0xfe | 2;
            Mac::new(o).unwrap()
        })
    }
    fn method() -> impl Strategy<Value = Method> {
        prop::sample::select(Method::ALL.to_vec())
    }
    fn port() -> impl Strategy<Value = PortRef> {
        (name(), name(), name()).prop_map(|(tenant, vm, port)| PortRef { tenant, vm, port })
    }
    fn state() -> impl Strategy<Value = c::PortState> {
        prop::sample::select(vec![
            c::PortState::Blocked,
            c::PortState::Active,
            c::PortState::Prepared,
            c::PortState::Moved,
        ])
    }
    fn row() -> impl Strategy<Value = c::Row> {
        prop_oneof![
            (
                name(),
                ip(),
                (1u16.., 1u16..),
                prop::option::of((method(), 1u16..)),
                prop::collection::vec(prefix(), 0..3)
            )
                .prop_map(|(name, pa, (vxlan_port, geneve_port), other, pool)| {
                    let other_port = other.map(|(method, port)| OtherPort { method, port });
                    c::Row::Host(c::HostRow { name, pa, vxlan_port, geneve_port, other_port, pool })
                }),
            (name(), ip(), prop::collection::vec(net_id(), 0..3))
                .prop_map(|(name, pa, any_source)| c::Row::Peer(c::PeerRow { name, pa, any_source })),
            (net_id(), name(), name(), any::<u128>(), method(), prop::option::of(method())).prop_map(
                |(id, tenant, network, u, method, switching)| {
                    let (name, rdid) = (NetworkRef { tenant, network }, Uuid::from_u128(u));
                    c::Row::Network(c::NetworkRow { id, name, rdid, method, switching })
                }
            ),
            (net_id(), any_vsid(), (name(), name(), name()), prop::collection::vec((prefix(), ip()), 1..3))
                .prop_map(|(net, vsid, n, prefixes)| {
                    let name = SubnetRef { tenant: n.0, network: n.1, subnet: n.2 };
                    let own = |(prefix, gateway)| SubnetPrefix { prefix, gateway };
                    let prefixes = prefixes.into_iter().map(own).collect();
                    c::Row::Subnet(c::SubnetRow { net, vsid, name, prefixes })
                }),
            (
                net_id(),
                ip(),
                mac(),
                any_vsid(),
                ip(),
                prop::array::uniform3(prop::option::of(ip())),
                method(),
                port()
            )
                .prop_map(
                    |(net, ca, mac, vsid, pa, [alt_pa, rewrite_pa, other_rewrite_pa], method, port)| {
                        c::Row::Record(c::RecordRow {
                            net,
                            ca,
                            mac,
                            vsid,
                            pa,
                            alt_pa,
                            method,
                            rewrite_pa,
                            other_rewrite_pa,
                            port,
                        })
                    }
                ),
            (net_id(), prefix(), prop::option::of(ip()), any::<u32>()).prop_map(
                |(net, prefix, next_hop, metric)| {
                    c::Row::Route(c::RouteRow { net, prefix, next_hop, metric })
                }
            ),
            (
                net_id(),
                port(),
                any_vsid(),
                mac(),
                "[a-z0-9]{0,15}",
                state(),
                prop::option::of(ip()),
                any::<(bool, bool)>(),
                1u16..
            )
                .prop_map(
                    |(net, name, vsid, mac, device, state, peer_pa, (tap, security), queues)| {
                        c::Row::Port(c::PortRow {
                            net,
                            name,
                            vsid,
                            mac,
                            device,
                            tap,
                            queues,
                            state,
                            peer_pa,
                            security,
                        })
                    }
                ),
        ]
    }

    proptest! {
        #[test]
        fn delta_survives_the_wire(
            base in any::<u64>(),
            generation in any::<u64>(),
            upserts in prop::collection::vec((row(), any::<u64>()), 0..20),
            deleted in prop::collection::vec(row(), 0..20),
        ) {
            let deletes = deleted.iter().map(c::Row::key).collect();
            let delta = c::Delta { base, generation, upserts, deletes };
            let bytes = agent::Delta::from(&delta).encode_to_vec();
            let back = c::Delta::try_from(agent::Delta::decode(&bytes[..]).unwrap()).unwrap();
            prop_assert_eq!(back, delta);
        }

        #[test]
        fn garbage_is_an_error_or_a_row_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(m) = agent::Delta::decode(&bytes[..]) {
                let _ = c::Delta::try_from(m);
            }
        }
    }

    #[test]
    fn errors_name_the_field() {
        let record =
            agent::RecordRow { net: 1, ca: "10.0.0.1".into(), mac: "x".into(), ..Default::default() };
        let row = agent::Row { generation: 1, row: Some(agent::row::Row::Record(record)) };
        let error = <(c::Row, u64)>::try_from(row).unwrap_err();
        assert!(matches!(error, ConvertError::Illegal { field: "mac", .. }), "{error}");
        assert_eq!(c::RowKey::try_from(agent::RowKey::default()), Err(ConvertError::Missing("key")));
    }
}
