//! What can go wrong, with the link and the namespace in every message.

use std::io;

/// Why the kernel's network could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such link.
    #[error("no link {link:?} in {netns}")]
    NoSuchLink {
        /// Name, or number after a `#`.
        link: String,
        /// Namespace.
        netns: String,
    },
    /// The name is taken: by a link, an address or a route.
    #[error("{what} already exists in {netns}")]
    Exists {
        /// What was to be created.
        what: String,
        /// Namespace.
        netns: String,
    },
    /// The kernel refused a request.
    #[error("cannot {action} in {netns}{}", detail(why))]
    Refused {
        /// What was tried.
        action: String,
        /// Namespace.
        netns: String,
        /// The kernel's own words, if it had any.
        why: String,
        /// The kernel's error number.
        source: io::Error,
    },
    /// The name cannot be a link's or a namespace's.
    #[error("{name:?} cannot be the name of a {what}: {rule}")]
    BadName {
        /// Link or namespace.
        what: &'static str,
        /// The name.
        name: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// There is no namespace with this name.
    #[error("no network namespace {name:?}")]
    NoSuchNetns {
        /// Its name.
        name: String,
    },
    /// A namespace with this name is there already.
    #[error("network namespace {name:?} already exists")]
    NetnsExists {
        /// Its name.
        name: String,
    },
    /// A system call about a namespace, a device or a file failed.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// The kernel's error number, where one is behind this error.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::System { source, .. } => source.raw_os_error(),
            Self::NoSuchLink { .. } => Some(libc::ENODEV),
            Self::Exists { .. } | Self::NetnsExists { .. } => Some(libc::EEXIST),
            Self::BadName { .. } => Some(libc::EINVAL),
            Self::NoSuchNetns { .. } => Some(libc::ENOENT),
        }
    }

    /// Whether the thing to act on is not there (any more).
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self.errno(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::ENXIO))
    }

    /// Whether the thing to create is there already.
    #[must_use]
    pub fn is_existing(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    pub(crate) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::System { action, source }
    }
}

fn detail(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(" ({why})") }
}
