//! Copies for all who should have a broadcast.

use crate::{
    act::{SHOT, drop},
    maps::Maps,
    skb::Skb,
    tell,
};
use aya_ebpf::bindings::__sk_buff;
use tenet_forward::{PortWork, Tables as _, Verdict, flood};
use tenet_tables::{DropReason, FLOOD_LIMIT};

/// Copies a VM's broadcast to all who should have it: first to the ports of this host, then, encapsulated, to the
/// other hosts.
#[inline(always)]
pub fn flood_out(frame: Skb, work: &PortWork) -> i32 {
    let meta = frame.meta();
    if tell::may_flood(meta.ifindex) == 0 {
        return drop(&meta, DropReason::FloodLimited);
    }
    let Some(vsid) = Maps.port(meta.ifindex).map(|p| p.vsid) else { return SHOT };
    flood_to_ports(&frame, vsid, meta.ifindex);
    let end = flood_end_of_local(vsid);
    if end != 0 {
        tell::dropped(frame.meta().ifindex, end);
        return SHOT;
    }
    if let Some(reason) = DropReason::from_number(flood_encapsulate(frame.again(), work, vsid)) {
        return drop(&frame.meta(), reason);
    }
    let mut index = 0;
    while index < FLOOD_LIMIT && flood_remote_step(frame.raw(), vsid, index) != 0 {
        index += 1;
    }
    drop(&frame.meta(), DropReason::Replicated)
}

#[inline(always)]
pub fn flood_to_ports(frame: &Skb, vsid: u32, sender: u32) {
    let mut index = 0;
    while index < FLOOD_LIMIT && flood_local_step(frame.raw(), vsid, index, sender) != 0 {
        index += 1;
    }
}

/// The reason by which a broadcast ends at its own host because no method carries it further; 0: one does.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flood_end_of_local(vsid: u32) -> u32 {
    flood::end_of_local(&Maps, vsid).map_or(0, |reason| reason as u32)
}

/// Puts a tunnel before the frame: 0, or the number of the reason why not.
#[inline(never)]
fn flood_encapsulate(mut frame: Skb, work: &PortWork, vsid: u32) -> u32 {
    let len = frame.meta().len;
    match flood::encapsulate(&mut frame, len, work, vsid, &Maps) {
        Ok(()) => 0,
        Err(reason) => reason as u32,
    }
}

/// One receiver of a broadcast on this host. Exported, and so a global function, which the verifier checks once
/// for all calls; as a part of the loop it would be checked in every round.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flood_local_step(skb: *mut __sk_buff, vsid: u32, index: u32, sender: u32) -> u32 {
    u32::from(flood::local_step(&mut Skb::from_raw(skb), &Maps, vsid, index, sender))
}

/// One receiver of a broadcast on another host; see [`flood_local_step`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flood_remote_step(skb: *mut __sk_buff, vsid: u32, index: u32) -> u32 {
    let Some(uplink) = Maps.config().map(|c| c.uplink) else { return 0 };
    u32::from(flood::remote_step(&mut Skb::from_raw(skb), &Maps, vsid, index, uplink))
}

#[inline(always)]
pub fn is_flood(words: [u32; 3]) -> bool {
    words[0] == Verdict::Flood { vsid: 0 }.to_words()[0]
}
