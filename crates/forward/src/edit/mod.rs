//! From a verdict to an edited frame: [`port`] for what a VM sent, [`uplink`] for what the provider network brought.

mod port;
mod tunnel;

pub(crate) use port::wrap;
pub use port::{port, port_advertise, port_answer, port_answer6, port_forward, port_neighbour};
pub(crate) use tunnel::store_marked;
pub use tunnel::{Inside, decapsulate, encapsulate, uplink};

use crate::{Action, Refused};
use tenet_tables::DropReason;

#[inline(always)]
fn done(result: Result<(), Refused>, action: Action) -> Action {
    match result {
        Ok(()) => action,
        Err(Refused) => Action::Drop(DropReason::KernelRefused),
    }
}
