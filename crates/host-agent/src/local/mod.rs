//! What runs on this host speaks to the agent: a Unix socket that only root may open.

mod domains;

#[expect(unused_imports, reason = "its listener comes next")]
pub(crate) use domains::Domains;
