//! A move by command, followed to its end and looked up later; and what is said where a VM is on another host.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tenet_tests::{Fixture, SITE, World, binary, block_on, until};

static LAB: Fixture = Fixture::new("fol", SITE);

const PATIENCE: Duration = Duration::from_secs(20);
const SQL: &str = "contoso/sql";

fn command(world: &World, line: &str) -> Command {
    let mut command = Command::new(binary());
    command.args(line.split_whitespace()).env("TENET_LAB", world.lab.record().name.as_str());
    command.stdin(Stdio::null());
    command
}

/// Runs a command; its exit code and all that it said.
fn said(world: &World, line: &str) -> (i32, String) {
    let Output { status, stdout, stderr } = command(world, line).output().unwrap();
    let text = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
    (status.code().unwrap(), text)
}

#[test]
fn a_move_is_followed_over_a_restart_of_the_controller() {
    let Some(mut world) = LAB.world() else { return };
    assert_eq!(world.host_of(SQL), "h1");
    elsewhere(&world);
    let mut child = command(&world, "vm migrate contoso/sql --to h2 --switch-only")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut heard = Vec::new();
    let mut says = |part: &str| {
        while !heard.last().is_some_and(|line: &String| line.contains(part)) {
            let Some(line) = lines.next() else { panic!("it ended without {part:?}: {heard:?}") };
            heard.push(line.unwrap());
        }
    };
    says("may move to host h2 now");
    world.lab.kill_controller().unwrap();
    says("the controller is away; the move goes on");
    block_on(world.lab.start_controller()).unwrap();
    says("the controller is back");
    for host in ["h1", "h2"] {
        until("the agents are back", PATIENCE, || world.host_status(host).connected.then_some(()));
    }
    assert_eq!(said(&world, "vm switch contoso/sql").0, 0);
    let output = child.wait_with_output().unwrap();
    let receipt = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{receipt}");
    assert!(receipt.contains("VM contoso/sql moved from host h1 to host h2"), "{receipt}");

    looked_up(&world);
}

/// A VM on another host is moved; nothing that is said leads to cutting it off.
fn elsewhere(world: &World) {
    let (code, text) = said(world, "vm run-args contoso/sql --host h2");
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("it is on host h1") && text.contains("`tenet vm migrate contoso/sql --to h2`"),
        "{text}"
    );
    let used = || {
        let ports = world.host_status("h1").ports;
        ports.iter().any(|p| p.port.to_string() == "contoso/sql/eth0" && p.carrier).then_some(())
    };
    until("the VM's device has a carrier", PATIENCE, used);
    let (code, text) = said(world, "vm attach contoso/sql --host h2");
    assert_eq!(code, 4, "{text}");
    for part in ["runs on host h1", "`tenet vm migrate contoso/sql --to h2`", "--force"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(world.host_of(SQL), "h1");
    let (code, text) = said(world, "vm migrate contoso/sql --to h1");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("on host h1 already: ") || text.contains("on host h1 already\n"), "{text}");
    assert!(text.contains("next: choose another destination") && text.lines().count() == 2, "{text}");
}

/// The receipt is found again, by the VM and by its id.
fn looked_up(world: &World) {
    let (code, all) = said(world, "migrations contoso/sql");
    assert!(code == 0 && all.contains("STARTED"), "{all}");
    let row = all.lines().find(|l| l.contains("contoso/sql")).unwrap();
    let mut words = row.split_whitespace();
    let (started, id) = (words.next().unwrap(), words.next().unwrap());
    assert!(started.len() == 20 && started.starts_with("20") && started.ends_with('Z'), "{row}");
    for line in ["migrations show contoso/sql".to_owned(), format!("migrations show {id}")] {
        let (code, text) = said(world, &line);
        assert_eq!(code, 0, "{text}");
        for part in
            ["moved from host h1 to host h2", "host h1 ", "host h2 ", "switched by an operator", started, id]
        {
            assert!(text.contains(part), "{line}: {part}: {text}");
        }
    }
    let (_, others) = said(world, "migrations contoso/web");
    assert!(others.contains("no migration has ended yet"), "{others}");
    let (code, text) = said(world, "migrations show contoso/web");
    assert!(code == 1 && text.contains("tenet migrations --all"), "{text}");
}
