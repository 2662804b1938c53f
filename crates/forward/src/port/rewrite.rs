//! To another host by IP Rewrite.

use super::{Call, PortWork};
use crate::{
    Frame, Tables, Verdict,
    rewrite::{self, Parties},
    verdict::{Words, dropped},
};
use tenet_tables::{DropReason, METHOD_REWRITE, MacKey, PORT_ACTIVE};
use tenet_wire::Mac;

impl<F: Frame, T: Tables> Call<'_, F, T> {
    /// A frame that goes to another host without a tunnel that would tell whose it is: by the addresses that stand for
    /// its own two.
    #[inline(always)]
    pub(super) fn rewritten(&self, work: &mut PortWork, ip: bool) -> Words {
        if !ip || rewrite::is_discovery(self.frame, &work.packet) {
            return dropped(DropReason::RewriteUnsupported);
        }
        let who = Parties {
            net: self.port.net,
            ifindex: self.meta.ifindex,
            mac: work.head.eth.dst,
            vsid: work.to.vsid,
        };
        match rewrite::pair(self.tables, &work.packet, who, &mut work.pair) {
            Ok(()) => Verdict::Rewrite.to_words(),
            Err(reason) => dropped(reason),
        }
    }

    /// Whether a question to this machine's own MAC must be answered from the table, because it is at another host and
    /// no frame but IP's gets there.
    #[inline(always)]
    pub(super) fn speaks_for(&self, mac: Mac) -> bool {
        let key = MacKey { vsid: self.port.vsid, mac, reserved: 0 };
        let Some(entry) = self.tables.mac(&key) else { return false };
        if entry.method != METHOD_REWRITE as u32 {
            return false;
        }
        match self.tables.port(entry.ifindex) {
            Some(port) => port.state != PORT_ACTIVE,
            None => true,
        }
    }
}
