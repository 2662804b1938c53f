//! What an administrator asks for: names, numbers with a meaning, and the objects of a site.
//!
//! Three types to know: [`Object`] (anything that is stored), [`Desired`] (all of them at one
//! revision) and the newtypes ([`Vsid`], [`Mac`], [`Name`] …) whose illegal values cannot be built.
//!
//! Pure: no I/O, no clock, no randomness. The serde forms are the store's format.

mod address;
mod alloc;
mod change;
mod desired;
mod key;
mod names;
mod numbers;
mod object;
mod problem;
mod rewrite;
mod rules;
mod status;
mod tap;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod udp;
mod uri;
mod view;

pub use address::default_gateway;
pub use alloc::{Allocator, Exhausted};
pub use change::{Change, Checked, Operation};
pub use desired::{Desired, Versioned};
pub use key::{Key, KeyError};
pub use names::{HostName, Name, NameError, NetworkRef, PortRef, SubnetRef, TenantName, VmRef};
pub use numbers::{Family, Mac, MacError, Method, MethodError, NetId, Vsid, VsidError};
pub use object::{
    ActivatedBy, Host, Migration, Network, Object, Phase, Port, Receipt, Route, Site, Subnet, SubnetPrefix,
    Tenant, Through, Vm,
};
pub use problem::{Problem, Why};
pub use status::{ARRIVED, in_post_copy, under_way};
pub use tap::{is_tap_name, tap_name};
pub use udp::{OtherPort, UdpPorts};
pub use uri::{UriError, check_migration_uri};

/// The tenant that always exists, so that a small site never has to think of tenants.
pub const DEFAULT_TENANT: &str = "default";

/// What stands between a reason that an agent gives and what to do about it, where it knows that; nothing that it
/// passes on from a hypervisor reads so.
pub const NEXT: &str = "; next: ";

/// The MAC of every subnet's gateway on all hosts, which no port may have.
pub const GATEWAY_MAC: [u8; 6] = [0x02, b'T', b'e', b'n', b'e', b't'];
