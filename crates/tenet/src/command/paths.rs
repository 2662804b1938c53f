//! The ways between the hosts, and what is wrong with them.

use crate::cli::PathsArgs;
use crate::command::{Context, not_in_sync};
use crate::failure::Outcome;
use crate::print::{self, Table};
use tenet_api::rest::{PathFinding, PathPair, PathView, Paths};

/// Good pairs are listed as long as there are no more than these.
const LISTED: usize = 50;

/// `paths`
pub async fn paths(context: &Context, args: PathsArgs) -> Outcome {
    let paths = context.client()?.paths(args.host.as_ref()).await?;
    context.show(&paths, |paths| people(paths, args.all))?;
    match paths.findings.as_slice() {
        [] => Ok(()),
        [one] => Err(not_in_sync(one.text.clone(), one.hint.clone())),
        many => Err(not_in_sync(
            format!("{} things are wrong with paths between hosts", many.len()),
            "the lines above say for each where to look",
        )),
    }
}

fn people(paths: &Paths, all: bool) -> Outcome {
    let listed = all || paths.pairs.len() <= LISTED;
    let mut table = Table::new(["FROM", "TO", "THERE", "BACK", "UPLINKS", "RTT", "STATE"]);
    for pair in paths.pairs.iter().filter(|p| listed || !p.ok) {
        table.row([
            pair.a.to_string(),
            pair.b.to_string(),
            carries(pair.there.as_ref()),
            carries(pair.back.as_ref()),
            pair.promised.map_or_else(|| "-".to_owned(), |m| m.to_string()),
            rtt(pair),
            state(pair),
        ]);
    }
    if !table.is_empty() || paths.pairs.is_empty() {
        print::table(&table, "no paths measured: there are fewer than two hosts with ports of one network")?;
    }
    let good = paths.pairs.iter().filter(|p| p.ok).count();
    if !listed && good > 0 {
        print::note(&format!("{good} more are as they should be; --all lists them"));
    }
    if paths.findings.is_empty() {
        return Ok(());
    }
    print::line("")?;
    findings(&paths.findings)
}

/// Prints what is wrong, each with what to do.
pub fn findings(findings: &[PathFinding]) -> Outcome {
    for f in findings {
        print::line(&format!("{}: {}", f.text, f.hint))?;
    }
    Ok(())
}

fn carries(way: Option<&PathView>) -> String {
    way.and_then(|w| w.mtu).map_or_else(|| "-".to_owned(), |mtu| mtu.to_string())
}

fn rtt(pair: &PathPair) -> String {
    let measured = [&pair.there, &pair.back].into_iter().flatten().map(|w| w.rtt_us).filter(|us| *us != 0);
    measured.min().map_or_else(|| "-".to_owned(), |us| print::micros(us.into()))
}

/// One word, or what differs between the directions.
fn state(pair: &PathPair) -> String {
    let states: Vec<&str> =
        [&pair.there, &pair.back].into_iter().flatten().map(|w| w.state.as_str()).collect();
    match states.as_slice() {
        _ if pair.ok => "good".to_owned(),
        [a, b] if a != b => format!("{a} / {b}"),
        ["measured", "measured"] => "narrow".to_owned(),
        [one, ..] => (*one).to_owned(),
        [] => "-".to_owned(),
    }
}
