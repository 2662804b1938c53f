//! With real QEMUs, which need no guest: an idle BIOS moves like any VM.

use super::{Drive, Order, Want, watch};
use crate::vms::{Said, What};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tenet_model::VmRef;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tenet-qmp-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn there() -> bool {
    let found = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        println!("SKIPPED: qemu-system-x86_64 is not installed");
    }
    found
}

fn qemu(monitor: &Path, incoming: Option<&str>) -> Qemu {
    qemu_with(monitor, incoming, None)
}

fn qemu_with(monitor: &Path, incoming: Option<&str>, disk: Option<&Path>) -> Qemu {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "pc", "-accel", "tcg,tb-size=16", "-nodefaults", "-display", "none", "-m", "16"]);
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
    if let Some(uri) = incoming {
        command.args(["-incoming", uri]);
    }
    if let Some(disk) = disk {
        // So slow that it writes more than it moves.
        command.args(["-global", "migration.x-max-bandwidth=262144", "-drive"]);
        command.arg(format!("file={},format=raw,if=virtio,readonly=on", disk.display()));
    }
    Qemu(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// A host's folder that is watched.
struct Host {
    folder: Folder,
    orders: mpsc::Sender<Order>,
    heard: mpsc::Receiver<Said>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Host {
    fn new(name: &str) -> Self {
        let folder = Folder::new(name);
        let (orders, taken) = mpsc::channel(4);
        let (said, heard) = mpsc::channel(64);
        let task = tokio::spawn(watch(folder.0.clone(), said, taken));
        Self { folder, orders, heard, task }
    }

    fn monitor(&self) -> PathBuf {
        self.folder.0.join("contoso.sql.sock")
    }

    /// Words until the one that is waited for.
    async fn until(&mut self, what: &str, wanted: impl Fn(&What) -> bool) -> (Vec<What>, Said) {
        let mut before = Vec::new();
        let waited = async {
            loop {
                let said = self.heard.recv().await.unwrap();
                if wanted(&said.what) {
                    return said;
                }
                before.push(said.what);
            }
        };
        let found = tokio::time::timeout(PATIENCE, waited).await;
        let found = found.unwrap_or_else(|_| panic!("{what} is not told, but {before:?}"));
        (before, found)
    }
}

/// Code that a disk boots, which writes into 128 pages for ever, so that their move would not end without post-copy.
const RESTLESS: [u8; 19] = [
    0xb8, 0x00, 0x10, // mov ax, 0x1000
    0x8e, 0xd8, // mov ds, ax
    0xff, 0x06, 0x00, 0x00, // inc word [0]
    0x05, 0x00, 0x01, // add ax, 0x100
    0x3d, 0x00, 0x90, // cmp ax, 0x9000
    0x72, 0xf2, // jb to `mov ds, ax`
    0xeb, 0xed, // jmp to the begin
];

/// Such a disk.
fn restless(dir: &Path) -> PathBuf {
    let mut disk = vec![0; 1 << 20];
    disk[..RESTLESS.len()].copy_from_slice(&RESTLESS);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let path = dir.join("restless");
    std::fs::write(&path, disk).unwrap();
    path
}

fn drive(uri: impl Into<String>, want: Want) -> Drive {
    Drive { migration: "a".into(), uri: uri.into(), want, post_copy: false }
}

fn is(status: &'static str) -> impl Fn(&What) -> bool {
    move |what| matches!(what, What::Migration(m) if m.status == status)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_moved_and_both_sides_tell_of_it() {
    if !there() {
        return;
    }
    let vm: VmRef = "contoso/sql".parse().unwrap();
    let (mut from, mut to) = (Host::new("from"), Host::new("to"));
    let uri = format!("unix:{}", to.folder.0.join("memory").display());
    let old = qemu(&from.monitor(), None);
    from.until("that it runs", |w| *w == What::Resumed).await;
    // The destination's QEMU may be started when its tap is there: later than the order comes.
    from.orders.send(Order::Drive(vm.clone(), drive(uri.clone(), Want::Move))).await.unwrap();
    let (before, _) = from.until("that nobody listens yet", is("waiting")).await;
    assert!(!before.contains(&What::Stopped), "{before:?}");
    let _new = qemu(&to.monitor(), Some(&uri));
    let (_, stopped) = from.until("STOP", |w| *w == What::Stopped).await;
    let (_, done) = from.until("the end", is("completed")).await;
    let What::Migration(figures) = &done.what else { panic!("{done:?}") };
    assert!(figures.downtime_ms.is_some() && figures.total >= 16 << 20, "{figures:?}");
    let (_, resumed) = to.until("RESUME", |w| *w == What::Resumed).await;
    assert!(resumed.time_us > stopped.time_us, "{stopped:?} {resumed:?}");
    println!("STOP to RESUME {} us, {figures:?}", resumed.time_us - stopped.time_us);
    // The order again, as after a break of the session: it is over, and said to be.
    from.orders.send(Order::Drive(vm, drive("unix:/nowhere", Want::Move))).await.unwrap();
    from.until("that it is over", is("completed")).await;
    let vm: VmRef = "contoso/sql".parse().unwrap();
    from.orders.send(Order::Drive(vm, drive("unix:/nowhere", Want::Follow))).await.unwrap();
    from.until("that it is over", is("completed")).await;
    drop(old);
    from.until("that QEMU has ended", |w| *w == What::Silent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_to_nowhere_fails_with_qemu_s_reason_and_the_vm_runs_on() {
    if !there() {
        return;
    }
    let vm: VmRef = "contoso/sql".parse().unwrap();
    let mut host = Host::new("nowhere");
    host.orders.send(Order::Drive(vm.clone(), drive("unix:/x", Want::Move))).await.unwrap();
    let (_, missing) = host.until("that no QEMU is there", is("failed")).await;
    assert!(format!("{missing:?}").contains("contoso.sql.sock"), "{missing:?}");
    let _qemu = qemu(&host.monitor(), None);
    host.until("that it runs", |w| *w == What::Resumed).await;
    // Longer than a socket's path may be.
    let uri = format!("unix:/{}", "x".repeat(120));
    host.orders.send(Order::Drive(vm.clone(), drive(uri, Want::Move))).await.unwrap();
    let (before, failed) = host.until("the failure", is("failed")).await;
    let What::Migration(m) = &failed.what else { panic!("{failed:?}") };
    assert!(!m.error.is_empty() && !before.contains(&What::Stopped), "{failed:?} {before:?}");
    host.orders.send(Order::Drive(vm.clone(), drive("", Want::Cancel))).await.unwrap();
    host.until("that nothing is left to give up", is("cancelled")).await;
    let uri = format!("unix:{}", host.folder.0.join("nobody").display());
    host.orders.send(Order::Drive(vm.clone(), drive(uri.clone(), Want::Move))).await.unwrap();
    host.until("that nobody listens yet", is("waiting")).await;
    host.orders.send(Order::Drive(vm.clone(), drive(uri, Want::Follow))).await.unwrap();
    host.until("that it waits still", is("waiting")).await;
    host.orders.send(Order::Drive(vm.clone(), drive("", Want::Cancel))).await.unwrap();
    host.until("that it is given up", is("cancelled")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_under_way_is_given_up() {
    if !there() {
        return;
    }
    let vm: VmRef = "contoso/sql".parse().unwrap();
    let mut host = Host::new("given-up");
    let uri = format!("unix:{}", host.folder.0.join("silent").display());
    // It takes the connection and nothing more, so that the move stays under way.
    let _silent = std::os::unix::net::UnixListener::bind(host.folder.0.join("silent")).unwrap();
    let _qemu = qemu(&host.monitor(), None);
    host.until("that it runs", |w| *w == What::Resumed).await;
    host.orders.send(Order::Drive(vm.clone(), drive(uri, Want::Move))).await.unwrap();
    host.until("that it moves", |w| is("active")(w) || is("setup")(w)).await;
    host.orders.send(Order::Drive(vm, drive("", Want::Cancel))).await.unwrap();
    host.until("that it is given up", is("cancelled")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_writes_faster_than_it_moves_arrives_in_post_copy() {
    if !there() {
        return;
    }
    let vm: VmRef = "contoso/sql".parse().unwrap();
    let (mut from, mut to) = (Host::new("lazy-from"), Host::new("lazy-to"));
    let disk = restless(&from.folder.0);
    let uri = format!("unix:{}", to.folder.0.join("memory").display());
    let _old = qemu_with(&from.monitor(), None, Some(&disk));
    from.until("that it runs", |w| *w == What::Resumed).await;
    // Its BIOS has to come as far as the disk.
    let begun = std::time::Instant::now();
    let drive = |want| Drive { post_copy: true, ..drive(uri.clone(), want) };

    // A destination that was not made ready ends, and the VM runs on.
    let deaf = to.folder.0.join("deaf");
    let unready = qemu_with(&deaf, Some(&uri), Some(&disk));
    from.orders.send(Order::Drive(vm.clone(), drive(Want::Move))).await.unwrap();
    let (before, failed) = from.until("the failure", is("failed")).await;
    let What::Migration(m) = &failed.what else { panic!("{failed:?}") };
    println!("{m:?}");
    assert!(m.error.contains("; next: read what the destination's QEMU said"), "{m:?}");
    assert!(!before.contains(&What::Stopped), "{before:?}");
    drop(unready);
    assert!(begun.elapsed() < PATIENCE);

    // Ordered before its QEMU is there, as it is in life.
    to.orders.send(Order::Drive(vm.clone(), drive(Want::Receive))).await.unwrap();
    to.until("that no QEMU waits yet", is("waiting")).await;
    let _ = std::fs::remove_file(to.folder.0.join("memory"));
    let _new = qemu_with(&to.monitor(), Some(&uri), Some(&disk));
    to.until("that it is ready", is("ready")).await;
    from.orders.send(Order::Drive(vm.clone(), drive(Want::Move))).await.unwrap();
    from.until("post-copy", is("postcopy-active")).await;
    let (_, stopped) = from.until("STOP", |w| *w == What::Stopped).await;
    let (_, done) = from.until("the end", is("completed")).await;
    let (_, resumed) = to.until("RESUME", |w| *w == What::Resumed).await;
    // Which of the two ends first, the memory or the start, is open with so little memory.
    println!("STOP to RESUME {} us, {done:?}", resumed.time_us.saturating_sub(stopped.time_us));
    assert!(resumed.time_us > stopped.time_us, "{stopped:?} {resumed:?}");
}
