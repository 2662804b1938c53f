//! What the kernel is asked to do with a frame in the end.

use crate::{hub, maps::Maps, skb::Skb, tell};
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
};
use tenet_forward::{Action, Meta, Tables as _};
use tenet_tables::DropReason;

/// `bpf_redirect`: to the ingress of the interface instead of out of it.
const INGRESS: u64 = 1;
pub const SHOT: i32 = TC_ACT_SHOT as i32;
/// Not "OK", which would end the chain: programs and filters of others behind ours are to see what is not ours.
pub const PASS: i32 = TC_ACT_UNSPEC;

/// The kernel's part of an action.
#[inline(always)]
pub fn act(frame: &mut Skb, meta: &Meta, action: Action) -> i32 {
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
        Action::Slow(reason) => slow(frame, meta, reason),
        Action::WireByMark => {
            frame.set_mark(tenet_forward::SEND_MARK);
            match Maps.config() {
                Some(config) => redirect(config.uplink, INGRESS),
                None => drop(meta, DropReason::NotConfigured),
            }
        }
    }
}

/// To the slow device, where a port's frame comes out in pieces, and a part of an STT frame to the agent.
#[inline(always)]
fn slow(frame: &mut Skb, meta: &Meta, reason: DropReason) -> i32 {
    let Some(config) = Maps.config() else { return drop(meta, DropReason::NotConfigured) };
    // What comes back from there and still needs it would go round for ever.
    if config.slow == 0 || config.slow == meta.ifindex {
        return drop(meta, reason);
    }
    let from_port = matches!(reason, DropReason::SttUnsupported);
    // The far end cuts up a port's frame by itself; a part would be lost there without a name.
    if !from_port && tell::is_joining() == 0 {
        return drop(meta, reason);
    }
    tell::slow(meta);
    frame.set_mark(if from_port { meta.ifindex } else { 0 });
    redirect(config.slow, 0)
}

#[inline(always)]
pub fn drop(meta: &Meta, reason: DropReason) -> i32 {
    tell::dropped(meta.ifindex, reason as u32);
    SHOT
}

#[inline(always)]
pub fn redirect(ifindex: u32, flags: u64) -> i32 {
    // SAFETY: the helper takes numbers only.
    unsafe { bpf_redirect(ifindex, flags) as i32 }
}

#[inline(always)]
pub fn redirect_peer(ifindex: u32) -> i32 {
    // SAFETY: the helper takes numbers only.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}

#[inline(always)]
pub fn redirect_neigh(ifindex: u32) -> i32 {
    // SAFETY: without a next hop the helper reads none.
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}
