//! STT's part of the programs, and `slow_in`, where frames come back in pieces that had to be cut up first.
//!
//! Everything big is a global function of its own, which the verifier checks once, on work sheets outside the stack.

use crate::{
    act::{SHOT, act, drop},
    maps::Maps,
    sheets::{self, UplinkSheet},
    skb::Skb,
    tell,
};
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::bpf_get_smp_processor_id,
    macros::{classifier, map},
    maps::{LruHashMap, PerCpuArray},
    programs::TcContext,
};
use tenet_forward::{
    Refused, Tables as _, Target, Verdict, edit, port_first,
    stt::{self, Job, Sent, Stream, StreamKey, SttWork},
};
use tenet_tables::{Addr, DropReason};

/// What STT's functions work on.
struct SttSheet {
    work: SttWork,
    to: Target,
    stream: Stream,
}

#[map]
static STT_SHEETS: PerCpuArray<SttSheet> = PerCpuArray::with_max_entries(1, 0);
/// How many frames each processor has numbered.
#[map]
static STT_IDS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// STT frames of which the first part has come.
#[map]
static STT_STREAMS: LruHashMap<StreamKey, Stream> = LruHashMap::with_max_entries(4096, 0);

/// Processors of this host; the loader says how many. Numbers of frames are theirs in turn.
#[unsafe(no_mangle)]
static STT_PROCESSORS: u32 = 1024;

#[inline(always)]
fn sheet() -> Option<&'static mut SttSheet> {
    // SAFETY: checked lookup; as for `sheets::port`.
    STT_SHEETS.get_ptr_mut(0).map(|s| unsafe { &mut *s })
}

/// A number that no frame of this host had for long.
#[inline(always)]
fn next_id() -> u32 {
    let Some(count) = STT_IDS.get_ptr_mut(0) else { return 0 };
    // SAFETY: this processor's own number, a constant that the loader sets, and a helper that takes nothing.
    unsafe {
        *count = (*count).wrapping_add(1);
        (*count)
            .wrapping_mul(core::ptr::read_volatile(&raw const STT_PROCESSORS))
            .wrapping_add(bpf_get_smp_processor_id())
    }
}

const READY: u32 = 0;
const UNCUT: u32 = 1;
const REFUSED: u32 = 2;

/// [`stt::encapsulate`] with the work sheet of the port's program, to where STT's own sheet says.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stt_encapsulate(skb: *mut __sk_buff) -> u32 {
    let (Some(port), Some(sheet), Some(config)) = (sheets::port(), sheet(), Maps.config()) else {
        return REFUSED;
    };
    let mut frame = Skb::from_raw(skb);
    let meta = frame.meta();
    let job = Job { len: meta.len, gso_size: meta.gso_size, own: &config.pa, to: &sheet.to, id: next_id() };
    match stt::encapsulate(&mut frame, &mut sheet.work, &port.work, &job) {
        Ok(Sent::Ready) => READY,
        Ok(Sent::Uncut) => UNCUT,
        Err(_) => REFUSED,
    }
}

/// Puts STT's headers before a port's frame.
#[inline(always)]
pub fn encapsulate(frame: &Skb, to: &Target) -> Result<Sent, Refused> {
    let Some(sheet) = sheet() else { return Err(Refused) };
    // Word by word: what might overlap is copied by a slow call.
    let [a, b, c, d] = to.pa.words;
    sheet.to.pa.words = [a, b, c, d];
    sheet.to.method = to.method;
    sheet.to.vsid = to.vsid;
    sheet.to.flow = to.flow;
    match stt_encapsulate(frame.raw()) {
        READY => Ok(Sent::Ready),
        UNCUT => Ok(Sent::Uncut),
        _ => Err(Refused),
    }
}

/// [`stt::checksum_is_right`] of what the uplink's work sheet says has come: 1 if so.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stt_checksum(skb: *mut __sk_buff, outer: u32, at: u32) -> u32 {
    let Some(uplink) = sheets::uplink() else { return 0 };
    u32::from(stt::checksum_is_right(&Skb::from_raw(skb), &uplink.work.stt, outer, at) == Ok(true))
}

/// [`edit::stt_whole`] with the uplink's work sheet: 0 if done.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stt_decapsulate(skb: *mut __sk_buff) -> u32 {
    let Some(uplink) = sheets::uplink() else { return REFUSED };
    match edit::stt_whole(&mut Skb::from_raw(skb), &uplink.work) {
        Ok(()) => READY,
        Err(Refused) => REFUSED,
    }
}

/// Carries out the verdict in the uplink's work sheet on an STT frame or its first part.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stt_arrived(skb: *mut __sk_buff) -> i32 {
    let (Some(uplink), Some(sheet)) = (sheets::uplink(), sheet()) else { return SHOT };
    let mut frame = Skb::from_raw(skb);
    let meta = frame.meta();
    let verdict = Verdict::from_words(uplink.verdict);
    let (action, keep) = edit::stt(&mut frame, verdict, &Maps, &uplink.work, &mut sheet.stream);
    if keep {
        let _ = STT_STREAMS.insert(&key(uplink), &sheet.stream, 0);
    }
    act(&mut frame, &meta, action)
}

/// Delivers a later part of an STT frame, or sends it on, if the first one has come.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stt_part(skb: *mut __sk_buff) -> i32 {
    let (Some(uplink), Some(config)) = (sheets::uplink(), Maps.config()) else { return SHOT };
    let mut frame = Skb::from_raw(skb);
    let meta = frame.meta();
    let key = key(uplink);
    // SAFETY: checked lookup. Two parts on two processors at once would be counted wrong, and lost at worst.
    let stream = STT_STREAMS.get_ptr_mut(&key).map(|s| unsafe { &mut *s });
    let moved = match &stream {
        Some(stream) if !stream.onward.is_unset() => stream.ifindex,
        _ => 0,
    };
    if moved != 0 {
        tell::redirected(&frame, moved);
    }
    let action = edit::stt_part(&mut frame, &uplink.work, config, stream);
    act(&mut frame, &meta, action)
}

#[inline(always)]
fn key(uplink: &UplinkSheet) -> StreamKey {
    let [a, b, c, d] = uplink.work.from.words;
    StreamKey { src: Addr { words: [a, b, c, d] }, id: uplink.work.stt.segment.id.get() }
}

/// What comes out of the slow device: frames of ports, now in pieces. The agent's are for its socket, which saw them before.
#[classifier]
pub fn slow_in(ctx: TcContext) -> i32 {
    let mut frame = Skb::new(&ctx);
    let mut meta = frame.meta();
    if meta.mark == 0 {
        return SHOT;
    }
    meta.ifindex = meta.mark;
    meta.mark = 0;
    frame.set_mark(0);
    if meta.gso_size != 0 {
        return drop(&meta, DropReason::SttUnsupported);
    }
    let Some(sheet) = sheets::port() else { return SHOT };
    sheet.verdict = port_first(&frame, &meta, &Maps, &mut sheet.work);
    if sheet.verdict != Verdict::Encapsulate.to_words() {
        return drop(&meta, DropReason::SttUnsupported);
    }
    let action = edit::port_forward(&mut frame, meta.len, Verdict::Encapsulate, &Maps, &sheet.work);
    act(&mut frame, &meta, action)
}
