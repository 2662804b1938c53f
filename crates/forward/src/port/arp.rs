//! ARP, answered from the table.

use super::{Call, PortWork};
use crate::{
    Frame, Tables, Verdict,
    verdict::{Words, dropped},
};
use tenet_tables::{Addr, DropReason, EventKind, METHOD_GATEWAY, RecordKey};
use tenet_wire::{Arp, Ethernet};

impl<F: Frame, T: Tables> Call<'_, F, T> {
    #[inline(always)]
    pub(super) fn arp(&self, work: &mut PortWork) -> Words {
        let mut arp = Arp::default();
        if self.frame.load(Ethernet::LEN, &mut arp).is_err() {
            return dropped(DropReason::Truncated);
        }
        if !arp.is_ipv4() {
            return dropped(DropReason::UnsupportedProtocol);
        }
        if self.meta.len > Ethernet::LEN + self.port.mtu as u32 {
            return dropped(DropReason::Malformed);
        }
        let request = arp.operation == Arp::REQUEST;
        let probe = arp.sender.word() == 0;
        if self.secure() {
            if arp.sender_mac != self.port.mac {
                self.note(work, EventKind::Spoof, Addr::v4_word(arp.sender.word()));
                return dropped(DropReason::SpoofedMac);
            }
            if !(probe && request) {
                let key = RecordKey { net: self.port.net, ca: Addr::v4_word(arp.sender.word()) };
                match self.tables.record(&key) {
                    Some(record) if record.ifindex == self.meta.ifindex => {}
                    Some(_) => {
                        self.note(work, EventKind::DuplicateAddress, Addr::v4_word(arp.sender.word()));
                        return dropped(DropReason::SpoofedCa);
                    }
                    None => {
                        self.note(work, EventKind::Spoof, Addr::v4_word(arp.sender.word()));
                        return dropped(DropReason::SpoofedCa);
                    }
                }
            }
        }
        if work.head.eth.dst == self.config.gateway_mac {
            let target = Addr::v4_word(arp.target.word());
            if request && self.is_own_gateway(&target) {
                return Verdict::AnswerArp { mac: self.config.gateway_mac }.to_words();
            }
            return dropped(if request { DropReason::ArpUnknown } else { DropReason::Consumed });
        }
        if !work.head.eth.dst.is_group() {
            // Unicast requests keep neighbour detection honest: the VM itself answers. A probe has no
            // sender that the other host could check.
            if probe {
                return dropped(DropReason::ArpSuppressed);
            }
            if request && self.speaks_for(work.head.eth.dst) {
                return self.who_has(work, &arp, false);
            }
            return self.bridged(work, false);
        }
        if !request || arp.sender == arp.target {
            return dropped(DropReason::ArpSuppressed);
        }
        self.who_has(work, &arp, probe)
    }

    /// A broadcast request: the table answers with the real MAC.
    #[inline(always)]
    fn who_has(&self, work: &mut PortWork, arp: &Arp, probe: bool) -> Words {
        let target = Addr::v4_word(arp.target.word());
        if self.is_own_gateway(&target) {
            if probe {
                self.note(work, EventKind::DuplicateAddress, Addr::v4_word(arp.target.word()));
            }
            return Verdict::AnswerArp { mac: self.config.gateway_mac }.to_words();
        }
        let Some(record) = self.tables.record(&RecordKey { net: self.port.net, ca: target }) else {
            // A probe asks for an address that nobody has; that is its good end.
            if !probe {
                self.note_unknown(work, Addr::v4_word(arp.target.word()));
            }
            return dropped(DropReason::ArpUnknown);
        };
        if record.ifindex == self.meta.ifindex {
            return dropped(DropReason::ArpSuppressed);
        }
        if record.vsid != self.port.vsid || record.method == METHOD_GATEWAY {
            return dropped(DropReason::ArpUnknown);
        }
        if probe {
            self.note(work, EventKind::DuplicateAddress, Addr::v4_word(arp.target.word()));
        }
        Verdict::AnswerArp { mac: record.mac }.to_words()
    }
}
