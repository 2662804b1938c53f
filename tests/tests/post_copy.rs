//! A real guest that writes its memory faster than it moves goes on at its new host, and its memory follows.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tenet_lab::guest::Guest;
use tenet_lab::tool::{Probe, Stream};
use tenet_model::Through;
use tenet_tests::guest::{ADDRESS, RESTLESS, VM, answers, boot, ended, incoming, under_way, vm, with_guests};
use tenet_tests::{Setup, THREE_HOSTS, World, binary, block_on, until};

const PATIENCE: Duration = Duration::from_secs(90);
const DEVICE: &str = "real0";
/// Bytes a second: so slow that the guest writes more than is moved.
const SLOW: u64 = 8 << 20;
/// And how slowly its memory follows it until the test has seen enough.
const TRICKLE: u64 = 1 << 20;
/// 64 KB each, as in `guests.rs`.
const PACE: Duration = Duration::from_millis(20);
/// Questions a second: a guest that waits for a page leaves them in its tap, which holds a thousand frames.
const ASKED: u32 = 200;
/// Questions on their way into QEMU when it stops the guest, at either end of the pause, and what a busy machine adds.
const EDGES: u64 = 10;

#[test]
fn guest_that_writes_faster_than_it_moves_arrives_in_post_copy_and_is_not_given_up() {
    with_guests("pcp", THREE_HOSTS, Setup::PLAIN, |world, image, consoles| {
        let guest = boot(world, image, Some(DEVICE));
        consoles.hear(&guest);
        let (new, uri) = incoming(world, image, "h2", DEVICE);
        consoles.hear(&new);
        answers(world, "contoso/far");
        assert_eq!(guest.exec(["sh", "-c", RESTLESS]).unwrap().code, 0);
        set(&guest, json!({ "max-bandwidth": SLOW, "max-postcopy-bandwidth": TRICKLE }));

        let far = world.lab.vm("contoso/far").unwrap().netns().clone();
        let address: std::net::IpAddr = ADDRESS.parse().unwrap();
        let probe = Probe::start(&far, address, VM, ASKED).unwrap();
        let stream = Stream::start(&far, address, PACE).unwrap();
        let mut command =
            Follower::start(world, &["vm", "migrate", VM, "--to", "h2", "--qmp", &uri, "--post-copy"]);
        let begun = until("it has begun", PATIENCE, || {
            block_on(world.client.migrations()).unwrap().into_iter().find(|m| m.vm == vm())
        });
        assert!(begun.post_copy);
        under_way(world, &begun);
        until("it runs there and its memory follows", PATIENCE, || {
            let running = block_on(world.client.migrations()).unwrap();
            let found = running.into_iter().find(|m| m.id == begun.id)?;
            let status = found.progress.as_ref()?.status.clone();
            (found.phase == "switched" && status == "postcopy-active" && found.post_copy).then_some(())
        });
        // There is no way back: neither by REST, nor by hand, nor by Ctrl-C; and who does not want to wait, need not.
        command.says("its memory follows (postcopy-active)");
        command.interrupt();
        command.says("giving it up");
        command.says("not given up: VM contoso/real is in post-copy: it runs on host h2");
        command.says("Ctrl-C again leaves it to go on");
        assert!(command.runs(), "it follows the move on");
        command.says("its memory follows (postcopy-active)");
        command.interrupt();
        assert_eq!(command.end(), Some(1));
        command.says("next: `tenet migrations show contoso/real`");
        let refused = block_on(world.client.migrate_cancel(&vm())).unwrap_err();
        assert_eq!(refused.status(), Some(409), "{refused}");
        let (code, said) = tenet(world, &["vm", "cancel", VM]);
        assert_eq!(code, Some(4), "{said}");
        assert!(said.contains("is in post-copy: it runs on host h2"), "{said}");
        let listed = tenet(world, &["migrations"]).1;
        assert!(listed.contains("qmp, post-copy") && listed.contains("postcopy-active"), "{listed}");
        // All hosts have it on h2, though part of its memory is on h1.
        let pa = world.lab.host("h2").unwrap().record().pa;
        for host in ["h1", "h2", "h3"] {
            until("the record says h2", PATIENCE, || {
                let rows = world.table(host).rows;
                rows.iter().any(|r| r.ca == address && r.pa == pa && r.in_sync).then_some(())
            });
        }
        assert!(block_on(world.client.receipts()).unwrap().iter().all(|r| r.id != begun.id));

        set(&guest, json!({ "max-postcopy-bandwidth": 0 }));
        let receipt = ended(world, &begun);
        assert_eq!(query(&new, "query-status")["status"], "running");
        answers(world, "contoso/far");
        let (probe, stream) = (probe.stop().unwrap(), stream.stop().unwrap());
        let pause = receipt.pause_us.unwrap() / 1000;
        println!("pause {pause} ms, {probe:?}, {stream:?}, {receipt:?}");
        assert!(receipt.moved && receipt.post_copy && receipt.through == Through::Qmp, "{receipt:?}");
        assert!(
            stream.received.in_order && stream.received.bytes == stream.sent && stream.sent > 0,
            "TCP lost bytes: {stream:?}"
        );
        assert!(probe.lost <= EDGES, "{} lost in a pause of {pause} ms: {probe:?}", probe.lost);
        let shown = tenet(world, &["migrations", "show", VM]).1;
        assert!(shown.contains("the agent, by QMP, in post-copy"), "{shown}");
        world.in_sync();
        guest.stop().unwrap();
        new.stop().unwrap();
    });
}

/// A `tenet` that goes on for a while; what it says on its standard error comes line by line.
struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn start(world: &World, args: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(args).env("TENET_LAB", world.lab.record().name.as_str());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let said = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// Waits for a line with this in it; those before it are done with.
    fn says(&mut self, what: &str) {
        until(&format!("it says: {what}"), PATIENCE, || {
            loop {
                let line = self.lines.try_recv().ok()?;
                println!("{line}");
                if line.contains(what) {
                    return Some(());
                }
            }
        });
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Ctrl-C.
    fn interrupt(&mut self) {
        assert!(self.runs());
        // SAFETY: the call takes numbers; the child is not reaped, so that the number is its own.
        assert_eq!(unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGINT) }, 0);
    }

    /// Its exit code, once it has ended.
    fn end(&mut self) -> Option<i32> {
        until("it ends", PATIENCE, || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn set(guest: &Guest, parameters: Value) {
    guest.qmp().unwrap().execute("migrate-set-parameters", parameters).unwrap();
}

fn query(guest: &Guest, what: &str) -> Value {
    guest.qmp().unwrap().execute(what, json!({})).unwrap()
}

fn tenet(world: &World, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    let output = command.args(args).env("TENET_LAB", world.lab.record().name.as_str()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code(), text)
}
