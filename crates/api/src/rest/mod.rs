//! What people and tools send and get as JSON.
//!
//! Names are written as the model writes them: `contoso/blue` (network), `contoso/blue/web` (subnet),
//! `contoso/sql` (VM), `contoso/sql/eth0` (port). A *spec* is what one asks for (omitted fields are filled in by the
//! controller); a *view* is what stands, with everything filled in and the revision that wrote it.

mod change;
mod error;
mod object;
mod path;
mod site;
mod status;
mod subnet;

pub use change::{
    Applied, Attach, ChangeItem, ChangeReply, Changed, ChangesRequest, CreateVm, CreateVmPort, Detach,
    Effect, Join, Joined, Migrate, Target, Token, TokenRequest, Wait, WaitQuery,
};
pub use error::{ApiError, Problem};
pub use object::{
    HostPatch, HostSpec, HostView, MigrationView, NetworkPatch, NetworkSpec, NetworkView, Pool, PortSpec,
    PortView, Progress, ReceiptOrMigration, ReceiptView, RouteSpec, RouteView, SettingsSpec, SettingsView,
    Spec, TenantSpec, TenantView, VmSpec, VmView,
};
pub use path::{OffloadTest, PathFinding, PathPair, PathView, Paths, ReceiveWay, UdpTunnel, Uplink};
pub use site::{Site, SitePort, SiteVm};
pub use status::{
    Counters, EventLine, HostStatus, NetworkStatus, PortCounters, PortStatusView, Status, Table, TableRow,
};
pub use subnet::{PrefixSpec, PrefixView, SubnetSpec, SubnetView};
