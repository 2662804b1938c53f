//! Traffic control as far as BPF programs on a link need it: the clsact qdisc and cls_bpf filters.
//!
//! A filter put with the priority and handle of one that exists replaces its program in one step of
//! the kernel (`cls_bpf_change` swaps a list entry under RCU): no frame passes in between unseen.

use crate::netlink::{CREATE, DUMP, EXCL, Message, Request, attrs, string_of, u32_of};
use crate::{Links, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCMSG: usize = 20;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const DIRECT_ACTION: u32 = 1;
const ETH_P_ALL: u16 = 3;

/// A filter at a link's ingress or egress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Lowest runs first.
    pub priority: u16,
    /// Number within the priority.
    pub handle: u32,
    /// Classifier: `bpf`, `flower`, ….
    pub kind: String,
    /// Name given to a BPF filter.
    pub name: String,
    /// The kernel's number of the program, for BPF filters.
    pub program_id: Option<u32>,
}

impl Links {
    /// Gives a link the qdisc that BPF filters hang on, unless it has it (or its elder, `ingress`).
    pub fn ensure_clsact(&self, link: u32) -> Result<()> {
        if self.has_clsact(link)? {
            return Ok(());
        }
        let request = Request::new(RTM_NEWQDISC, CREATE | EXCL, &tcmsg(link, CLSACT_HANDLE, TC_H_CLSACT, 0))
            .string(TCA_KIND, "clsact");
        match self.ask(&format!("add the clsact qdisc to link #{link}"), request) {
            Err(e) if e.is_existing() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Whether a link has a qdisc for ingress filters: clsact, or its elder `ingress`.
    pub fn has_clsact(&self, link: u32) -> Result<bool> {
        Ok(self.ingress_qdisc(link)?.is_some())
    }

    fn ingress_qdisc(&self, link: u32) -> Result<Option<String>> {
        let request = Request::new(RTM_GETQDISC, DUMP, &tcmsg(link, 0, 0, 0));
        let replies = self.ask(&format!("list qdiscs of link #{link}"), request)?;
        let kinds = replies.iter().filter(|m| m.u32_at(4) == link).flat_map(|m| m.attrs(TCMSG));
        let mut names = kinds.filter(|(kind, _)| *kind == TCA_KIND).map(|(_, name)| string_of(name));
        Ok(names.find(|name| matches!(name.as_str(), "clsact" | "ingress")))
    }

    /// Takes the clsact qdisc from a link if no filter is left on it; says whether it did. An `ingress` qdisc is
    /// never ours and stays.
    pub fn delete_clsact_if_empty(&self, link: u32) -> Result<bool> {
        if self.ingress_qdisc(link)?.as_deref() != Some("clsact")
            || !self.filters(link, true)?.is_empty()
            || !self.filters(link, false)?.is_empty()
        {
            return Ok(false);
        }
        let request = Request::new(RTM_DELQDISC, 0, &tcmsg(link, CLSACT_HANDLE, TC_H_CLSACT, 0));
        match self.ask(&format!("delete the clsact qdisc of link #{link}"), request) {
            Err(e) if e.is_missing() => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// All filters at a link's ingress or egress, in the order in which they run.
    pub fn filters(&self, link: u32, ingress: bool) -> Result<Vec<Filter>> {
        let request = Request::new(RTM_GETTFILTER, DUMP, &tcmsg(link, 0, parent(ingress), 0));
        match self.ask(&format!("list filters of link #{link}"), request) {
            // Kernels differ in whether a link without a qdisc has no filters or is an error.
            Err(e) if e.is_missing() || e.errno() == Some(libc::EINVAL) => Ok(Vec::new()),
            Err(e) => Err(e),
            // Entries without a handle are the list heads of a priority.
            Ok(replies) => Ok(replies.iter().map(parse).filter(|f| f.handle != 0).collect()),
        }
    }

    /// Puts a direct-action BPF filter at a link's ingress, or swaps the program of the one that is there.
    pub fn put_filter(
        &self,
        link: u32,
        priority: u16,
        handle: u32,
        name: &str,
        program: BorrowedFd<'_>,
    ) -> Result<()> {
        let fd = program.as_raw_fd().cast_unsigned();
        let request = Request::new(RTM_NEWTFILTER, CREATE, &tcmsg(link, handle, INGRESS, info(priority)))
            .string(TCA_KIND, "bpf")
            .nest(TCA_OPTIONS, |o| {
                o.u32(TCA_BPF_FD, fd).string(TCA_BPF_NAME, name).u32(TCA_BPF_FLAGS, DIRECT_ACTION)
            });
        self.ask(&format!("put BPF filter {name:?} on link #{link}"), request).map(drop)
    }

    /// Deletes a BPF filter at a link's ingress; that it is gone already is no error.
    pub fn delete_filter(&self, link: u32, priority: u16, handle: u32) -> Result<()> {
        let request = Request::new(RTM_DELTFILTER, 0, &tcmsg(link, handle, INGRESS, info(priority)))
            .string(TCA_KIND, "bpf");
        match self.ask(&format!("delete BPF filter {handle:#x} of link #{link}"), request) {
            Err(e) if e.is_missing() => Ok(()),
            other => other.map(drop),
        }
    }
}

fn parent(ingress: bool) -> u32 {
    if ingress { INGRESS } else { EGRESS }
}

fn info(priority: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be())
}

fn tcmsg(link: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut header = [0; TCMSG];
    for (at, value) in [(4, link), (8, handle), (12, parent), (16, info)] {
        header[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    header
}

fn parse(message: &Message) -> Filter {
    let mut filter = Filter {
        priority: (message.u32_at(16) >> 16) as u16,
        handle: message.u32_at(8),
        kind: String::new(),
        name: String::new(),
        program_id: None,
    };
    for (kind, value) in message.attrs(TCMSG) {
        match kind {
            TCA_KIND => filter.kind = string_of(value),
            TCA_OPTIONS => {
                for (kind, value) in attrs(value) {
                    match kind {
                        TCA_BPF_NAME => filter.name = string_of(value),
                        TCA_BPF_ID => filter.program_id = Some(u32_of(value)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    filter
}
