//! What the hosts measured of the ways between them, and which link or host it points at.

use crate::session::Host;
use crate::{Control, Micros, PathReport, PathState};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tenet_model::HostName;

/// The way from one host to another, as the first one measured it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    /// Who measured.
    pub from: HostName,
    /// The other host.
    pub to: HostName,
    /// What it measured.
    pub report: PathReport,
    /// When it was confirmed last.
    pub confirmed: Micros,
}

/// Something that an operator should look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Stable name of its kind: `host`, `pair`, `network`, `router`, `uplink`, `silent`.
    pub kind: &'static str,
    /// The hosts concerned; the one to look at first.
    pub hosts: Vec<HostName>,
    /// What was measured, in plain words.
    pub text: String,
    /// What to do.
    pub hint: String,
}

/// All that is known of the ways between hosts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Paths {
    /// The MTU of each host's uplink, as its agent tells it; of several the smallest.
    pub uplinks: BTreeMap<HostName, u32>,
    /// The ways that were measured, or that somebody tries to measure.
    pub paths: Vec<Path>,
    /// What they point at.
    pub findings: Vec<Finding>,
}

/// The smallest MTU of a host's uplinks, in bytes: as measured, or what it said when it connected, which may be out of
/// date by then.
pub(crate) fn uplink_mtu(host: &Host) -> Option<u32> {
    let measured = host.measured.as_ref().into_iter().flat_map(|(m, _)| &m.uplinks).map(|u| u.mtu);
    let told = || host.last_hello.as_ref().map(|h| h.uplink_mtu).filter(|m| *m != 0);
    measured.filter(|m| *m != 0).min().or_else(told)
}

impl Control {
    /// The ways between the hosts, and what is wrong with them.
    #[must_use]
    pub fn paths(&self) -> Paths {
        let mut all = Paths::default();
        for (name, host) in self.all_hosts() {
            let measured = host.measured.as_ref();
            if let Some(mtu) = uplink_mtu(host) {
                all.uplinks.insert(name.clone(), mtu);
            }
            let Some((measured, at)) = measured else { continue };
            for report in &measured.paths {
                if self.desired().hosts.contains_key(&report.peer) {
                    let confirmed = at.saturating_sub(report.age_ms.saturating_mul(1000));
                    let (from, to) = (name.clone(), report.peer.clone());
                    all.paths.push(Path { from, to, report: report.clone(), confirmed });
                }
            }
        }
        let connected = |name: &HostName| self.session_of(name).is_some();
        all.findings = findings(&all.uplinks, &all.paths, connected);
        all
    }
}

/// A way that carries less than the uplinks at its ends promise.
#[derive(Clone)]
struct Narrow<'a> {
    path: &'a Path,
    mtu: u32,
    promised: u32,
}

/// What measured ways point at.
fn findings(
    uplinks: &BTreeMap<HostName, u32>,
    paths: &[Path],
    connected: impl Fn(&HostName) -> bool,
) -> Vec<Finding> {
    let mut found = Vec::new();
    silent(paths, connected, &mut found);
    let mut narrow = Vec::new();
    let mut measured: Vec<&Path> = Vec::new();
    for path in paths {
        let (Some(mtu), PathState::Measured) = (path.report.mtu.map(u32::from), path.report.state) else {
            continue;
        };
        let Some(promised) = promised(uplinks, path) else { continue };
        measured.push(path);
        if mtu < promised {
            narrow.push(Narrow { path, mtu, promised });
        }
    }
    if !narrow.is_empty() && narrow.len() == measured.len() && hosts(&measured).len() > 2 {
        everywhere(&narrow, &mut found);
        narrow.clear();
    }
    ends(&measured, &mut narrow, &mut found);
    let mut left = narrow.clone();
    routers(&mut left, &mut found);
    pairs(&left, &narrow, &mut found);
    odd_uplinks(uplinks, &mut found);
    found
}

fn promised(uplinks: &BTreeMap<HostName, u32>, path: &Path) -> Option<u32> {
    Some(*uplinks.get(&path.from)?.min(uplinks.get(&path.to)?))
}

fn hosts<'a>(paths: &[&'a Path]) -> BTreeSet<&'a HostName> {
    paths.iter().flat_map(|p| [&p.from, &p.to]).collect()
}

/// `1400`, or `1380 to 1400`.
fn range(sizes: impl Iterator<Item = u32> + Clone) -> String {
    match (sizes.clone().min(), sizes.max()) {
        (Some(low), Some(high)) if low == high => low.to_string(),
        (Some(low), Some(high)) => format!("{low} to {high}"),
        _ => String::new(),
    }
}

/// Every way is too narrow: it is what lies between the hosts.
fn everywhere(narrow: &[Narrow<'_>], found: &mut Vec<Finding>) {
    let carried = range(narrow.iter().map(|n| n.mtu));
    let promised = range(narrow.iter().map(|n| n.promised));
    let all: Vec<&Path> = narrow.iter().map(|n| n.path).collect();
    found.push(Finding {
        kind: "network",
        hosts: hosts(&all).into_iter().cloned().collect(),
        text: format!("all paths carry {carried} bytes only, although the uplinks say {promised}"),
        hint: format!(
            "raise the MTU of the switches and routers between the hosts to {promised}, or set the uplinks' MTU to {carried}"
        ),
    });
}

/// Hosts whose ways all are too narrow, one way or both, while others' are not.
fn ends(measured: &[&Path], narrow: &mut Vec<Narrow<'_>>, found: &mut Vec<Finding>) {
    let mut best: Vec<(usize, HostName, bool, bool)> = Vec::new();
    for host in hosts(measured) {
        let out = (
            measured.iter().filter(|p| p.from == *host).count(),
            narrow.iter().filter(|n| n.path.from == *host).count(),
        );
        let into = (
            measured.iter().filter(|p| p.to == *host).count(),
            narrow.iter().filter(|n| n.path.to == *host).count(),
        );
        // Two ways at least point at the end that they have in common.
        let (from, to) = (out.0 > 1 && out.0 == out.1, into.0 > 1 && into.0 == into.1);
        if from || to {
            let explains = if from { out.1 } else { 0 } + if to { into.1 } else { 0 };
            best.push((explains, host.clone(), from, to));
        }
    }
    // The host that explains most comes first; what it explains is nobody else's fault.
    best.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    for (_, host, from, to) in best {
        let (own, rest): (Vec<_>, Vec<_>) = std::mem::take(narrow)
            .into_iter()
            .partition(|n| (from && n.path.from == host) || (to && n.path.to == host));
        *narrow = rest;
        if own.len() < 2 {
            // Another host explains it.
            narrow.extend(own);
            continue;
        }
        let carried = range(own.iter().map(|n| n.mtu));
        let promised = range(own.iter().map(|n| n.promised));
        let ways = match (from, to) {
            (true, true) => "to and from",
            (true, false) => "from",
            (false, _) => "to",
        };
        found.push(Finding {
            kind: "host",
            hosts: vec![host.clone()],
            text: format!("all paths {ways} {host} carry {carried} bytes only, although the uplinks at their ends say {promised}"),
            hint: format!("look at {host}'s link: the MTU of its switch port, of a bond, VLAN or bridge under the uplink"),
        });
    }
}

/// Ways that one router made narrow.
fn routers(narrow: &mut Vec<Narrow<'_>>, found: &mut Vec<Finding>) {
    let mut by_router: BTreeMap<(IpAddr, u32), Vec<Narrow<'_>>> = BTreeMap::new();
    for n in std::mem::take(narrow) {
        match n.path.report.limited_by {
            Some(router) => by_router.entry((router, n.mtu)).or_default().push(n),
            None => narrow.push(n),
        }
    }
    for ((router, mtu), own) in by_router {
        let Some(first) = own.first() else { continue };
        let more = match own.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let all: Vec<&Path> = own.iter().map(|n| n.path).collect();
        found.push(Finding {
            kind: "router",
            hosts: hosts(&all).into_iter().cloned().collect(),
            text: format!(
                "router {router} passes {mtu} bytes only on {}→{}{more}, where the uplinks say {}",
                first.path.from, first.path.to, first.promised
            ),
            hint: format!("raise the MTU of that router's next link to {}", first.promised),
        });
    }
}

/// What nothing else explains, pair by pair. `all` has also the ways back that a router is to blame for.
fn pairs(left: &[Narrow<'_>], all: &[Narrow<'_>], found: &mut Vec<Finding>) {
    let mut told = BTreeSet::new();
    for n in left {
        let (a, b) = (&n.path.from, &n.path.to);
        if !told.insert((a.min(b), a.max(b))) {
            continue;
        }
        let back = all.iter().find(|o| o.path.from == *b && o.path.to == *a);
        let text = match back {
            Some(back) if back.mtu == n.mtu => format!("{a}→{b} and back carry {} bytes only", n.mtu),
            Some(back) => format!("{a}→{b} carries {} bytes only, {b}→{a} {}", n.mtu, back.mtu),
            None => format!("{a}→{b} carries {} bytes only, the way back is as it should be", n.mtu),
        };
        // Those of ICMP and the provider network's IP.
        let headers = if n.path.report.pa.is_ipv4() { 28 } else { 48 };
        found.push(Finding {
            kind: "pair",
            hosts: vec![a.clone(), b.clone()],
            text: format!("{text}, where the uplinks say {}", n.promised),
            hint: format!("look at the links of both and at what lies between them: `ping -M do -s {} …` from one to the other shows where it ends", n.promised.saturating_sub(headers)),
        });
    }
}

/// Hosts that do not answer; where their agents are known to be away, that is the reason and told elsewhere.
fn silent(paths: &[Path], connected: impl Fn(&HostName) -> bool, found: &mut Vec<Finding>) {
    let mute = |p: &Path| p.report.state == PathState::Silent;
    let ends: BTreeSet<&HostName> = paths.iter().map(|p| &p.to).collect();
    let mut gone = BTreeSet::new();
    for host in ends {
        let mut to = paths.iter().filter(|p| p.to == *host).peekable();
        if to.peek().is_none() || !to.clone().all(mute) {
            continue;
        }
        gone.insert(host);
        if !connected(host) {
            continue;
        }
        let askers: Vec<String> = to.map(|p| p.from.to_string()).take(3).collect();
        found.push(Finding {
            kind: "silent",
            hosts: vec![host.clone()],
            text: format!("{host} answers no probe over the provider network (asked by {})", askers.join(", ")),
            hint: format!("check that {host}'s uplink is up, that its provider address is its own, and that no firewall drops the tunnels"),
        });
    }
    for path in paths.iter().filter(|p| mute(p) && !gone.contains(&p.to)) {
        let (from, to) = (&path.from, &path.to);
        // One that answers nobody asks nobody with success either.
        if gone.contains(from) {
            continue;
        }
        found.push(Finding {
            kind: "silent",
            hosts: vec![from.clone(), to.clone()],
            text: format!("{from} gets no answer from {to} over the provider network, others do"),
            hint: "check the route between the two and the firewalls on it".to_owned(),
        });
    }
}

/// Uplinks that are smaller than most.
fn odd_uplinks(uplinks: &BTreeMap<HostName, u32>, found: &mut Vec<Finding>) {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for mtu in uplinks.values() {
        *counts.entry(*mtu).or_default() += 1;
    }
    let usual = counts.iter().filter(|(_, n)| **n * 2 > uplinks.len()).map(|(mtu, _)| *mtu).next();
    let Some(usual) = usual else { return };
    for (host, mtu) in uplinks.iter().filter(|(_, mtu)| **mtu < usual) {
        found.push(Finding {
            kind: "uplink",
            hosts: vec![host.clone()],
            text: format!("{host}'s uplink has MTU {mtu}, most others have {usual}"),
            hint: format!(
                "set it to {usual} if its link carries that: every network with a VM there is limited by it"
            ),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenet_model::Name;

    fn name(text: &str) -> HostName {
        Name::new(text).unwrap()
    }

    /// `h1>h2 1500`, `h1>h2 1400@10.0.0.1`, `h1>h2 silent`.
    fn site(uplinks: &[(&str, u32)], lines: &[&str]) -> Vec<(&'static str, String, String)> {
        let uplinks = uplinks.iter().map(|(n, m)| (name(n), *m)).collect();
        let path = |line: &&str| {
            let (ends, value) = line.split_once(' ').unwrap();
            let (from, to) = ends.split_once('>').unwrap();
            let (size, router) = value.split_once('@').unwrap_or((value, ""));
            let report = PathReport {
                peer: name(to),
                pa: [10, 0, 0, 9].into(),
                mtu: size.parse().ok(),
                state: if size == "silent" { PathState::Silent } else { PathState::Measured },
                rtt_us: 0,
                age_ms: 0,
                method: "vxlan".into(),
                limited_by: router.parse().ok(),
                detail: String::new(),
            };
            Path { from: name(from), to: name(to), report, confirmed: 0 }
        };
        let paths: Vec<Path> = lines.iter().map(path).collect();
        let found = findings(&uplinks, &paths, |host| host.as_str() != "off");
        found
            .into_iter()
            .map(|f| {
                assert!(!f.hint.is_empty());
                let hosts: Vec<String> = f.hosts.iter().map(ToString::to_string).collect();
                (f.kind, hosts.join(" "), f.text)
            })
            .collect()
    }

    /// All ways between hosts, those of `bad` at the second size.
    fn mesh(hosts: &[&str], size: u32, bad: impl Fn(&str, &str) -> Option<u32>) -> Vec<String> {
        let pairs = hosts.iter().flat_map(|a| hosts.iter().filter(move |b| a != *b).map(move |b| (a, b)));
        pairs.map(|(a, b)| format!("{a}>{b} {}", bad(a, b).unwrap_or(size))).collect()
    }

    fn judged(uplinks: &[(&str, u32)], lines: &[String]) -> Vec<(&'static str, String, String)> {
        site(uplinks, &lines.iter().map(String::as_str).collect::<Vec<_>>())
    }

    const FOUR: [(&str, u32); 4] = [("h1", 1600), ("h2", 1600), ("h3", 1600), ("h4", 1600)];
    const NAMES: [&str; 4] = ["h1", "h2", "h3", "h4"];

    #[test]
    fn a_good_network_is_silent() {
        assert_eq!(judged(&FOUR, &mesh(&NAMES, 1600, |_, _| None)), []);
        // A host with a smaller uplink limits its own ways; that is no fault of a path.
        let lines = mesh(&["h1", "h2", "h3"], 9000, |a, b| (a == "h3" || b == "h3").then_some(1500));
        let found = judged(&[("h1", 9000), ("h2", 9000), ("h3", 1500)], &lines);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0, found[0].1.as_str()), ("uplink", "h3"));
    }

    #[test]
    fn the_one_bad_host_is_named_and_no_other() {
        let found = judged(&FOUR, &mesh(&NAMES, 1600, |a, b| (a == "h3" || b == "h3").then_some(1400)));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].0, found[0].1.as_str()), ("host", "h3"));
        assert!(found[0].2.contains("to and from h3 carry 1400 bytes only"), "{found:?}");
        let found = judged(&FOUR, &mesh(&NAMES, 1600, |a, _| (a == "h2").then_some(1500)));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].2.contains("all paths from h2 carry 1500"), "{found:?}");
        // Two bad ones.
        let bad = |h: &str| h == "h1" || h == "h4";
        let found = judged(&FOUR, &mesh(&NAMES, 1600, |a, b| (bad(a) || bad(b)).then_some(1400)));
        let hosts: Vec<&str> = found.iter().map(|f| f.1.as_str()).collect();
        assert_eq!(hosts, ["h1", "h4"], "{found:?}");
    }

    #[test]
    fn what_lies_between_is_told_apart() {
        let found = judged(&FOUR, &mesh(&NAMES, 1500, |_, _| None));
        assert_eq!((found.len(), found[0].0), (1, "network"), "{found:?}");
        let one_way = judged(&FOUR, &mesh(&NAMES, 1600, |a, b| (a == "h1" && b == "h2").then_some(1500)));
        assert_eq!((one_way.len(), one_way[0].0, one_way[0].1.as_str()), (1, "pair", "h1 h2"));
        assert!(one_way[0].2.contains("the way back is as it should be"), "{one_way:?}");
        let both = site(&FOUR[..2], &["h1>h2 1500", "h2>h1 1400"]);
        assert_eq!(both.len(), 1);
        assert!(both[0].2.contains("h1→h2 carries 1500 bytes only, h2→h1 1400"), "{both:?}");
        let one_by_router = site(&FOUR[..2], &["h1>h2 1400@10.0.0.1", "h2>h1 1404"]);
        assert_eq!(one_by_router.iter().map(|f| f.0).collect::<Vec<_>>(), ["router", "pair"]);
        assert!(
            one_by_router[1].2.contains("h2→h1 carries 1404 bytes only, h1→h2 1400"),
            "{one_by_router:?}"
        );
        let routed = site(
            &FOUR,
            &[
                "h1>h2 1600",
                "h2>h1 1600",
                "h1>h3 1400@10.0.0.1",
                "h2>h3 1600",
                "h3>h1 1600",
                "h3>h2 1600",
                "h2>h4 1400@10.0.0.1",
                "h4>h2 1600",
                "h1>h4 1600",
                "h4>h1 1600",
                "h3>h4 1600",
                "h4>h3 1600",
            ],
        );
        assert_eq!((routed.len(), routed[0].0), (1, "router"), "{routed:?}");
        assert!(
            routed[0].2.contains("router 10.0.0.1 passes 1400 bytes only on h1→h3 and 1 more"),
            "{routed:?}"
        );
    }

    #[test]
    fn silence_is_told_of_those_who_could_answer() {
        let lines =
            ["h1>h2 1600", "h2>h1 1600", "h1>h3 silent", "h2>h3 silent", "h3>h1 silent", "h3>h2 silent"];
        let found = site(&FOUR, &lines);
        assert_eq!((found.len(), found[0].0, found[0].1.as_str()), (1, "silent", "h3"), "{found:?}");
        let found = site(&FOUR, &["h1>off silent", "h2>off silent", "h1>h2 1600", "h2>h1 1600"]);
        assert_eq!(found, [], "its agent is away, which is told elsewhere");
        let found = site(&FOUR, &["h1>h2 silent", "h3>h2 1600", "h2>h1 1600", "h2>h3 1600"]);
        assert_eq!((found.len(), found[0].1.as_str()), (1, "h1 h2"), "{found:?}");
    }
}
