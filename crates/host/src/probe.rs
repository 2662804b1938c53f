//! The agents' own probes: a tap of the agent's that is a port of a network which no tenant has.
//!
//! A probe takes the way of the VMs' frames: `port_in`, encapsulation, the wire, `uplink_in`, and the other agent's
//! tap. Customer addresses in [`PROBE_NET`] are the hosts' provider addresses. Each host has one MAC for each method,
//! so that the destination MAC chooses the method. Nothing here shows in digests, proofs or counters.
//!
//! By IP Rewrite a probe leaves as a packet between the hosts' own provider addresses: each host has a second customer
//! address, its [`rewrite_ca`], for which its provider address stands. What comes so is no rewrite address of the
//! other host's, passes `uplink_in` as its own traffic does, and is heard there beside its stack.

mod frame;
mod remedy;
mod stream;

pub use frame::{
    Content, Frame, PORT, Report, Seen, VnetHeader, offloaded, parse, segment, write, write_tcp,
};
pub use remedy::{Feature, Remedies, Turn, features};
pub use stream::{Burst, Bursts, Grade, LOOKED_AT, Outcome, Shape, Streams, content};

use crate::plan::{self, Device, DeviceKind, Plan};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tenet_compile::{PeerRow, Row, RowKey, Rows};
use tenet_model::Name;
use tenet_tables::{
    Addr, DEVICE_TAP, METHOD_GENEVE, METHOD_NVGRE, METHOD_REWRITE, METHOD_STT, METHOD_VXLAN, Mac, MacEntry,
    MacKey, PORT_ACTIVE, PORT_FLAG_DOWN, PROBE_NET, PROBE_VSID, Port, Record, RecordKey, Subnet,
};

/// Name of the tap.
pub const TAP: &str = "tenet-probe";

/// So many of [`METHODS`], the first ones, are tunnels.
pub const TUNNELS: usize = 4;

/// The methods that frames can be probed by, each with its name.
pub const METHODS: [(u8, &str); 5] = [
    (METHOD_NVGRE, "nvgre"),
    (METHOD_VXLAN, "vxlan"),
    (METHOD_GENEVE, "geneve"),
    (METHOD_STT, "stt"),
    (METHOD_REWRITE, "rewrite"),
];

/// Bytes that a method adds to an inner IP packet, the inner Ethernet header included.
#[must_use]
pub const fn overhead(method: u8, outer: IpAddr) -> u16 {
    let ip = if outer.is_ipv4() { 20 } else { 40 };
    match method {
        METHOD_REWRITE => 0,
        METHOD_NVGRE => ip + 8 + 14,
        METHOD_STT => ip + 20 + 18 + 14,
        _ => ip + 8 + 8 + 14,
    }
}

/// The customer address of a host's probes by IP Rewrite: its provider address with one bit turned over, so that
/// both it and the checksums are really rewritten.
#[must_use]
pub fn rewrite_ca(pa: IpAddr) -> IpAddr {
    match pa {
        IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() ^ 1 << 31).into(),
        // No address of a machine becomes a group or one of IPv4's by it.
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() ^ 1 << 126).into(),
    }
}

/// A host's MAC for a method: the address itself in it, or for IPv6 a digest of 41 bits.
#[must_use]
pub fn mac(pa: IpAddr, method: u8) -> Mac {
    match pa {
        IpAddr::V4(a) => {
            let [b, c, d, e] = a.octets();
            Mac::new([0x02, method, b, c, d, e])
        }
        IpAddr::V6(a) => {
            // FNV-1a.
            let hash = (a.octets().iter())
                .fold(0xcbf2_9ce4_8422_2325_u64, |h, o| (h ^ u64::from(*o)).wrapping_mul(0x100_0000_01b3));
            let [_, _, first, second, b, c, d, e] = hash.to_be_bytes();
            Mac::new([0x06 | (first & 0xf0), method | (second & 0xf8), b, c, d, e])
        }
    }
}

/// The tap among a host's devices.
#[must_use]
pub fn tap(devices: &BTreeMap<String, Device>) -> Option<(&String, &Device)> {
    devices.iter().find(|(_, d)| d.kind == DeviceKind::Probe)
}

/// This host's provider address, if it is known.
#[must_use]
pub fn own(rows: &Rows) -> Option<IpAddr> {
    plan::host_row(rows).map(|h| h.pa)
}

/// The other hosts, by provider address.
pub fn peers(rows: &Rows) -> impl Iterator<Item = (&Name, IpAddr)> {
    let own = own(rows);
    rows.0
        .range(RowKey::Host..)
        .map_while(|(_, (row, _))| match row {
            Row::Host(_) => Some(None),
            Row::Peer(p) => Some(Some(p)),
            Row::Network(_) | Row::Subnet(_) | Row::Record(_) | Row::Route(_) | Row::Port(_) => None,
        })
        .flatten()
        .filter(move |p: &&PeerRow| Some(p.pa) != own)
        .map(|p| (&p.name, p.pa))
}

/// Writes the tables' entries for probes, if there is a tap for them.
pub(crate) fn plan_probe(rows: &Rows, devices: &BTreeMap<String, Device>, plan: &mut Plan) {
    let (Some(host), Some((_, tap))) = (plan::host_row(rows), tap(devices)) else { return };
    let image = &mut plan.image;
    let subnet = Subnet { net: PROBE_NET, method: u32::from(METHOD_NVGRE), ..Subnet::default() };
    image.subnets.insert(PROBE_VSID, subnet);
    let port = Port {
        net: PROBE_NET,
        vsid: PROBE_VSID,
        mac: mac(host.pa, METHOD_NVGRE),
        // What is too large for a path is to be found out, not to be refused.
        mtu: u16::MAX,
        state: PORT_ACTIVE,
        device: DEVICE_TAP,
        flags: if tap.carrier { 0 } else { PORT_FLAG_DOWN },
        ..Port::default()
    };
    image.ports.insert(tap.ifindex, port);
    let own = (host.pa, tap.ifindex);
    for (pa, ifindex) in peers(rows).map(|(_, pa)| (pa, 0)).chain([own]) {
        let record = Record {
            pa: pa.into(),
            alt_pa: Addr::UNSET,
            mac: mac(pa, METHOD_NVGRE),
            method: METHOD_NVGRE,
            vsid: PROBE_VSID,
            ifindex,
            ..Record::default()
        };
        image.records.insert(RecordKey { net: PROBE_NET, ca: pa.into() }, record);
        let rewritten =
            Record { mac: mac(pa, METHOD_REWRITE), method: METHOD_REWRITE, rewrite_pa: pa.into(), ..record };
        // Where a host's own address is in the place, its tunnels matter more.
        let key = RecordKey { net: PROBE_NET, ca: rewrite_ca(pa).into() };
        image.records.entry(key).or_insert(rewritten);
        for (method, _) in METHODS {
            let key = MacKey { vsid: PROBE_VSID, mac: mac(pa, method), reserved: 0 };
            image.macs.insert(key, MacEntry { pa: pa.into(), ifindex, method: u32::from(method) });
        }
    }
}
