//! What an operator may want to know.

use std::collections::BTreeMap;
use tenet_model::{HostName, PortRef};

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Happening {
    /// Stable name of its kind.
    pub kind: String,
    /// The host concerned.
    pub host: Option<HostName>,
    /// The port concerned.
    pub port: Option<PortRef>,
    /// Further values.
    pub fields: BTreeMap<String, String>,
    /// In plain words.
    pub text: String,
}

impl Happening {
    /// Something of a kind, in words.
    #[must_use]
    pub fn new(kind: &str, text: impl Into<String>) -> Self {
        Self { kind: kind.into(), text: text.into(), ..Self::default() }
    }

    /// Concerning a host.
    #[must_use]
    pub fn host(mut self, host: &HostName) -> Self {
        self.host = Some(host.clone());
        self
    }

    /// Concerning a port.
    #[must_use]
    pub fn port(mut self, port: &PortRef) -> Self {
        self.port = Some(port.clone());
        self
    }

    /// With a value.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl ToString) -> Self {
        self.fields.insert(name.into(), value.to_string());
        self
    }
}
