//! What was measured, for the controller.

use super::{Prober, Tested};
use std::collections::BTreeSet;
use std::time::Duration;
use tenet_api::agent;
use tenet_compile::{Row, Rows};
use tenet_host::paths::PathState;
use tenet_host::probe::{Grade, METHODS, Outcome, Shape};

/// Names of the methods that this host's networks use.
pub(crate) fn methods_in_use(rows: &Rows) -> BTreeSet<&'static str> {
    rows.0
        .values()
        .filter_map(|(row, _)| if let Row::Network(n) = row { Some(n.method.name()) } else { None })
        .collect()
}

impl Prober {
    /// The paths, as far as known.
    pub(crate) fn path_reports(&self, now: Duration) -> Vec<agent::PathReport> {
        let uplink = self.uplink_mtu;
        let reports = self.paths.reports().filter_map(|r| {
            let name = self.names.get(&r.pa)?;
            let detail = match (r.state, r.mtu) {
                (PathState::Silent, None) => {
                    format!("host {name} answers no probe: the uplink's MTU of {uplink} is used for it")
                }
                (PathState::Silent, Some(mtu)) => {
                    format!("host {name} answers no probe any more: the last value of {mtu} is used")
                }
                (_, Some(mtu)) if u32::from(mtu) < uplink => {
                    let who =
                        r.limited_by.map_or_else(String::new, |router| format!("; router {router} said so"));
                    format!("the path carries {mtu} bytes, this host's uplink {uplink}{who}")
                }
                (PathState::Measured | PathState::Searching, _) => String::new(),
            };
            let age = r.confirmed.map_or(Duration::ZERO, |c| now.saturating_sub(c));
            Some(agent::PathReport {
                peer: name.to_string(),
                pa: r.pa.to_string(),
                mtu: r.mtu.map_or(0, u32::from),
                state: match r.state {
                    PathState::Measured => "measured",
                    PathState::Searching => "searching",
                    PathState::Silent => "silent",
                }
                .to_owned(),
                rtt_us: r.rtt.map_or(0, |rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX)),
                age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
                method: METHODS[r.method % METHODS.len()].1.to_owned(),
                limited_by: r.limited_by.map_or_else(String::new, |a| a.to_string()),
                detail,
            })
        });
        reports.collect()
    }

    /// The offload self-test, method by method.
    pub(crate) fn test_reports(&self, device: &str) -> Vec<agent::OffloadTest> {
        let one = |(method, name): (u8, &str)| match &self.tested {
            None => untested(name, "no host has answered yet"),
            Some(tested) => match tested.outcomes.get(&method) {
                None => untested(name, "not reached"),
                Some(outcome) => tested_one(name, tested, outcome, device),
            },
        };
        METHODS.into_iter().map(one).collect()
    }
}

fn untested(method: &str, detail: &str) -> agent::OffloadTest {
    agent::OffloadTest {
        method: method.to_owned(),
        outcome: "untested".to_owned(),
        detail: detail.to_owned(),
        ..agent::OffloadTest::default()
    }
}

fn tested_one(method: &str, tested: &Tested, outcome: &Outcome, device: &str) -> agent::OffloadTest {
    let words = |shape| outcome.flaw(shape).unwrap_or_else(|| "ok".to_owned());
    let (feature, sums) = match method {
        "nvgre" => ("tx-gre-segmentation", "tx-checksum-ip-generic"),
        "stt" => ("tcp-segmentation-offload", "tx-checksum-ip-generic"),
        "rewrite" => ("tcp-segmentation-offload", "tx-checksumming"),
        _ => ("tx-udp_tnl-segmentation", "tx-checksum-ip-generic"),
    };
    let detail = match outcome.grade() {
        Grade::Ok => String::new(),
        Grade::Broken => format!(
            "frames by {method} do not reach host {} whole: something on the way drops or changes them; \
             use another method, or let {} through",
            tested.peer,
            match method {
                "nvgre" => "IP protocol 47",
                "stt" => "TCP port 7471",
                "rewrite" => "TCP and UDP between provider addresses (the test's port is 7446)",
                _ => "the method's UDP port",
            }
        ),
        Grade::Degraded if outcome.flaw(Shape::Segments).is_some() => format!(
            "large frames by {method} do not survive being cut up on the way out: \
             `ethtool -K {device} {feature} off`"
        ),
        Grade::Degraded => {
            format!("checksums by {method} are not finished on the way out: `ethtool -K {device} {sums} off`")
        }
    };
    agent::OffloadTest {
        method: method.to_owned(),
        peer: tested.peer.to_string(),
        outcome: outcome.grade().name().to_owned(),
        plain: words(Shape::Plain),
        checksum: words(Shape::Checksum),
        segments: words(Shape::Segments),
        largest: outcome.largest(),
        detail,
    }
}
