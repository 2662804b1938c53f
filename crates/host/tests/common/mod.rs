//! A site generator and an imagined kernel that carries out what the core says.
#![allow(dead_code, reason = "each test file uses a part")]
#![expect(clippy::unwrap_used, reason = "a test ends there")]

use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;
use tenet_compile::{
    HostRow, NetworkRow, PeerRow, PortRow, PortState, RecordRow, RouteRow, Row, Rows, SubnetRow,
};
use tenet_host::{Device, DeviceKind, HostCore, Input, Message, Output, Role};
use tenet_model::{Mac, Method, Name, NetId, NetworkRef, PortRef, SubnetPrefix, SubnetRef, Vsid};
use tenet_tables::image::{Image, Operation};

pub const OWN: [u8; 4] = [192, 168, 1, 10];
pub const OTHER: [u8; 4] = [192, 168, 2, 20];

pub fn name(text: impl Into<String>) -> Name {
    Name::new(text).unwrap()
}

pub fn port_ref(net: u32, n: u8) -> PortRef {
    PortRef { tenant: name(format!("t{net}")), vm: name(format!("vm{n}")), port: name("eth0") }
}

pub fn vsid(net: u32) -> Vsid {
    Vsid::new(5000 + net).unwrap()
}

pub fn mac(net: u32, n: u8) -> Mac {
    Mac::new([2, 0, 0, 0, u8::try_from(net).unwrap(), n]).unwrap()
}

pub fn ca(n: u8) -> IpAddr {
    [10, 1, 1, n].into()
}

pub fn host(pa: [u8; 4]) -> Row {
    Row::Host(HostRow {
        name: name("h1"),
        pa: pa.into(),
        vxlan_port: 4789,
        geneve_port: 6081,
        other_port: None,
        pool: vec![],
    })
}

pub fn peer(pa: [u8; 4], any_source: Vec<NetId>) -> Row {
    Row::Peer(PeerRow { name: name(format!("h{}", pa[3])), pa: pa.into(), any_source })
}

pub fn network(net: u32) -> Row {
    Row::Network(NetworkRow {
        id: NetId(net),
        name: NetworkRef { tenant: name(format!("t{net}")), network: name("blue") },
        rdid: uuid::Uuid::from_u128(net.into()),
        method: Method::Nvgre,
        switching: None,
    })
}

pub fn subnet(net: u32) -> Row {
    Row::Subnet(SubnetRow {
        net: NetId(net),
        vsid: vsid(net),
        name: SubnetRef { tenant: name(format!("t{net}")), network: name("blue"), subnet: name("web") },
        prefixes: vec![SubnetPrefix { prefix: "10.1.1.0/24".parse().unwrap(), gateway: ca(1) }],
    })
}

pub fn on_link(net: u32) -> Row {
    Row::Route(RouteRow {
        net: NetId(net),
        prefix: "10.1.1.0/24".parse().unwrap(),
        next_hop: None,
        metric: 0,
    })
}

pub fn record(net: u32, n: u8, pa: [u8; 4], alt: Option<[u8; 4]>) -> Row {
    Row::Record(RecordRow {
        net: NetId(net),
        ca: ca(n),
        mac: mac(net, n),
        vsid: vsid(net),
        pa: pa.into(),
        alt_pa: alt.map(Into::into),
        method: Method::Nvgre,
        rewrite_pa: None,
        other_rewrite_pa: None,
        port: port_ref(net, n),
    })
}

pub fn port(net: u32, n: u8, state: PortState, peer: Option<[u8; 4]>) -> Row {
    Row::Port(PortRow {
        net: NetId(net),
        name: port_ref(net, n),
        vsid: vsid(net),
        mac: mac(net, n),
        device: format!("tap{net}-{n}"),
        tap: false,
        queues: 1,
        state,
        peer_pa: peer.map(Into::into),
        security: true,
    })
}

/// Rows that all changed last in `generation`.
pub fn rows(generation: u64, all: impl IntoIterator<Item = Row>) -> Rows {
    Rows(all.into_iter().map(|r| (r.key(), (r, generation))).collect())
}

/// One network with `sql` here (11) and `web` there (12).
pub fn small(generation: u64) -> Rows {
    rows(
        generation,
        [
            host(OWN),
            peer(OTHER, vec![]),
            network(1),
            subnet(1),
            on_link(1),
            record(1, 11, OWN, None),
            record(1, 12, OTHER, None),
            port(1, 11, PortState::Active, None),
        ],
    )
}

pub fn device(ifindex: u32) -> Device {
    Device { ifindex, carrier: true, mtu: 1500, kind: DeviceKind::Veth, mac: tenet_tables::Mac::default() }
}

pub fn devices(names: &[(&str, u32)]) -> BTreeMap<String, Device> {
    names.iter().map(|(n, i)| ((*n).to_owned(), device(*i))).collect()
}

/// The core with a kernel that does as told.
pub struct Sim {
    pub core: HostCore,
    pub image: Image,
    pub attached: BTreeMap<u32, Role>,
    pub refuse: bool,
    pub sent: Vec<Message>,
    pub applied: Vec<Operation>,
    pub now: Duration,
}

impl Sim {
    pub fn new() -> Self {
        let core = HostCore::new(vec!["eth0".into()]);
        Self {
            core,
            image: Image::default(),
            attached: BTreeMap::new(),
            refuse: false,
            sent: vec![],
            applied: vec![],
            now: Duration::ZERO,
        }
    }

    /// A host with uplink and two taps, connected, the kernel looked at.
    pub fn started() -> Self {
        let mut sim = Self::new();
        sim.feed(Input::Devices(devices(&[("eth0", 2), ("tap1-11", 11), ("tap1-12", 12)])));
        sim.look();
        sim.feed(Input::Connected);
        sim
    }

    pub fn look(&mut self) {
        let (image, attached) = (self.image.clone(), self.attached.clone());
        self.feed(Input::Kernel { image, attached });
    }

    pub fn full(&mut self, generation: u64, rows: Rows) {
        self.feed(Input::Full { generation, rows });
    }

    pub fn feed(&mut self, input: Input) {
        let mut todo: VecDeque<Output> = self.core.handle(self.now, input).into();
        while let Some(output) = todo.pop_front() {
            let answer = match output {
                Output::Attach { ifindex, role, .. } => {
                    self.attached.insert(ifindex, role);
                    Input::Attached { ifindex, result: Ok(()) }
                }
                Output::Detach { ifindex } => {
                    self.attached.remove(&ifindex);
                    continue;
                }
                Output::Apply(operations) => {
                    for o in &operations {
                        if !self.refuse {
                            self.image.apply(*o);
                        }
                    }
                    self.applied.extend(&operations);
                    let read_back = operations.iter().map(|o| at_key(&self.image, o)).collect();
                    Input::Applied { read_back, errors: vec![] }
                }
                Output::Send(message) => {
                    self.sent.push(message);
                    continue;
                }
            };
            todo.extend(self.core.handle(self.now, answer));
        }
    }

    /// Messages since the last call.
    pub fn said(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.sent)
    }
}

pub fn at_key(image: &Image, operation: &Operation) -> Operation {
    match *operation {
        Operation::Configure(_) => Operation::Configure(image.config.unwrap_or_default()),
        Operation::Peer(k, _) => Operation::Peer(k, image.peers.get(&k).copied()),
        Operation::Subnet(k, _) => Operation::Subnet(k, image.subnets.get(&k).copied()),
        Operation::Pool(k, _) => Operation::Pool(k, image.pools.get(&k).copied()),
        Operation::Rewrite(k, _) => Operation::Rewrite(k, image.rewrites.get(&k).copied()),
        Operation::Record(k, _) => Operation::Record(k, image.records.get(&k).copied()),
        Operation::Mac(k, _) => Operation::Mac(k, image.macs.get(&k).copied()),
        Operation::Flood(k, _) => Operation::Flood(k, image.flood.get(&k).copied()),
        Operation::Route(k, _) => Operation::Route(k, image.routes.get(&k).copied()),
        Operation::Port(k, _) => Operation::Port(k, image.ports.get(&k).copied()),
    }
}

/// How a network is: its method and the next one, which families it has, and whether it has rewrite addresses.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub method: Method,
    pub switching: Option<Method>,
    pub v4: bool,
    pub v6: bool,
    pub left: bool,
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let method = || prop::sample::select(Method::ALL.to_vec());
    (method(), prop::option::weighted(0.3, method()), 0u8..3, any::<bool>()).prop_map(
        |(method, switching, families, left)| Kind {
            method,
            switching,
            v4: families != 1,
            v6: families != 0,
            left,
        },
    )
}

/// The IPv6 address of a port: chosen, or formed from its MAC.
pub fn ca6(net: u32, n: u8) -> IpAddr {
    let net = net as u16;
    if n.is_multiple_of(3) {
        IpAddr::from([0xfd00, net, 0, 0, 0, 0x00ff, 0xfe00, net << 8 | u16::from(n)])
    } else {
        IpAddr::from([0xfd00, net, 0, 0, 0, 0, 0, n.into()])
    }
}

/// What stands for a customer address on a host.
pub fn stand_in(at: u8, net: u32, ca: IpAddr, n: u8) -> IpAddr {
    match ca {
        IpAddr::V4(_) => [172, 20 + at, net as u8, n].into(),
        IpAddr::V6(_) => [0xfd00, 9, u16::from(at), net as u16, 0, 0, 0, n.into()].into(),
    }
}

/// Both prefixes of a network's subnet, as far as it has them.
pub fn prefixes(net: u32, kind: Kind) -> Vec<SubnetPrefix> {
    let v6 = SubnetPrefix {
        prefix: format!("fd00:{net:x}::/64").parse().unwrap(),
        gateway: format!("fd00:{net:x}::1").parse().unwrap(),
    };
    let v4 = SubnetPrefix { prefix: "10.1.1.0/24".parse().unwrap(), gateway: ca(1) };
    [(kind.v4, v4), (kind.v6, v6)].into_iter().filter(|(has, _)| *has).map(|(_, p)| p).collect()
}

/// Legal rows of a host: up to three networks of up to twelve ports on four hosts, some migrating.
pub fn any_rows() -> impl Strategy<Value = Rows> {
    let port = (2u8..60, 0u8..4, prop::option::weighted(0.2, 0u8..4), any::<bool>(), 1u64..50);
    let network = (any_kind(), prop::collection::vec(port, 0..12));
    let nets = prop::collection::btree_map(1u32..5, network, 0..4);
    let routes =
        prop::collection::vec((1u32..5, any::<[u8; 4]>(), 0u8..=32, 2u8..60, any::<u32>(), 1u64..50), 0..6);
    (nets, routes).prop_map(|(nets, routes)| {
        let pa = |n: u8| [192, 168, 1, 10 + n];
        let Row::Host(mut own) = host(pa(0)) else { unreachable!() };
        own.pool = vec!["172.20.0.0/16".parse().unwrap(), "fd00:9::/48".parse().unwrap()];
        let mut all =
            rows(1, [Row::Host(own), peer(pa(1), vec![]), peer(pa(2), vec![NetId(1)]), peer(pa(3), vec![])]);
        let mut put = |row: Row, generation| all.0.insert(row.key(), (row, generation));
        for (net, (kind, ports)) in &nets {
            let Row::Network(row) = self::network(*net) else { unreachable!() };
            let (method, switching) = (kind.method, kind.switching);
            put(Row::Network(NetworkRow { method, switching, ..row }), 1);
            let Row::Subnet(row) = subnet(*net) else { unreachable!() };
            put(Row::Subnet(SubnetRow { prefixes: prefixes(*net, *kind), ..row }), 2);
            for own in prefixes(*net, *kind) {
                let row = RouteRow { net: NetId(*net), prefix: own.prefix, next_hop: None, metric: 0 };
                put(Row::Route(row), 2);
            }
            for (n, at, alt, prepared, generation) in ports {
                let alt = alt.filter(|a| a != at);
                let own = [(kind.v4, ca(*n)), (kind.v6, ca6(*net, *n))];
                for (_, ca) in own.into_iter().filter(|(has, _)| *has) {
                    let Row::Record(mut row) = record(*net, *n, pa(*at), alt.map(pa)) else { unreachable!() };
                    (row.ca, row.method) = (ca, kind.method);
                    let rewrites = kind.method == Method::Rewrite || kind.switching == Some(Method::Rewrite);
                    if rewrites || kind.left {
                        row.rewrite_pa = Some(stand_in(*at, *net, ca, *n));
                        row.other_rewrite_pa = alt.map(|alt| stand_in(alt, *net, ca, *n));
                    }
                    put(Row::Record(row), *generation);
                }
                if let Some(row) = port_here(*net, *n, *at, alt, *prepared) {
                    put(row, *generation);
                }
            }
        }
        for (net, address, len, hop, metric, generation) in routes {
            let Some((kind, _)) = nets.get(&net) else { continue };
            let row = if kind.v6 && metric % 2 == 0 {
                let [a, b, c, d] = address.map(u16::from);
                let full = std::net::Ipv6Addr::new(0x2001, a, b, c, d, 0, 0, 0);
                let prefix = ipnet::Ipv6Net::new(full, len * 2).unwrap().trunc().into();
                RouteRow { net: NetId(net), prefix, next_hop: Some(ca6(net, hop)), metric }
            } else {
                let prefix = ipnet::Ipv4Net::new(address.into(), len).unwrap().trunc().into();
                RouteRow { net: NetId(net), prefix, next_hop: Some(ca(hop)), metric }
            };
            put(Row::Route(row), generation);
        }
        all
    })
}

/// The port's row on host 0, if it lives there, comes there or has just left.
fn port_here(net: u32, n: u8, at: u8, alt: Option<u8>, prepared: bool) -> Option<Row> {
    let state = match (at, alt, prepared) {
        (0, _, _) => PortState::Active,
        (_, Some(0), true) => PortState::Prepared,
        (_, Some(0), false) => PortState::Moved,
        (_, _, _) => return None,
    };
    let other = if at == 0 { alt } else { Some(at) };
    Some(port(net, n, state, other.map(|n| [192, 168, 1, 10 + n])))
}

/// All devices that the generator's ports name, and the uplink.
pub fn all_devices() -> BTreeMap<String, Device> {
    let mut all = devices(&[("eth0", 2)]);
    all.insert(tenet_host::probe::TAP.into(), Device { kind: DeviceKind::Probe, ..device(3) });
    for net in 1u32..5 {
        for n in 2u32..60 {
            all.insert(format!("tap{net}-{n}"), device(net * 100 + n));
        }
    }
    all
}
