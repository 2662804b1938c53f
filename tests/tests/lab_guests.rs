//! The lab with six real guests, as who tries it uses it: up, a command in a guest, its console, down.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tenet_hostnet::{Kind, Links, Netns};
use tenet_lab::guest::{self, Image};
use tenet_lab::{Lab, Record};
use tenet_model::tap_name;
use tenet_tests::{binary, missing, skipped, until};

/// On a quiet machine of two cores all guests shall answer within 20 s, which is printed; machines are not always quiet.
const UP: Duration = Duration::from_secs(150);
const PATIENCE: Duration = Duration::from_secs(30);
/// What a guest may take of the machine's memory.
const MEMORY_MB: u64 = 256;
/// Emulated guests crash now and then on a busy machine (`guests.rs`): the test begins anew. Nothing else is forgiven.
const ATTEMPTS: usize = 4;
const SQL: &str = "contoso/sql";

#[test]
fn a_lab_of_real_guests_is_brought_up_used_and_taken_down() {
    if let Some(why) = missing().or_else(guest::missing) {
        return skipped(why);
    }
    // Not a matter of the lab, and the first time it takes as long as the network does.
    if let Err(e) = Image::build() {
        return skipped(format!("no guest can be built: {e}"));
    }
    for attempt in 1..=ATTEMPTS {
        let name = name(attempt);
        let down = Down(name.clone());
        let Err(broken) = catch_unwind(AssertUnwindSafe(|| whole(&name))) else { return };
        // A lab that did not come up has taken its consoles along; its error holds what they said.
        let text = broken.downcast_ref::<String>().cloned().unwrap_or_default();
        let crashed = || Lab::open(&name).ok().and_then(|lab| lab.crashed(PATIENCE));
        let Some(said) = guest::crash_in(&text).map(ToOwned::to_owned).or_else(crashed) else {
            resume_unwind(broken)
        };
        println!("attempt {attempt}: a guest's kernel crashed: {said}");
        drop(down);
    }
    panic!("guests' kernels crashed {ATTEMPTS} times");
}

/// A name that no other run has, be it at the same time or one that was broken off.
fn name(attempt: usize) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    format!("t{}-{:x}-{attempt}", std::process::id(), now.as_millis() & 0xff_ffff)
}

/// Takes a lab down that the test has left.
struct Down(String);

impl Drop for Down {
    fn drop(&mut self) {
        if let Ok(lab) = Lab::open(&self.0)
            && let Err(e) = lab.down()
        {
            println!("lab {}: {e}", self.0);
        }
    }
}

fn whole(name: &str) {
    let begin = Instant::now();
    let said = good(tenet(&["lab", "up", name, "--vms", "qemu"]));
    assert!(said.contains(&format!("lab {name} is up after ")), "{said}");
    assert!(said.contains(&format!("lab --lab {name} console {SQL}")), "what to try is told: {said}");
    let lab = Lab::open(name).unwrap();
    let vms: Vec<String> = lab.record().vms.iter().map(|v| v.name.to_string()).collect();
    assert_eq!(vms.len(), 6);
    for vm in &vms {
        assert_eq!(good(exec(name, vm, &["cat", "/etc/name"])).trim_end(), vm);
    }
    let took = begin.elapsed();
    println!("six guests answer after {took:.1?} (wanted on a quiet machine: 20 s)");
    assert!(took < tenet_lab::patience(UP), "{took:?}");

    small(&lab);
    on_the_agents_taps(&lab);
    commands(name);
    each_tenant_reaches_its_own(name, &lab);
    console(name);
    down(name, &lab);
}

/// What a command did.
struct Done {
    code: i32,
    out: String,
    err: String,
}

fn tenet(args: &[&str]) -> Done {
    with_input(args, "")
}

fn with_input(args: &[&str], input: &str) -> Done {
    let mut command = Command::new(binary());
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Done { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// Expects success; what it printed.
fn good(done: Done) -> String {
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    done.out
}

fn exec(lab: &str, vm: &str, words: &[&str]) -> Done {
    tenet(&[&["lab", "--lab", lab, "exec", vm, "--"], words].concat())
}

/// Each guest is told that it has less than is allowed, and its QEMU takes less.
fn small(lab: &Lab) {
    for vm in &lab.record().vms {
        let pid = vm.guest.as_ref().unwrap().process.pid;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let words: Vec<&str> = line.split(|b| *b == 0).map(|w| std::str::from_utf8(w).unwrap()).collect();
        let at = words.iter().position(|w| *w == "-m").unwrap();
        let told: u64 = words[at + 1].trim_end_matches('M').parse().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        let resident: u64 = resident.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024;
        println!("{}: {told} MB, QEMU takes {resident} MB", vm.name);
        assert!(told < MEMORY_MB && resident < MEMORY_MB, "{}: {told}, {resident}", vm.name);
    }
}

/// As for every user of a hypervisor: the agent made the tap, and QEMU has it open.
fn on_the_agents_taps(lab: &Lab) {
    for vm in &lab.record().vms {
        let host = lab.host(vm.host().unwrap().as_str()).unwrap();
        let name = tap_name(&format!("{}/eth0", vm.name).parse().unwrap());
        let link = Links::in_netns(host.netns()).unwrap().get(&name).unwrap();
        assert_eq!(link.alias, Some(format!("tenet:{}/eth0", vm.name)));
        assert_eq!((&link.kind, link.carrier, link.mtu), (&Kind::Tap, true, 1458), "{link:?}");
        let line =
            std::fs::read(format!("/proc/{}/cmdline", vm.guest.as_ref().unwrap().process.pid)).unwrap();
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(line.contains(&format!("ifname={name},")) && line.contains("host_mtu=1458"), "{line}");
    }
    let name = lab.record().name.as_str();
    let shown: serde_json::Value =
        serde_json::from_str(&good(tenet(&["--lab", name, "vm", "show", SQL, "-o", "json"]))).unwrap();
    assert_eq!(shown["ports"][0]["tap"], true, "{shown}");
}

/// Output, errors, exit codes and input go through, and what is not there is said.
fn commands(lab: &str) {
    let done = exec(lab, SQL, &["sh", "-c", "echo \"$0\"; echo 'not so' >&2; exit 7", "a  b"]);
    assert_eq!((done.code, done.out.as_str()), (7, "a  b\n"), "{}", done.err);
    assert!(done.err.contains("not so"), "{}", done.err);
    assert_eq!(exec(lab, SQL, &["false"]).code, 1);
    // In the guest, not beside it: its own kernel, its own address, its own name.
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(good(exec(lab, SQL, &["uname", "-r"])), kernel);
    assert!(good(exec(lab, SQL, &["ip", "addr"])).contains("10.1.1.11/24"));
    let words = ["lab", "--lab", lab, "exec", SQL, "--", "wc", "-c"];
    assert_eq!(good(with_input(&words, "twelve bytes")).trim(), "12");
    for (done, parts) in [
        (exec(lab, "contoso/nobody", &["true"]), ["has no VM contoso/nobody", "contoso/sql, "]),
        (exec("no-such-lab", SQL, &["true"]), ["there is no lab no-such-lab", "tenet lab up"]),
        (exec(lab, SQL, &["no-such-command"]), ["no-such-command", "No such file"]),
        (tenet(&["lab", "--lab", lab, "console", "contoso/nobody"]), ["has no VM", "contoso/web"]),
        (tenet(&["lab", "up", lab]), ["is there already", "tenet lab down"]),
    ] {
        assert_ne!(done.code, 0, "{}{}", done.out, done.err);
        for part in parts {
            assert!(done.err.contains(part), "should say {part:?}: {}", done.err);
        }
    }
}

/// Both tenants have the same addresses: whoever asks one is answered by the VM of its own tenant.
fn each_tenant_reaches_its_own(name: &str, lab: &Lab) {
    let vms = &lab.record().vms;
    for from in vms {
        for to in vms.iter().filter(|to| to.name.tenant == from.name.tenant && to.name != from.name) {
            let address = to.address().unwrap();
            let who = || lab.ask_from(&from.name.to_string(), address, Duration::from_secs(2)).unwrap();
            // The first question may be lost on a machine that is slow to resolve the gateway.
            let who = until(&format!("{address} answers {}", from.name), PATIENCE, who);
            assert_eq!(who, to.name.to_string(), "{} asked {address}", from.name);
        }
        let twins = vms.iter().filter(|t| t.address() == from.address()).count();
        assert_eq!(twins, 2, "{}: the tenants' addresses are the same", from.name);
    }
    let address = lab.vm_record("contoso/web").unwrap().address().unwrap().to_string();
    let said = good(exec(name, SQL, &["ping", "-c", "2", "-W", "5", &address]));
    assert!(said.contains(" 0% packet loss"), "{said}");
    let nobody = exec(name, SQL, &["ping", "-c", "1", "-W", "1", "10.1.1.99"]);
    assert_eq!(nobody.code, 1, "an address that nobody has: {}", nobody.out);
}

/// A shell on the serial console, by a terminal of ours; Ctrl-] leaves it and gives the terminal back as it was.
fn console(lab: &str) {
    let (mut ours, theirs) = pty();
    let before = modes(&theirs);
    let mut command = Command::new(binary());
    command.args(["lab", "--lab", lab, "console", SQL]);
    command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap()).stderr(Stdio::piped());
    let mut child = Killed(command.spawn().unwrap());
    until("the terminal is raw", PATIENCE, || (modes(&theirs) != before).then_some(()));
    let mut seen = String::new();
    // What is typed comes back as an echo; only a shell makes 42 of it.
    until("a shell answers what is typed", PATIENCE, || {
        ours.write_all(b"\recho the answer is $((6 * 7)) of $(cat /etc/name)\r").unwrap();
        hear(&mut ours, &mut seen, Duration::from_secs(2), "the answer is 42 of contoso/sql").then_some(())
    });
    assert!(child.0.try_wait().unwrap().is_none(), "it stays until it is left");
    ours.write_all(&[0x1d]).unwrap();
    let status = until("Ctrl-] leaves", PATIENCE, || child.0.try_wait().unwrap());
    let mut said = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(status.success() && said.contains("Ctrl-] leaves it"), "{status}: {said}");
    assert_eq!(modes(&theirs), before, "the terminal is as it was");
    // It can be entered again, here without a terminal: what is read is typed, and its end leaves.
    let typed = "\recho again $((7 * 7)) >/tmp/typed\r";
    good(with_input(&["lab", "--lab", lab, "console", SQL], typed));
    until("what was typed is done", PATIENCE, || {
        let done = exec(lab, SQL, &["cat", "/tmp/typed"]);
        (done.out == "again 49\n").then_some(())
    });
}

/// Reads until it has seen this or the time is over.
fn hear(from: &mut File, seen: &mut String, patience: Duration, what: &str) -> bool {
    let end = Instant::now() + patience;
    while !seen.contains(what) && Instant::now() < end {
        let mut poll = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live `pollfd`.
        if unsafe { libc::poll(&raw mut poll, 1, 100) } > 0 {
            let mut bytes = [0; 4096];
            let got = from.read(&mut bytes).unwrap();
            seen.push_str(&String::from_utf8_lossy(&bytes[..got]));
        }
    }
    seen.contains(what)
}

/// A new terminal: our end and the program's.
fn pty() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: two live numbers are filled in; name, modes and size may be left out.
    let done = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, none, none.cast(), none.cast()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: both are new descriptors that nobody else owns.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

/// How a terminal treats what is typed and shown.
fn modes(of: &OwnedFd) -> [u32; 3] {
    // SAFETY: `termios` is plain numbers, for which zero is valid, and a live one is filled in.
    unsafe {
        let mut modes: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(of.as_raw_fd(), &raw mut modes), 0);
        [modes.c_iflag, modes.c_oflag, modes.c_lflag]
    }
}

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// All that the lab made is gone: processes, namespaces with their devices, programs, files.
fn down(name: &str, lab: &Lab) {
    let record = lab.record().clone();
    let guests: Vec<_> = record.vms.iter().map(|v| v.guest.clone().unwrap()).collect();
    assert!(record.processes().all(tenet_lab::Process::runs) && record.bpffs.exists());
    assert!(Netns::list().unwrap().iter().any(|n| n.contains(name)));
    assert!(good(tenet(&["lab", "down", name])).contains(&format!("lab {name} is gone")));

    assert!(!Record::names().contains(&name.to_owned()));
    assert_eq!(record.processes().filter(|p| p.runs()).count(), 0, "its processes have ended");
    assert!(guests.iter().all(|g| !g.process.runs() && !g.dir.exists()));
    assert_eq!(mentions(&record.dir), Vec::<String>::new(), "no process works in its folder");
    let left: Vec<_> = Netns::list().unwrap().into_iter().filter(|n| n.contains(name)).collect();
    assert_eq!(left, Vec::<String>::new(), "its namespaces are gone, hubs too");
    let mounted = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounted.contains(name), "nothing is mounted of it");
    assert!(!record.dir.exists() && !record.bpffs.exists());
    let here = Links::in_netns(&Netns::current().unwrap()).unwrap().list().unwrap();
    let devices: Vec<&str> = record.vms.iter().flat_map(|v| &v.ports).map(|p| p.device.as_str()).collect();
    let left: Vec<_> = here.iter().filter(|l| devices.contains(&l.name.as_str())).map(|l| &l.name).collect();
    assert!(left.is_empty(), "devices stay outside of namespaces: {left:?}");
    let again = tenet(&["lab", "down", name]);
    assert!(again.code != 0 && again.err.contains("there is no lab"), "{}", again.err);
}

/// Command lines of processes that name a folder.
fn mentions(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let all = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    all.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(folder))
        .collect()
}
