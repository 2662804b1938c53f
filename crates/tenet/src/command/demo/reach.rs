//! Who reaches whom, and the frames that did it.

use crate::command::demo::{Judge, title};
use crate::command::wire::{Seen, decode, is_not_tenants};
use crate::failure::Outcome;
use crate::print::{self, Table, yes};
use std::collections::BTreeSet;
use std::time::Duration;
use tenet_api::client::Client;
use tenet_lab::{Capture, Captured, Lab, VmRecord};

/// How long a VM may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Frames shown of each virtual subnet.
const SHOWN: usize = 2;

/// Asks every VM from every other of its tenant, while the router's links are watched.
pub async fn show(lab: &Lab, client: &Client, judge: &mut Judge) -> Outcome {
    let router = lab.router()?;
    let capture = match lab.record().segments.first() {
        // All that crosses between hosts crosses the first host's link, or is between others.
        Some(segment) => Capture::start(&router, &segment.device)?,
        None => return Ok(()),
    };
    title("Every VM asks every other address of its network who is there")?;
    ask_all(lab, judge)?;
    let frames = capture.stop()?;
    title("The frames between the hosts: NVGRE, decoded from the router's wire")?;
    let vsids: BTreeSet<u32> = client.subnets().await?.iter().map(|s| s.vsid.number()).collect();
    wire(lab, &frames, &vsids, judge)
}

fn ask_all(lab: &Lab, judge: &mut Judge) -> Outcome {
    let mut table = Table::new(["FROM", "ASKS", "SUBNET", "HOST", "ANSWERED BY", "RIGHT"]);
    let (mut asked, mut right, mut foreign) = (0, 0, 0);
    let mut kinds = BTreeSet::new();
    for from in &lab.record().vms {
        for to in lab.record().vms.iter().filter(|v| v.name.tenant == from.name.tenant && v.name != from.name)
        {
            let (Some(a), Some(b)) = (from.ports.first(), to.ports.first()) else { continue };
            let Some(address) = b.addresses.first() else { continue };
            let answer = lab.ask_from(&from.name.to_string(), *address, PATIENCE)?;
            let is_right = answer.as_deref() == Some(&to.name.to_string());
            let theirs = |name: &str| name.split('/').next() != Some(from.name.tenant.as_str());
            asked += 1;
            right += usize::from(is_right);
            foreign += usize::from(answer.as_deref().is_some_and(theirs));
            kinds.insert((a.prefixes == b.prefixes, a.host == b.host));
            let same = |same: bool| if same { "same" } else { "other" }.to_owned();
            table.row([
                from.name.to_string(),
                address.to_string(),
                same(a.prefixes == b.prefixes),
                same(a.host == b.host),
                answer.unwrap_or_else(|| "nobody".to_owned()),
                yes(is_right),
            ]);
        }
    }
    print::text(&table.text(print::fancy()))?;
    judge.claim(
        asked > 0 && right == asked,
        &format!("{right} of {asked} questions were answered by the VM that was meant"),
    )?;
    let shared = shared_addresses(&lab.record().vms);
    judge.claim(
        foreign == 0 && shared > 0,
        &format!("none was answered by the other tenant, although it has the same {shared} addresses"),
    )?;
    judge.claim(
        kinds.len() == 4,
        "same and other subnet (through the gateway .1 on each host), on the same and the other host",
    )
}

/// How many addresses more than one tenant has.
fn shared_addresses(vms: &[VmRecord]) -> usize {
    let of = |vm: &VmRecord| vm.ports.iter().flat_map(|p| p.addresses.clone()).collect::<Vec<_>>();
    let all: BTreeSet<_> = vms.iter().flat_map(of).collect();
    let tenants = |address| {
        let having = vms.iter().filter(|vm| of(vm).contains(address)).map(|vm| &vm.name.tenant);
        having.collect::<BTreeSet<_>>().len()
    };
    all.iter().filter(|a| tenants(a) > 1).count()
}

fn wire(lab: &Lab, frames: &[Captured], vsids: &BTreeSet<u32>, judge: &mut Judge) -> Outcome {
    let mut seen: Vec<(Duration, Seen)> = Vec::new();
    let mut bad = Vec::new();
    for frame in frames.iter().filter(|f| !is_not_tenants(&f.bytes)) {
        match decode(&frame.bytes) {
            Ok(Some(s)) => seen.push((frame.after, s)),
            Ok(None) => {}
            Err(e) => bad.push(e),
        }
    }
    let mut table = Table::new(["AFTER", "FROM HOST", "TO HOST", "VSID", "FLOW", "INSIDE"]);
    for vsid in vsids {
        for (after, s) in seen.iter().filter(|(_, s)| s.vsid == *vsid).take(SHOWN) {
            table.row([
                print::micros(after.as_micros() as u64),
                s.outer.0.to_string(),
                s.outer.1.to_string(),
                s.vsid.to_string(),
                s.flow.to_string(),
                s.words.clone(),
            ]);
        }
    }
    print::text(&table.text(print::fancy()))?;
    let known = seen.iter().all(|(_, s)| vsids.contains(&s.vsid));
    let crossed: BTreeSet<u32> = seen.iter().map(|(_, s)| s.vsid).collect();
    let whole = seen.iter().all(|(_, s)| s.dont_fragment);
    judge.claim(
        bad.is_empty() && !seen.is_empty() && known,
        &format!(
            "{} NVGRE frames crossed, all well formed and of a known virtual subnet ({} are not: {})",
            seen.len(),
            bad.len(),
            bad.first().map_or("-", String::as_str)
        ),
    )?;
    judge.claim(whole, "none of them may be fragmented on the way (DF)")?;
    let pas: BTreeSet<_> = lab.record().hosts.iter().map(|h| h.pa).collect();
    let between =
        seen.iter().all(|(_, s)| pas.contains(&s.outer.0.into()) && pas.contains(&s.outer.1.into()));
    judge.claim(between, "the physical network sees the hosts' addresses only")?;
    let overlap = seen
        .iter()
        .any(|(_, a)| seen.iter().any(|(_, b)| a.vsid != b.vsid && a.inner.is_some() && a.inner == b.inner));
    judge.claim(
        overlap && crossed.len() > 1,
        "the same inner addresses crossed under different VSIDs: the tenants differ in that alone",
    )
}
