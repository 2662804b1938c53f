//! The way through the hub: `uplink_in` puts a frame into the hub's inner end, the hub's route takes the
//! tunnel off and sends it back out of that end past `hub_out`, and `hub_in` at the outer end gives it to the tap.
//!
//! All was decided before: these programs only carry the port's number along. In the hub's namespace it is the
//! frame's mark, which the kernel clears on the way to another namespace; on that way it is the frame's hash.

use crate::{
    act::{PASS, SHOT, drop, redirect, redirect_peer},
    maps::Maps,
    skb::Skb,
    tell,
};
use aya_ebpf::{macros::classifier, programs::TcContext};
use tenet_forward::Tables as _;
use tenet_tables::{DEVICE_TAP, DropReason};

/// Sends a frame for a port into the hub.
#[inline(always)]
pub fn enter(frame: &mut Skb, port: u32, hub: u32) -> i32 {
    frame.set_mark(port);
    frame.to_host();
    redirect_peer(hub)
}

/// What leaves the hub, at the egress of its inner end. The namespace's own stack has nothing to say.
#[classifier]
pub fn hub_out(ctx: TcContext) -> i32 {
    let mut frame = Skb::new(&ctx);
    let meta = frame.meta();
    if meta.mark == 0 {
        return SHOT;
    }
    // Whoever looks at a bundle on its way out wants to find its headers; for a single frame nobody looks.
    if meta.gso_size != 0 && frame.mend_network_header().is_err() {
        return SHOT;
    }
    frame.set_hash(meta.mark);
    PASS
}

/// What has left the hub, at the ingress of its outer end: to its tap, or nowhere.
#[classifier]
pub fn hub_in(ctx: TcContext) -> i32 {
    let mut frame = Skb::new(&ctx);
    let meta = frame.meta();
    let ifindex = frame.hash();
    match Maps.port(ifindex) {
        Some(port) if port.device == DEVICE_TAP => {}
        _ => return drop(&meta, DropReason::UnknownPort),
    }
    frame.forget_hash();
    tell::delivered(&frame, ifindex);
    redirect(ifindex, 0)
}
