//! libvirt's hook as libvirt calls it, without libvirt: arguments, standard input, what is said and how fast.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, also in its helpers")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const BRIDGED: &str = include_str!("../../libvirt/tests/bridged.xml");
const OURS: &str = include_str!("../../libvirt/tests/ours.xml");

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tenet-libvirt-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

fn run(mut command: Command, input: &str) -> Output {
    command.env_remove("TENET_SOCKET").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn hook(socket: &Path, operation: &str, stage: &str, xml: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenet"));
    command.args(["libvirt", "hook", "--timeout", "2", "--socket"]).arg(socket);
    command.args(["--", "sql-1", operation, stage, "-"]);
    run(command, xml)
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// An agent that gives one answer, `None`: none; what it was asked.
fn agent(socket: &Path, answer: Option<&'static str>) -> std::thread::JoinHandle<String> {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = Vec::new();
        let mut buffer = [0; 4096];
        // The body is one JSON object; it is whole when its braces are closed.
        loop {
            let n = stream.read(&mut buffer).unwrap();
            asked.extend_from_slice(&buffer[..n]);
            let text = String::from_utf8_lossy(&asked);
            let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
            if n == 0 || !body.is_empty() && body.matches('{').count() == body.matches('}').count() {
                break;
            }
        }
        match answer {
            Some(answer) => stream.write_all(answer.as_bytes()).unwrap(),
            // Until the other side has gone.
            None => _ = stream.read(&mut buffer),
        }
        String::from_utf8(asked).unwrap()
    })
}

fn ready(device: &str) -> &'static str {
    let body = format!(
        r#"{{"vm":"contoso/sql","ports":[{{"port":"contoso/sql/eth0","device":"{device}","mac":"52:54:00:00:00:01","mtu":1458,"addresses":[],"subnet":"contoso/blue/web","prefixes":[],"state":"active"}}]}}"#
    );
    http("200 OK", &body)
}

/// A whole answer; tests may leak.
fn http(status: &str, body: &str) -> &'static str {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n");
    Box::leak(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_boxed_str())
}

fn tap() -> String {
    tenet_model::tap_name(&"contoso/sql/eth0".parse().unwrap())
}

/// Processor time of a call for a domain that is not ours, in user space and in the kernel.
fn cost() -> Duration {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenet"));
    command.args([
        "libvirt",
        "hook",
        "--socket",
        "/nonexistent/agent.sock",
        "--",
        "sql-1",
        "prepare",
        "begin",
        "-",
    ]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(BRIDGED.as_bytes()).unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let mut status = 0;
    // SAFETY: all zeros is a legal value of this plain structure.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are live and writable; the child is ours and not yet reaped.
    let reaped = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut used) };
    // It is reaped already: only that call tells what it used.
    _ = child.wait();
    assert_eq!(reaped, pid);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status}");
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec.unsigned_abs()) + Duration::from_micros(t.tv_usec.unsigned_abs())
    };
    time(used.ru_utime) + time(used.ru_stime)
}

#[test]
fn a_domain_that_is_not_ours_costs_next_to_nothing() {
    let output = hook(Path::new("/nonexistent/agent.sock"), "prepare", "begin", BRIDGED);
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    // The processor's time and the best of some: the machine may have other things to do.
    let best = (0..10).map(|_| cost()).min().unwrap();
    println!("{best:?}");
    assert!(best < Duration::from_millis(20), "{best:?}");
}

#[test]
fn without_an_agent_only_what_needs_one_is_refused() {
    let nowhere = Path::new("/nonexistent/agent.sock");
    for (operation, stage, refused) in [
        ("prepare", "begin", true),
        ("migrate", "begin", true),
        // libvirt would end the running guest.
        ("reconnect", "begin", false),
        ("release", "end", false),
    ] {
        let output = hook(nowhere, operation, stage, OURS);
        let said = said(&output);
        assert_eq!(output.status.success(), !refused, "{operation}: {said}");
        assert!(said.starts_with("tenet: the agent does not answer at /nonexistent/agent.sock"), "{said}");
        assert!(said.contains("check that `tenet agent` runs"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    for (operation, stage) in [("start", "begin"), ("started", "begin"), ("stopped", "end")] {
        assert!(hook(nowhere, operation, stage, OURS).stderr.is_empty(), "{operation}");
    }
}

#[test]
fn the_agent_is_asked_and_its_refusal_is_one_line() {
    let folder = Folder::new("ask");
    let socket = folder.0.join("a.sock");
    let refusal = http(
        "409 Conflict",
        r#"{"code":"conflict","message":"VM contoso/sql is on host h2","hint":"stop it there"}"#,
    );
    let serving = agent(&socket, Some(refusal));
    let output = hook(&socket, "prepare", "begin", OURS);
    assert_eq!(said(&output), "tenet: VM contoso/sql is on host h2: stop it there\n");
    assert_eq!(output.status.code(), Some(1));
    let asked = serving.join().unwrap();
    assert!(asked.starts_with("POST /v1/prepare "), "{asked}");
    for part in [
        r#""vm":"contoso/sql""#,
        r#""for":"start""#,
        r#""domain":"sql-1""#,
        r#""mac":"52:54:00:00:00:01""#,
        r#""network":"contoso/blue""#,
        r#""subnet":"web""#,
        r#""10.1.1.11""#,
    ] {
        assert!(asked.contains(part), "{part}: {asked}");
    }
    assert!(!asked.contains("device"), "the agent makes its own tap: {asked}");
}

#[test]
fn a_start_needs_the_tap_that_was_made_and_a_move_is_told_of_another() {
    let folder = Folder::new("tap");
    let socket = folder.0.join("a.sock");
    let ask = |operation, device: &str| {
        _ = fs::remove_file(&socket);
        let serving = agent(&socket, Some(ready(device)));
        let output = hook(&socket, operation, "begin", OURS);
        (output, serving.join().unwrap())
    };
    let (output, _) = ask("prepare", &tap());
    assert!(output.status.success() && output.stdout.is_empty(), "{}", said(&output));
    let (output, _) = ask("prepare", "tap9");
    assert!(!output.status.success() && said(&output).contains("its port is on tap9"), "{}", said(&output));
    // A tap of one queue for a domain that opens four: the command that it says has this host's name.
    let several = OURS.replace("<model type='virtio'/>", "<model type='virtio'/><driver queues='4'/>");
    let body = ready(&tap()).split_once("\r\n\r\n").unwrap().1;
    let body = body.replace(r#""mac""#, r#""tap":true,"queues":1,"mac""#);
    let body = body.replacen('{', r#"{"host":"h7","#, 1);
    _ = fs::remove_file(&socket);
    let serving = agent(&socket, Some(http("200 OK", &body)));
    let output = hook(&socket, "prepare", "begin", &several);
    serving.join().unwrap();
    assert!(said(&output).contains("--port eth0 --host h7 --queues 4`"), "{}", said(&output));
    let (output, asked) = ask("migrate", &tap());
    assert!(output.status.success() && output.stdout.is_empty(), "{}", said(&output));
    assert!(asked.contains(r#""for":"incoming""#), "{asked}");
    let (output, _) = ask("migrate", "tap9");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), OURS.replace(&tap(), "tap9"));
}

#[test]
fn an_agent_that_hangs_does_not_hold_virsh_for_long() {
    let folder = Folder::new("hang");
    let socket = folder.0.join("a.sock");
    let serving = agent(&socket, None);
    let begin = Instant::now();
    let output = hook(&socket, "prepare", "begin", OURS);
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    let said = said(&output);
    assert!(!output.status.success() && said.contains("has not answered within 2 s"), "{said}");
    serving.join().unwrap();
}

#[test]
fn the_hook_is_installed_beside_others_and_never_over_them() {
    let folder = Folder::new("install");
    let dir = folder.0.join("hooks");
    let install = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenet"));
        command.args(["libvirt", "install-hook", "--dir", dir.to_str().unwrap()]).args(more);
        run(command, "")
    };
    let done = install(&[]);
    let printed = String::from_utf8(done.stdout.clone()).unwrap();
    assert!(done.status.success() && printed.contains("systemctl restart libvirtd"), "{done:?}");
    let file = dir.join("qemu.d/tenet");
    let again = install(&[]);
    assert!(String::from_utf8(again.stdout).unwrap().contains("is there already"));
    // It works as libvirt calls it, and says so where the program has gone.
    let call = |xml| {
        let mut command = Command::new(&file);
        command.args(["sql-1", "prepare", "begin", "-"]);
        run(command, xml)
    };
    assert!(call(BRIDGED).status.success());
    let refused = call(OURS);
    assert!(!refused.status.success() && said(&refused).contains("tenet:"), "{}", said(&refused));
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(env!("CARGO_BIN_EXE_tenet"), "/gone/tenet")).unwrap();
    assert!(call(BRIDGED).status.success());
    let refused = call(OURS);
    assert!(
        !refused.status.success() && said(&refused).contains("/gone/tenet is not there"),
        "{}",
        said(&refused)
    );
    // Somebody else's is left alone.
    fs::write(dir.join("qemu"), "#!/bin/sh\n").unwrap();
    fs::write(&file, "#!/bin/sh\n").unwrap();
    for (more, hint) in
        [(vec![], "move it away"), (vec!["--single"], "without --single"), (vec!["--remove"], "move")]
    {
        let refused = install(&more);
        assert_eq!(refused.status.code(), Some(4), "{more:?}");
        let said = said(&refused);
        assert!(said.contains("somebody else") && said.contains(hint), "{said}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "#!/bin/sh\n");
    fs::remove_file(&file).unwrap();
    assert!(install(&[]).status.success());
    let removed = install(&["--remove"]);
    assert!(removed.status.success() && !file.exists(), "{}", said(&removed));
}
