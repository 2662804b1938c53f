//! What people and tools send and get as JSON.
//!
//! Names are written as the model writes them: `contoso/blue` (network), `contoso/blue/web` (subnet),
//! `contoso/sql` (VM), `contoso/sql/eth0` (port). A *spec* is what one asks for (omitted fields are filled in by the
//! controller); a *view* is what stands, with everything filled in and the revision that wrote it.

mod change;
mod error;
mod object;
mod site;
mod status;

pub use change::{
    Applied, Attach, ChangeItem, ChangeReply, Changed, ChangesRequest, CreateVm, CreateVmPort, Detach,
    Effect, Join, Joined, Migrate, Target, Token, TokenRequest, Wait, WaitQuery,
};
pub use error::{ApiError, Problem};
pub use object::{
    HostSpec, HostView, MigrationView, NetworkSpec, NetworkView, PortSpec, PortView, ReceiptOrMigration,
    ReceiptView, RouteSpec, RouteView, Spec, SubnetSpec, SubnetView, TenantSpec, TenantView, VmSpec, VmView,
};
pub use site::{Site, SitePort, SiteVm};
pub use status::{
    Counters, EventLine, HostStatus, NetworkStatus, PortCounters, PortStatusView, Status, Table, TableRow,
};
