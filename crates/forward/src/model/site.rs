//! A small site in which every rule of the data plane has somebody to apply to.

use alloc::vec::Vec;
use tenet_tables::{
    Addr, CONFIG_FLAG_OTHER_GENEVE, Config, DEVICE_PLAIN, DEVICE_TAP, DEVICE_VETH, FloodEntry, FloodKey,
    GATEWAY_MAC, GENEVE_PORT, LAYOUT_VERSION, METHOD_GATEWAY, METHOD_NVGRE, MacEntry, MacKey,
    PEER_FLAG_ANY_SOURCE, PORT_ACTIVE, PORT_BLOCKED, PORT_FLAG_AUTOCONF, PORT_FLAG_DOWN, PORT_FLAG_SECURITY,
    PORT_MOVED, PORT_PREPARED, Peer, PeerKey, Port, Record, RecordKey, Route, Subnet, VXLAN_PORT,
    image::{Image, Prefix},
};
use tenet_wire::Mac;

/// This host.
pub const OWN: [u8; 4] = [192, 168, 1, 10];
/// Another host.
pub const OTHER: [u8; 4] = [192, 168, 2, 20];
/// A third host, where an appliance lives.
pub const THIRD: [u8; 4] = [192, 168, 3, 30];
/// No host of the site.
pub const STRANGER: [u8; 4] = [203, 0, 113, 9];
/// Largest inner packet.
pub const MTU: u16 = 1400;
/// Ports of this host. Interface indices are given by whoever has interfaces.
pub const PORTS: usize = 9;

/// A machine of the site: network, subnet, address, MAC.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Network.
    pub net: u32,
    /// Virtual subnet.
    pub vsid: u32,
    /// Customer address.
    pub ca: [u8; 4],
    /// MAC.
    pub mac: [u8; 6],
    /// Index into [`PORTS`] if it is on this host.
    pub port: Option<usize>,
    /// Its host by the table.
    pub pa: [u8; 4],
}

impl Machine {
    /// Its customer address of IPv6. The last subnet has none, though the table has the address.
    #[must_use]
    pub const fn ca6(&self) -> [u8; 16] {
        address6(self.ca[2], self.ca[3])
    }
}

/// `fd00:1:0:third::last`.
#[must_use]
pub const fn address6(third: u8, last: u8) -> [u8; 16] {
    [0xfd, 0, 0, 1, 0, 0, 0, third, 0, 0, 0, 0, 0, 0, 0, last]
}

/// The subnet without IPv6.
pub const IPV4_ONLY: u32 = 6002;

/// The site, and the machines in it.
#[derive(Clone, Debug)]
pub struct Site {
    /// The tables of this host.
    pub image: Image,
    /// Who lives in the site; the first [`PORTS`] on this host.
    pub machines: Vec<Machine>,
    /// Interface indices of the ports.
    pub interfaces: [u32; PORTS],
    /// Interface index of the uplink.
    pub uplink: u32,
    /// Whether the hosts' addresses are those of [`Site::pa6`].
    pub over_ipv6: bool,
}

const NETS: [(u32, [u32; 2]); 2] = [(1, [5001, 5002]), (2, [6001, 6002])];

impl Site {
    /// The IPv6 address of a host that has this IPv4 address.
    #[must_use]
    pub const fn pa6(octets: [u8; 4]) -> Addr {
        let [a, b, c, d] = octets;
        Addr::v6([0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d])
    }

    /// Gives all hosts IPv6 addresses.
    pub fn move_to_ipv6(&mut self) {
        let to6 = |pa: &mut Addr| {
            if let Some(word) = pa.as_v4_word() {
                *pa = Self::pa6(word.to_ne_bytes());
            }
        };
        self.over_ipv6 = true;
        let image = &mut self.image;
        image.config.iter_mut().for_each(|c| to6(&mut c.pa));
        image.ports.values_mut().for_each(|p| to6(&mut p.peer_pa));
        image.macs.values_mut().for_each(|m| to6(&mut m.pa));
        image.flood.values_mut().for_each(|f| to6(&mut f.pa));
        for record in image.records.values_mut() {
            to6(&mut record.pa);
            to6(&mut record.alt_pa);
        }
        image.peers = core::mem::take(&mut image.peers)
            .into_iter()
            .map(|(mut key, peer)| {
                to6(&mut key.pa);
                (key, peer)
            })
            .collect();
    }

    /// Has every machine, and every subnet's broadcasts, cross the provider network by one of these methods in turn.
    pub fn mix_methods(&mut self, methods: &[u8]) {
        let mut next = methods.iter().copied().cycle();
        let mut next = || next.next().unwrap_or(METHOD_NVGRE);
        for record in self.image.records.values_mut().filter(|r| r.method != METHOD_GATEWAY) {
            record.method = next();
        }
        self.image.macs.values_mut().for_each(|m| m.method = next().into());
        self.image.subnets.values_mut().for_each(|s| s.method = next().into());
    }

    /// Makes taps of some ports, which are reached by way of a hub.
    pub fn taps(&mut self, hub: u32) {
        if let Some(config) = &mut self.image.config {
            config.hub = hub;
        }
        for port in self.image.ports.values_mut().filter(|p| p.device == DEVICE_PLAIN) {
            port.device = DEVICE_TAP;
        }
    }
}

/// The port that Geneve is about to be sent to.
pub const OTHER_GENEVE_PORT: u16 = 6082;

/// Builds the site for these interfaces.
#[must_use]
pub fn site(interfaces: [u32; PORTS], uplink: u32) -> Site {
    let mut image = Image {
        config: Some(Config {
            layout: LAYOUT_VERSION,
            uplink,
            pa: Addr::v4(OWN),
            gateway_mac: GATEWAY_MAC,
            uplink_mac: Mac::default(),
            hub: 0,
            slow: 0,
            vxlan_port: VXLAN_PORT,
            geneve_port: GENEVE_PORT,
            flags: CONFIG_FLAG_OTHER_GENEVE,
            other_port: OTHER_GENEVE_PORT,
        }),
        ..Image::default()
    };
    for (net, vsids) in NETS {
        for (i, vsid) in vsids.into_iter().enumerate() {
            network(&mut image, net, vsid, i as u8 + 1);
        }
        for pa in [OWN, OTHER, THIRD] {
            peer(&mut image, net, pa, 0);
        }
    }
    for pa in [OWN, OTHER, THIRD] {
        peer(&mut image, 0, pa, 0);
    }
    peer(&mut image, 1, THIRD, PEER_FLAG_ANY_SOURCE);
    let machines = machines();
    for m in &machines {
        machine(&mut image, m, m.port.map_or(0, |p| interfaces[p]));
    }
    routes(&mut image);
    ports(&mut image, &machines, interfaces);
    floods(&mut image, interfaces);
    Site { image, machines, interfaces, uplink, over_ipv6: false }
}

fn network(image: &mut Image, net: u32, vsid: u32, third: u8) {
    let gateway = Addr::v4([10, 1, third, 1]);
    image.subnets.insert(
        vsid,
        Subnet {
            net,
            prefix_len: 120,
            method: METHOD_NVGRE.into(),
            gateway,
            generation: 1,
            ..Subnet::default()
        },
    );
    route(image, net, [10, 1, third, 0], 24, None);
    let gateway6 = Addr::v6(address6(third, 1));
    if vsid != IPV4_ONLY {
        if let Some(subnet) = image.subnets.get_mut(&vsid) {
            subnet.gateway6 = gateway6;
            subnet.prefix6_len = 64;
        }
        route6(image, net, address6(third, 0), 64, None);
    }
    // One network knows its gateways by record, the other by subnet only.
    if net == 1 {
        let record = Record { mac: GATEWAY_MAC, method: METHOD_GATEWAY, vsid, ..Record::default() };
        image.records.insert(RecordKey { net, ca: gateway }, record);
        image.records.insert(RecordKey { net, ca: gateway6 }, record);
    }
}

fn peer(image: &mut Image, net: u32, pa: [u8; 4], flags: u32) {
    image.peers.insert(PeerKey { net, pa: Addr::v4(pa) }, Peer { flags, reserved: 0 });
}

fn route(image: &mut Image, net: u32, ca: [u8; 4], len: u32, hop: Option<[u8; 4]>) {
    let key = Prefix { net, ca: super::truncate(Addr::v4(ca), 96 + len), len: 96 + len };
    let next_hop = hop.map_or(Addr::UNSET, Addr::v4);
    image.routes.insert(key, Route { next_hop, metric: 0, reserved: 0, generation: 1 });
}

fn route6(image: &mut Image, net: u32, ca: [u8; 16], len: u32, hop: Option<[u8; 16]>) {
    let key = Prefix { net, ca: super::truncate(Addr::v6(ca), len), len };
    let next_hop = hop.map_or(Addr::UNSET, Addr::v6);
    image.routes.insert(key, Route { next_hop, metric: 0, reserved: 0, generation: 1 });
}

/// `fd72:n::`.
const fn outside6(n: u8) -> [u8; 16] {
    [0xfd, 0x72, 0, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]
}

fn routes(image: &mut Image) {
    // As the ones of IPv4 below; the default route of the second network is of IPv6 only.
    route6(image, 1, outside6(1), 32, Some(address6(1, 12)));
    route6(image, 1, outside6(2), 32, Some(address6(1, 99)));
    route6(image, 1, outside6(3), 32, Some(address6(2, 1)));
    route6(image, 2, [0; 16], 0, Some(address6(1, 12)));

    // Through an appliance elsewhere, through one here, to nobody, and to a gateway, which leads nowhere.
    route(image, 1, [0, 0, 0, 0], 0, Some([10, 1, 1, 40]));
    route(image, 1, [172, 16, 0, 0], 12, Some([10, 1, 1, 12]));
    route(image, 1, [172, 16, 9, 0], 24, Some([10, 1, 1, 99]));
    route(image, 1, [172, 17, 0, 0], 16, Some([10, 1, 2, 1]));
    route(image, 2, [172, 16, 0, 0], 12, Some([10, 1, 2, 31]));
}

fn machines() -> Vec<Machine> {
    let m = |net: u32, vsid: u32, third: u8, last: u8, port: Option<usize>, pa: [u8; 4]| Machine {
        net,
        vsid,
        ca: [10, 1, third, last],
        mac: [2, net as u8, third, 0, 0, last],
        port,
        pa,
    };
    alloc::vec![
        m(1, 5001, 1, 11, Some(0), OWN),   // active, secure, veth
        m(1, 5001, 1, 12, Some(1), OWN),   // active, free, plain
        m(1, 5002, 2, 11, Some(2), OWN),   // active, secure, plain
        m(1, 5001, 1, 13, Some(3), OWN),   // blocked
        m(1, 5001, 1, 14, Some(4), OTHER), // prepared, still at the other host
        m(1, 5002, 2, 14, Some(5), OTHER), // moved to the other host
        m(1, 5001, 1, 15, Some(6), OWN),   // down
        m(1, 5001, 1, 16, Some(7), THIRD), // down and about to move to the third host
        m(2, 6001, 1, 11, Some(8), OWN),   // active, secure, veth, another tenant
        m(1, 5001, 1, 31, None, OTHER),
        m(1, 5002, 2, 31, None, OTHER),
        m(1, 5001, 1, 40, None, THIRD),
        m(2, 6001, 1, 12, None, OTHER),
        m(2, 6002, 2, 31, None, OTHER),
        m(1, 5001, 1, 50, None, OWN), // by a stale table here, but without a port
    ]
}

fn machine(image: &mut Image, m: &Machine, ifindex: u32) {
    let pa = Addr::v4(m.pa);
    // Whoever migrates may send from both hosts.
    let alt_pa = match m.port {
        Some(4 | 5) => Addr::v4(OWN),
        Some(7) => Addr::v4(OTHER),
        _ => Addr::UNSET,
    };
    let mac = Mac::new(m.mac);
    let record = Record {
        pa,
        alt_pa,
        mac,
        method: METHOD_NVGRE,
        reserved: 0,
        vsid: m.vsid,
        ifindex,
        generation: 1,
        ..Record::default()
    };
    image.records.insert(RecordKey { net: m.net, ca: Addr::v4(m.ca) }, record);
    image.records.insert(RecordKey { net: m.net, ca: Addr::v6(m.ca6()) }, record);
    let entry = MacEntry { pa, ifindex, method: u32::from(METHOD_NVGRE) };
    image.macs.insert(MacKey { vsid: m.vsid, mac, reserved: 0 }, entry);
}

fn ports(image: &mut Image, machines: &[Machine], interfaces: [u32; PORTS]) {
    for (i, m) in machines.iter().take(PORTS).enumerate() {
        let state = match i {
            3 => PORT_BLOCKED,
            4 => PORT_PREPARED,
            5 => PORT_MOVED,
            _ => PORT_ACTIVE,
        };
        let peer_pa = match i {
            4 | 5 => Addr::v4(OTHER),
            7 => Addr::v4(THIRD),
            _ => Addr::UNSET,
        };
        let secure = if i == 1 { 0 } else { PORT_FLAG_SECURITY };
        let autoconf = if i == 2 { PORT_FLAG_AUTOCONF } else { 0 };
        let down = if i == 6 || i == 7 { PORT_FLAG_DOWN } else { 0 };
        image.ports.insert(
            interfaces[i],
            Port {
                net: m.net,
                vsid: m.vsid,
                peer_pa,
                mac: Mac::new(m.mac),
                mtu: MTU,
                state,
                device: if i == 0 || i == 8 { DEVICE_VETH } else { DEVICE_PLAIN },
                flags: secure | down | autoconf,
                flood_rate: 1_000_000_000,
                flood_burst: 1_000_000_000,
                reserved: 0,
                generation: 1,
            },
        );
    }
}

fn floods(image: &mut Image, interfaces: [u32; PORTS]) {
    let mut flood = |vsid: u32, entries: &[(Option<usize>, [u8; 4])]| {
        for (index, (port, pa)) in entries.iter().enumerate() {
            let entry = match port {
                Some(p) => FloodEntry { pa: Addr::UNSET, ifindex: interfaces[*p] },
                None => FloodEntry { pa: Addr::v4(*pa), ifindex: 0 },
            };
            image.flood.insert(FloodKey { vsid, index: index as u32 }, entry);
        }
    };
    flood(
        5001,
        &[(Some(0), OWN), (None, OTHER), (Some(1), OWN), (Some(3), OWN), (Some(6), OWN), (None, THIRD)],
    );
    flood(5002, &[(None, OTHER), (Some(2), OWN)]);
    flood(6001, &[(Some(8), OWN)]);
}
