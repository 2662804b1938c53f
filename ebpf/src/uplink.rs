//! `uplink_in`: the ingress of every uplink.

use crate::{
    act::{PASS, act, drop},
    flood::{flood_to_ports, is_flood},
    maps::Maps,
    rewrite::rewrite_in,
    sheets::{self, UplinkSheet},
    skb::Skb,
    tell,
};
use aya_ebpf::{macros::classifier, programs::TcContext};
use tenet_forward::{UplinkWork, Verdict, edit, uplink_ingress};
use tenet_tables::DropReason;

/// Everything that the uplink receives.
#[classifier]
pub fn uplink_in(ctx: TcContext) -> i32 {
    let Some(sheet) = sheets::uplink() else { return PASS };
    decide_uplink(Skb::new(&ctx), sheet);
    if sheet.verdict == Verdict::Pass.to_words() {
        return rewrite_in(Skb::new(&ctx));
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
fn decide_uplink(frame: Skb, sheet: &mut UplinkSheet) {
    let meta = frame.meta();
    sheet.work = UplinkWork::default();
    sheet.verdict = uplink_ingress(&frame, &meta, &Maps, &mut sheet.work).to_words();
}
