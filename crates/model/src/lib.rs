//! What an administrator asks for: names, numbers with a meaning, and the objects of a site.
//!
//! Three types to know: [`Object`] (anything that is stored), [`Desired`] (all of them at one
//! revision) and the newtypes ([`Vsid`], [`Mac`], [`Name`] …) whose illegal values cannot be built.
//!
//! Pure: no I/O, no clock, no randomness. The serde forms are the store's format.

mod desired;
mod names;
mod numbers;
mod object;

pub use desired::{Desired, Versioned};
pub use names::{HostName, Name, NameError, NetworkRef, PortRef, SubnetRef, TenantName, VmRef};
pub use numbers::{Mac, MacError, Method, MethodError, NetId, Vsid, VsidError};
pub use object::{Host, Key, Migration, Network, Object, Phase, Port, Receipt, Route, Subnet, Tenant, Vm};

/// The tenant that always exists, so that a small site never has to think of tenants.
pub const DEFAULT_TENANT: &str = "default";
