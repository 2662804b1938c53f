//! From desired state to what each host needs: pure, equal revision gives equal rows.
//!
//! Three types to know: [`Row`] (one line of a host's state), [`Rows`] (all of them, by [`RowKey`])
//! and [`Delta`] (what turns one state into the next). Must never do I/O or read a clock.

mod row;

pub use row::{
    Delta, HostRow, NetworkRow, PeerRow, PortRow, PortState, RecordRow, RouteRow, Row, RowKey, Rows, SubnetRow, digests,
};
