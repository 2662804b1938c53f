//! Names on the command line: one without its tenant is tenant `default`'s.

use std::fmt;
use std::str::FromStr;
use tenet_model::{DEFAULT_TENANT, Name, NameError, NetworkRef, SubnetRef, VmRef};

/// `NETWORK` or `TENANT/NETWORK`.
pub fn network(text: &str) -> Result<NetworkRef, NameError> {
    with_tenant(text, 1)
}

/// `NETWORK/SUBNET` or `TENANT/NETWORK/SUBNET`.
pub fn subnet(text: &str) -> Result<SubnetRef, NameError> {
    with_tenant(text, 2)
}

/// `VM` or `TENANT/VM`.
pub fn vm(text: &str) -> Result<VmRef, NameError> {
    with_tenant(text, 1)
}

/// `DEVICE`, or `PORT=DEVICE` where a VM has several ports.
pub fn device(text: &str) -> Result<(Option<Name>, String), NameError> {
    match text.split_once('=') {
        Some((port, device)) => Ok((Some(Name::new(port)?), device.to_owned())),
        None => Ok((None, text.to_owned())),
    }
}

/// Which migration is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MigrationName {
    /// The newest of this VM.
    Vm(VmRef),
    /// The one whose id begins so.
    Id(String),
}

impl fmt::Display for MigrationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(vm) => write!(f, "of VM {vm}"),
            Self::Id(begin) => write!(f, "with id {begin}"),
        }
    }
}

/// As much of an id as tables print, or more; everything else is a VM.
pub fn migration(text: &str) -> Result<MigrationName, NameError> {
    let digits = |c: char| c.is_ascii_hexdigit() || c == '-';
    if text.len() >= 8 && text.chars().all(digits) && text.contains(|c: char| c.is_ascii_hexdigit()) {
        return Ok(MigrationName::Id(text.to_ascii_lowercase()));
    }
    vm(text).map(MigrationName::Vm)
}

fn with_tenant<T: FromStr>(text: &str, parts: usize) -> Result<T, T::Err> {
    if text.split('/').count() == parts { format!("{DEFAULT_TENANT}/{text}").parse() } else { text.parse() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_tenant_is_the_default_tenants() {
        assert_eq!(network("blue").unwrap().to_string(), "default/blue");
        assert_eq!(network("contoso/blue").unwrap().to_string(), "contoso/blue");
        assert_eq!(subnet("blue/web").unwrap().to_string(), "default/blue/web");
        assert_eq!(subnet("contoso/blue/web").unwrap().to_string(), "contoso/blue/web");
        assert_eq!(vm("sql").unwrap().to_string(), "default/sql");
        assert!(subnet("web").is_err() && vm("a/b/c").is_err() && vm("").is_err());
        assert_eq!(migration("sql").unwrap(), MigrationName::Vm(vm("sql").unwrap()));
        assert_eq!(migration("feed").unwrap(), MigrationName::Vm(vm("feed").unwrap()));
        assert_eq!(
            migration("contoso/feedbeef").unwrap(),
            MigrationName::Vm(vm("contoso/feedbeef").unwrap())
        );
        assert_eq!(migration("FEEDBEEF").unwrap(), MigrationName::Id("feedbeef".into()));
        assert!(migration("a/b/c").is_err());
        assert_eq!(device("eth0=tap1").unwrap(), (Some(Name::new("eth0").unwrap()), "tap1".to_owned()));
        assert_eq!(device("tap1").unwrap(), (None, "tap1".to_owned()));
    }
}
