//! `apply` and `export` against a real controller with its store in memory.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, also in its helpers")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use tenet_control_server::{Options, StoreKind, run};
use tokio::sync::oneshot;

/// A controller in this process; ends with its handle.
struct Controller {
    dir: PathBuf,
    admin: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Controller {
    fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tenet-{name}-{}", std::process::id()));
        let mut options = Options::new(&dir);
        options.rest_addr = "127.0.0.1:0".parse().unwrap();
        options.grpc_addr = "127.0.0.1:0".parse().unwrap();
        options.store = StoreKind::Memory;
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            let shutdown = async {
                _ = stopped.await;
            };
            runtime
                .block_on(run(options, shutdown, move |ready| tell.send(ready.admin_file).unwrap()))
                .unwrap();
        });
        let admin = told.recv().unwrap();
        Self { dir, admin, stop: Some(stop), thread: Some(thread) }
    }

    fn tenet(&self, args: &[&str], input: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tenet"))
            .arg("--admin-file")
            .arg(&self.admin)
            .args(args)
            .env_remove("TENET_LAB")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs a command that must succeed; its standard output.
    fn ok(&self, args: &[&str], input: &str) -> String {
        let output = self.tenet(args, input);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
        _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn default_site() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab/src/site.yaml");
    // Without devices nothing can be attached; where the VMs are is not this test's matter.
    std::fs::read_to_string(path).unwrap().replace(", host: h1", "").replace(", host: h2", "")
}

const APPLY: &[&str] = &["apply", "-f", "-", "--yes"];

#[test]
fn applying_twice_says_nothing_to_do_and_so_does_applying_an_export() {
    let controller = Controller::start("twice");
    let site = default_site();
    let shown = controller.ok(&["apply", "-f", "-", "--dry-run"], &site);
    assert!(
        shown.contains("+ subnet contoso/prod/data: ") && shown.ends_with("this was only a check\n"),
        "{shown}"
    );
    assert!(controller.ok(&["vm", "list"], "").contains("no VMs"));
    let refused = controller.tenet(&["apply", "-f", "-"], &site);
    assert_eq!(refused.status.code(), Some(1), "not without --yes where nobody can be asked");

    let first = controller.ok(APPLY, &site);
    assert!(first.contains("+ port contoso/sql/eth0: "), "{first}");
    assert_eq!(controller.ok(APPLY, &site), "nothing to do\n");
    let export = controller.ok(&["export"], "");
    assert_eq!(controller.ok(APPLY, &export), "nothing to do\n");
    assert_eq!(controller.ok(&["export"], ""), export, "two exports are equal bytes");

    // A third party's controller comes to the same site.
    let other = Controller::start("other");
    other.ok(APPLY, &export);
    assert_eq!(other.ok(&["export"], ""), export);
}

#[test]
fn shows_what_changes_and_deletes_only_when_told() {
    let controller = Controller::start("changes");
    let site = default_site();
    controller.ok(APPLY, &site);
    let moved = site.replacen("address: 10.1.1.12", "address: 10.1.1.13", 1);
    let shown = controller.ok(APPLY, &moved);
    assert!(shown.contains("~ port contoso/web/eth0\n    addresses: 10.1.1.12 -> 10.1.1.13\n"), "{shown}");

    let (kept, _) = moved.split_once("  fabrikam:").unwrap();
    assert_eq!(controller.ok(APPLY, kept), "nothing to do\n");
    assert!(controller.ok(&["tenant", "list"], "").contains("fabrikam"));
    let shown = controller.ok(&["apply", "-f", "-", "--yes", "--prune"], kept);
    assert!(shown.contains("- tenant fabrikam\n"), "{shown}");
    assert!(!controller.ok(&["tenant", "list"], "").contains("fabrikam"));
    assert_eq!(controller.ok(&["apply", "-f", "-", "--yes", "--prune"], kept), "nothing to do\n");
}

#[test]
fn a_refused_site_points_at_both_objects() {
    let controller = Controller::start("refused");
    let site = "\
tenants:
  acme:
    networks:
      net:
        subnets:
          a: { prefix: 10.0.0.0/16 }
          b: { prefix: 10.0.1.0/24 }
";
    let output = controller.tenet(APPLY, site);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    for line in [
        "standard input:6:11: ",
        "standard input:7:11: ",
        "overlaps",
        "subnet acme/net/a",
        "subnet acme/net/b",
        "next: ",
    ] {
        assert!(text.contains(line), "{line} is missing in: {text}");
    }
    assert!(controller.ok(&["network", "list"], "").starts_with("no networks"), "all or nothing");
}

#[test]
fn json_is_for_programs() {
    let controller = Controller::start("json");
    controller.ok(APPLY, &default_site());
    for args in [
        vec!["-o", "json", "vm", "list"],
        vec!["-o", "json", "status"],
        vec!["-o", "json", "table"],
        vec!["-o", "json", "export"],
        vec!["-o", "json", "network", "show", "contoso/prod"],
        vec!["-o", "json", "tenant", "show", "contoso"],
    ] {
        let output = controller.tenet(&args, "");
        let value: Result<serde_json::Value, _> = serde_json::from_slice(&output.stdout);
        assert!(value.is_ok(), "{args:?}");
    }
}

#[test]
fn objects_come_and_go_by_commands() {
    let controller = Controller::start("objects");
    let run = |args: &[&str]| controller.ok(args, "");
    assert!(run(&["network", "create", "blue"]).contains("created network default/blue"));
    assert!(
        run(&["subnet", "create", "blue/web", "--prefix", "10.0.0.0/24"])
            .contains("VSID 4096, gateway 10.0.0.1")
    );
    assert!(
        run(&["vm", "create", "one", "--subnet", "blue/web"])
            .contains("created port default/one/eth0 (10.0.0.2")
    );
    assert!(run(&["vm", "show", "one"]).contains("10.0.0.2"));
    assert!(
        run(&["route", "create", "blue", "--to", "0.0.0.0/0", "--via", "10.0.0.2"]).contains("created route")
    );
    assert!(run(&["route", "list"]).contains("0.0.0.0/0"));
    assert!(run(&["host", "add", "h1", "--pa", "192.168.1.10"]).contains("created host h1"));
    assert!(run(&["host", "token", "h1"]).starts_with("tenet1."));
    let again = controller.tenet(&["subnet", "delete", "blue/web"], "");
    let text = String::from_utf8(again.stderr).unwrap();
    assert_eq!(again.status.code(), Some(4), "{text}");
    assert!(text.contains("port default/one/eth0") && text.contains("next: "), "{text}");
    // The host never came, so nobody can have proven anything.
    assert_eq!(controller.tenet(&["status"], "").status.code(), Some(5));
    run(&["route", "delete", "blue", "--to", "0.0.0.0/0", "--via", "10.0.0.2"]);
    run(&["vm", "delete", "one"]);
    run(&["subnet", "delete", "blue/web"]);
    run(&["network", "delete", "blue"]);
    run(&["host", "remove", "h1"]);
    assert!(run(&["network", "list"]).starts_with("no networks"));
}

#[test]
fn a_move_to_a_host_without_agent_is_refused_before_anything_moves() {
    let controller = Controller::start("no-agent");
    let run = |args: &[&str]| controller.ok(args, "");
    run(&["network", "create", "blue"]);
    run(&["subnet", "create", "blue/web", "--prefix", "10.0.0.0/24"]);
    run(&["vm", "create", "one", "--subnet", "blue/web"]);
    run(&["host", "add", "h1", "--pa", "192.168.1.10"]);
    run(&["host", "add", "h2", "--pa", "192.168.2.20"]);
    run(&["vm", "attach", "one", "--host", "h1", "--device", "tap1"]);
    for through in [&["--switch-only"][..], &["--qmp", "tcp:192.168.2.20:49152"], &["--libvirt"], &[]] {
        let asked = [&["vm", "migrate", "one", "--to", "h2"], through].concat();
        let output = controller.tenet(&asked, "");
        let text = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(4), "{text}");
        assert!(text.contains("host h2 is not connected") && !text.contains("may move"), "{text}");
    }
    let text = run(&["migrations"]);
    assert!(
        text.contains("no migration is running") && text.contains("no migration has ended yet"),
        "{text}"
    );
}

#[test]
fn methods_prefixes_pools_and_settings_by_command_and_by_file() {
    let controller = Controller::start("methods");
    let run = |args: &[&str]| controller.ok(args, "");
    let fails = |args: &[&str], code: i32| {
        let output = controller.tenet(args, "");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        text
    };
    run(&["host", "add", "h1", "--pa", "192.168.1.10", "--rewrite-pool", "192.168.1.128/30"]);
    assert!(run(&["host", "list"]).contains("0 of 2 used"));
    assert!(run(&["network", "create", "blue", "--method", "geneve"]).contains("method geneve"));
    let dual = ["--prefix", "10.0.0.0/24", "--prefix", "fd00:1::/64", "--gateway", "fd00:1::9"];
    let made = run(&[&["subnet", "create", "blue/web"], dual.as_slice()].concat());
    assert!(made.contains("gateway 10.0.0.1, gateway fd00:1::9"), "{made}");
    assert!(run(&["subnet", "list"]).contains("fd00:1::/64"));
    let wrong = ["--prefix", "10.1.0.0/24", "--prefix", "fd00:2::/64", "--gateway", "fd00:1::9"];
    let text = fails(&[&["subnet", "create", "blue/no"], wrong.as_slice()].concat(), 2);
    assert!(text.contains("in none of the prefixes"), "{text}");
    assert!(run(&["vm", "create", "one", "--subnet", "blue/web"]).contains("10.0.0.2, fd00:1::2"));
    run(&["vm", "create", "two", "--subnet", "blue/web", "--address", "10.0.0.7", "--address", "fd00:1::7"]);
    run(&["vm", "attach", "one", "--host", "h1", "--device", "tap1"]);

    // Nobody answers for h1, so the change waits for no one.
    let text = fails(&["network", "set", "blue", "--method", "rewrite"], 1);
    assert!(text.contains("h1") && text.contains("next: "), "no IPv6 pool: {text}");
    run(&["host", "set", "h1", "--rewrite-pool", "192.168.1.128/30", "--rewrite-pool", "2001:db8::/64"]);
    run(&["network", "set", "blue", "--method", "rewrite"]);
    assert!(run(&["network", "show", "blue"]).contains("method rewrite"));
    let shown = run(&["vm", "show", "one"]);
    assert!(shown.contains("REWRITTEN TO") && shown.contains("192.168.1.129 2001:db8::1"), "{shown}");
    // The host never came, so its records are not proven.
    let table = String::from_utf8(controller.tenet(&["table"], "").stdout).unwrap();
    assert!(table.contains("rewrite") && table.contains("192.168.1.129"), "{table}");
    fails(&["host", "set", "h1", "--no-rewrite-pool"], 1);

    assert!(run(&["site", "show"]).contains("UDP port 4789, Geneve to 6081 (never set)"));
    run(&["site", "set", "--vxlan-port", "8472"]);
    assert!(run(&["site", "show"]).contains("8472"));
    assert!(run(&["site", "show"]).contains("hosts begin migrations"));
    run(&["site", "set", "--hosts-begin-migrations", "false"]);
    assert!(run(&["site", "show"]).contains("hosts begin no migrations"));
    assert!(run(&["paths"]).contains("no paths measured"));
    fails(&["paths", "h9"], 1);

    let export = run(&["export"]);
    for line in [
        "settings: { vxlan_port: 8472, geneve_port: 6081, hosts_begin_migrations: false }",
        "rewrite_pool: [192.168.1.128/30, \"2001:db8::/64\"]",
        "method: rewrite",
        "prefixes: [{ prefix: 10.0.0.0/24, gateway: 10.0.0.1 }, { prefix: \"fd00:1::/64\", gateway: \"fd00:1::9\" }]",
    ] {
        assert!(export.contains(line), "{line} is missing in: {export}");
    }
    assert_eq!(controller.ok(APPLY, &export), "nothing to do\n");
    let shown = controller.ok(APPLY, &export.replace("method: rewrite", "method: stt"));
    assert!(shown.contains("~ network default/blue\n    method: rewrite -> stt\n"), "{shown}");
    assert!(run(&["network", "list"]).contains("stt"));
    let other = Controller::start("methods-other");
    let attached = other.ok(APPLY, &export);
    assert!(attached.contains("+ site"), "{attached}");
    assert_eq!(other.ok(&["export"], ""), export);
}
