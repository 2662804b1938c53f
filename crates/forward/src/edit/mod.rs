//! From a verdict to an edited frame: [`port`] for what a VM sent, [`uplink`] for what the provider network brought.

mod port;
mod stt;
mod tunnel;

pub(crate) use port::wrap;
pub use port::{port, port_advertise, port_answer, port_answer6, port_forward, port_neighbour};
pub(crate) use stt::mend as mend_stt;
pub use stt::{stt, stt_part, whole as stt_whole};
pub(crate) use tunnel::store_marked;
pub use tunnel::{Inside, decapsulate, encapsulate, uplink};

use crate::{Action, Refused};
use tenet_tables::{Addr, DropReason};
use tenet_wire::checksum;

/// The difference to a sum that one address in the place of another makes.
#[inline(always)]
pub(crate) fn difference(from: &Addr, to: &Addr) -> u32 {
    let [from, to]: [[u16; 8]; 2] = [zerocopy::transmute!(*from), zerocopy::transmute!(*to)];
    // Of IPv4 the mapping's prefix is on both sides and makes no difference.
    checksum::difference(&from, &to)
}

#[inline(always)]
fn done(result: Result<(), Refused>, action: Action) -> Action {
    match result {
        Ok(()) => action,
        Err(Refused) => Action::Drop(DropReason::KernelRefused),
    }
}
