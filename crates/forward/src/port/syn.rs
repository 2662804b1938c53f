//! The segment size that opens of TCP connections offer.

use super::PortWork;
use crate::{FrameMut, Refused};
use tenet_wire::{Tcp, checksum};

/// Options that are looked at: more than these do not fit, padding apart, before the segment size that all
/// implementations write first.
const OPTIONS: u32 = 10;

/// Lowers the segment size that a frame offers to [`PortWork::segment`]. True: it was larger.
///
/// A safety beside ICMP's "too big", which not every VM listens to.
///
/// # Errors
/// If the kernel refuses.
#[inline(always)]
pub fn clamp<F: FrameMut>(frame: &mut F, work: &PortWork) -> Result<bool, Refused> {
    let start = work.packet.transport_at();
    let end = start + Tcp::header_len(work.transport.offset_flags);
    let mut at = start + Tcp::LEN;
    let mut left = OPTIONS;
    while left > 0 && at + Tcp::MSS_LEN as u32 <= end {
        left -= 1;
        let mut option = [0u8; 4];
        if frame.load(at, &mut option).is_err() {
            return Ok(false);
        }
        let [kind, len, high, low] = option;
        if kind == Tcp::OPTION_END {
            return Ok(false);
        }
        if kind == Tcp::OPTION_NOTHING {
            at += 1;
            continue;
        }
        if kind == Tcp::OPTION_MSS && len == Tcp::MSS_LEN {
            if (high as u16) << 8 | low as u16 <= work.segment {
                return Ok(false);
            }
            let new = work.segment.to_be_bytes();
            frame.store(at + 2, &new)?;
            // The halves that a checksum adds start at even places.
            let even = (at - start) & 1 == 0;
            let half = |[a, b]: [u8; 2]| u16::from_ne_bytes(if even { [a, b] } else { [b, a] });
            let difference = checksum::difference(&[half([high, low])], &[half(new)]);
            frame.mend_l4(start + Tcp::CHECKSUM_AT, difference, false, false)?;
            return Ok(true);
        }
        if len < 2 {
            return Ok(false);
        }
        at += len as u32;
    }
    Ok(false)
}
