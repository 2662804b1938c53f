//! The names of objects over all kinds; also their keys in the store.

use crate::{HostName, Name, NameError, NetworkRef, PortRef, SubnetRef, TenantName, VmRef};
use ipnet::IpNet;
use std::{fmt, net::IpAddr, str::FromStr};

/// Why a text is not an object's key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It does not begin with the name of a kind.
    #[error(
        "`{text}` is no object's key: it begins with none of tenant, network, subnet, vm, port, host, route, migration and site"
    )]
    Kind {
        /// The offending text.
        text: String,
    },
    /// What follows the kind is not a name of that kind.
    #[error("`{text}` is no object's key")]
    Name {
        /// The offending text.
        text: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// What follows `route/TENANT/NETWORK` is not `ADDRESS-LENGTH-NEXTHOP`.
    #[error("`{text}` is no route's key: it should read route/TENANT/NETWORK/ADDRESS-LENGTH-NEXTHOP")]
    Route {
        /// The offending text.
        text: String,
    },
}

/// Names an object; also its key in the store (without the store's own prefix).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// A tenant.
    Tenant(TenantName),
    /// A network.
    Network(NetworkRef),
    /// A subnet.
    Subnet(SubnetRef),
    /// A VM.
    Vm(VmRef),
    /// A port.
    Port(PortRef),
    /// A host.
    Host(HostName),
    /// A customer route: network, prefix and next hop.
    Route(NetworkRef, IpNet, IpAddr),
    /// The running migration of a VM.
    Migration(VmRef),
    /// What holds for the whole site.
    Site,
}

/// The only name behind `site/`.
const SITE: &str = "settings";

impl Key {
    /// What a person calls the object: `port contoso/sql/eth0`.
    #[must_use]
    pub fn title(&self) -> String {
        match self {
            Self::Tenant(n) | Self::Host(n) => format!("{} {n}", self.kind()),
            Self::Network(n) => format!("network {n}"),
            Self::Subnet(n) => format!("subnet {n}"),
            Self::Vm(n) => format!("VM {n}"),
            Self::Port(n) => format!("port {n}"),
            Self::Route(n, prefix, next_hop) => format!("route {n} {prefix} via {next_hop}"),
            Self::Migration(n) => format!("migration of VM {n}"),
            Self::Site => "site".to_owned(),
        }
    }

    /// The kind's name, as in the store's keys and in errors.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Tenant(_) => "tenant",
            Self::Network(_) => "network",
            Self::Subnet(_) => "subnet",
            Self::Vm(_) => "vm",
            Self::Port(_) => "port",
            Self::Host(_) => "host",
            Self::Route(..) => "route",
            Self::Migration(_) => "migration",
            Self::Site => "site",
        }
    }
}

/// `kind/name`, unique over all objects.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.kind())?;
        match self {
            Self::Tenant(n) | Self::Host(n) => write!(f, "{n}"),
            Self::Network(n) => write!(f, "{n}"),
            Self::Subnet(n) => write!(f, "{n}"),
            Self::Vm(n) | Self::Migration(n) => write!(f, "{n}"),
            Self::Port(n) => write!(f, "{n}"),
            Self::Site => f.write_str(SITE),
            Self::Route(n, prefix, next_hop) => {
                write!(f, "{n}/{}-{}-{next_hop}", prefix.addr(), prefix.prefix_len())
            }
        }
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bad_kind = || KeyError::Kind { text: text.to_owned() };
        let bad_name = |source| KeyError::Name { text: text.to_owned(), source };
        let (kind, name) = text.split_once('/').ok_or_else(bad_kind)?;
        match kind {
            "tenant" => Name::new(name).map(Self::Tenant).map_err(bad_name),
            "network" => name.parse().map(Self::Network).map_err(bad_name),
            "subnet" => name.parse().map(Self::Subnet).map_err(bad_name),
            "vm" => name.parse().map(Self::Vm).map_err(bad_name),
            "port" => name.parse().map(Self::Port).map_err(bad_name),
            "host" => Name::new(name).map(Self::Host).map_err(bad_name),
            "migration" => name.parse().map(Self::Migration).map_err(bad_name),
            "site" if name == SITE => Ok(Self::Site),
            "route" => route(name).ok_or_else(|| KeyError::Route { text: text.to_owned() }),
            _ => Err(bad_kind()),
        }
    }
}

/// `TENANT/NETWORK/ADDRESS-LENGTH-NEXTHOP`.
fn route(text: &str) -> Option<Key> {
    let (network, rest) = text.rsplit_once('/')?;
    let mut parts = rest.split('-');
    let (address, length, hop) = (parts.next()?, parts.next()?, parts.next()?);
    let prefix = IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    let key = Key::Route(network.parse().ok()?, prefix, hop.parse().ok()?);
    // Only the form that Display writes, so that one object has one key.
    (parts.next().is_none() && key.to_string().strip_prefix("route/") == Some(text)).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip() {
        for text in [
            "tenant/contoso",
            "network/contoso/blue",
            "subnet/contoso/blue/web",
            "vm/contoso/sql",
            "port/contoso/sql/eth0",
            "host/h1",
            "route/contoso/blue/0.0.0.0-0-10.1.1.9",
            "route/contoso/blue/2001:db8::-32-2001:db8::1",
            "migration/contoso/sql",
            "site/settings",
        ] {
            let key: Key = text.parse().unwrap();
            assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn refuses_what_is_no_key() {
        for text in [
            "",
            "tenant",
            "tenants/x",
            "site/other",
            "tenant/a/b",
            "network/a",
            "route/a/b/10.0.0.0-8",
            "route/a/b/10.0.0.0-08-10.1.1.1",
            "route/a/b/10.0.0.0-33-10.1.1.1",
            "route/a/b/10.0.0.0-8-10.1.1.1-x",
            "route/a/b/c/10.0.0.0-8-10.1.1.1",
        ] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }
}
