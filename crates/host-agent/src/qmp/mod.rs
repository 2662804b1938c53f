//! QEMU's monitors (QMP): those in the agent's folder are listened to, and told to move their VMs.
//!
//! A monitor serves one client at a time: the sockets in the folder are the agent's alone. QEMU takes several `-qmp`
//! options for those who want one of their own.

mod line;
mod monitor;
#[cfg(test)]
mod real;

pub(crate) use line::{GONE, IDLE, Migrate};

use crate::options::monitor_path as path;
use crate::vms::{Said, What};
use line::{READY, WAITING};
use monitor::{Act, Monitor};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tenet_model::{NEXT, Name, VmRef};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::mpsc,
    time::MissedTickBehavior,
};

/// Between two looks at the folder.
const LOOK: Duration = Duration::from_millis(250);
/// Between two questions how far a migration is.
const ASK: Duration = Duration::from_millis(200);
/// A monitor that has not greeted by then has another client.
const GREETING: Duration = Duration::from_secs(3);
/// A QEMU that waits for a VM is made ready for it if it appears within this time.
const EXPECTED: Duration = Duration::from_secs(180);
/// What is said of it then.
const TAKEN: &str = "QEMU's monitor does not greet: it has another client; give the agent one of its own";
/// Longest line that is taken.
const LINE: usize = 1 << 20;

/// What the folder's task is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// Something may have appeared.
    Look,
    /// A VM shall be moved, or that be given up.
    Drive(VmRef, Drive),
}

/// What is to be done with a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Drive {
    /// The controller's migration.
    pub(crate) migration: String,
    /// Where to.
    pub(crate) uri: String,
    /// What.
    pub(crate) want: Want,
    /// In post-copy from the second pass over the memory on.
    pub(crate) post_copy: bool,
}

/// What is wanted of a VM's migration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    /// That it takes place.
    Move,
    /// To know how it stands.
    Follow,
    /// That it is given up.
    Cancel,
    /// That the QEMU that waits for it here is ready for post-copy.
    Receive,
}

impl Drive {
    /// What is said where it cannot be done: that the migration failed; to a question, that nothing is known.
    pub(crate) fn hopeless(&self, why: impl Into<String>) -> Migrate {
        match self.want {
            Want::Move | Want::Cancel | Want::Receive => Migrate::failed(&self.migration, why),
            Want::Follow => Migrate { error: why.into(), ..Migrate::word(&self.migration, GONE) },
        }
    }

    /// The same where it may be another QEMU's: the one that shall wait for a VM may still be started.
    pub(crate) fn hopeless_here(&self, why: impl Into<String>) -> Migrate {
        match self.want {
            Want::Move | Want::Cancel | Want::Follow => self.hopeless(why),
            Want::Receive => Migrate { error: why.into(), ..Migrate::word(&self.migration, WAITING) },
        }
    }
}

/// A monitor that is listened to.
struct Client {
    /// Which socket: QEMU makes a new one where an older was.
    socket: (u64, u64, i64, i64),
    /// Dropped, it makes the task end, which says first what becomes of that which is under way.
    orders: mpsc::Sender<Drive>,
    task: tokio::task::JoinHandle<()>,
}

/// Listens to the monitors in a folder for as long as the agent runs.
pub(crate) async fn watch(dir: PathBuf, said: mpsc::Sender<Said>, mut orders: mpsc::Receiver<Order>) {
    // Whoever opens a monitor can do anything to the VM.
    if let Err(cause) = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
        tracing::warn!(dir = %dir.display(), %cause, "the folder of QEMU's monitors cannot be made: no VM is watched by QMP");
    }
    let mut clients: BTreeMap<VmRef, Client> = BTreeMap::new();
    // VMs that are about to come in post-copy, and until when their QEMUs are looked for.
    let mut expected: BTreeMap<VmRef, (Drive, Instant)> = BTreeMap::new();
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let order = tokio::select! {
            _ = tick.tick() => Order::Look,
            order = orders.recv() => match order {
                Some(order) => order,
                None => return,
            },
        };
        expected.retain(|_, (_, until)| Instant::now() < *until);
        look(&dir, &mut clients, &said, &expected);
        if let Order::Drive(vm, drive) = order {
            let asked = drive.clone();
            expected.remove(&vm);
            if drive.want == Want::Receive {
                expected.insert(vm.clone(), (drive.clone(), Instant::now() + EXPECTED));
            }
            let refused = match clients.get(&vm) {
                Some(client) => client
                    .orders
                    .try_send(drive)
                    .err()
                    .map(|_| format!("QEMU's monitor of VM {vm} is busy{NEXT}wait a moment")),
                None => Some(format!(
                    "QEMU's monitor {} is not there{NEXT}start QEMU with `-qmp unix:{},server=on,wait=off`, as `tenet vm \
                     run-args {vm}` prints",
                    path(&dir, &vm).display(),
                    path(&dir, &vm).display()
                )),
            };
            if let Some(error) = refused
                && said
                    .send(Said::new(&vm, "qmp", What::Migration(asked.hopeless_here(error))))
                    .await
                    .is_err()
            {
                return;
            }
        }
    }
}

/// The VM that a socket's name stands for.
fn vm_of(name: &str) -> Option<VmRef> {
    let (tenant, vm) = name.strip_suffix(".sock")?.split_once('.')?;
    Some(VmRef { tenant: Name::new(tenant).ok()?, vm: Name::new(vm).ok()? })
}

/// Begins to listen to sockets that are new, or that took an older one's place.
fn look(
    dir: &Path,
    clients: &mut BTreeMap<VmRef, Client>,
    said: &mpsc::Sender<Said>,
    expected: &BTreeMap<VmRef, (Drive, Instant)>,
) {
    clients.retain(|_, client| !client.task.is_finished());
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Some(vm) = entry.file_name().to_str().and_then(vm_of) else { continue };
        let Ok(meta) = entry.metadata() else { continue };
        if !meta.file_type().is_socket() {
            continue;
        }
        let socket = (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec());
        if clients.get(&vm).is_some_and(|c| c.socket == socket) {
            continue;
        }
        let (orders, taken) = mpsc::channel(4);
        if let Some((drive, _)) = expected.get(&vm) {
            // There is room in a new one.
            let _ = orders.try_send(drive.clone());
        }
        let task = tokio::spawn(listen(vm.clone(), entry.path(), said.clone(), taken));
        clients.insert(vm, Client { socket, orders, task });
    }
}

/// Listens to one monitor to its end.
async fn listen(vm: VmRef, path: PathBuf, said: mpsc::Sender<Said>, mut orders: mpsc::Receiver<Drive>) {
    let mut monitor = Monitor::default();
    let mut acts = Vec::new();
    let mut why = match UnixStream::connect(&path).await {
        Ok(stream) => {
            let cause = match talk(&vm, stream, &said, &mut orders, &mut monitor).await {
                Ok(()) => {
                    "another QEMU's monitor took the place of that of the one which moved it".to_owned()
                }
                Err(cause) => format!("QEMU ended, or closed its monitor: {cause}"),
            };
            tracing::info!(%vm, cause, "QEMU's monitor is closed");
            acts = monitor.closed(&cause);
            cause
        }
        Err(cause) => format!(
            "QEMU's monitor {} does not answer: {cause}{NEXT}see that a QEMU runs that was started with this socket \
             (a file that an ended one left may be removed)",
            path.display()
        ),
    };
    if !path.exists() && !why.contains(NEXT) {
        why.push_str("; its socket is gone");
    }
    // Whoever takes its place may have said already that the VM runs.
    let replaced = orders.is_closed();
    orders.close();
    while let Some(drive) = orders.recv().await {
        acts.push(Act::Say(What::Migration(drive.hopeless_here(why.as_str())), 0));
    }
    // Where nobody listened, nothing was heard that there is to forget.
    if monitor.ready() && !replaced {
        acts.push(Act::Say(What::Silent, 0));
    }
    for act in acts {
        // The loop may be gone.
        let _ = say(&vm, &said, act).await;
    }
}

/// Tells what is to be told.
async fn say(vm: &VmRef, said: &mpsc::Sender<Said>, act: Act) -> io::Result<()> {
    let Act::Say(what, time_us) = act else { return Ok(()) };
    let mut word = Said::new(vm, "qmp", what);
    if time_us != 0 {
        word.time_us = time_us;
    }
    said.send(word).await.map_err(|_| io::Error::other("the agent ends"))
}

/// Talks until nobody wants it any more, or with an error until QEMU's end.
async fn talk(
    vm: &VmRef,
    stream: UnixStream,
    said: &mpsc::Sender<Said>,
    orders: &mut mpsc::Receiver<Drive>,
    monitor: &mut Monitor,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut tick = tokio::time::interval(ASK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let begun = tokio::time::Instant::now();
    let mut complained = false;
    loop {
        let acts = tokio::select! {
            // What QEMU says comes last: one that never stops talking does not keep the rest from its turn.
            biased;
            order = orders.recv() => match order {
                Some(drive) => monitor.drive(drive),
                None => return Ok(()),
            },
            _ = tick.tick() => {
                if monitor.ready() || begun.elapsed() < GREETING {
                    monitor.tick()
                } else {
                    if !complained {
                        complained = true;
                        tracing::warn!(%vm, "{TAKEN}");
                    }
                    monitor.give_up(TAKEN)
                }
            }
            // Cancelled, it keeps in `line` what it has read.
            read = read_line(&mut reader, &mut line) => {
                read?;
                let acts = monitor.take(&String::from_utf8_lossy(&line));
                line.clear();
                acts
            }
        };
        for act in acts {
            match act {
                Act::Send(text) => writer.write_all(text.as_bytes()).await?,
                Act::Say(..) => say(vm, said, act).await?,
            }
        }
    }
}

/// Reads up to a line's end, and never more than a line may be long.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> io::Result<()> {
    let room = (LINE + 1).saturating_sub(line.len());
    reader.take(room as u64).read_until(b'\n', line).await?;
    if line.last() == Some(&b'\n') {
        Ok(())
    } else if line.len() > LINE {
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("a line is longer than {LINE} bytes")))
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_named_after_their_vms() {
        let vm: VmRef = "contoso/sql".parse().unwrap();
        let path = path(Path::new("/run/tenet/qmp"), &vm);
        assert_eq!(path, Path::new("/run/tenet/qmp/contoso.sql.sock"));
        assert_eq!(vm_of("contoso.sql.sock"), Some(vm));
        for name in ["sql.sock", "contoso.sql", "contoso.sql.sock.tmp", ".sql.sock", "a.b.c.sock", "A.b.sock"]
        {
            assert_eq!(vm_of(name), None, "{name}");
        }
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("tenet-qmp-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What becomes of an order to move the VM whose socket is in the folder.
    async fn outcome(dir: &Path, want: Want) -> Migrate {
        let ((orders, taken), (said, mut heard)) = (mpsc::channel(4), mpsc::channel(16));
        let task = tokio::spawn(watch(dir.to_owned(), said, taken));
        let drive = Drive { migration: "a".into(), uri: "tcp:x:1".into(), want, post_copy: false };
        orders.send(Order::Drive("contoso/sql".parse().unwrap(), drive)).await.unwrap();
        let told = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                match heard.recv().await.unwrap().what {
                    What::Migration(m) if m.status == "failed" || m.status == GONE => return m,
                    _ => {}
                }
            }
        });
        let told = told.await.expect("the order is never answered");
        task.abort();
        told
    }

    #[tokio::test]
    async fn a_socket_that_a_killed_qemu_left_fails_the_move() {
        let folder = Folder::new("left");
        drop(std::os::unix::net::UnixListener::bind(folder.0.join("contoso.sql.sock")).unwrap());
        let told = outcome(&folder.0, Want::Move).await;
        assert!(told.migration == "a" && told.error.contains("does not answer"), "{told:?}");
        // To a question it is no failure: the VM may run elsewhere.
        let told = outcome(&folder.0, Want::Follow).await;
        assert!(told.status == GONE && told.error.contains("does not answer"), "{told:?}");
        fs::remove_file(folder.0.join("contoso.sql.sock")).unwrap();
        let told = outcome(&folder.0, Want::Follow).await;
        assert!(told.status == GONE && told.error.contains("is not there"), "{told:?}");
        assert!(told.error.contains(&format!("{NEXT}start QEMU with")), "{told:?}");
    }

    #[tokio::test]
    async fn a_monitor_with_another_client_fails_the_move() {
        let folder = Folder::new("taken");
        let _silent = std::os::unix::net::UnixListener::bind(folder.0.join("contoso.sql.sock")).unwrap();
        let told = outcome(&folder.0, Want::Move).await;
        assert!(told.migration == "a" && told.error.contains("another client"), "{told:?}");
    }

    #[tokio::test]
    async fn a_monitor_that_never_stops_talking_and_does_not_greet_fails_the_move() {
        let folder = Folder::new("talks");
        let listener = tokio::net::UnixListener::bind(folder.0.join("contoso.sql.sock")).unwrap();
        let rogue = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let nonsense = b"nonsense\n".repeat(4096);
            while stream.write_all(&nonsense).await.is_ok() {}
        });
        let told = outcome(&folder.0, Want::Move).await;
        assert!(told.migration == "a" && told.error.contains("another client"), "{told:?}");
        rogue.abort();
    }

    #[tokio::test]
    async fn a_qemu_that_ends_while_it_is_asked_fails_the_move() {
        let folder = Folder::new("ends");
        let listener = tokio::net::UnixListener::bind(folder.0.join("contoso.sql.sock")).unwrap();
        let qemu = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            stream.write_all(b"{\"QMP\": {}}\n").await.unwrap();
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            stream.write_all(b"{\"return\": {}, \"id\": 1}\n").await.unwrap();
            while !line.contains("query-status") {
                line.clear();
                stream.read_line(&mut line).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        });
        let told = outcome(&folder.0, Want::Move).await;
        assert!(told.migration == "a" && told.error.contains("QEMU ended"), "{told:?}");
        qemu.await.unwrap();
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_kept() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let rogue = tokio::spawn(async move {
            let (piece, mut sent) = (vec![b'x'; 64 << 10], 0);
            while sent < 16 * LINE && theirs.write_all(&piece).await.is_ok() {
                sent += piece.len();
            }
            sent
        });
        let ((_orders, mut taken), (said, _heard)) = (mpsc::channel(4), mpsc::channel(16));
        let vm = "contoso/sql".parse().unwrap();
        let ended = talk(&vm, ours, &said, &mut taken, &mut Monitor::default()).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::InvalidData);
        let sent = rogue.await.unwrap();
        assert!(sent < 3 * LINE, "{sent}");
    }
}
