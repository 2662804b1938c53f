//! A small site whose networks use IP Rewrite: two hosts, both families, machines in every state.

use super::site::{MTU, OTHER, OWN};
use alloc::vec::Vec;
use tenet_tables::{
    Addr, CONFIG_FLAG_REWRITE, Config, DEVICE_PLAIN, DEVICE_VETH, FloodEntry, FloodKey, GATEWAY_MAC,
    GENEVE_PORT, LAYOUT_VERSION, METHOD_GATEWAY, METHOD_REWRITE, MacEntry, MacKey, PORT_ACTIVE, PORT_BLOCKED,
    PORT_FLAG_DOWN, PORT_FLAG_SECURITY, PORT_MOVED, PORT_PREPARED, Peer, PeerKey, Pool, PoolKey, Port,
    Record, RecordKey, Rewrite, RewriteKey, Route, Subnet, VXLAN_PORT,
    image::{Image, Prefix},
};
use tenet_wire::Mac;

/// Provider addresses of the hosts.
pub const HOSTS: [[u8; 4]; 2] = [OWN, OTHER];
/// MACs of the hosts' uplinks.
pub const UPLINK_MACS: [Mac; 2] = [Mac::new([2, 0xaa, 0, 0, 0, 0]), Mac::new([2, 0xaa, 0, 0, 0, 1])];
/// Networks and virtual subnets.
pub const SUBNETS: [(u32, u32); 3] = [(3, 7001), (3, 7002), (4, 8001)];
/// Machines that have a port at the first host.
pub const PORTS: usize = 8;

/// A machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Machine {
    /// Its number.
    pub number: u8,
    /// Network.
    pub net: u32,
    /// Virtual subnet.
    pub vsid: u32,
    /// Where it lives by the tables.
    pub home: usize,
    /// Where it also has a port, because it migrates.
    pub other: Option<usize>,
    /// Whether it has rewrite addresses for IPv6.
    pub v6: bool,
}

impl Machine {
    /// Its MAC.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        Mac::new([2, 3, 0, 0, 0, self.number])
    }

    /// Its customer address.
    #[must_use]
    pub const fn ca(&self, v6: bool) -> Addr {
        let (subnet, last) = ((self.vsid % 10) as u8, 10 + self.number);
        if v6 {
            Addr::v6([0xfd, 0, 0, 3, 0, subnet, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
        } else {
            Addr::v4([10, 3, subnet, last])
        }
    }

    /// The address that stands for it at a host.
    #[must_use]
    pub const fn pa(&self, host: usize, v6: bool) -> Addr {
        pool(host, v6, 10 + self.number)
    }

    /// Its address at its home.
    #[must_use]
    pub const fn home_pa(&self, v6: bool) -> Addr {
        self.pa(self.home, v6)
    }

    const fn has_port(&self, host: usize) -> bool {
        match self.other {
            Some(other) => other == host || self.home == host,
            None => self.home == host,
        }
    }
}

/// The n-th address of a host's pool.
#[must_use]
pub const fn pool(host: usize, v6: bool, n: u8) -> Addr {
    if v6 {
        Addr::v6([0xfd, 0, 0, 0xaa, 0, host as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, n])
    } else {
        Addr::v4([192, 168, 100 + host as u8, n])
    }
}

/// The gateway of a virtual subnet.
#[must_use]
pub const fn gateway(vsid: u32, v6: bool) -> Addr {
    let subnet = (vsid % 10) as u8;
    if v6 {
        Addr::v6([0xfd, 0, 0, 3, 0, subnet, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    } else {
        Addr::v4([10, 3, subnet, 1])
    }
}

/// Who lives in the site; the first [`PORTS`] have a port at the first host.
#[must_use]
pub fn machines() -> Vec<Machine> {
    let m = |number, (net, vsid), home, other| Machine { number, net, vsid, home, other, v6: number != 11 };
    let [near, far, foreign] = SUBNETS;
    alloc::vec![
        m(0, near, 0, None),    // active, secure, veth
        m(1, far, 0, None),     // active, secure, plain
        m(2, near, 0, None),    // active, without port security
        m(3, near, 1, Some(0)), // prepared here, still at the other host
        m(4, near, 1, Some(0)), // moved to the other host
        m(5, near, 0, Some(1)), // down, about to move to the other host
        m(6, near, 0, None),    // blocked
        m(7, foreign, 0, None), // active, another tenant
        m(8, near, 1, None),
        m(9, far, 1, None),
        m(10, foreign, 1, None),
        m(11, near, 1, None), // without rewrite addresses for IPv6
    ]
}

/// Interface of a machine's port in a site of plain memory.
#[must_use]
pub const fn interface(number: u8) -> u32 {
    100 + number as u32
}

/// The tables of a host, with these interfaces for its ports by the machines' numbers.
#[must_use]
pub fn image(host: usize, uplink: u32, interfaces: impl Fn(u8) -> u32) -> Image {
    let mut image = Image {
        config: Some(Config {
            layout: LAYOUT_VERSION,
            uplink,
            pa: Addr::v4(HOSTS[host]),
            gateway_mac: GATEWAY_MAC,
            uplink_mac: UPLINK_MACS[host],
            hub: 0,
            slow: 0,
            vxlan_port: VXLAN_PORT,
            geneve_port: GENEVE_PORT,
            flags: CONFIG_FLAG_REWRITE,
            other_port: 0,
        }),
        ..Image::default()
    };
    for (net, vsid) in SUBNETS {
        subnet(&mut image, net, vsid);
        for pa in HOSTS {
            image.peers.insert(PeerKey { net, pa: Addr::v4(pa) }, Peer::default());
            image.peers.insert(PeerKey { net: 0, pa: Addr::v4(pa) }, Peer::default());
        }
    }
    for (v6, len) in [(false, 96 + 24), (true, 64)] {
        let pa = super::truncate(pool(host, v6, 0), len);
        image.pools.insert((PoolKey { pa }, len), Pool { generation: 1 });
    }
    let machines = machines();
    for m in &machines {
        let ifindex = if m.has_port(host) { interfaces(m.number) } else { 0 };
        machine(&mut image, m, host, ifindex);
        if ifindex != 0 {
            image.ports.insert(ifindex, port(m, host));
        }
    }
    floods(&mut image, &machines, host, interfaces);
    image
}

fn subnet(image: &mut Image, net: u32, vsid: u32) {
    let [gateway4, gateway6] = [false, true].map(|v6| gateway(vsid, v6));
    image.subnets.insert(
        vsid,
        Subnet {
            net,
            prefix_len: 96 + 24,
            prefix6_len: 64,
            method: METHOD_REWRITE.into(),
            gateway: gateway4,
            gateway6,
            generation: 1,
        },
    );
    for (ca, len) in [(gateway4, 96 + 24), (gateway6, 64)] {
        let key = Prefix { net, ca: super::truncate(ca, len), len };
        image.routes.insert(key, Route { generation: 1, ..Route::default() });
        let record = Record { mac: GATEWAY_MAC, method: METHOD_GATEWAY, vsid, ..Record::default() };
        image.records.insert(RecordKey { net, ca }, record);
    }
}

fn machine(image: &mut Image, m: &Machine, host: usize, ifindex: u32) {
    let pa = Addr::v4(HOSTS[m.home]);
    for v6 in [false, true] {
        let has = m.v6 || !v6;
        let record = Record {
            pa,
            alt_pa: m.other.map_or(Addr::UNSET, |o| Addr::v4(HOSTS[o])),
            rewrite_pa: if has { m.home_pa(v6) } else { Addr::UNSET },
            mac: m.mac(),
            method: METHOD_REWRITE,
            vsid: m.vsid,
            ifindex,
            generation: 1,
            ..Record::default()
        };
        image.records.insert(RecordKey { net: m.net, ca: m.ca(v6) }, record);
        if !has {
            continue;
        }
        for (at, other) in [(Some(m.home), m.other), (m.other, Some(m.home))] {
            let Some(at) = at else { continue };
            let row = Rewrite {
                net: m.net,
                vsid: m.vsid,
                ca: m.ca(v6),
                other_pa: other.map_or(Addr::UNSET, |o| m.pa(o, v6)),
                mac: m.mac(),
                ifindex: if at == host { ifindex } else { 0 },
                generation: 1,
                ..Rewrite::default()
            };
            image.rewrites.insert(RewriteKey { pa: m.pa(at, v6) }, row);
        }
    }
    let entry = MacEntry { pa, ifindex, method: METHOD_REWRITE.into() };
    image.macs.insert(MacKey { vsid: m.vsid, mac: m.mac(), reserved: 0 }, entry);
}

fn port(m: &Machine, host: usize) -> Port {
    let state = match (m.number, host) {
        (3, 0) => PORT_PREPARED,
        (4, 0) => PORT_MOVED,
        (5, 1) => PORT_PREPARED,
        (6, _) => PORT_BLOCKED,
        _ => PORT_ACTIVE,
    };
    let down = if m.number == 5 && host == 0 { PORT_FLAG_DOWN } else { 0 };
    let secure = if m.number == 2 { 0 } else { PORT_FLAG_SECURITY };
    let peer = m.other.map(|other| if m.home == host { other } else { m.home });
    Port {
        net: m.net,
        vsid: m.vsid,
        peer_pa: peer.map_or(Addr::UNSET, |p| Addr::v4(HOSTS[p])),
        mac: m.mac(),
        mtu: MTU,
        state,
        device: if m.number == 0 { DEVICE_VETH } else { DEVICE_PLAIN },
        flags: secure | down,
        flood_rate: 1_000_000_000,
        flood_burst: 1_000_000_000,
        reserved: 0,
        generation: 1,
    }
}

fn floods(image: &mut Image, machines: &[Machine], host: usize, interfaces: impl Fn(u8) -> u32) {
    for (_, vsid) in SUBNETS {
        let local = machines.iter().filter(|m| m.vsid == vsid && m.has_port(host));
        let mut entries: Vec<_> =
            local.map(|m| FloodEntry { pa: Addr::UNSET, ifindex: interfaces(m.number) }).collect();
        // The second tenant's subnet has nobody elsewhere, as far as broadcasts go.
        if vsid != 8001 {
            entries.push(FloodEntry { pa: Addr::v4(HOSTS[1 - host]), ifindex: 0 });
        }
        for (index, entry) in entries.into_iter().enumerate() {
            image.flood.insert(FloodKey { vsid, index: index as u32 }, entry);
        }
    }
}
