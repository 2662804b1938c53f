//! Neighbour discovery, answered from the table, and multicast listener discovery.

use super::{Call, PortWork};
use crate::{
    Frame, Tables, Verdict,
    packet::{addr6, eui64_mac, is_link_local, is_multicast},
    verdict::{Words, dropped},
};
use tenet_tables::{Addr, DropReason, EventKind, GATEWAY_LINK_LOCAL, METHOD_GATEWAY, RecordKey};
use tenet_wire::{Be16, Ethernet, Icmp6, LinkOption, Neighbour};

/// Options of a message that are looked at; one with more is refused.
const OPTIONS: u32 = 4;

impl<F: Frame, T: Tables> Call<'_, F, T> {
    /// A message of discovery. Its sender has been judged.
    #[inline(always)]
    pub(super) fn discovery(&self, work: &mut PortWork) -> Words {
        let packet = &work.packet;
        let mut ty_code = Be16::default();
        if self.frame.load(packet.transport_at(), &mut ty_code).is_err() {
            return dropped(DropReason::Truncated);
        }
        let ty = (ty_code.get() >> 8) as u8;
        if !matches!(ty, Icmp6::ROUTER_SOLICITATION..=Icmp6::REDIRECT) {
            // Groups are flooded whoever listens, so that nobody needs to know.
            return dropped(DropReason::NdSuppressed);
        }
        // RFC 4861 §6.1, §7.1, §8.1; RFC 6980 §5.
        if packet.hop_limit != 255 || packet.fragment || ty_code.get() & 0xff != 0 {
            return dropped(DropReason::Malformed);
        }
        match ty {
            Icmp6::ROUTER_SOLICITATION => self.router_solicitation(),
            Icmp6::NEIGHBOUR_SOLICITATION | Icmp6::NEIGHBOUR_ADVERTISEMENT => self.neighbour(work, ty),
            _ if self.secure() => dropped(DropReason::RouterGuard),
            _ => self.onwards(work),
        }
    }

    #[inline(always)]
    fn router_solicitation(&self) -> Words {
        match self.tables.subnet(self.port.vsid) {
            Some(subnet) if !subnet.gateway6.is_unset() => Verdict::AnswerRouter.to_words(),
            _ => dropped(DropReason::NdUnknown),
        }
    }

    #[inline(always)]
    fn neighbour(&self, work: &mut PortWork, ty: u8) -> Words {
        let at = work.packet.transport_at();
        let mut nd = Neighbour::default();
        if self.frame.load(at, &mut nd).is_err() {
            return dropped(DropReason::Truncated);
        }
        work.target = nd.target;
        let target = addr6(&nd.target);
        if is_multicast(&target) {
            return dropped(DropReason::Malformed);
        }
        if self.secure()
            && let Err(reason) = self.options(work)
        {
            if matches!(reason, DropReason::SpoofedMac) {
                self.note(work, EventKind::Spoof, target);
            }
            return dropped(reason);
        }
        if ty == Icmp6::NEIGHBOUR_SOLICITATION {
            self.solicitation(work, target)
        } else {
            self.advertisement(work, target)
        }
    }

    /// Walks the options: whoever tells a MAC tells the port's.
    #[inline(always)]
    fn options(&self, work: &PortWork) -> Result<(), DropReason> {
        let mut at = work.packet.transport_at() + Neighbour::LEN;
        let end = Ethernet::LEN + work.packet.len;
        let mut left = OPTIONS;
        while at + LinkOption::LEN <= end {
            if left == 0 {
                return Err(DropReason::Malformed);
            }
            left -= 1;
            let mut option = LinkOption::default();
            if self.frame.load(at, &mut option).is_err() {
                return Err(DropReason::Truncated);
            }
            if option.is_empty() {
                return Err(DropReason::Malformed);
            }
            if (option.ty() == LinkOption::SOURCE || option.ty() == LinkOption::TARGET)
                && option.mac != self.port.mac
            {
                return Err(DropReason::SpoofedMac);
            }
            at += option.len();
        }
        Ok(())
    }

    #[inline(always)]
    fn is_gateway6(&self, target: &Addr) -> bool {
        *target == GATEWAY_LINK_LOCAL || self.is_own_gateway(target)
    }

    #[inline(always)]
    fn solicitation(&self, work: &mut PortWork, target: Addr) -> Words {
        let probe = work.packet.src.is_unset();
        if work.head.eth.dst == self.config.gateway_mac {
            if self.is_gateway6(&target) && !probe {
                return Verdict::AnswerNeighbour { mac: self.config.gateway_mac, router: true }.to_words();
            }
            return dropped(DropReason::NdUnknown);
        }
        if !work.head.eth.dst.is_group() {
            // Unicast solicitations keep neighbour detection honest: the VM itself answers, if the frame gets there.
            if probe {
                return dropped(DropReason::NdSuppressed);
            }
            if !self.speaks_for(work.head.eth.dst) {
                return self.onwards(work);
            }
        }
        if self.is_gateway6(&target) {
            if probe {
                self.note(work, EventKind::DuplicateAddress, target);
            }
            return Verdict::AnswerNeighbour { mac: self.config.gateway_mac, router: true }.to_words();
        }
        if is_link_local(&target) {
            return self.link_local(work, &target);
        }
        let Some(record) = self.tables.record(&RecordKey { net: self.port.net, ca: target }) else {
            // A probe asks for an address that nobody has; that is its good end.
            if !probe {
                self.note_unknown(work, target);
            }
            return dropped(DropReason::NdUnknown);
        };
        if record.ifindex == self.meta.ifindex {
            return dropped(DropReason::NdSuppressed);
        }
        if record.vsid != self.port.vsid || record.method == METHOD_GATEWAY {
            return dropped(DropReason::NdUnknown);
        }
        let mac = record.mac;
        if probe {
            self.note(work, EventKind::DuplicateAddress, target);
        }
        Verdict::AnswerNeighbour { mac, router: false }.to_words()
    }

    /// Who has a link-local address that is not in the table? The one whose MAC it was made of, or ask all.
    #[inline(always)]
    fn link_local(&self, work: &mut PortWork, target: &Addr) -> Words {
        if let Some(mac) = eui64_mac(target) {
            if mac == self.port.mac {
                return dropped(DropReason::NdSuppressed);
            }
            if self.is_anothers(target) {
                return Verdict::AnswerNeighbour { mac, router: false }.to_words();
            }
        }
        self.onwards(work)
    }

    #[inline(always)]
    fn advertisement(&self, work: &mut PortWork, target: Addr) -> Words {
        let local = is_link_local(&target);
        let own = if local { !self.is_anothers(&target) } else { self.owns(target) };
        if self.secure() && (!own || self.is_gateway6(&target)) {
            self.note(work, EventKind::DuplicateAddress, target);
            return dropped(DropReason::SpoofedCa);
        }
        if work.head.eth.dst == self.config.gateway_mac {
            return dropped(DropReason::Consumed);
        }
        // Nobody else knows link-local addresses: whoever probes for one has to hear of its owner.
        if work.head.eth.dst.is_group() && !local {
            return dropped(DropReason::NdSuppressed);
        }
        self.onwards(work)
    }
}
