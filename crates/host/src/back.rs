//! From the content of the kernel's maps back to rows, so that both sides can be compared by digest.

use crate::plan::method_number;
use crate::rewrite::Reverse;
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr};
use tenet_compile::{RecordRow, RouteRow, Row, RowKey, Rows, SubnetRow};
use tenet_model::{Mac, Method, Name, NetId, PortRef, SubnetPrefix, SubnetRef, Vsid};
use tenet_tables::image::{Image, Prefix};
use tenet_tables::{Addr, Record, RecordKey, Route, Subnet};

/// Subnets, records and routes as the image holds them; names, which the kernel does not know, are `names`'.
///
/// An entry that no row can have written (an unknown method, a MAC of a group) gives no row, so that the digest
/// differs from the wanted one, as it must.
#[must_use]
pub fn rows_back(image: &Image, names: &Rows) -> Rows {
    let subnets = image.subnets.iter().filter_map(|(vsid, s)| subnet(*vsid, s, names));
    let reverse = Reverse::new(image);
    let records = image.records.iter().filter_map(|(key, r)| record(key, r, &reverse, names));
    let routes = image.routes.iter().filter_map(|(prefix, r)| route(prefix, r));
    let all: BTreeMap<RowKey, (Row, u64)> = subnets
        .chain(records)
        .chain(routes)
        .map(|(row, generation)| (row.key(), (row, generation)))
        .collect();
    Rows(all)
}

fn subnet(vsid: u32, s: &Subnet, names: &Rows) -> Option<(Row, u64)> {
    let vsid = Vsid::new(vsid).ok()?;
    let net = NetId(s.net);
    let mut prefixes = Vec::new();
    for (gateway, len) in [(s.gateway, s.prefix_len), (s.gateway6, s.prefix6_len)] {
        if !gateway.is_unset() || len != 0 {
            let prefix = IpNet::new(gateway.into(), row_len(gateway, len)?).ok()?.trunc();
            prefixes.push(SubnetPrefix { prefix, gateway: gateway.into() });
        }
    }
    let name = match names.0.get(&RowKey::Subnet(net, vsid)) {
        Some((Row::Subnet(s), _)) => s.name.clone(),
        _ => SubnetRef {
            tenant: unknown()?,
            network: unknown()?,
            subnet: Name::new(format!("vsid-{vsid}")).ok()?,
        },
    };
    Some((Row::Subnet(SubnetRow { net, vsid, name, prefixes }), s.generation))
}

fn record(key: &RecordKey, r: &Record, reverse: &Reverse<'_>, names: &Rows) -> Option<(Row, u64)> {
    let net = NetId(key.net);
    let ca: IpAddr = key.ca.into();
    let (rewrite_pa, other_rewrite_pa) = reverse.of(key, r);
    let port = match names.0.get(&RowKey::Record(net, ca)) {
        Some((Row::Record(r), _)) => r.port.clone(),
        _ => PortRef { tenant: unknown()?, vm: unknown()?, port: unknown()? },
    };
    let row = RecordRow {
        net,
        ca,
        mac: Mac::new(r.mac.octets()).ok()?,
        vsid: Vsid::new(r.vsid).ok()?,
        pa: r.pa.into(),
        alt_pa: (!r.alt_pa.is_unset()).then(|| r.alt_pa.into()),
        method: method(r.method)?,
        rewrite_pa,
        other_rewrite_pa,
        port,
    };
    Some((Row::Record(row), r.generation))
}

fn route(prefix: &Prefix, r: &Route) -> Option<(Row, u64)> {
    let address: IpAddr = prefix.ca.into();
    let row = RouteRow {
        net: NetId(prefix.net),
        prefix: IpNet::new(address, row_len(prefix.ca, prefix.len)?).ok()?,
        next_hop: (!r.next_hop.is_unset()).then(|| r.next_hop.into()),
        metric: r.metric,
    };
    Some((Row::Route(row), r.generation))
}

/// A row's prefix length from that of the `Addr` form.
fn row_len(address: Addr, len: u32) -> Option<u8> {
    let len = if address.as_v4_word().is_some() { len.checked_sub(96)? } else { len };
    u8::try_from(len).ok()
}

fn method(number: u8) -> Option<Method> {
    Method::ALL.into_iter().find(|m| method_number(*m) == number)
}

fn unknown() -> Option<Name> {
    Name::new("unknown").ok()
}
