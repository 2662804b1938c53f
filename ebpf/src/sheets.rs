//! Work sheets: one per program and processor, outside the stack.
//!
//! They serve two ends. The stack's 512 bytes are too small for decision and edits together. And the
//! verifier follows every value that it knows: what went through a map it knows no more, so that all ways
//! through the decision meet again before the edits, instead of multiplying with them.
//! A program cannot be interrupted by itself on one processor, because ingress runs with bottom halves off.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use tenet_forward::{PortWork, UplinkWork, rewrite::RewriteWork};

/// What the halves of `port_in` share.
pub struct PortSheet {
    pub work: PortWork,
    /// A `Verdict` as words.
    pub verdict: [u32; 3],
}

/// What the halves of `uplink_in` share.
pub struct UplinkSheet {
    pub work: UplinkWork,
    /// A `Verdict` as words.
    pub verdict: [u32; 3],
}

/// What the looks at a frame that may be for a rewrite address share.
pub struct RewriteSheet {
    pub work: RewriteWork,
    /// A `Verdict` as words.
    pub verdict: [u32; 3],
}

#[map]
static PORT_SHEETS: PerCpuArray<PortSheet> = PerCpuArray::with_max_entries(1, 0);
#[map]
static UPLINK_SHEETS: PerCpuArray<UplinkSheet> = PerCpuArray::with_max_entries(1, 0);
#[map]
static REWRITE_SHEETS: PerCpuArray<RewriteSheet> = PerCpuArray::with_max_entries(1, 0);

/// This processor's sheet for a port's frame; the first half writes it before anybody reads.
#[inline(always)]
pub fn port() -> Option<&'static mut PortSheet> {
    // SAFETY: checked lookup; nobody else uses this processor's sheet meanwhile (see the module's head).
    PORT_SHEETS.get_ptr_mut(0).map(|s| unsafe { &mut *s })
}

/// This processor's sheet for a frame from the provider network.
#[inline(always)]
pub fn uplink() -> Option<&'static mut UplinkSheet> {
    // SAFETY: as in `port`.
    UPLINK_SHEETS.get_ptr_mut(0).map(|s| unsafe { &mut *s })
}

/// This processor's sheet for a frame that may be for a rewrite address.
#[inline(always)]
pub fn rewrite() -> Option<&'static mut RewriteSheet> {
    // SAFETY: as in `port`.
    REWRITE_SHEETS.get_ptr_mut(0).map(|s| unsafe { &mut *s })
}
