//! Counters, limits and events.

use crate::{
    maps::{BUCKETS, COUNTERS, DROPS, EVENTS, JOINER, PORTS},
    skb::Skb,
};
use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns};
use tenet_forward::{Meta, Note, PortWork, bucket, stt};
use tenet_tables::{Addr, Bucket, Counters, DropKey, DropReason, Event, EventKind, PORT_ACTIVE};

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// A port's counters of this processor.
#[inline(always)]
fn counters(ifindex: u32) -> Option<&'static mut Counters> {
    // SAFETY: values are per processor, and a program is not interrupted by itself on the same processor.
    COUNTERS.get_ptr_mut(&ifindex).map(|c| unsafe { &mut *c })
}

/// Counters at first. Not on the stack, of which older kernels have little: they count it in steps of 32 bytes.
// SAFETY: plain numbers.
static NOTHING: Counters = unsafe { core::mem::zeroed() };

/// Starts counting for a port.
#[inline(never)]
fn begin(ifindex: u32) -> Option<&'static mut Counters> {
    // Losing the race against another processor is as good as winning it.
    let _ = COUNTERS.insert(&ifindex, &NOTHING, u64::from(BPF_NOEXIST));
    counters(ifindex)
}

#[inline(always)]
fn with(ifindex: u32, count: impl FnOnce(&mut Counters)) {
    if let Some(c) = counters(ifindex) {
        count(c);
    } else if let Some(c) = begin(ifindex) {
        count(c);
    }
}

/// A VM sent this frame.
#[inline(always)]
pub fn sent(frame: &Skb, meta: &Meta) {
    let (bytes, frames) = frame.weight();
    with(meta.ifindex, |c| {
        c.tx_frames += frames;
        c.tx_bytes += bytes;
    });
}

/// A VM gets this frame.
#[inline(always)]
pub fn delivered(frame: &Skb, ifindex: u32) {
    let (bytes, frames) = frame.weight();
    with(ifindex, |c| {
        c.rx_frames += frames;
        c.rx_bytes += bytes;
    });
}

/// A frame for a port goes on to the host where the port has moved.
#[inline(always)]
pub fn redirected(frame: &Skb, ifindex: u32) {
    let (_, frames) = frame.weight();
    with(ifindex, |c| c.redirected += frames);
}

/// A VM's TCP connection gets smaller segments than it offered.
#[inline(always)]
pub fn clamped(meta: &Meta) {
    with(meta.ifindex, |c| c.clamped += 1);
}

/// Whether somebody puts STT frames together (1, else 0).
#[inline(never)]
pub fn is_joining() -> u32 {
    let Some(looked) = JOINER.get_ptr(0) else { return 0 };
    // SAFETY: the pointer comes from a checked lookup; one aligned word, which the agent writes as one.
    let looked = unsafe { core::ptr::read_volatile(looked) };
    u32::from(stt::is_joining(looked, now()))
}

/// A frame goes to the slow device.
#[inline(always)]
pub fn slow(meta: &Meta) {
    with(meta.ifindex, |c| c.slow += 1);
}

/// A VM gets an answer from the tables, or an error that is counted as a drop too.
#[inline(always)]
pub fn answered(meta: &Meta, error: Option<DropReason>) {
    if let Some(reason) = error {
        dropped(meta.ifindex, reason as u32);
        with(meta.ifindex, |c| c.icmp_errors += 1);
    } else {
        with(meta.ifindex, |c| c.answered += 1);
    }
}

/// A frame ended here.
#[inline(never)]
pub fn dropped(ifindex: u32, reason: u32) -> u32 {
    let key = DropKey { ifindex, reason };
    if let Some(n) = DROPS.get_ptr_mut(&key) {
        // SAFETY: as in `counters`.
        unsafe { *n += 1 };
    } else {
        let _ = DROPS.insert(&key, &1, u64::from(BPF_NOEXIST));
    }
    0
}

/// The interface's buckets, full at first.
#[inline(always)]
fn buckets(ifindex: u32, flood_burst: u32) -> Option<&'static mut Bucket> {
    if BUCKETS.get_ptr_mut(&ifindex).is_none() {
        let new = Bucket {
            flood_at: now(),
            flood_tokens: bucket::full(flood_burst),
            event_at: now(),
            event_tokens: bucket::full(bucket::EVENT_BURST),
        };
        let _ = BUCKETS.insert(&ifindex, &new, u64::from(BPF_NOEXIST));
    }
    // SAFETY: plain numbers; a race costs at most the exactness of a limit.
    BUCKETS.get_ptr_mut(&ifindex).map(|b| unsafe { &mut *b })
}

/// Whether a port may send one more broadcast (1, else 0); counts it if so.
#[inline(never)]
pub fn may_flood(ifindex: u32) -> u32 {
    let Some(port) = PORTS.get_ptr(&ifindex) else { return 0 };
    // SAFETY: the pointer comes from a checked lookup.
    let (rate, burst) = unsafe { ((*port).flood_rate, (*port).flood_burst) };
    let Some(b) = buckets(ifindex, burst) else { return 0 };
    if rate == 0 || !bucket::take(&mut b.flood_at, &mut b.flood_tokens, now(), rate, burst) {
        return 0;
    }
    with(ifindex, |c| c.flooded += 1);
    1
}

/// The first frame of a prepared port: the VM runs here from now on.
#[inline(always)]
pub fn activated(meta: &Meta, work: &PortWork) {
    let Some(port) = PORTS.get_ptr_mut(&meta.ifindex) else { return };
    // SAFETY: the pointer comes from a checked lookup; the agent writes the same state or a later one.
    unsafe {
        (*port).state = PORT_ACTIVE;
        send(
            meta.ifindex,
            EventKind::PortActivated as u32,
            &Note {
                kind: None,
                net: (*port).net,
                vsid: (*port).vsid,
                ca: Addr::UNSET,
                pa: Addr::UNSET,
                mac: work.head.eth.src,
            },
        );
    }
}

/// Tells the agent, if there is something to tell and the interface has not told too much already.
#[inline(always)]
pub fn note(meta: &Meta, note: &Note) {
    let Some(kind) = note.kind else { return };
    if may_tell(meta.ifindex) != 0 {
        send(meta.ifindex, kind as u32, note);
    }
}

#[inline(never)]
fn may_tell(ifindex: u32) -> u32 {
    let burst = match PORTS.get_ptr(&ifindex) {
        // SAFETY: the pointer comes from a checked lookup.
        Some(port) => unsafe { (*port).flood_burst },
        None => 0,
    };
    let Some(b) = buckets(ifindex, burst) else { return 0 };
    u32::from(bucket::take(
        &mut b.event_at,
        &mut b.event_tokens,
        now(),
        bucket::EVENT_RATE,
        bucket::EVENT_BURST,
    ))
}

#[inline(always)]
fn send(ifindex: u32, kind: u32, note: &Note) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else { return };
    entry.write(Event {
        kind,
        ifindex,
        vsid: note.vsid,
        mac: note.mac,
        reserved: 0,
        ca: note.ca,
        pa: note.pa,
        net: note.net,
    });
    entry.submit(0);
}
