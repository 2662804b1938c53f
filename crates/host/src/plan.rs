//! From rows to the content of the kernel's maps.

use crate::probe;
use crate::{mtu, rewrite};
use ipnet::{IpNet, Ipv6Net};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};
use tenet_compile::{
    HostRow, PeerRow, PortRow, PortState, RecordRow, RouteRow, Row, RowKey, Rows, SubnetRow,
};
use tenet_model::{Family, Method, NetId, OtherPort, PortRef, Vsid};
use tenet_tables::image::{Image, Prefix};
use tenet_tables::{
    Addr, CONFIG_FLAG_OTHER_GENEVE, Config, DEVICE_PLAIN, DEVICE_TAP, DEVICE_VETH, FLOOD_LIMIT, FloodEntry,
    FloodKey, GATEWAY_MAC, LAYOUT_VERSION, METHOD_GATEWAY, METHOD_GENEVE, METHOD_NVGRE, METHOD_REWRITE,
    METHOD_STT, METHOD_VXLAN, Mac, MacEntry, MacKey, PEER_FLAG_ANY_SOURCE, PORT_ACTIVE, PORT_BLOCKED,
    PORT_FLAG_AUTOCONF, PORT_FLAG_DOWN, PORT_FLAG_SECURITY, PORT_MOVED, PORT_PREPARED, Peer, PeerKey, Port,
    Record, RecordKey, Route, Subnet,
};

/// Broadcast and multicast frames per second that a port may send.
pub const FLOOD_RATE: u32 = 1000;
/// Broadcast and multicast frames that a port may send in one burst.
pub const FLOOD_BURST: u32 = 500;
/// How frames are given to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DeviceKind {
    /// Anything else that takes frames by plain redirect.
    #[default]
    Plain,
    /// A veth whose other end is in another namespace.
    Veth,
    /// A tap.
    Tap,
    /// No port's: the hub, by way of which frames from the provider network reach taps.
    Hub,
    /// No port's: the agent's own, by way of which it takes over STT frames that the programs cannot finish.
    Slow,
    /// The tap of the agent's own probes.
    Probe,
    /// No port's: the agent's own tap, by which it sends on what a VM left behind.
    Drain,
}

/// A device of this host as it is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// Its number.
    pub ifindex: u32,
    /// Whether it is up and something is at the other end.
    pub carrier: bool,
    /// Largest packet behind the Ethernet header.
    pub mtu: u32,
    /// How frames are given to it.
    pub kind: DeviceKind,
    /// Its own MAC; zero if it has none.
    pub mac: Mac,
}

/// The NIC that carries encapsulated frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uplink {
    /// Its number.
    pub ifindex: u32,
    /// Its MTU (of several ticked uplinks: the smallest).
    pub mtu: u32,
    /// Number of the hub that frames for taps go by, or 0.
    pub hub: u32,
    /// Number of the agent's device that takes STT frames which the programs cannot finish, or 0.
    pub slow: u32,
    /// Its own MAC, with which rewrite addresses are answered for.
    pub mac: Mac,
}

/// The maps' wanted content, and what stands in the way of a part of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The content.
    pub image: Image,
    /// What is wrong with the rows or the host, in plain words.
    pub problems: Vec<String>,
}

/// The kernel's tables for these rows on a host with these devices.
///
/// Ports whose device does not exist get no entry; their records stay without interface.
///
/// `paths` has the measured MTU of the provider network to other hosts, by their addresses; the uplink's holds for those
/// that are not in it.
#[must_use]
pub fn plan(
    rows: &Rows,
    devices: &BTreeMap<String, Device>,
    uplink: Option<Uplink>,
    paths: &BTreeMap<IpAddr, u16>,
) -> Plan {
    let mut plan = Plan::default();
    plan_host(rows, uplink, &mut plan);
    for net in networks(rows) {
        plan_network(rows, net, devices, uplink, paths, &mut plan);
    }
    probe::plan_probe(rows, devices, &mut plan);
    plan
}

/// All networks that any row names.
pub(crate) fn networks(rows: &Rows) -> BTreeSet<NetId> {
    rows.0.keys().filter_map(RowKey::network).collect()
}

/// This host's row, if it came yet.
pub(crate) fn host_row(rows: &Rows) -> Option<&HostRow> {
    host_versioned(rows).map(|(host, _)| host)
}

fn host_versioned(rows: &Rows) -> Option<(&HostRow, u64)> {
    match rows.0.get(&RowKey::Host) {
        Some((Row::Host(h), generation)) => Some((h, *generation)),
        _ => None,
    }
}

/// All ports; they are the last kind of key, so that nothing else need be looked at.
pub(crate) fn ports(rows: &Rows) -> impl Iterator<Item = (&PortRow, u64)> {
    rows.0.iter().rev().map_while(|(_, (row, generation))| match row {
        Row::Port(p) => Some((p, *generation)),
        _ => None,
    })
}

fn ports_of(rows: &Rows, net: NetId) -> impl Iterator<Item = (&PortRow, u64)> {
    ports(rows).filter(move |(p, _)| p.net == net)
}

/// Writes `CONFIG`, `PEERS` and `POOLS`.
pub(crate) fn plan_host(rows: &Rows, uplink: Option<Uplink>, plan: &mut Plan) {
    let Some((host, generation)) = host_versioned(rows) else {
        plan.problems.push("the controller sent no row for this host".to_owned());
        return;
    };
    if uplink.is_none() {
        plan.problems.push("no uplink exists: name one that does with --uplink".to_owned());
    }
    let flags = rewrite::plan_pools(host, generation, plan);
    let (other_port, other_flag) = match host.other_port {
        Some(OtherPort { method: Method::Vxlan, port }) => (port, 0),
        Some(OtherPort { method: Method::Geneve, port }) => (port, CONFIG_FLAG_OTHER_GENEVE),
        Some(OtherPort { method: Method::Nvgre | Method::Stt | Method::Rewrite, .. }) | None => (0, 0),
    };
    plan.image.config = Some(Config {
        layout: LAYOUT_VERSION,
        uplink: uplink.map_or(0, |u| u.ifindex),
        pa: host.pa.into(),
        gateway_mac: GATEWAY_MAC,
        uplink_mac: uplink.map_or(Mac::default(), |u| u.mac),
        hub: uplink.map_or(0, |u| u.hub),
        slow: uplink.map_or(0, |u| u.slow),
        vxlan_port: host.vxlan_port,
        geneve_port: host.geneve_port,
        flags: flags | other_flag,
        other_port,
    });
    for (row, _) in rows.0.values() {
        match row {
            Row::Host(_) => {}
            Row::Peer(peer) => plan_peer(peer, host.pa, plan),
            Row::Network(_) | Row::Subnet(_) | Row::Record(_) | Row::Route(_) | Row::Port(_) => break,
        }
    }
}

fn plan_peer(peer: &PeerRow, own: IpAddr, plan: &mut Plan) {
    // Our own address as an outer source can only be forged.
    if peer.pa == own {
        plan.problems.push(format!("peer {} has this host's own provider address {own}", peer.name));
        return;
    }
    let pa = peer.pa.into();
    plan.image.peers.insert(PeerKey { net: 0, pa }, Peer::default());
    for net in &peer.any_source {
        plan.image
            .peers
            .insert(PeerKey { net: net.0, pa }, Peer { flags: PEER_FLAG_ANY_SOURCE, reserved: 0 });
    }
}

/// Writes all maps' entries of one network.
pub(crate) fn plan_network(
    rows: &Rows,
    net: NetId,
    devices: &BTreeMap<String, Device>,
    uplink: Option<Uplink>,
    paths: &BTreeMap<IpAddr, u16>,
    plan: &mut Plan,
) {
    let Some(own) = host_row(rows).map(|h| h.pa) else { return };
    let network = match rows.0.get(&RowKey::Network(net)) {
        Some((Row::Network(n), _)) => Some(n),
        _ => None,
    };
    let method = network.map_or_else(Method::default, |n| n.method);
    let mtu = mtu::port_mtu(rows, net, network, uplink, paths);
    let formed = autoconf(rows, net);
    let mut local: BTreeMap<&PortRef, u32> = BTreeMap::new();
    let mut users: BTreeMap<u32, &PortRow> = BTreeMap::new();
    let mut flood: BTreeMap<Vsid, BTreeSet<FloodEntry>> = BTreeMap::new();
    for (port, generation) in ports_of(rows, net) {
        let Some(device) = devices.get(&port.device) else { continue };
        if let Some(other) = users.insert(device.ifindex, port) {
            plan.problems
                .push(format!("{} and {} name the same device {}", other.name, port.name, port.device));
        }
        local.insert(&port.name, device.ifindex);
        let mut entry = kernel_port(port, generation, *device, mtu);
        if formed.contains(&port.name) {
            entry.flags |= PORT_FLAG_AUTOCONF;
        }
        plan.image.ports.insert(device.ifindex, entry);
        // Broadcasts reach a moved port through its new host, which is on the list by the record.
        if port.state != PortState::Moved {
            flood
                .entry(port.vsid)
                .or_default()
                .insert(FloodEntry { pa: Addr::UNSET, ifindex: device.ifindex });
        }
    }

    if !users.is_empty() {
        plan.problems.extend(mtu::too_small(rows, net, network, mtu));
    }

    for (s, generation) in subnets_of(rows, net) {
        plan.image.subnets.insert(s.vsid.number(), kernel_subnet(s, method, generation));
        for own in &s.prefixes {
            let key = RecordKey { net: net.0, ca: own.gateway.into() };
            plan.image.records.insert(key, gateway_record(s, generation));
        }
    }

    for (record, generation) in records_of(rows, net) {
        let ifindex = local.get(&record.port).copied().unwrap_or(0);
        plan.image.records.insert(
            RecordKey { net: net.0, ca: record.ca.into() },
            kernel_record(record, generation, ifindex),
        );
        rewrite::plan_rewrites(record, generation, ifindex, own, plan);
        let key = MacKey { vsid: record.vsid.number(), mac: Mac::new(record.mac.octets()), reserved: 0 };
        let entry =
            MacEntry { pa: record.pa.into(), ifindex, method: u32::from(method_number(record.method)) };
        if plan.image.macs.insert(key, entry).is_some_and(|old| old != entry) {
            plan.problems
                .push(format!("MAC {} has two places in virtual subnet {}", record.mac, record.vsid));
        }
        for pa in [Some(record.pa), record.alt_pa].into_iter().flatten().filter(|pa| *pa != own) {
            flood.entry(record.vsid).or_default().insert(FloodEntry { pa: pa.into(), ifindex: 0 });
        }
    }

    for (route, generation) in routes_of(rows, net) {
        let prefix = Prefix {
            net: net.0,
            ca: route.prefix.trunc().addr().into(),
            len: mapped_len(route.prefix.addr(), route.prefix.prefix_len()),
        };
        let value = Route {
            next_hop: route.next_hop.map_or(Addr::UNSET, Into::into),
            metric: route.metric,
            reserved: 0,
            generation,
        };
        plan.image.routes.insert(prefix, value);
    }

    for (vsid, receivers) in flood {
        plan_flood(vsid, receivers, plan);
    }
}

/// Numbers a subnet's receivers: an unset address sorts first, so local ports come before other hosts.
fn plan_flood(vsid: Vsid, receivers: BTreeSet<FloodEntry>, plan: &mut Plan) {
    let count = receivers.len();
    if count > FLOOD_LIMIT as usize {
        plan.problems.push(format!(
            "virtual subnet {vsid} has {count} receivers of broadcasts, the limit is {FLOOD_LIMIT}: \
             the last {} get none; use smaller subnets",
            count - FLOOD_LIMIT as usize
        ));
    }
    for (index, entry) in (0..FLOOD_LIMIT).zip(receivers) {
        plan.image.flood.insert(FloodKey { vsid: vsid.number(), index }, entry);
    }
}

/// Ports with the address in their subnet's IPv6 prefix that a VM forms by itself from its MAC (RFC 4862 §5.5.3).
fn autoconf(rows: &Rows, net: NetId) -> BTreeSet<&PortRef> {
    let prefixes = subnets_of(rows, net).flat_map(|(s, _)| s.prefixes.iter().map(|p| (s.vsid, p.prefix)));
    let formable: BTreeMap<Vsid, Ipv6Net> = prefixes
        .filter_map(|(vsid, prefix)| match prefix {
            IpNet::V6(p) if p.prefix_len() == 64 => Some((vsid, p)),
            IpNet::V4(_) | IpNet::V6(_) => None,
        })
        .collect();
    if formable.is_empty() {
        return BTreeSet::new();
    }
    let own = records_of(rows, net).filter(|(r, _)| {
        formable.get(&r.vsid).is_some_and(|prefix| r.ca == IpAddr::V6(from_mac(prefix, r.mac.octets())))
    });
    own.map(|(r, _)| &r.port).collect()
}

/// The address that a MAC makes in a prefix (RFC 4291 appendix A).
fn from_mac(prefix: &Ipv6Net, [a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(u128::from(prefix.network()) | u128::from(id))
}

fn subnets_of(rows: &Rows, net: NetId) -> impl Iterator<Item = (&SubnetRow, u64)> {
    rows.0.range(RowKey::Subnet(net, Vsid::MIN)..).map_while(move |(_, (row, generation))| match row {
        Row::Subnet(s) if s.net == net => Some((s, *generation)),
        _ => None,
    })
}

pub(crate) fn records_of(rows: &Rows, net: NetId) -> impl Iterator<Item = (&RecordRow, u64)> {
    rows.0.range(RowKey::Record(net, IpAddr::from([0, 0, 0, 0]))..).map_while(
        move |(_, (row, generation))| match row {
            Row::Record(r) if r.net == net => Some((r, *generation)),
            _ => None,
        },
    )
}

fn routes_of(rows: &Rows, net: NetId) -> impl Iterator<Item = (&RouteRow, u64)> {
    rows.0.range(RowKey::Route(net, ipnet::Ipv4Net::default().into())..).map_while(
        move |(_, (row, generation))| match row {
            Row::Route(r) if r.net == net => Some((r, *generation)),
            _ => None,
        },
    )
}

/// Prefix length in the `Addr` form, where IPv4 is mapped.
const fn mapped_len(address: IpAddr, len: u8) -> u32 {
    match address {
        IpAddr::V4(_) => 96 + len as u32,
        IpAddr::V6(_) => len as u32,
    }
}

fn kernel_subnet(s: &SubnetRow, method: Method, generation: u64) -> Subnet {
    let mut subnet =
        Subnet { net: s.net.0, method: method_number(method).into(), generation, ..Subnet::default() };
    for own in &s.prefixes {
        let (len, gateway) = (mapped_len(own.prefix.addr(), own.prefix.prefix_len()), own.gateway.into());
        match own.family() {
            Family::V4 => (subnet.prefix_len, subnet.gateway) = (len, gateway),
            Family::V6 => (subnet.prefix6_len, subnet.gateway6) = (len, gateway),
        }
    }
    subnet
}

/// The gateway lives on every host, so it has no provider address.
fn gateway_record(s: &SubnetRow, generation: u64) -> Record {
    Record {
        pa: Addr::UNSET,
        alt_pa: Addr::UNSET,
        rewrite_pa: Addr::UNSET,
        mac: GATEWAY_MAC,
        method: METHOD_GATEWAY,
        reserved: 0,
        vsid: s.vsid.number(),
        ifindex: 0,
        generation,
    }
}

fn kernel_record(r: &RecordRow, generation: u64, ifindex: u32) -> Record {
    Record {
        pa: r.pa.into(),
        alt_pa: r.alt_pa.map_or(Addr::UNSET, Into::into),
        rewrite_pa: r.rewrite_pa.map_or(Addr::UNSET, Into::into),
        mac: Mac::new(r.mac.octets()),
        method: method_number(r.method),
        reserved: 0,
        vsid: r.vsid.number(),
        ifindex,
        generation,
    }
}

fn kernel_port(p: &PortRow, generation: u64, device: Device, mtu: u16) -> Port {
    let security = if p.security { PORT_FLAG_SECURITY } else { 0 };
    let down = if device.carrier { 0 } else { PORT_FLAG_DOWN };
    Port {
        net: p.net.0,
        vsid: p.vsid.number(),
        peer_pa: p.peer_pa.map_or(Addr::UNSET, Into::into),
        mac: Mac::new(p.mac.octets()),
        mtu,
        state: state_number(p.state),
        device: match device.kind {
            DeviceKind::Plain | DeviceKind::Hub | DeviceKind::Slow => DEVICE_PLAIN,
            DeviceKind::Veth => DEVICE_VETH,
            DeviceKind::Tap | DeviceKind::Probe | DeviceKind::Drain => DEVICE_TAP,
        },
        flags: security | down,
        flood_rate: FLOOD_RATE,
        flood_burst: FLOOD_BURST,
        reserved: 0,
        generation,
    }
}

/// The `METHOD_*` number of a method.
pub(crate) const fn method_number(method: Method) -> u8 {
    match method {
        Method::Nvgre => METHOD_NVGRE,
        Method::Vxlan => METHOD_VXLAN,
        Method::Geneve => METHOD_GENEVE,
        Method::Stt => METHOD_STT,
        Method::Rewrite => METHOD_REWRITE,
    }
}

/// The `PORT_*` number of a state.
pub(crate) const fn state_number(state: PortState) -> u8 {
    match state {
        PortState::Blocked => PORT_BLOCKED,
        PortState::Active => PORT_ACTIVE,
        PortState::Prepared => PORT_PREPARED,
        PortState::Moved => PORT_MOVED,
    }
}

/// The name of a `PORT_*` number.
pub(crate) const fn state_name(state: u8) -> &'static str {
    match state {
        PORT_BLOCKED => "blocked",
        PORT_ACTIVE => "active",
        PORT_PREPARED => "prepared",
        PORT_MOVED => "moved",
        _ => "unknown",
    }
}
