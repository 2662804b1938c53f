//! Names and the paths made of them: `tenant/network/subnet`, `tenant/vm/port`.

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

/// Why a text is not a name or a path of names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text breaks the rule for one name.
    #[error(
        "`{text}` is not a name: use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"
    )]
    Bad {
        /// The offending text.
        text: String,
    },
    /// The path has the wrong number of parts.
    #[error("`{text}` should read {form}")]
    Parts {
        /// The offending text.
        text: String,
        /// The expected form.
        form: &'static str,
    },
}

/// One name: a label of 1 to 63 of `a-z 0-9 -` that neither begins nor ends with `-` (as RFC 1123 §2.1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`NameError::Bad`] if the text breaks the rule.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        let ends = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
        let b = text.as_bytes();
        let legal = b.len() <= 63
            && ends(b.first())
            && ends(b.last())
            && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-');
        if legal { Ok(Self(text)) } else { Err(NameError::Bad { text }) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A tenant's name.
pub type TenantName = Name;
/// A host's name.
pub type HostName = Name;

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(n: Name) -> Self {
        n.0
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Declares a path of names with a fixed form; text form is the names joined by `/`.
macro_rules! path {
    ($($(#[$m:meta])* $t:ident($form:literal) { $($(#[$fm:meta])* $f:ident,)+ })*) => { $(
        $(#[$m])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $t { $($(#[$fm])* pub $f: Name,)+ }

        impl FromStr for $t {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let wrong = || NameError::Parts { text: text.to_owned(), form: $form };
                let mut parts = text.split('/');
                let path = Self { $($f: Name::new(parts.next().ok_or_else(wrong)?)?,)+ };
                if parts.next().is_some() { Err(wrong()) } else { Ok(path) }
            }
        }
        impl TryFrom<String> for $t {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> { text.parse() }
        }
        impl From<$t> for String {
            fn from(p: $t) -> Self { p.to_string() }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&[$(self.$f.as_str()),+].join("/"))
            }
        }
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) }
        }
    )* };
}

path! {
    /// A network: `contoso/blue`.
    NetworkRef("TENANT/NETWORK") {
        /// Its tenant.
        tenant,
        /// Its own name.
        network,
    }
    /// A subnet: `contoso/blue/web`.
    SubnetRef("TENANT/NETWORK/SUBNET") {
        /// Its tenant.
        tenant,
        /// Its network's name.
        network,
        /// Its own name.
        subnet,
    }
    /// A VM: `contoso/sql`.
    VmRef("TENANT/VM") {
        /// Its tenant.
        tenant,
        /// Its own name.
        vm,
    }
    /// A port: `contoso/sql/eth0`.
    PortRef("TENANT/VM/PORT") {
        /// Its tenant.
        tenant,
        /// Its VM's name.
        vm,
        /// Its own name.
        port,
    }
}

/// Where the objects of an owner begin in an ordered map; the empty name, below all legal ones, never leaves the crate.
impl Name {
    const LEAST: Self = Self(String::new());

    pub(crate) fn first_port(&self) -> PortRef {
        PortRef { tenant: self.clone(), vm: Self::LEAST, port: Self::LEAST }
    }

    pub(crate) fn first_network(&self) -> NetworkRef {
        NetworkRef { tenant: self.clone(), network: Self::LEAST }
    }

    pub(crate) fn first_vm(&self) -> VmRef {
        VmRef { tenant: self.clone(), vm: Self::LEAST }
    }
}

impl NetworkRef {
    pub(crate) fn first_subnet(&self) -> SubnetRef {
        SubnetRef { tenant: self.tenant.clone(), network: self.network.clone(), subnet: Name::LEAST }
    }

    /// Below all routes of the network: 0.0.0.0/0 is the least prefix, IPv4 before IPv6.
    pub(crate) fn first_route(&self) -> (Self, IpNet, IpAddr) {
        (self.clone(), IpNet::V4(Ipv4Net::default()), IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }
}

impl VmRef {
    pub(crate) fn first_port(&self) -> PortRef {
        PortRef { tenant: self.tenant.clone(), vm: self.vm.clone(), port: Name::LEAST }
    }
}

impl SubnetRef {
    /// Whether the subnet belongs to the network.
    #[must_use]
    pub fn is_of(&self, network: &NetworkRef) -> bool {
        self.tenant == network.tenant && self.network == network.network
    }

    /// The network the subnet belongs to.
    #[must_use]
    pub fn network_ref(&self) -> NetworkRef {
        NetworkRef { tenant: self.tenant.clone(), network: self.network.clone() }
    }
}

impl PortRef {
    /// Whether the port belongs to the VM.
    #[must_use]
    pub fn is_of(&self, vm: &VmRef) -> bool {
        self.tenant == vm.tenant && self.vm == vm.vm
    }

    /// The VM the port belongs to.
    #[must_use]
    pub fn vm_ref(&self) -> VmRef {
        VmRef { tenant: self.tenant.clone(), vm: self.vm.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_labels_and_refuses_the_rest() {
        for good in ["a", "sql", "web-2", "0", &"x".repeat(63)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "ä", "a b", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_round_trip_and_say_their_form() {
        let p: PortRef = "contoso/sql/eth0".parse().unwrap();
        assert_eq!(p.to_string(), "contoso/sql/eth0");
        assert_eq!(p.vm_ref().to_string(), "contoso/sql");
        for bad in ["contoso", "contoso/sql/eth0/x", "contoso//x"] {
            assert!(bad.parse::<PortRef>().is_err(), "{bad}");
        }
        let error = "contoso".parse::<VmRef>().unwrap_err();
        assert_eq!(error.to_string(), "`contoso` should read TENANT/VM");
    }
}
