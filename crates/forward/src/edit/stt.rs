//! What is done with an STT frame.

use super::{difference, done, store_marked, tunnel::readdress};
use crate::{
    Action, FrameMut, Refused, Tables, UplinkWork, Verdict,
    stt::{Kind, PartFate, Stream, decapsulate, deliver_first, deliver_later, later, pseudo_alone},
    uplink::combine_ecn,
};
use tenet_tables::{Addr, Config, DropReason};
use tenet_wire::{Be16, EtherType, Ipv4, SttSegment, checksum};

/// Carries out a verdict on a frame that [`UplinkWork::stt`] says is STT, [`Verdict::Flood`] and [`Verdict::Part`] apart.
///
/// True beside the action: `stream` is what the later parts of the frame need.
#[inline(always)]
pub fn stt<F: FrameMut, T: Tables>(
    frame: &mut F,
    verdict: Verdict,
    tables: &T,
    work: &UplinkWork,
    stream: &mut Stream,
) -> (Action, bool) {
    let first = matches!(work.stt.kind, Kind::First);
    match verdict {
        Verdict::Pass => (Action::Pass, false),
        Verdict::Drop(reason) => (Action::Drop(reason), false),
        Verdict::Send => (Action::Wire, false),
        Verdict::Slow => (Action::Slow(DropReason::SttIncomplete), false),
        Verdict::Deliver { ifindex, peer } if !first => match whole(frame, work) {
            Ok(()) => (Action::Port { ifindex, peer }, false),
            Err(Refused) => (Action::Drop(DropReason::KernelRefused), false),
        },
        Verdict::Deliver { ifindex, .. } => match first_part(frame, work, stream) {
            Ok(true) => {
                stream.onward = Addr::UNSET;
                stream.ifindex = ifindex;
                (Action::Port { ifindex, peer: false }, true)
            }
            Ok(false) => (Action::Slow(DropReason::SttIncomplete), false),
            Err(Refused) => (Action::Drop(DropReason::KernelRefused), false),
        },
        Verdict::Onward => {
            let Some(config) = tables.config() else {
                return (Action::Drop(DropReason::NotConfigured), false);
            };
            stream.onward = work.to.pa;
            stream.ifindex = work.moved;
            stream.total = work.stt.segment.total.get() as u32;
            stream.taken = work.stt.have;
            (onward(frame, work, config, &work.to.pa), first)
        }
        _ => (Action::Drop(DropReason::KernelRefused), false),
    }
}

/// Takes the headers off a whole frame.
///
/// # Errors
/// If the kernel refuses.
#[inline(always)]
pub fn whole<F: FrameMut>(frame: &mut F, work: &UplinkWork) -> Result<(), Refused> {
    let size = frame.gso_size();
    decapsulate(frame, &work.stt, work.shed.envelope.v6, &work.tunnel.inner.eth, size)?;
    if work.marked { store_marked(frame, tenet_wire::Ethernet::LEN, work) } else { Ok(()) }
}

#[inline(always)]
fn first_part<F: FrameMut>(frame: &mut F, work: &UplinkWork, stream: &mut Stream) -> Result<bool, Refused> {
    let v6 = work.shed.inner == EtherType::IPV6;
    let class = if v6 { work.inner6.class() } else { work.tunnel.inner.ip.tos };
    let ecn = if work.marked { Some(class & Ipv4::ECN) } else { None };
    let size = frame.gso_size();
    let outer = (work.shed.envelope.v6, work.shed.len);
    deliver_first(frame, stream, &work.stt, outer, (&work.tunnel.inner.eth, ecn), size)
}

/// A later part, for [`Verdict::Part`]. `stream` is what the first one left, if it did.
#[inline(always)]
pub fn stt_part<F: FrameMut>(
    frame: &mut F,
    work: &UplinkWork,
    config: &Config,
    stream: Option<&mut Stream>,
) -> Action {
    let Some(stream) = stream else { return Action::Slow(DropReason::SttIncomplete) };
    let size = frame.gso_size();
    match later(stream, &work.stt, size) {
        PartFate::Broken => Action::Drop(DropReason::Malformed),
        PartFate::Onward => onward(frame, work, config, &stream.onward),
        PartFate::Deliver => {
            let v6 = work.shed.envelope.v6;
            let outer = if v6 { work.outer6.class() } else { work.outer.ip.tos } & Ipv4::ECN;
            let class = if stream.eth.ty == EtherType::IPV6 { stream.v6.class() } else { stream.v4.tos };
            let Some(ecn) = combine_ecn(class & Ipv4::ECN, outer) else {
                return Action::Drop(DropReason::EcnMismatch);
            };
            match deliver_later(frame, stream, &work.stt, v6, Some(ecn), size) {
                Ok(()) => Action::Port { ifindex: stream.ifindex, peer: false },
                Err(Refused) => Action::Drop(DropReason::KernelRefused),
            }
        }
    }
}

/// On to another host as it is: the checksum covers the addresses.
#[inline(always)]
fn onward<F: FrameMut>(frame: &mut F, work: &UplinkWork, config: &Config, pa: &Addr) -> Action {
    let v6 = work.shed.envelope.v6;
    let hops = if v6 { work.outer6.hop_limit } else { work.outer.ip.ttl };
    if hops <= 1 {
        return Action::Drop(DropReason::Loop);
    }
    // What this host is for one address it is not for the other.
    let change = checksum::add(difference(&work.from, &config.pa), difference(&config.pa, pa));
    let at = if v6 { 54 } else { 34 } + SttSegment::CHECKSUM_AT;
    let open = stt_is_open(frame, work);
    let result = readdress(frame, work, config, pa).and_then(|()| mend(frame, at, change, open));
    done(result, Action::Wire)
}

/// Whether somebody still has to sum the STT segment up: a bundle, or the sum of its pseudo header alone, as between
/// two hosts that share a kernel's memory.
#[inline(always)]
fn stt_is_open<F: FrameMut>(frame: &F, work: &UplinkWork) -> bool {
    let v6 = work.shed.envelope.v6;
    let addresses = if v6 {
        checksum::sum(&work.outer6.src) + checksum::sum(&work.outer6.dst)
    } else {
        checksum::sum(&work.outer.ip.src.halves()) + checksum::sum(&work.outer.ip.dst.halves())
    };
    let len = SttSegment::LEN + work.stt.have;
    frame.gso_size() > 0 || work.stt.segment.checksum.half() == pseudo_alone(addresses, len)
}

/// Mends an STT segment's checksum, which stands at `at`, after its addresses changed.
///
/// One that is done is mended here. The kernel's helper would take it for open as long as the *inner* checksum is:
/// it knows only that something in the frame has still to be summed up, not what.
///
/// # Errors
/// If the kernel refuses.
#[inline(always)]
pub(crate) fn mend<F: FrameMut>(frame: &mut F, at: u32, change: u32, open: bool) -> Result<(), Refused> {
    if open {
        return frame.mend_l4(at, change, true, false);
    }
    let mut field = Be16::default();
    frame.load(at, &mut field)?;
    frame.store(at, &Be16::from_half(checksum::mend(field.half(), change)))
}
