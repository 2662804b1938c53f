//! What hosts measured, as REST shows it.

use std::collections::BTreeMap;
use tenet_api::rest;
use tenet_control::{Finding, Path, PathState, Paths, UplinkReport};
use tenet_model::HostName;

pub(crate) fn uplink(u: UplinkReport) -> rest::Uplink {
    rest::Uplink {
        device: u.device,
        mtu: u.mtu,
        receive: u.receive,
        receive_reason: u.receive_reason,
        ways: u
            .ways
            .into_iter()
            .map(|w| rest::ReceiveWay {
                name: w.name,
                works: w.works,
                frames: w.frames,
                nanoseconds: w.nanoseconds,
                detail: w.detail,
            })
            .collect(),
        tests: u
            .tests
            .into_iter()
            .map(|t| rest::OffloadTest {
                method: t.method,
                peer: t.peer,
                outcome: t.outcome,
                plain: t.plain,
                checksum: t.checksum,
                segments: t.segments,
                largest: t.largest,
                detail: t.detail,
            })
            .collect(),
        tunnels: u
            .tunnels
            .into_iter()
            .map(|t| rest::UdpTunnel { method: t.method, port: t.port, merges: t.merges, detail: t.detail })
            .collect(),
        outer_fragments: u.outer_fragments,
        hints: u.hints,
    }
}

pub(crate) fn finding(f: Finding) -> rest::PathFinding {
    rest::PathFinding { kind: f.kind.into(), hosts: f.hosts, text: f.text, hint: f.hint }
}

/// All ways, or those of one host.
pub(crate) fn paths(all: Paths, of: Option<&HostName>, now: u64) -> rest::Paths {
    let concerns = |a: &HostName, b: &HostName| of.is_none_or(|of| a == of || b == of);
    let mut pairs: BTreeMap<(HostName, HostName), rest::PathPair> = BTreeMap::new();
    for path in all.paths.into_iter().filter(|p| concerns(&p.from, &p.to)) {
        let forward = path.from < path.to;
        let (a, b) = if forward { (&path.from, &path.to) } else { (&path.to, &path.from) };
        let promised = all.uplinks.get(a).zip(all.uplinks.get(b)).map(|(x, y)| *x.min(y));
        let pair = pairs.entry((a.clone(), b.clone())).or_insert_with(|| rest::PathPair {
            a: a.clone(),
            b: b.clone(),
            there: None,
            back: None,
            promised,
            ok: false,
        });
        let place = if forward { &mut pair.there } else { &mut pair.back };
        *place = Some(view(path, now));
    }
    let mut pairs: Vec<rest::PathPair> = pairs.into_values().collect();
    for pair in &mut pairs {
        let good = |way: &Option<rest::PathView>| {
            let measured = way.as_ref().filter(|w| w.state == PathState::Measured.name()).and_then(|w| w.mtu);
            measured.is_some_and(|mtu| pair.promised.is_none_or(|p| u32::from(mtu) >= p))
        };
        pair.ok = good(&pair.there) && good(&pair.back);
    }
    let findings = all.findings.into_iter().filter(|f| of.is_none_or(|of| f.hosts.contains(of)));
    let findings: Vec<_> = findings.map(finding).collect();
    let uplinks = all.uplinks.into_iter().filter(|(name, _)| {
        of.is_none_or(|of| name == of || pairs.iter().any(|p| p.a == *name || p.b == *name))
    });
    rest::Paths {
        ok: findings.is_empty() && pairs.iter().all(|p| p.ok),
        uplinks: uplinks.collect(),
        pairs,
        findings,
    }
}

fn view(p: Path, now: u64) -> rest::PathView {
    rest::PathView {
        mtu: p.report.mtu,
        state: p.report.state.name().into(),
        rtt_us: p.report.rtt_us,
        age_ms: now.saturating_sub(p.confirmed) / 1000,
        method: p.report.method,
        limited_by: p.report.limited_by,
        detail: p.report.detail,
    }
}
