//! Shows in plain words what Tenet does, and fails if anything shown is not so.

mod moving;
mod reach;

use crate::command::{lab, show};
use crate::failure::{Failure, Outcome};
use crate::print::{self, Table, or_dash};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tenet_api::client::Client;
use tenet_lab::{Guests, Lab, LabOptions, guest};

/// What was shown, and what of it is not so.
#[derive(Default)]
pub struct Judge {
    shown: usize,
    wrong: Vec<String>,
}

impl Judge {
    /// Says a claim, and whether it is so.
    pub fn claim(&mut self, so: bool, claim: &str) -> Outcome {
        self.shown += 1;
        if so {
            return print::line(&format!("  ok      {claim}"));
        }
        self.wrong.push(claim.to_owned());
        print::line(&format!("  NOT SO  {claim}"))
    }
}

/// The demo's lab: `demo` if it stays, else a name that no other run has.
pub fn options(binary: PathBuf, keep: bool, clsact: bool) -> Outcome<LabOptions> {
    let name = if keep { "demo".to_owned() } else { format!("demo-{}", std::process::id()) };
    let mut options = LabOptions::new(&name, binary)?;
    options.clsact = clsact;
    options.progress = Arc::new(|step| print::note(&format!("  … {step}")));
    Ok(options)
}

/// Emulated guests' kernels crash now and then on a busy machine, whatever network they are on; then the demo begins
/// anew, this often at most in all. Nothing else is forgiven.
const ATTEMPTS: usize = 3;
/// How long a kernel that dies may take to say so.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How an attempt ended.
enum Ended {
    /// With this, and its lab if that shall be kept.
    Shown(Judge, Option<Box<Lab>>),
    /// A guest's kernel said this when it crashed.
    Crashed(String),
}

/// Runs the demo; its lab goes down with it unless it is kept.
pub async fn run(options: LabOptions, keep: bool) -> Outcome {
    let begin = Instant::now();
    let mut attempt = 1;
    let (judge, kept) = loop {
        match once(&options, keep).await? {
            Ended::Shown(judge, lab) => break (judge, lab),
            Ended::Crashed(said) if attempt < ATTEMPTS => {
                attempt += 1;
                title(&format!(
                    "The kernel of an emulated guest crashed: the demo begins anew ({attempt} of {ATTEMPTS})"
                ))?;
                print::line(&said)?;
            }
            Ended::Crashed(said) => {
                return Err(Failure::new(
                    format!(
                        "the kernels of emulated guests crashed {ATTEMPTS} times, the last one's words are: {said}"
                    ),
                    "emulation fails on busy machines: run it when this one is quieter, or without --vms qemu",
                ));
            }
        }
    };
    if let Some(mut lab) = kept {
        lab.keep();
        print::line("")?;
        print::text(&lab::hints(lab.record()))?;
    }
    let took = begin.elapsed().as_secs_f64();
    if judge.wrong.is_empty() {
        return print::line(&format!("\nAll {} claims are so; {took:.1} s.", judge.shown));
    }
    let wrong = judge.wrong.join("\n  ");
    Err(Failure::new(
        format!("{} of {} claims are not so:\n  {wrong}", judge.wrong.len(), judge.shown),
        "run it with --keep and look at `tenet --lab demo status` and `events`",
    ))
}

/// One attempt.
async fn once(options: &LabOptions, keep: bool) -> Outcome<Ended> {
    title("Two tenants with the same addresses, on two hosts in different subnets")?;
    let begin = Instant::now();
    let real = options.guests != Guests::None;
    let mut lab = match Lab::up(options.clone()).await {
        Ok(lab) => lab,
        // Its folder is gone with it; the error has the console's end.
        Err(e) => match guest::crash_in(&e.to_string()) {
            Some(said) => return Ok(Ended::Crashed(said.to_owned())),
            None => return Err(e.into()),
        },
    };
    print::line(&format!(
        "up after {:.1} s: a controller, two hosts with an agent each, six {}",
        begin.elapsed().as_secs_f64(),
        if real { "real guests with a kernel of their own" } else { "VMs" }
    ))?;
    let mut judge = Judge::default();
    let shown = all(&mut lab, &mut judge).await;
    if real
        && (shown.is_err() || !judge.wrong.is_empty())
        && let Some(said) = last_words(&lab).await
    {
        lab.down()?;
        return Ok(Ended::Crashed(said));
    }
    shown?;
    if keep {
        return Ok(Ended::Shown(judge, Some(Box::new(lab))));
    }
    lab.down()?;
    judge.claim(true, "all that the demo made is gone: processes, namespaces, programs, files")?;
    Ok(Ended::Shown(judge, None))
}

/// What a guest's kernel said when it crashed, if one did.
async fn last_words(lab: &Lab) -> Option<String> {
    let begin = Instant::now();
    loop {
        let said = lab.crashed(Duration::ZERO);
        if said.is_some() || begin.elapsed() > LAST_WORDS {
            return said;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// All that there is to show in a lab.
async fn all(lab: &mut Lab, judge: &mut Judge) -> Outcome {
    let client = lab.client()?;
    who_is_where(lab, &client).await?;
    tables(lab, &client, judge).await?;
    reach::show(lab, &client, judge).await?;
    moving::show(lab, &client, judge).await?;
    let status = client.status().await?;
    title("At the end")?;
    judge.claim(status.in_sync, "every host is proven, by reading its kernel, to hold what is desired")
}

/// A heading.
pub fn title(text: &str) -> Outcome {
    let line = if print::fancy() { format!("\n\x1b[1m== {text}\x1b[0m") } else { format!("\n== {text}") };
    print::line(&line)
}

async fn who_is_where(lab: &Lab, client: &Client) -> Outcome {
    title("Who is where")?;
    let subnets = client.subnets().await?;
    let views = client.vms().await?;
    let mut table = Table::new(["VM", "ADDRESS", "SUBNET", "VSID", "MAC", "HOST", "PROVIDER ADDRESS"]);
    for vm in &views {
        for port in &vm.ports {
            let addresses: Vec<_> = port.addresses.iter().map(ToString::to_string).collect();
            let host = lab.record().hosts.iter().find(|h| Some(&h.name) == port.host.as_ref());
            table.row([
                vm.name.to_string(),
                addresses.join(" "),
                port.subnet.to_string(),
                or_dash(subnets.iter().find(|s| s.name == port.subnet).map(|s| s.vsid)),
                port.mac.to_string(),
                or_dash(port.host.as_ref()),
                or_dash(host.map(|h| h.pa)),
            ]);
        }
    }
    print::text(&table.text(print::fancy()))
}

/// Each host's lookup table, as its kernel has it.
async fn tables(lab: &Lab, client: &Client, judge: &mut Judge) -> Outcome {
    for host in &lab.record().hosts {
        title(&format!("Lookup table in the kernel of host {} ({})", host.name, host.pa))?;
        let table = client.table(Some(&host.name)).await?;
        print::text(&show::lookup(&table.rows).text(print::fancy()))?;
        let all = table.rows.len() == lab.record().vms.len() && table.rows.iter().all(|r| r.in_sync);
        judge.claim(
            all,
            &format!("host {} has a record of every VM of its tenants' networks, as desired", host.name),
        )?;
    }
    Ok(())
}
