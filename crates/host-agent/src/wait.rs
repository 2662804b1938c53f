//! What the agent's loop waits for, and tasks beside it.

use crate::agent::AgentError;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;
use tokio::io::{Interest, unix::AsyncFd};

/// A task that ends with its owner.
pub(crate) struct Task(pub(crate) tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Registers what may be waited for, if there is any.
pub(crate) fn readable(
    what: &'static str,
    fd: Option<OwnedFd>,
) -> Result<Option<AsyncFd<OwnedFd>>, AgentError> {
    fd.map(register).transpose().map_err(|source| AgentError::Watch { what, source })
}

/// A descriptor that can be waited for.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one descriptor, always the same, open until it is dropped, which `AsyncFd` does last.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Waits until that moment; forever, if there is none.
pub(crate) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits until the descriptor has become readable; forever, if there is none. It is told of once: whoever leaves a part
/// of it comes back for the rest without being told again.
pub(crate) async fn ready(fd: Option<&AsyncFd<OwnedFd>>) {
    match fd {
        Some(fd) => match fd.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
