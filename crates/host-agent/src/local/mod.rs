//! What runs on this host speaks to the agent: a Unix socket that only root may open.
//!
//! A request is relayed to the controller, which decides who may have what; then it waits until the agent's own look
//! at the kernel shows the ports. Without a controller it is answered from the last state, as far as that goes.

mod domains;
mod listen;
mod owed;
mod ready;
mod relay;
mod server;

pub(crate) use domains::Domains;
pub(crate) use relay::Controller;
pub(crate) use server::{Local, serve};

use tenet_host::Here;
use tenet_model::VmRef;
use tokio::sync::oneshot;

/// Asks the agent's loop for the ports that are here.
pub(crate) struct Ask {
    /// Of this VM; of all if not said.
    pub(crate) vm: Option<VmRef>,
    /// Where the answer goes.
    pub(crate) reply: oneshot::Sender<Vec<Here>>,
}
