//! `port_in`: the ingress of every VM's port.

use crate::{
    act::{SHOT, act, drop, redirect},
    flood::{flood_out, is_flood},
    maps::Maps,
    sheets::{self, PortSheet},
    skb::Skb,
    tell,
};
use aya_ebpf::{macros::classifier, programs::TcContext};
use tenet_forward::{Action, PortWork, Verdict, edit, port_ingress};
use tenet_tables::DropReason;

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
