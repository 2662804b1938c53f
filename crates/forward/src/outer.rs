//! Two looks at a tunnel's outer headers that few frames need: the outer checksum, and Geneve's options.
//!
//! In eBPF both are functions of their own, which the verifier walks once.

use crate::{Frame, OuterSum, Refused};
use tenet_tables::DropReason;
use tenet_wire::{
    Be16, EtherType, Ethernet, Geneve, GeneveOption, Ipv4, Ipv6, OptionsError, ProtocolNumber, Tcp,
    TunnelFrame, TunnelHeader, Udp, checksum, walk_options,
};

/// Whether a UDP checksum is right; there is one.
///
/// Right are also two values that a kernel leaves on frames that never were on a cable, as between two namespaces of
/// one host, where checksums are filled in only by who needs them: the sum of the pseudo header alone, and one that is
/// right as soon as the inner checksum is filled in ("local checksum offload" in the kernel's
/// Documentation/networking/checksum-offloads.rst).
///
/// # Errors
/// If the frame ends before the datagram does.
#[inline(always)]
pub fn checksum_is_right<F: Frame>(frame: &F, sum: &OuterSum) -> Result<bool, Refused> {
    let OuterSum { at, addresses, geneve } = *sum;
    let mut udp = Udp::default();
    frame.load(at, &mut udp)?;
    let pseudo = addresses + protocol(ProtocolNumber::UDP) + udp.len.half() as u32;
    if udp.checksum.half() == checksum::fold(pseudo) {
        return Ok(true);
    }
    let whole = frame.sum(at, udp.len.get() as u32)?;
    if checksum::finish(pseudo + whole as u32) == 0 {
        return Ok(true);
    }
    unfinished(frame, pseudo, at, geneve)
}

#[inline(always)]
const fn protocol(number: u8) -> u32 {
    (number as u16).to_be() as u32
}

/// Whether the checksum is right but for the inner one, which is still the sum of the inner pseudo header.
#[inline(always)]
fn unfinished<F: Frame>(frame: &F, pseudo: u32, at: u32, geneve: bool) -> Result<bool, Refused> {
    let mut tunnel = TunnelFrame::default();
    let header_at = at + Udp::LEN;
    frame.load(header_at, &mut tunnel.header)?;
    let options = if geneve { tunnel.header.geneve().options_len() } else { 0 };
    let inner_at = header_at + TunnelHeader::LEN + options;
    frame.load(inner_at, &mut tunnel.inner)?;
    let ip_at = inner_at + Ethernet::LEN;
    let (l4, l4_at, inner) = if tunnel.inner.eth.ty == EtherType::IPV4 {
        let ip: Ipv4 = tunnel.inner.ip;
        if ip.version_ihl != Ipv4::PLAIN || ip.is_fragment() {
            return Ok(false);
        }
        let ([a, b], [c, d]) = (ip.src.halves(), ip.dst.halves());
        let len = ip.total_len.get().wrapping_sub(Ipv4::LEN as u16);
        (ip.protocol, ip_at + Ipv4::LEN, checksum::sum(&[a, b, c, d, len.to_be()]))
    } else if tunnel.inner.eth.ty == EtherType::IPV6 {
        let mut ip = Ipv6::default();
        frame.load(ip_at, &mut ip)?;
        let addresses = checksum::sum(&ip.src) + checksum::sum(&ip.dst);
        (ip.next, ip_at + Ipv6::LEN, addresses + ip.payload_len.half() as u32)
    } else {
        return Ok(false);
    };
    let field = match l4 {
        ProtocolNumber::TCP => Tcp::CHECKSUM_AT,
        ProtocolNumber::UDP => Udp::CHECKSUM_AT,
        _ => return Ok(false),
    };
    let mut check = Be16::default();
    frame.load(l4_at + field, &mut check)?;
    let unfinished = check.half() == checksum::fold(inner + protocol(l4));
    let headers = frame.sum(at, l4_at - at)? as u32;
    Ok(unfinished && checksum::finish(pseudo + headers + (!check.half()) as u32) == 0)
}

/// Judges `len` bytes of Geneve's options.
///
/// # Errors
/// [`DropReason::GeneveOptions`] or [`DropReason::GeneveCritical`].
#[inline(always)]
pub fn check_options<F: Frame>(frame: &F, at: u32, len: u32) -> Result<(), DropReason> {
    let walked = walk_options(len, |offset| {
        let mut option = GeneveOption::default();
        frame.load(at + offset, &mut option).ok().map(|()| option)
    });
    match walked {
        Ok(()) => Ok(()),
        Err(OptionsError::Lengths) => Err(DropReason::GeneveOptions),
        Err(OptionsError::Critical) => Err(DropReason::GeneveCritical),
    }
}

/// The rules of Geneve's own header beside its options (RFC 8926 §3.4).
#[inline(always)]
pub(crate) fn check_geneve(header: &Geneve) -> Result<(), DropReason> {
    if header.is_control() {
        return Err(DropReason::GeneveControl);
    }
    if header.is_bridged() { Ok(()) } else { Err(DropReason::BadTunnelHeader) }
}
