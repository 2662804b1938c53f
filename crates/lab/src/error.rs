//! What can go wrong with a lab.

use std::{io, path::PathBuf};
use tenet_site::SiteError;

/// Why a lab could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The site cannot be built as a lab.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// The site has a thing that a lab cannot have.
    #[error("{0}")]
    Plan(String),
    /// There is a lab of this name already.
    #[error(
        "lab {name} is there already: use it, end it with `tenet lab down {name}`, or choose another name"
    )]
    Exists {
        /// Its name.
        name: String,
    },
    /// There is no lab of this name.
    #[error("there is no lab {name}: start it with `tenet lab up {name}`")]
    NotThere {
        /// Its name.
        name: String,
    },
    /// The lab has no such host or VM.
    #[error("lab {lab} has no {what}; it has {known}")]
    Unknown {
        /// The lab.
        lab: String,
        /// What was asked for.
        what: String,
        /// What there is.
        known: String,
    },
    /// A network operation was refused.
    #[error(transparent)]
    Net(#[from] tenet_hostnet::Error),
    /// A file or process operation was refused.
    #[error("could not {action}")]
    Io {
        /// What was tried.
        action: String,
        /// Why not.
        source: io::Error,
    },
    /// The record of a lab cannot be read.
    #[error("the record {} is damaged: remove the lab's namespaces by hand, then the file", .path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The controller refused something.
    #[error("the lab's controller refused to {action}: {source}")]
    Api {
        /// What was tried.
        action: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something did not happen in time.
    #[error("{what} within {seconds} s; its log is {}{}", .log.display(), Tail(.tail.clone()))]
    Timeout {
        /// What did not happen.
        what: String,
        /// How long we waited.
        seconds: u64,
        /// Where to look.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A guest does not do what it should.
    #[error("guest {name} {what}; its logs are in {}{said}", .dir.display())]
    Guest {
        /// Its name.
        name: String,
        /// What it did or did not do.
        what: String,
        /// Its folder.
        dir: PathBuf,
        /// What it and its emulator said last.
        said: Tail,
    },
    /// Some parts could not be removed; the rest is gone.
    #[error("could not remove all of the lab; try again or remove by hand:\n{}", .0.join("\n"))]
    Leftovers(Vec<String>),
}

/// Result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Turns an I/O error into ours, with what was tried.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

/// Last lines of a log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tail(pub String);

impl std::fmt::Display for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ", ending with\n{}", self.0) }
    }
}
