//! What a newcomer types.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;
use tenet_tests::frame::Packet;
use tenet_tests::{Fixture, SITE, World, binary, until};
use tenet_wire::Mac;

static LAB: Fixture = Fixture::new("cli", SITE);

const PATIENCE: Duration = Duration::from_secs(10);

/// What a command did.
#[derive(Debug)]
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Done {
    /// Expects success; what it printed.
    fn good(self, args: &[&str]) -> String {
        assert_eq!(self.code, 0, "tenet {}: {}{}", args.join(" "), self.out, self.err);
        self.out
    }
}

fn command(world: &World, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).env("TENET_LAB", world.lab.record().name.as_str()).stdin(Stdio::null());
    command
}

fn run(world: &World, args: &[&str]) -> Done {
    finish(command(world, args))
}

fn finish(mut command: Command) -> Done {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn tenet(world: &World, line: &str) -> String {
    let args: Vec<&str> = line.split_whitespace().collect();
    run(world, &args).good(&args)
}

fn json(world: &World, line: &str) -> Value {
    let text = tenet(world, &format!("{line} -o json"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("`{line} -o json` is no JSON: {e}\n{text}"))
}

/// Runs a command that must fail so; what it said.
fn fails(world: &World, line: &str, code: i32, says: &[&str]) -> String {
    let done = run(world, &line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(done.code, code, "tenet {line}: {}{}", done.out, done.err);
    for part in says {
        assert!(done.err.contains(part), "tenet {line} should say {part:?}: {}", done.err);
    }
    done.err
}

#[test]
fn objects_are_created_listed_shown_and_deleted() {
    let Some(world) = LAB.world() else { return };
    let said = tenet(&world, "tenant create acme");
    assert!(said.contains("created") && said.contains("acme"), "{said}");
    tenet(&world, "network create acme/blue");
    let said = tenet(&world, "subnet create acme/blue/web --prefix 10.9.0.0/24");
    assert!(said.contains("10.9.0.1") && said.contains("VSID"), "what was chosen is told: {said}");
    let said = tenet(&world, "vm create acme/one --subnet acme/blue/web");
    assert!(said.contains("10.9.0.2") && said.contains("MAC"), "{said}");
    tenet(&world, "vm create acme/two --subnet acme/blue/web --address 10.9.0.77 --mac 02:00:00:00:77:77");
    tenet(&world, "route create acme/blue --to 0.0.0.0/0 --via 10.9.0.77");

    for (line, parts) in [
        ("tenant list", &["TENANT", "acme", "contoso", "fabrikam", "default"][..]),
        ("network list", &["NETWORK", "acme/blue", "nvgre"]),
        ("subnet list", &["SUBNET", "VSID", "acme/blue/web", "10.9.0.0/24"]),
        ("vm list", &["VM", "acme/one", "10.9.0.2", "not attached", "contoso/sql", "contoso-sql"]),
        ("route list", &["acme/blue", "0.0.0.0/0", "10.9.0.77"]),
        ("host list", &["HOST", "h1", "192.168.1.10", "yes"]),
        ("tenant show acme", &["acme", "10.9.0.0/24"]),
        ("network show acme/blue", &["acme/blue", "10.9.0.0/24", "10.9.0.77"]),
        ("subnet show acme/blue/web", &["10.9.0.1", "10.9.0.77", "02:00:00:00:77:77"]),
        ("vm show acme/two", &["10.9.0.77", "02:00:00:00:77:77"]),
        ("host show h1", &["h1", "192.168.1.10"]),
        ("status", &["h1", "h2", "every host is proven", "contoso/prod"]),
        ("migrations", &[""]),
        ("receipts", &[""]),
    ] {
        let said = tenet(&world, line);
        for part in parts {
            assert!(said.contains(part), "tenet {line} should show {part:?}:\n{said}");
        }
        if !["migrations", "receipts"].contains(&line) {
            assert!(json(&world, line).is_object() || json(&world, line).is_array());
        }
    }
    let list = json(&world, "vm list");
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"acme/one") && names.contains(&"fabrikam/own"), "{names:?}");

    let said = fails(&world, "subnet delete acme/blue/web", 4, &["acme/blue/web"]);
    assert!(said.contains("acme/one") || said.contains("acme/two"), "names who needs it: {said}");
    for line in [
        "route delete acme/blue --to 0.0.0.0/0 --via 10.9.0.77",
        "vm delete acme/one",
        "vm delete acme/two",
        "subnet delete acme/blue/web",
        "network delete acme/blue",
        "tenant delete acme",
    ] {
        let said = tenet(&world, line);
        assert!(said.contains("deleted"), "{line}: {said}");
    }
    assert!(!tenet(&world, "tenant list").contains("acme"));
}

#[test]
fn the_lookup_table_reads_as_hnv_printed_it() {
    let Some(world) = LAB.world() else { return };
    for line in ["table", "table h1", "table h2"] {
        let said = tenet(&world, line);
        for part in ["CA", "MAC", "VSID", "PA", "METHOD", "TYPE", "GENERATION", "IN SYNC"] {
            assert!(said.lines().next().unwrap().contains(part), "{said}");
        }
        let row = said.lines().find(|l| l.contains("contoso/sql")).unwrap();
        for part in ["10.1.1.11", "5001", "192.168.1.10", "nvgre", "Static", "yes"] {
            assert!(row.contains(part), "{row}");
        }
        let row = said.lines().find(|l| l.contains("fabrikam/sql")).unwrap();
        assert!(row.contains("10.1.1.11") && row.contains("6001") && row.contains("192.168.2.20"), "{row}");
    }
    let rows = json(&world, "table h1");
    assert!(rows["rows"].as_array().unwrap().iter().all(|r| r["in_sync"] == true), "{rows}");
    let only = tenet(&world, "table --network contoso/prod");
    assert!(only.contains("contoso/sql") && !only.contains("fabrikam"), "{only}");
}

#[test]
fn errors_say_what_to_do_next_with_documented_exit_codes() {
    let Some(world) = LAB.world() else { return };
    let next = "next:";
    fails(&world, "vm show contoso/nobody", 1, &["contoso/nobody", next]);
    fails(&world, "network create nobody/blue", 1, &["nobody", next]);
    for line in [
        "vm create contoso/sql --subnet contoso/prod/apps",
        "network create contoso/prod --rdid 11111111-1111-4111-8111-111111111111",
        "subnet create contoso/prod/data --prefix 10.99.0.0/24",
        "host add h1 --pa 192.168.9.9",
    ] {
        fails(&world, line, 4, &["exists already", next]);
    }
    assert!(tenet(&world, "vm create contoso/sql").contains("already so"), "the same again is no error");
    fails(
        &world,
        "subnet create contoso/prod/twice --prefix 10.1.1.128/25",
        1,
        &["10.1.1.128/25", "contoso/prod/data", next],
    );
    fails(
        &world,
        "subnet create contoso/prod/x --prefix 10.77.0.0/24 --vsid 6001",
        1,
        &["6001", "fabrikam/prod/data", next],
    );
    fails(
        &world,
        "vm create contoso/x --subnet contoso/prod/data --address 10.1.1.11",
        1,
        &["10.1.1.11", "contoso/sql", next],
    );
    fails(
        &world,
        "vm create contoso/x --subnet contoso/prod/data --address 10.1.1.1",
        1,
        &["10.1.1.1", "gateway", next],
    );
    fails(
        &world,
        "vm create contoso/x --subnet contoso/prod/data --address 10.1.9.1",
        1,
        &["10.1.9.1", "contoso/prod/data", next],
    );
    fails(&world, "host add h3 --pa 192.168.1.10", 1, &["192.168.1.10", "h1", next]);
    fails(&world, "vm migrate contoso/sql --to h9", 1, &["h9", next]);
    fails(&world, "vm", 2, &["Usage"]);
    fails(&world, "vm create", 2, &["Usage"]);
    fails(&world, "subnet create contoso/prod/x --prefix nonsense", 2, &["nonsense"]);
    fails(&world, "frobnicate", 2, &["frobnicate"]);
    fails(&world, "--lab no-such-lab status", 3, &["no-such-lab"]);
    let mut other = command(&world, &["--admin-file", "/nonexistent/admin.json", "status"]);
    other.env_remove("TENET_LAB");
    let done = finish(other);
    assert_eq!(done.code, 3, "{done:?}");
    assert!(done.err.contains("/nonexistent/admin.json") && done.err.contains(next), "{done:?}");
    assert!(!tenet(&world, "vm list").contains("contoso/x "), "nothing was left behind");
    let help = finish(command(&world, &["--help"]));
    assert!(help.code == 0 && help.out.contains("Exit codes"), "{help:?}");
}

#[test]
fn site_file_applies_once_shows_the_difference_first_and_comes_back_from_export() {
    let Some(world) = LAB.world() else { return };
    let dir = tenet_tests::pcap::TempDir::new("cli");
    let file = |text: &str| {
        let path = dir.0.join("site.yaml");
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let mine = "tenants:\n  shop:\n    networks:\n      front: { subnets: { dmz: { prefix: 10.5.0.0/24 } } }\n    vms:\n      till: { ports: { eth0: { subnet: front/dmz } } }\n";
    let path = file(mine);
    let said = tenet(&world, &format!("apply -f {path} --dry-run"));
    assert!(said.contains("+ ") && said.contains("shop") && said.contains("till"), "{said}");
    assert!(!tenet(&world, "tenant list").contains("shop"), "a check changes nothing");
    fails(&world, &format!("apply -f {path}"), 1, &["nothing was changed", "--yes"]);
    let said = tenet(&world, &format!("apply -f {path} --yes"));
    assert!(said.contains("+ ") && said.contains("10.5.0.0/24"), "{said}");
    assert!(tenet(&world, "vm show shop/till").contains("10.5.0.2"));
    let said = tenet(&world, &format!("apply -f {path} --yes"));
    assert!(said.contains("nothing to do"), "twice: {said}");

    let exported = tenet(&world, "export");
    assert!(
        exported.contains("shop") && exported.contains("contoso") && exported.contains("h1"),
        "{exported}"
    );
    let mut apply = command(&world, &["apply", "-f", "-", "--yes"]);
    let mut child = apply.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(exported.as_bytes()).unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(said.contains("nothing to do"), "export | apply: {said}");
    assert!(json(&world, "export")["tenants"].is_array());

    for (text, place) in [
        ("tenants:\n  shop: { networks: [1, 2] }\n", ":2:"),
        ("hosts:\n  h1: { pa: 1.2.3.400 }\n", ":2:13"),
        ("tenants:\n  shop:\n    nonsense: 1\n", ":3:5"),
        ("\tnot yaml", ":1:"),
        ("{{{{", ":"),
        (
            "tenants:\n  shop:\n    networks:\n      front: { subnets: { other: { prefix: 10.5.0.0/25 } } }\n",
            ":4:",
        ),
    ] {
        let path = file(text);
        fails(&world, &format!("apply -f {path} --yes"), 1, &[&format!("{path}{place}")]);
    }
    fails(&world, "apply -f /nonexistent.yaml", 1, &["/nonexistent.yaml", "next:"]);

    // A VM that runs is moved; a file does not take its port elsewhere without being told to.
    let path = file(
        "tenants:\n  contoso:\n    vms:\n      sql: { ports: { eth0: { subnet: prod/data, host: h2 } } }\n",
    );
    for how in ["--yes", "--dry-run"] {
        let line = format!("apply -f {path} {how}");
        let done = run(&world, &line.split_whitespace().collect::<Vec<_>>());
        assert!(done.code == 4 && done.out.contains("host: h1 -> h2"), "{done:?}");
        let (place, way) = (format!("{path}:4:"), "`tenet vm migrate contoso/sql --to h2`");
        for part in [place.as_str(), "VM contoso/sql runs on host h1", way, "--force"] {
            assert!(done.err.contains(part), "{part}: {done:?}");
        }
    }
    assert_eq!(world.host_of("contoso/sql"), "h1");
    let said = tenet(&world, &format!("apply -f {path} --dry-run --force"));
    assert!(said.contains("host: h1 -> h2") && said.contains("only a check"), "{said}");

    for line in [
        "vm delete shop/till",
        "subnet delete shop/front/dmz",
        "network delete shop/front",
        "tenant delete shop",
    ] {
        tenet(&world, line);
    }
}

#[test]
fn completion_is_a_script_for_each_shell() {
    let Some(world) = LAB.world() else { return };
    for shell in ["bash", "zsh", "fish"] {
        let script = tenet(&world, &format!("completion {shell}"));
        assert!(script.contains("tenet") && script.contains("migrate"), "{shell}");
    }
    if Command::new("bash").arg("--version").output().is_ok() {
        let script = tenet(&world, "completion bash");
        let mut child = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "bash reads it");
    }
}

#[test]
fn followed_events_show_a_spoof_and_counters_count_it() {
    let Some(world) = LAB.world() else { return };
    let mut child = command(&world, &["events", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.lines().map_while(Result::ok).try_for_each(|l| tx.send(l)));
    let (sql, web) = (world.nic("contoso/sql"), world.nic("contoso/web"));
    let forged = Packet::udp((web.ip, 1), (web.ip, 9), b"x").frame(web.mac, sql.mac);
    let line = until("a followed event", PATIENCE, || {
        sql.send(&forged);
        rx.try_iter().find(|l| l.contains("spoof") && l.contains("contoso/sql"))
    });
    println!("{line}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.contains("h1"), "{line}");
    assert!(tenet(&world, "events").contains("spoof"));
    until("the counter", PATIENCE, || tenet(&world, "counters h1").contains("spoofed_ca").then_some(()));
    let said = tenet(&world, "counters");
    for part in ["HOST", "PORT", "SENT", "DROPS", "contoso/sql/eth0", "uplink:eth0"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(json(&world, "counters")["ports"].is_array());
}

#[test]
fn new_vm_is_attached_and_reached_and_detached_again() {
    let Some(world) = LAB.world() else { return };
    tenet(&world, "vm create contoso/fresh --subnet contoso/prod/data --address 10.1.1.50");
    // A tap or veth that the hypervisor made; here a veth into a namespace of our own.
    let netns = tenet_hostnet::Netns::anonymous().unwrap();
    let host = tenet_hostnet::Links::in_netns(world.lab.host("h2").unwrap().netns()).unwrap();
    host.add_veth("fresh0", "eth0", &netns).unwrap();
    host.set_up("fresh0").unwrap();
    let shown = json(&world, "vm show contoso/fresh");
    let mac: tenet_model::Mac = shown["ports"][0]["mac"].as_str().unwrap().parse().unwrap();
    let vm = tenet_hostnet::Links::in_netns(&netns).unwrap();
    vm.set_mac("eth0", mac.octets()).unwrap();
    vm.set_mtu("eth0", 1458).unwrap();
    vm.set_up("eth0").unwrap();
    vm.add_addr("eth0", [10, 1, 1, 50].into(), 24).unwrap();
    vm.add_route([0, 0, 0, 0].into(), 0, Some([10, 1, 1, 1].into()), None).unwrap();
    let said = tenet(&world, "vm attach contoso/fresh --host h2 --device fresh0");
    assert!(said.contains("in force"), "{said}");
    for (to, name) in
        [([10, 1, 1, 11], "contoso/sql"), ([10, 1, 1, 12], "contoso/web"), ([10, 1, 2, 11], "contoso/app")]
    {
        let got = tenet_lab::tool::ask(&netns, to.into(), PATIENCE).unwrap();
        assert_eq!(got.as_deref(), Some(name));
    }
    let row = tenet(&world, "table h1").lines().find(|l| l.contains("10.1.1.50")).map(str::to_owned).unwrap();
    assert!(row.contains("192.168.2.20") && row.contains("contoso/fresh"), "{row}");
    tenet(&world, "vm detach contoso/fresh");
    let nic = tenet_tests::Nic::open(
        &netns,
        "fresh",
        "eth0",
        Mac::new(mac.octets()),
        [10, 1, 1, 50].into(),
        [10, 1, 1, 1].into(),
    );
    assert_eq!(
        nic.who_has([10, 1, 1, 11].into(), None, Duration::from_millis(300)),
        None,
        "nobody answers it any more"
    );
    assert!(!tenet(&world, "table h1").contains("10.1.1.50"));
    tenet(&world, "vm delete contoso/fresh");
    host.delete_link("fresh0").unwrap();
}

#[test]
fn lab_commands_see_the_running_lab() {
    let Some(world) = LAB.world() else { return };
    let name = world.lab.record().name.to_string();
    assert!(tenet(&world, "lab list").contains(&name));
    let said = tenet(&world, &format!("lab status {name}"));
    assert!(said.contains("h1") && said.contains("contoso/sql"), "{said}");
    let said = tenet(&world, "lab exec contoso/web -- ip -4 addr");
    assert!(said.contains("10.1.1.12"), "{said}");
    let said = tenet(&world, "lab exec --host h1 -- ip -4 addr");
    assert!(said.contains("192.168.1.10"), "{said}");
    let done = run(&world, &["lab", "exec", "contoso/web", "--", "sh", "-c", "exit 7"]);
    assert_eq!(done.code, 7, "the command's own exit code: {done:?}");
    fails(&world, "lab exec contoso/nobody -- true", 1, &["contoso/nobody", "contoso/sql"]);
    let said = finish(command(&world, &["agent", "--check"]));
    assert!(said.code == 0 && !said.out.is_empty(), "{said:?}");
}
