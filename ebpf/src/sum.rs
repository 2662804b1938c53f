//! The looks at outer headers that few frames need: global functions, which the verifier checks once for all calls.

use crate::skb::Skb;
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_csum_diff, bpf_skb_load_bytes},
    macros::map,
    maps::PerCpuArray,
};
use tenet_forward::{OuterSum, outer};
use tenet_wire::checksum;

/// What is summed up at once: the most that older kernels take.
const CHUNK: usize = 512;
/// Enough for 64 KB.
const CHUNKS: u32 = 129;
/// No sum.
const FAILED: u32 = u32::MAX;

/// A chunk, and a little more for the verifier, which follows no rounding to words.
#[map]
static SUM_CHUNKS: PerCpuArray<[u32; CHUNK / 4 + 2]> = PerCpuArray::with_max_entries(1, 0);

/// One's complement sum of a part of a frame, or [`FAILED`] if the frame ends before.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn frame_sum(skb: *mut __sk_buff, at: u32, len: u32) -> u32 {
    let Some(chunk) = SUM_CHUNKS.get_ptr_mut(0) else { return FAILED };
    let words = chunk.cast::<u32>();
    let (mut at, mut left, mut sum, mut rounds) = (at, len, 0, 0);
    while left >= CHUNK as u32 {
        rounds += 1;
        // SAFETY: the helper writes the whole chunk, this processor's own, or reports an error.
        if rounds > CHUNKS || unsafe { bpf_skb_load_bytes(skb.cast(), at, chunk.cast(), CHUNK as u32) } < 0 {
            return FAILED;
        }
        sum = add(words, CHUNK as u32, sum);
        at += CHUNK as u32;
        left -= CHUNK as u32;
    }
    let rest = left & (CHUNK as u32 - 1);
    if rest != 0 {
        // Kernels before 6.8 learn nothing from a comparison with zero: that `rest` is from 1 to the chunk's length is
        // to be seen from how it is made, and the compiler must not see it.
        let before = rest - 1;
        // SAFETY: a local number.
        let last = unsafe { core::ptr::read_volatile(&raw const before) } & (CHUNK as u32 - 1);
        let rest = last + 1;
        // What follows the last byte in its word counts as zero.
        // SAFETY: `last` is less than the chunk.
        unsafe { words.add(last as usize / 4).write(0) };
        // SAFETY: `rest` is the chunk at most.
        if unsafe { bpf_skb_load_bytes(skb.cast(), at, chunk.cast(), rest) } < 0 {
            return FAILED;
        }
        sum = add(words, (last & !3) + 4, sum);
    }
    u32::from(checksum::fold(sum))
}

#[inline(always)]
fn add(words: *mut u32, len: u32, sum: u32) -> u32 {
    // SAFETY: the helper reads `len` bytes of the chunk.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, words, len, sum) as u32 }
}

/// [`outer::checksum_is_right`]: 1 if so.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn outer_checksum(skb: *mut __sk_buff, addresses: u32, at: u32, geneve: u32) -> u32 {
    let sum = OuterSum { at, addresses, geneve: geneve != 0 };
    u32::from(outer::checksum_is_right(&Skb::from_raw(skb), &sum) == Ok(true))
}

/// [`outer::check_options`]: the reason's number, or 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn geneve_options(skb: *mut __sk_buff, at: u32, len: u32) -> u32 {
    match outer::check_options(&Skb::from_raw(skb), at, len) {
        Ok(()) => 0,
        Err(reason) => reason as u32,
    }
}
