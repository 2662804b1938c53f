//! A VM moves to the other host while others talk to it.

use crate::command::demo::{Judge, title};
use crate::command::{migrations, show};
use crate::failure::{Failure, Outcome};
use crate::print::{self, micros};
use std::time::Duration;
use tenet_api::client::Client;
use tenet_lab::Lab;

const VM: &str = "contoso/sql";
const STREAM_FROM: &str = "contoso/web";
const PROBE_FROM: &str = "contoso/app";
/// Talk before and after the move.
const BEFORE: Duration = Duration::from_millis(1000);
const AFTER: Duration = Duration::from_millis(1500);
/// 64 KB each: about 260 Mbit/s, which leaves a small machine time for the probe.
const PACE: Duration = Duration::from_millis(2);
/// Emulated guests have a tenth of the speed: 25 Mbit/s.
const SLOW_PACE: Duration = Duration::from_millis(20);
const PER_SECOND: u32 = 1000;
/// Of a real guest, questions that were asked while it stood still may be lost, and this many about the edges.
const EDGES: u64 = 100;

/// Moves `contoso/sql` under a TCP stream and a UDP probe.
pub async fn show(lab: &mut Lab, client: &Client, judge: &mut Judge) -> Outcome {
    let nowhere = || Failure::new(format!("VM {VM} is on no host"), "report this as a bug");
    let (address, from) = {
        let vm = lab.vm_record(VM)?;
        (vm.address().ok_or_else(nowhere)?, vm.host().cloned().ok_or_else(nowhere)?)
    };
    let others = lab.record().hosts.iter().find(|h| h.name != from).map(|h| (h.name.clone(), h.pa));
    let (to, pa) = others.ok_or_else(nowhere)?;
    title(&format!(
        "{VM} moves from host {from} to host {to} while {STREAM_FROM} and {PROBE_FROM} talk to it"
    ))?;
    print::line(&format!(
        "{STREAM_FROM} sends a TCP stream of numbered words, {PROBE_FROM} asks {PER_SECOND} times a second by UDP"
    ))?;
    let real = lab.vm_record(VM)?.real;
    let stream = lab.stream_from(STREAM_FROM, address, if real { SLOW_PACE } else { PACE })?;
    let probe = lab.probe_from(PROBE_FROM, address, VM, PER_SECOND)?;
    tokio::time::sleep(BEFORE).await;
    let moved = lab.migrate(VM, to.as_str()).await?;
    tokio::time::sleep(AFTER).await;
    let probe = probe.stop()?;
    let stream = stream.stop()?;

    print::line("")?;
    migrations::receipt(&moved.receipt)?;
    let word = if real { "the guest stood still for" } else { "the VM changed over in" };
    print::line(&format!("  {word:<28} {}", micros(moved.pause.as_micros() as u64)))?;
    print::line("")?;
    print::line(&format!(
        "UDP probe:  {} asked, {} lost, {} twice, {} out of order, longest silence {}, median answer {}",
        probe.sent,
        probe.lost,
        probe.duplicates,
        probe.reordered,
        micros(probe.longest_gap_us),
        micros(probe.median_us),
    ))?;
    print::line(&format!(
        "TCP stream: {:.1} MB sent in {:.1} s, {} bytes missing, longest silence {}",
        stream.sent as f64 / 1e6,
        stream.millis as f64 / 1e3,
        stream.sent.saturating_sub(stream.received.bytes),
        micros(stream.received.longest_gap_us),
    ))?;
    let intact = stream.received.in_order && stream.received.bytes == stream.sent && stream.sent > 0;
    if real {
        // What came while the guest stood still was dropped or waited; no data plane can answer for a guest.
        let paused = moved.pause.as_millis() as u64;
        judge.claim(moved.receipt.moved, "the guest moved: its memory, its programs and its connections")?;
        judge.claim(
            probe.lost <= paused + EDGES && probe.strangers == 0 && probe.answered > 0,
            &format!(
                "of {} UDP questions {} were not answered, and {paused} were asked while the guest stood still",
                probe.sent, probe.lost
            ),
        )?;
    } else {
        judge.claim(
            moved.receipt.moved && moved.receipt.lost == 0,
            "the VM moved, and the data plane lost no frame for it",
        )?;
        judge.claim(
            probe.lost == 0 && probe.strangers == 0 && probe.answered > 0,
            &format!("of {} UDP questions each was answered, and by {VM} alone", probe.sent),
        )?;
    }
    judge.claim(
        intact && stream.peer == VM,
        "the TCP stream went on unbroken: every word arrived, in order",
    )?;
    after(lab, client, judge, pa).await
}

/// Where everybody now believes the VM to be.
async fn after(lab: &Lab, client: &Client, judge: &mut Judge, pa: std::net::IpAddr) -> Outcome {
    lab.in_sync(Duration::from_secs(10)).await?;
    for host in &lab.record().hosts {
        let mut table = client.table(Some(&host.name)).await?;
        table.rows.retain(|r| r.port.as_ref().is_some_and(|p| p.vm_ref().to_string() == VM));
        print::line(&format!("\n{VM} in the kernel of host {}:", host.name))?;
        print::text(&show::lookup(&table.rows).text(print::fancy()))?;
        let right =
            table.rows.len() == 1 && table.rows.iter().all(|r| r.pa == pa && r.alt_pa.is_none() && r.in_sync);
        judge.claim(right, &format!("host {} knows that {VM} is at {pa}", host.name))?;
    }
    Ok(())
}
