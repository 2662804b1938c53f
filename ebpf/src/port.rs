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
use tenet_forward::{
    Action, Meta, Refused, Verdict, Words, clamp, edit, needs_closer_look, port_closer, port_first, rewrite,
};
use tenet_tables::DropReason;

/// Everything that a VM sends.
#[classifier]
pub fn port_in(ctx: TcContext) -> i32 {
    let Some(sheet) = sheets::port() else { return SHOT };
    decide_port(Skb::new(&ctx), sheet);
    if needs_closer_look(sheet.verdict) {
        look_closer(Skb::new(&ctx), sheet);
    }
    tell_port(Skb::new(&ctx), sheet);
    if is_flood(sheet.verdict) {
        return flood_out(Skb::new(&ctx), &sheet.work);
    }
    if sheet.work.segment != 0 && is_forwarded(sheet.verdict) && clamp_port(Skb::new(&ctx), sheet) != 0 {
        return SHOT;
    }
    act_port(Skb::new(&ctx), sheet)
}

#[inline(never)]
fn decide_port(frame: Skb, sheet: &mut PortSheet) {
    let meta = frame.meta();
    sheet.verdict = port_first(&frame, &meta, &Maps, &mut sheet.work);
}

/// What is answered, and what a sender is told: rare, and apart because it is much.
#[inline(never)]
fn look_closer(frame: Skb, sheet: &mut PortSheet) {
    let meta = frame.meta();
    sheet.verdict = port_closer(&frame, &meta, &Maps, sheet.verdict, &mut sheet.work);
}

/// Lowers the segment size that a TCP connection's first frame offers; not 0: the frame is dropped.
#[inline(never)]
fn clamp_port(mut frame: Skb, sheet: &PortSheet) -> i32 {
    let meta = frame.meta();
    match clamp(&mut frame, &sheet.work) {
        Ok(lowered) => {
            if lowered {
                tell::clamped(&meta);
            }
            0
        }
        Err(Refused) => drop(&meta, DropReason::KernelRefused),
    }
}

#[inline(always)]
fn is_forwarded(words: Words) -> bool {
    words[0] == Verdict::Encapsulate.to_words()[0]
        || words[0] == Verdict::Rewrite.to_words()[0]
        || words[0] == Verdict::Deliver { ifindex: 0, peer: false }.to_words()[0]
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
        let verdict = Verdict::from_words(sheet.verdict);
        if verdict.is_discovery() {
            if verdict.advertises() {
                let result = advertise(frame.again(), sheet);
                if matches!(verdict, Verdict::AnswerRouter) {
                    return result;
                }
            }
            answer_neighbour(frame, sheet)
        } else if sheet.work.is_v6() {
            answer_port6(frame, sheet)
        } else {
            answer_port(frame, sheet)
        }
    } else if sheet.verdict[0] == Verdict::Rewrite.to_words()[0] {
        rewrite_port(frame, sheet)
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

/// To another host by IP Rewrite, apart from the tunnels so that neither carries the other's weight.
#[inline(never)]
fn rewrite_port(mut frame: Skb, sheet: &PortSheet) -> i32 {
    if rewrite::send(&mut frame, &sheet.work).is_err() {
        return drop(&frame.meta(), DropReason::KernelRefused);
    }
    let meta = frame.meta();
    act(&mut frame, &meta, Action::Wire)
}

/// The rare verdicts, apart because their edits need much stack.
#[inline(never)]
fn answer_port(mut frame: Skb, sheet: &PortSheet) -> i32 {
    let meta = frame.meta();
    let action =
        edit::port_answer(&mut frame, Verdict::from_words(sheet.verdict), &Maps, meta.ifindex, &sheet.work);
    turn_back(&meta, action)
}

/// As [`answer_port`]: a router's advertisement, as the answer or before it.
#[inline(never)]
fn advertise(mut frame: Skb, sheet: &PortSheet) -> i32 {
    let meta = frame.meta();
    let verdict = Verdict::from_words(sheet.verdict);
    let action = edit::port_advertise(&mut frame, verdict, &Maps, meta.ifindex, &sheet.work);
    if matches!(verdict, Verdict::AnswerRouter) { turn_back(&meta, action) } else { SHOT }
}

/// As [`answer_port`], of neighbour solicitations.
#[inline(never)]
fn answer_neighbour(mut frame: Skb, sheet: &PortSheet) -> i32 {
    let meta = frame.meta();
    turn_back(&meta, edit::port_neighbour(&mut frame, Verdict::from_words(sheet.verdict), &sheet.work))
}

/// As [`answer_port`], of IPv6 otherwise.
#[inline(never)]
fn answer_port6(mut frame: Skb, sheet: &PortSheet) -> i32 {
    let meta = frame.meta();
    let action =
        edit::port_answer6(&mut frame, Verdict::from_words(sheet.verdict), &Maps, meta.ifindex, &sheet.work);
    turn_back(&meta, action)
}

#[inline(always)]
fn turn_back(meta: &Meta, action: Action) -> i32 {
    match action {
        Action::Back(error) => {
            tell::answered(meta, error);
            redirect(meta.ifindex, 0)
        }
        Action::Drop(reason) => drop(meta, reason),
        Action::Pass
        | Action::Port { .. }
        | Action::Hub { .. }
        | Action::Wire
        | Action::WireByMark
        | Action::Slow(_) => SHOT,
    }
}
