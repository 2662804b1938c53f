//! IP Rewrite's part of `uplink_in`: what no tunnel's end takes.

use crate::{
    act::{PASS, act, redirect},
    maps::Maps,
    sheets,
    skb::Skb,
    tell,
};
use aya_ebpf::bindings::__sk_buff;
use tenet_forward::{Action, Tables as _, rewrite};
use tenet_tables::CONFIG_FLAG_REWRITE;

/// Exported, and so a global function, which the verifier checks by itself and not as a part of the tunnels' way.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rewrite_in(skb: *mut __sk_buff) -> i32 {
    if Maps.config().is_none_or(|c| c.flags & CONFIG_FLAG_REWRITE == 0) {
        return PASS;
    }
    let Some(work) = sheets::rewrite() else { return PASS };
    let mut frame = Skb::from_raw(skb);
    let meta = frame.meta();
    work.moved = 0;
    work.note.kind = None;
    let action = rewrite::uplink(&mut frame, &meta, &Maps, work);
    tell::note(&meta, &work.note);
    if work.moved != 0 {
        tell::redirected(&frame, work.moved);
    }
    match action {
        // An answer for a link address: the uplink is no port that has counters.
        Action::Back(_) => redirect(meta.ifindex, 0),
        action => act(&mut frame, &meta, action),
    }
}
