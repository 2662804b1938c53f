//! From desired state to what each host needs: pure, equal revision gives equal rows.
//!
//! Three types to know: [`Rows`] (a host's state: each [`Row`] by its [`RowKey`]), [`Delta`] (what turns one state into
//! the next) and [`Compiler`] (all hosts' states, kept up to date change by change; [`compile`] is the same from
//! scratch). Must never do I/O or read a clock.
//!
//! A row's generation is the latest revision of the objects that it derives from. When such an object is deleted, the
//! row may go back to an earlier generation together with its earlier content; equal objects give equal rows.

mod build;
mod compiler;
mod place;
mod row;
mod scratch;

pub use compiler::Compiler;
pub use row::{
    Delta, HostRow, NetworkRow, PeerRow, PortRow, PortState, RecordRow, RouteRow, Row, RowKey, Rows,
    SubnetRow, digests,
};
pub use scratch::compile;
