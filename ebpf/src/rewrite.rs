//! IP Rewrite's part of `uplink_in`: what no tunnel's end takes.

use crate::{
    act::{PASS, act, redirect},
    maps::Maps,
    sheets::{self, RewriteSheet},
    skb::Skb,
    tell,
};
use tenet_forward::{Action, Tables as _, needs_closer_look, rewrite};
use tenet_tables::CONFIG_FLAG_REWRITE;

/// Takes what is for a rewrite address of this host.
#[inline(always)]
pub fn rewrite_in(frame: Skb) -> i32 {
    if Maps.config().is_none_or(|c| c.flags & CONFIG_FLAG_REWRITE == 0) {
        return PASS;
    }
    let Some(sheet) = sheets::rewrite() else { return PASS };
    decide_rewrite(frame.again(), sheet);
    if needs_closer_look(sheet.verdict) {
        look_closer(frame.again(), sheet);
    }
    act_rewrite(frame, sheet)
}

#[inline(never)]
fn decide_rewrite(frame: Skb, sheet: &mut RewriteSheet) {
    let meta = frame.meta();
    sheet.verdict = rewrite::uplink_first(&frame, &meta, &Maps, &mut sheet.work);
}

/// Link addresses and routers' errors: rare, and apart because they need much stack.
#[inline(never)]
fn look_closer(mut frame: Skb, sheet: &mut RewriteSheet) {
    let meta = frame.meta();
    sheet.verdict = rewrite::uplink_closer(&mut frame, &meta, &Maps, sheet.verdict, &mut sheet.work);
}

#[inline(never)]
fn act_rewrite(mut frame: Skb, sheet: &mut RewriteSheet) -> i32 {
    let meta = frame.meta();
    tell::note(&meta, &sheet.work.note);
    if sheet.work.moved != 0 {
        tell::redirected(&frame, sheet.work.moved);
    }
    match rewrite::edit(&mut frame, sheet.verdict, &mut sheet.work) {
        // An answer for a link address: the uplink is no port that has counters.
        Action::Back(_) => redirect(meta.ifindex, 0),
        action => act(&mut frame, &meta, action),
    }
}
