//! What a host says that it measured: taken as far as it makes sense, cut to a size that a thousand hosts may send.

use crate::grpc::{text, texts};
use tenet_api::agent;
use tenet_control::{Measured, OffloadTest, PathReport, PathState, ReceiveWay, UdpTunnel, UplinkReport};

/// Paths, which are as many as hosts, that are kept.
const PATHS: usize = 20_000;
/// Uplinks, and entries of each of their lists, that are kept.
const FEW: usize = 32;

/// A host's report. Paths that name no host of ours' form are left out.
pub(crate) fn measured(m: agent::Measured) -> Measured {
    Measured {
        paths: m.paths.into_iter().take(PATHS).filter_map(path).collect(),
        uplinks: few(m.uplinks, uplink),
    }
}

fn few<T, U>(all: Vec<T>, one: impl FnMut(T) -> U) -> Vec<U> {
    all.into_iter().take(FEW).map(one).collect()
}

fn path(p: agent::PathReport) -> Option<PathReport> {
    Some(PathReport {
        peer: p.peer.parse().ok()?,
        pa: p.pa.parse().ok()?,
        mtu: u16::try_from(p.mtu).ok().filter(|m| *m != 0),
        state: PathState::from_name(&p.state)?,
        rtt_us: p.rtt_us,
        age_ms: p.age_ms,
        method: text(p.method),
        limited_by: p.limited_by.parse().ok(),
        detail: text(p.detail),
    })
}

fn uplink(u: agent::UplinkReport) -> UplinkReport {
    UplinkReport {
        device: text(u.device),
        mtu: u.mtu,
        receive: text(u.receive),
        receive_reason: text(u.receive_reason),
        ways: few(u.ways, |w| ReceiveWay {
            name: text(w.name),
            works: w.works,
            frames: w.frames,
            nanoseconds: w.nanoseconds,
            detail: text(w.detail),
        }),
        tests: few(u.tests, |t| OffloadTest {
            method: text(t.method),
            peer: text(t.peer),
            outcome: text(t.outcome),
            plain: text(t.plain),
            checksum: text(t.checksum),
            segments: text(t.segments),
            largest: t.largest,
            detail: text(t.detail),
        }),
        tunnels: few(u.tunnels, |t| UdpTunnel {
            method: text(t.method),
            port: u16::try_from(t.port).unwrap_or_default(),
            merges: t.merges,
            detail: text(t.detail),
        }),
        outer_fragments: u.outer_fragments,
        hints: texts(u.hints),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let good = agent::PathReport {
            peer: "h2".into(),
            pa: "172.16.2.2".into(),
            mtu: 1400,
            state: "measured".into(),
            limited_by: "172.16.2.1".into(),
            ..agent::PathReport::default()
        };
        let nameless = agent::PathReport { peer: "not a name!".into(), ..good.clone() };
        let nowhere = agent::PathReport { pa: "x".into(), ..good.clone() };
        let odd = agent::PathReport { state: "asleep".into(), ..good.clone() };
        let huge = agent::PathReport { mtu: 1 << 20, limited_by: "?".into(), ..good.clone() };
        let paths = vec![good, nameless, nowhere, odd, huge];
        let taken = measured(agent::Measured { paths, uplinks: vec![agent::UplinkReport::default(); 100] });
        assert_eq!(taken.paths.len(), 2);
        assert_eq!((taken.paths[0].mtu, taken.paths[1].mtu), (Some(1400), None));
        assert_eq!(taken.paths[0].limited_by, Some([172, 16, 2, 1].into()));
        assert_eq!(taken.uplinks.len(), FEW);
    }
}
