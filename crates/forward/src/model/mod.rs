//! A frame and tables in ordinary memory: the reference that the kernel's programs are compared with.

pub mod fuzz;
pub mod packets;
pub mod rewrite;
pub mod rewrite_fuzz;
pub mod rewrite_traffic;
pub mod site;
pub mod traffic;
pub mod traffic6;
mod tunnels;

use crate::rewrite::{RewriteWork, uplink};
use crate::stt::{Kind, Stream};
use crate::{
    Action, Frame, FrameMut, HubFrame, Meta, Note, PortWork, Refused, Shed, Tables, UplinkWork, Verdict,
    bucket, clamp, edit, flood, port_ingress, uplink_ingress,
};
use alloc::vec::Vec;
use tenet_tables::{
    Addr, Bucket, Config, DropReason, FloodEntry, FloodKey, MacEntry, MacKey, PORT_ACTIVE, Peer, PeerKey,
    Port, Record, RecordKey, Rewrite, RewriteKey, Route, Subnet,
    image::{Image, Prefix},
};
use tenet_wire::{Envelope, Ethernet, checksum};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A frame in memory, with the copies that were made of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemoryFrame {
    /// The frame's bytes.
    pub bytes: Vec<u8>,
    /// Payload bytes per segment if it stands for several, else 0.
    pub gso_size: u32,
    /// Copies that were sent to ports, by interface.
    pub to_ports: Vec<(u32, Vec<u8>)>,
    /// Encapsulated copies that were sent to other hosts.
    pub to_wire: Vec<Vec<u8>>,
}

impl MemoryFrame {
    /// Takes a frame's bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), ..Self::default() }
    }
}

impl Frame for MemoryFrame {
    fn load<T: FromBytes + IntoBytes>(&self, at: u32, into: &mut T) -> Result<(), Refused> {
        let (value, _) =
            T::read_from_prefix(self.bytes.get(at as usize..).ok_or(Refused)?).map_err(|_| Refused)?;
        *into = value;
        Ok(())
    }

    fn sum(&self, at: u32, len: u32) -> Result<u16, Refused> {
        let bytes = self.bytes.get(at as usize..at as usize + len as usize).ok_or(Refused)?;
        Ok(checksum::fold(checksum::sum_bytes(bytes)))
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }

    fn verified(&self) -> bool {
        false
    }
}

impl FrameMut for MemoryFrame {
    fn store<T: IntoBytes + Immutable>(&mut self, at: u32, from: &T) -> Result<(), Refused> {
        from.write_to_prefix(self.bytes.get_mut(at as usize..).ok_or(Refused)?).map_err(|_| Refused)
    }

    fn mend_l4(&mut self, at: u32, difference: u32, _pseudo: bool, udp: bool) -> Result<(), Refused> {
        let mut sum = 0u16;
        self.load(at, &mut sum)?;
        if udp && sum == 0 {
            return Ok(());
        }
        let mended = checksum::mend(sum, difference);
        self.store(at, &if udp && mended == 0 { 0xffff } else { mended })
    }

    fn account(&mut self, _difference: u32) {}

    fn grow_tunnel(&mut self, envelope: Envelope, _ip: bool) -> Result<(), Refused> {
        // Not zeros: whoever relies on them would differ from the kernel.
        self.bytes.splice(0..0, core::iter::repeat_n(0xee, envelope.overhead() as usize));
        Ok(())
    }

    fn shrink_tunnel(&mut self, shed: &Shed) -> Result<(), Refused> {
        if self.bytes.len() < shed.len as usize {
            return Err(Refused);
        }
        self.bytes.drain(..shed.len as usize);
        Ok(())
    }

    fn swap_tunnel(&mut self, shed: &Shed) -> Result<(), Refused> {
        if self.bytes.len() < shed.len as usize {
            return Err(Refused);
        }
        let new = HubFrame::LEN as usize - Ethernet::LEN as usize;
        self.bytes.splice(Ethernet::LEN as usize..shed.len as usize, core::iter::repeat_n(0xee, new));
        Ok(())
    }

    fn grow_head(&mut self, by: u32) -> Result<(), Refused> {
        self.bytes.splice(0..0, core::iter::repeat_n(0xee, by as usize));
        Ok(())
    }

    fn room(&mut self, by: i32, _trusted: bool) -> Result<(), Refused> {
        const LINK: usize = Ethernet::LEN as usize;
        let change = by.unsigned_abs() as usize;
        if by >= 0 {
            self.bytes.splice(LINK..LINK, core::iter::repeat_n(0xee, change));
        } else if self.bytes.len() <= LINK + change {
            return Err(Refused);
        } else {
            self.bytes.drain(LINK..LINK + change);
        }
        self.bytes[..LINK].fill(0xee);
        Ok(())
    }

    fn other_family(&mut self, v6: bool) -> Result<(), Refused> {
        self.room(if v6 { 20 } else { -20 }, false)
    }

    fn resize(&mut self, len: u32) -> Result<(), Refused> {
        self.bytes.resize(len as usize, 0xee);
        Ok(())
    }

    fn remake(&mut self, len: u32) -> Result<(), Refused> {
        self.bytes.clear();
        self.bytes.resize(len as usize, 0xee);
        Ok(())
    }

    fn clone_to_port(&mut self, ifindex: u32) {
        self.to_ports.push((ifindex, self.bytes.clone()));
    }

    fn clone_to_wire(&mut self, _uplink: u32) {
        self.to_wire.push(self.bytes.clone());
    }
}

impl Tables for Image {
    fn config(&self) -> Option<&Config> {
        // The kernel's array always has its entry.
        const NONE: Config = Config {
            layout: 0,
            uplink: 0,
            pa: Addr::UNSET,
            gateway_mac: tenet_wire::Mac { halves: [0; 3] },
            uplink_mac: tenet_wire::Mac { halves: [0; 3] },
            hub: 0,
            slow: 0,
            vxlan_port: 0,
            geneve_port: 0,
            flags: 0,
            other_port: 0,
        };
        Some(self.config.as_ref().unwrap_or(&NONE))
    }
    fn port(&self, ifindex: u32) -> Option<&Port> {
        self.ports.get(&ifindex)
    }
    fn subnet(&self, vsid: u32) -> Option<&Subnet> {
        self.subnets.get(&vsid)
    }
    fn record(&self, key: &RecordKey) -> Option<&Record> {
        self.records.get(key)
    }
    fn rewrite(&self, key: &RewriteKey) -> Option<&Rewrite> {
        self.rewrites.get(key)
    }
    fn in_pool(&self, pa: Addr) -> bool {
        self.pools.keys().any(|(key, len)| truncate(pa, *len) == key.pa)
    }
    fn mac(&self, key: &MacKey) -> Option<&MacEntry> {
        self.macs.get(key)
    }
    fn route(&self, net: u32, ca: Addr) -> Option<&Route> {
        (0..=128).rev().find_map(|len| self.routes.get(&Prefix { net, ca: truncate(ca, len), len }))
    }
    fn peer(&self, key: &PeerKey) -> Option<&Peer> {
        self.peers.get(key)
    }
    fn flood(&self, key: &FloodKey) -> Option<&FloodEntry> {
        self.flood.get(key)
    }
}

/// An address with all bits behind a prefix set to zero.
#[must_use]
pub fn truncate(ca: Addr, len: u32) -> Addr {
    let mut words = ca.words;
    for (i, word) in words.iter_mut().enumerate() {
        let kept = len.saturating_sub(i as u32 * 32).min(32);
        let mask = if kept == 0 { 0 } else { u32::MAX << (32 - kept) };
        *word &= mask.to_be();
    }
    Addr { words }
}

/// Everything that came of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What is to be done with it.
    pub action: Action,
    /// The frame after the edits, and its copies.
    pub frame: MemoryFrame,
    /// What the agent may be told.
    pub note: Note,
    /// Whether it activated its port.
    pub activated: bool,
    /// The port of this host that has moved and that it is redirected for, or 0.
    pub moved: u32,
    /// Whether the segment size that it offered was lowered.
    pub clamped: bool,
}

/// Does all that the program `port_in` does with a frame from a VM, the activation of the port included.
pub fn port_in(bytes: &[u8], meta: &Meta, tables: &mut Image, bucket: &mut Bucket, now: u64) -> Outcome {
    let mut frame = MemoryFrame { gso_size: meta.gso_size, ..MemoryFrame::new(bytes) };
    let mut work = PortWork::default();
    let verdict = port_ingress(&frame, meta, tables, &mut work);
    if work.activated
        && let Some(port) = tables.ports.get_mut(&meta.ifindex)
    {
        port.state = PORT_ACTIVE;
    }
    let outcome = |action, frame, clamped| Outcome {
        action,
        frame,
        note: work.note,
        activated: work.activated,
        moved: work.moved,
        clamped,
    };
    let mut clamped = false;
    let action = if let Verdict::Flood { vsid } = verdict {
        Action::Drop(flood_out(&mut frame, meta, tables, &work, (vsid, bucket, now)))
    } else {
        let forwarded = matches!(verdict, Verdict::Deliver { .. } | Verdict::Encapsulate | Verdict::Rewrite);
        if forwarded && work.segment != 0 {
            match clamp(&mut frame, &work) {
                Ok(lowered) => clamped = lowered,
                Err(Refused) => return outcome(Action::Drop(DropReason::KernelRefused), frame, false),
            }
        }
        edit::port(&mut frame, meta.len, verdict, tables, meta.ifindex, &work)
    };
    outcome(action, frame, clamped)
}

fn flood_out(
    frame: &mut MemoryFrame,
    meta: &Meta,
    tables: &Image,
    work: &PortWork,
    (vsid, bucket, now): (u32, &mut Bucket, u64),
) -> DropReason {
    let (Some(port), Some(config)) = (tables.ports.get(&meta.ifindex), tables.config.as_ref()) else {
        return DropReason::UnknownPort;
    };
    let (rate, burst) = (port.flood_rate, port.flood_burst);
    if rate == 0 || !bucket::take(&mut bucket.flood_at, &mut bucket.flood_tokens, now, rate, burst) {
        return DropReason::FloodLimited;
    }
    if let Some(reason) = flood::end_of_local(tables, vsid) {
        flood::to_ports(frame, tables, vsid, meta.ifindex);
        return reason;
    }
    flood::from_port(frame, tables, work, (meta.len, vsid, meta.ifindex), config)
}

/// Does all that the program `uplink_in` does with a frame from the provider network.
pub fn uplink_in(bytes: &[u8], meta: &Meta, tables: &Image) -> Outcome {
    let mut frame = MemoryFrame { gso_size: meta.gso_size, ..MemoryFrame::new(bytes) };
    let mut work = UplinkWork::default();
    let verdict = uplink_ingress(&frame, meta, tables, &mut work);
    if verdict == Verdict::Pass {
        return rewrite_in(frame, meta, tables);
    }
    let is_stt = work.stt.kind != Kind::Foreign;
    let action = if let Verdict::Flood { vsid } = verdict {
        let stripped =
            if is_stt { frame.stt_decapsulate(&work) } else { edit::decapsulate(&mut frame, &work) };
        match stripped {
            Ok(()) => {
                flood::to_ports(&mut frame, tables, vsid, 0);
                Action::Drop(DropReason::Replicated)
            }
            Err(Refused) => Action::Drop(DropReason::KernelRefused),
        }
    } else if let (Verdict::Part, Some(config)) = (verdict, tables.config.as_ref()) {
        // No first part has ever come.
        edit::stt_part(&mut frame, &work, config, None)
    } else if is_stt {
        edit::stt(&mut frame, verdict, tables, &work, &mut Stream::default()).0
    } else {
        edit::uplink(&mut frame, verdict, tables, &work)
    };
    Outcome { action, frame, note: work.note, activated: false, moved: work.moved, clamped: false }
}

/// What no tunnel's end takes may be for a rewrite address.
fn rewrite_in(mut frame: MemoryFrame, meta: &Meta, tables: &Image) -> Outcome {
    let mut work = RewriteWork::default();
    let action = uplink(&mut frame, meta, tables, &mut work);
    Outcome { action, frame, note: work.note, activated: false, moved: work.moved, clamped: false }
}

/// What the program `port_in` is told about a plain frame.
#[must_use]
pub fn meta(bytes: &[u8], ifindex: u32) -> Meta {
    Meta { ifindex, len: u32::try_from(bytes.len()).unwrap_or(u32::MAX), ..Meta::default() }
}
