//! The kernel's side of Tenet: thin shells around `tenet-forward`.
//!
//! `port_in` stands at the ingress of every VM's port and `uplink_in` at that of every uplink. Each
//! gathers what is known about the frame, asks `forward`, and makes one call of the kernel for the
//! [`Action`](tenet_forward::Action) it gets. `hub_out` and `hub_in` bring frames for taps through the hub. No helper newer than kernel 5.15 is used.
#![no_std]
#![no_main]

mod hub;
mod maps;
mod sheets;
mod skb;
mod tell;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    macros::classifier,
    programs::TcContext,
};
use maps::Maps;
use sheets::{PortSheet, UplinkSheet};
use skb::Skb;
use tenet_forward::{
    Action, Meta, PortWork, Tables as _, UplinkWork, Verdict, edit, flood, port_ingress, uplink_ingress,
};
use tenet_tables::{DropReason, FLOOD_LIMIT};

/// `bpf_redirect`: to the ingress of the interface instead of out of it.
const INGRESS: u64 = 1;
const SHOT: i32 = TC_ACT_SHOT as i32;
/// Not "OK", which would end the chain: programs and filters of others behind ours are to see what is not ours.
const PASS: i32 = TC_ACT_UNSPEC;

/// Everything that a VM sends.
#[classifier]
pub fn port_in(ctx: TcContext) -> i32 {
    let Some(sheet) = sheets::port() else { return SHOT };
    decide_port(Skb::new(&ctx), sheet);
    tell_port(Skb::new(&ctx), sheet);
    if is_flood(sheet.verdict) {
        return flood_out(Skb::new(&ctx), &sheet.work);
    }
    act_port(Skb::new(&ctx), sheet)
}

/// Everything that the uplink receives.
#[classifier]
pub fn uplink_in(ctx: TcContext) -> i32 {
    let Some(sheet) = sheets::uplink() else { return PASS };
    decide_uplink(Skb::new(&ctx), sheet);
    if sheet.verdict == Verdict::Pass.to_words() {
        return PASS;
    }
    let mut frame = Skb::new(&ctx);
    let meta = frame.meta();
    tell::note(&meta, &sheet.work.note);
    if is_flood(sheet.verdict) {
        if edit::decapsulate(&mut frame, &sheet.work).is_err() {
            return drop(&meta, DropReason::KernelRefused);
        }
        flood_to_ports(&frame, sheet.work.inner.gre.vsid(), 0);
        return drop(&meta, DropReason::Replicated);
    }
    if sheet.work.moved != 0 {
        tell::redirected(&frame, sheet.work.moved);
    }
    let action = edit::uplink(&mut frame, Verdict::from_words(sheet.verdict), &Maps, &sheet.work);
    act(&mut frame, &meta, action)
}

#[inline(never)]
fn decide_port(frame: Skb, sheet: &mut PortSheet) {
    let meta = frame.meta();
    sheet.work = PortWork::default();
    sheet.verdict = port_ingress(&frame, &meta, &Maps, &mut sheet.work).to_words();
}

/// Counters and events of a VM's frame, whatever becomes of it.
#[inline(always)]
fn tell_port(frame: Skb, sheet: &PortSheet) {
    let meta = frame.meta();
    let work = &sheet.work;
    if sheet.verdict == Verdict::Drop(DropReason::UnknownPort).to_words() {
        return;
    }
    tell::sent(&frame, &meta);
    if work.activated {
        tell::activated(&meta, work);
    }
    tell::note(&meta, &work.note);
    if work.moved != 0 {
        tell::redirected(&frame, work.moved);
    }
}

#[inline(always)]
fn act_port(frame: Skb, sheet: &PortSheet) -> i32 {
    if sheet.verdict[0] >= Verdict::FIRST_RARE {
        answer_port(frame, sheet)
    } else {
        forward_port(frame, sheet)
    }
}

/// The hot verdicts.
#[inline(never)]
fn forward_port(mut frame: Skb, sheet: &PortSheet) -> i32 {
    let meta = frame.meta();
    let action =
        edit::port_forward(&mut frame, meta.len, Verdict::from_words(sheet.verdict), &Maps, &sheet.work);
    act(&mut frame, &meta, action)
}

/// The rare verdicts, apart because their edits need much stack.
#[inline(never)]
fn answer_port(mut frame: Skb, sheet: &PortSheet) -> i32 {
    let meta = frame.meta();
    let action =
        edit::port_answer(&mut frame, Verdict::from_words(sheet.verdict), &Maps, meta.ifindex, &sheet.work);
    match action {
        Action::Back(error) => {
            tell::answered(&meta, error);
            redirect(meta.ifindex, 0)
        }
        Action::Drop(reason) => drop(&meta, reason),
        Action::Pass | Action::Port { .. } | Action::Hub { .. } | Action::Wire | Action::WireByMark => SHOT,
    }
}

#[inline(never)]
fn decide_uplink(frame: Skb, sheet: &mut UplinkSheet) {
    let meta = frame.meta();
    sheet.work = UplinkWork::default();
    sheet.verdict = uplink_ingress(&frame, &meta, &Maps, &mut sheet.work).to_words();
}

/// The kernel's part of an action.
#[inline(always)]
fn act(frame: &mut Skb, meta: &Meta, action: Action) -> i32 {
    match action {
        Action::Pass => PASS,
        Action::Drop(reason) => drop(meta, reason),
        Action::Port { ifindex, peer } => {
            tell::delivered(frame, ifindex);
            if peer {
                // The receiver's side does not look at the link header again, so that the frame must be known to be its own.
                frame.to_host();
                return redirect_peer(ifindex);
            }
            redirect(ifindex, 0)
        }
        Action::Hub { ifindex } => match Maps.config() {
            Some(config) => hub::enter(frame, ifindex, config.hub),
            None => drop(meta, DropReason::NotConfigured),
        },
        Action::Back(error) => {
            tell::answered(meta, error);
            redirect(meta.ifindex, 0)
        }
        Action::Wire => {
            frame.set_mark(0);
            match Maps.config() {
                Some(config) => redirect_neigh(config.uplink),
                None => drop(meta, DropReason::NotConfigured),
            }
        }
        Action::WireByMark => {
            frame.set_mark(tenet_forward::SEND_MARK);
            match Maps.config() {
                Some(config) => redirect(config.uplink, INGRESS),
                None => drop(meta, DropReason::NotConfigured),
            }
        }
    }
}

/// Copies a VM's broadcast to all who should have it: first to the ports of this host, then, encapsulated, to the
/// other hosts.
#[inline(always)]
fn flood_out(frame: Skb, work: &PortWork) -> i32 {
    let meta = frame.meta();
    if tell::may_flood(meta.ifindex) == 0 {
        return drop(&meta, DropReason::FloodLimited);
    }
    let Some(vsid) = Maps.port(meta.ifindex).map(|p| p.vsid) else { return SHOT };
    flood_to_ports(&frame, vsid, meta.ifindex);
    if flood_encapsulate(frame.again(), work, vsid) != 0 {
        return drop(&meta, DropReason::KernelRefused);
    }
    let Some(uplink) = Maps.config().map(|c| c.uplink) else { return SHOT };
    let mut index = 0;
    while index < FLOOD_LIMIT && flood_remote_step(frame.raw(), vsid, index, uplink) != 0 {
        index += 1;
    }
    drop(&meta, DropReason::Replicated)
}

#[inline(always)]
fn flood_to_ports(frame: &Skb, vsid: u32, sender: u32) {
    let mut index = 0;
    while index < FLOOD_LIMIT && flood_local_step(frame.raw(), vsid, index, sender) != 0 {
        index += 1;
    }
}

#[inline(never)]
fn flood_encapsulate(mut frame: Skb, work: &PortWork, vsid: u32) -> i32 {
    let Some(config) = Maps.config() else { return 1 };
    let len = frame.meta().len;
    i32::from(flood::encapsulate(&mut frame, len, work, vsid, config).is_err())
}

/// One receiver of a broadcast on this host. Exported, and so a global function, which the verifier checks once
/// for all calls; as a part of the loop it would be checked in every round.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flood_local_step(skb: *mut __sk_buff, vsid: u32, index: u32, sender: u32) -> u32 {
    u32::from(flood::local_step(&mut Skb::from_raw(skb), &Maps, vsid, index, sender))
}

/// One receiver of a broadcast on another host; see [`flood_local_step`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flood_remote_step(skb: *mut __sk_buff, vsid: u32, index: u32, uplink: u32) -> u32 {
    u32::from(flood::remote_step(&mut Skb::from_raw(skb), &Maps, vsid, index, uplink))
}

#[inline(always)]
fn is_flood(words: [u32; 3]) -> bool {
    words[0] == Verdict::Flood { vsid: 0 }.to_words()[0]
}

#[inline(always)]
fn drop(meta: &Meta, reason: DropReason) -> i32 {
    tell::dropped(meta.ifindex, reason as u32);
    SHOT
}

#[inline(always)]
fn redirect(ifindex: u32, flags: u64) -> i32 {
    // SAFETY: the helper takes numbers only.
    unsafe { bpf_redirect(ifindex, flags) as i32 }
}

#[inline(always)]
fn redirect_peer(ifindex: u32) -> i32 {
    // SAFETY: the helper takes numbers only.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}

#[inline(always)]
fn redirect_neigh(ifindex: u32) -> i32 {
    // SAFETY: without a next hop the helper reads none.
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// `bpf_redirect_peer` and others are for programs under the kernel's own licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
