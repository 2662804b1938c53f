//! ARP, answered from the table.

use super::{Call, PortWork};
use crate::{Frame, Tables, Verdict};
use tenet_tables::{Addr, DropReason, EventKind, METHOD_GATEWAY, RecordKey};
use tenet_wire::{Arp, Ethernet};

impl<F: Frame, T: Tables> Call<'_, F, T> {
    #[inline(always)]
    pub(super) fn arp(&self, work: &mut PortWork) -> Verdict {
        let mut arp = Arp::default();
        if self.frame.load(Ethernet::LEN, &mut arp).is_err() {
            return Verdict::Drop(DropReason::Truncated);
        }
        if !arp.is_ipv4() {
            return Verdict::Drop(DropReason::UnsupportedProtocol);
        }
        if self.meta.len > Ethernet::LEN + self.port.mtu as u32 {
            return Verdict::Drop(DropReason::Malformed);
        }
        let request = arp.operation == Arp::REQUEST;
        let probe = arp.sender.word() == 0;
        if self.secure() {
            if arp.sender_mac != self.port.mac {
                self.note(work, EventKind::Spoof, Addr::v4_word(arp.sender.word()));
                return Verdict::Drop(DropReason::SpoofedMac);
            }
            if !(probe && request) {
                let key = RecordKey { net: self.port.net, ca: Addr::v4_word(arp.sender.word()) };
                match self.tables.record(&key) {
                    Some(record) if record.ifindex == self.meta.ifindex => {}
                    Some(_) => {
                        self.note(work, EventKind::DuplicateAddress, Addr::v4_word(arp.sender.word()));
                        return Verdict::Drop(DropReason::SpoofedCa);
                    }
                    None => {
                        self.note(work, EventKind::Spoof, Addr::v4_word(arp.sender.word()));
                        return Verdict::Drop(DropReason::SpoofedCa);
                    }
                }
            }
        }
        if work.head.eth.dst == self.config.gateway_mac {
            let target = Addr::v4_word(arp.target.word());
            if request && self.is_own_gateway(&target) {
                return Verdict::AnswerArp { mac: self.config.gateway_mac };
            }
            return Verdict::Drop(if request { DropReason::ArpUnknown } else { DropReason::Consumed });
        }
        if !work.head.eth.dst.is_group() {
            // Unicast requests keep neighbour detection honest: the VM itself answers. A probe has no
            // sender that the other host could check.
            return if probe { Verdict::Drop(DropReason::ArpSuppressed) } else { self.bridged(work, false) };
        }
        if !request || arp.sender == arp.target {
            return Verdict::Drop(DropReason::ArpSuppressed);
        }
        self.who_has(work, &arp, probe)
    }

    /// A broadcast request: the table answers with the real MAC.
    #[inline(always)]
    fn who_has(&self, work: &mut PortWork, arp: &Arp, probe: bool) -> Verdict {
        let target = Addr::v4_word(arp.target.word());
        if self.is_own_gateway(&target) {
            if probe {
                self.note(work, EventKind::DuplicateAddress, Addr::v4_word(arp.target.word()));
            }
            return Verdict::AnswerArp { mac: self.config.gateway_mac };
        }
        let Some(record) = self.tables.record(&RecordKey { net: self.port.net, ca: target }) else {
            // A probe asks for an address that nobody has; that is its good end.
            if !probe {
                self.note_unknown(work, Addr::v4_word(arp.target.word()));
            }
            return Verdict::Drop(DropReason::ArpUnknown);
        };
        if record.ifindex == self.meta.ifindex {
            return Verdict::Drop(DropReason::ArpSuppressed);
        }
        if record.vsid != self.port.vsid || record.method == METHOD_GATEWAY {
            return Verdict::Drop(DropReason::ArpUnknown);
        }
        if probe {
            self.note(work, EventKind::DuplicateAddress, Addr::v4_word(arp.target.word()));
        }
        Verdict::AnswerArp { mac: record.mac }
    }
}
