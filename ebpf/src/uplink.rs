//! `uplink_in`: the ingress of every uplink.

use crate::{
    act::{PASS, act, drop},
    flood::{flood_to_ports, is_flood},
    maps::Maps,
    rewrite::rewrite_in,
    sheets::{self, UplinkSheet},
    skb::{Skb, kernel_turns},
    stt::{stt_arrived, stt_part},
    tell,
};
use aya_ebpf::{macros::classifier, programs::TcContext};
use tenet_forward::stt::Kind;
use tenet_forward::{FrameMut as _, Shed, Verdict, damaged, edit, is_sound, uplink_first};
use tenet_tables::DropReason;
use tenet_wire::EtherType;

/// Everything that the uplink receives.
#[classifier]
pub fn uplink_in(ctx: TcContext) -> i32 {
    let Some(sheet) = sheets::uplink() else { return PASS };
    decide_uplink(Skb::new(&ctx), sheet);
    if sheet.work.sum.at != 0 && !is_sound(&Skb::new(&ctx), &sheet.work) {
        sheet.verdict = damaged(Verdict::from_words(sheet.verdict), &mut sheet.work).to_words();
    }
    if sheet.verdict == Verdict::Pass.to_words() {
        return rewrite_in(Skb::new(&ctx));
    }
    let mut frame = Skb::new(&ctx);
    let meta = frame.meta();
    tell::note(&meta, &sheet.work.note);
    let is_stt = sheet.work.stt.kind != Kind::Foreign;
    if is_flood(sheet.verdict) {
        let stripped = if is_stt {
            frame.stt_decapsulate(&sheet.work)
        } else {
            edit::decapsulate(&mut frame, &sheet.work)
        };
        if stripped.is_err() {
            return drop(&meta, DropReason::KernelRefused);
        }
        flood_to_ports(&frame, sheet.work.vsid, 0);
        return drop(&meta, DropReason::Replicated);
    }
    if sheet.work.moved != 0 {
        tell::redirected(&frame, sheet.work.moved);
    }
    if is_stt {
        return if sheet.verdict == Verdict::Part.to_words() {
            stt_part(frame.raw())
        } else {
            stt_arrived(frame.raw())
        };
    }
    let action = edit::uplink(&mut frame, Verdict::from_words(sheet.verdict), &Maps, &sheet.work);
    act(&mut frame, &meta, action)
}

/// Whether inner and outer packet are of different IP versions.
#[inline(always)]
fn other_version(shed: &Shed) -> bool {
    shed.envelope.v6 != (shed.inner == EtherType::IPV6)
}

#[inline(never)]
fn decide_uplink(frame: Skb, sheet: &mut UplinkSheet) {
    let meta = frame.meta();
    sheet.verdict = uplink_first(&frame, &meta, &Maps, &mut sheet.work).to_words();
    let [deliver, ..] = Verdict::Deliver { ifindex: 0, peer: false }.to_words();
    if sheet.verdict[0] == deliver && other_version(&sheet.work.shed) && !kernel_turns() {
        // Only a queue makes such a kernel look again at what the frame is.
        let [_, ifindex, _] = sheet.verdict;
        sheet.verdict = Verdict::Deliver { ifindex, peer: false }.to_words();
    }
}
