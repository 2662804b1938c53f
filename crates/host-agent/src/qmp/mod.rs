//! QEMU's monitors (QMP): those in the agent's folder are listened to, and told to move their VMs.
//!
//! A monitor serves one client at a time: the sockets in the folder are the agent's alone. QEMU takes several `-qmp`
//! options for those who want one of their own.

mod line;
mod monitor;
#[cfg(test)]
mod real;

pub(crate) use line::{Migrate, under_way};

use crate::options::monitor_path as path;
use crate::vms::{Said, What};
use monitor::{Act, Monitor};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};
use tenet_model::{Name, VmRef};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
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
/// Longest line that is taken.
const LINE: usize = 1 << 20;

/// What the folder's task is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// Something may have appeared.
    Look,
    /// A VM shall be moved, or that be given up.
    Drive {
        /// The VM.
        vm: VmRef,
        /// Where to.
        uri: String,
        /// Give it up.
        cancel: bool,
    },
}

/// A monitor that is listened to.
struct Client {
    /// Which socket: QEMU makes a new one where an older was.
    socket: (u64, u64, i64, i64),
    orders: mpsc::Sender<(String, bool)>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens to the monitors in a folder for as long as the agent runs.
pub(crate) async fn watch(dir: PathBuf, said: mpsc::Sender<Said>, mut orders: mpsc::Receiver<Order>) {
    // Whoever opens a monitor can do anything to the VM.
    if let Err(cause) = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir) {
        tracing::warn!(dir = %dir.display(), %cause, "the folder of QEMU's monitors cannot be made: no VM is watched by QMP");
    }
    let mut clients: BTreeMap<VmRef, Client> = BTreeMap::new();
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
        look(&dir, &mut clients, &said);
        if let Order::Drive { vm, uri, cancel } = order {
            let refused = match clients.get(&vm) {
                Some(client) => {
                    client.orders.try_send((uri, cancel)).err().map(|_| "its monitor is busy".to_owned())
                }
                None => Some(format!(
                    "QEMU's monitor {} is not there: start QEMU with `-qmp unix:{},server,nowait`, as `tenet vm run-args {vm}` prints",
                    path(&dir, &vm).display(),
                    path(&dir, &vm).display()
                )),
            };
            if let Some(error) = refused
                && said.send(Said::failed(&vm, "qmp", error)).await.is_err()
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
fn look(dir: &Path, clients: &mut BTreeMap<VmRef, Client>, said: &mpsc::Sender<Said>) {
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
        let task = tokio::spawn(listen(vm.clone(), entry.path(), said.clone(), taken));
        clients.insert(vm, Client { socket, orders, task });
    }
}

/// Listens to one monitor to its end.
async fn listen(vm: VmRef, path: PathBuf, said: mpsc::Sender<Said>, orders: mpsc::Receiver<(String, bool)>) {
    // Nobody listens where an ended QEMU's socket was left behind.
    let Ok(stream) = UnixStream::connect(&path).await else { return };
    if let Err(cause) = talk(&vm, stream, &said, orders).await {
        tracing::info!(%vm, %cause, "QEMU's monitor is closed");
    }
    // The loop may be gone.
    let _ = said.send(Said::new(&vm, "qmp", What::Silent)).await;
}

async fn talk(
    vm: &VmRef,
    stream: UnixStream,
    said: &mpsc::Sender<Said>,
    mut orders: mpsc::Receiver<(String, bool)>,
) -> io::Result<()> {
    let gone = || io::Error::other("the agent ends");
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut monitor = Monitor::default();
    let mut tick = tokio::time::interval(ASK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let begun = tokio::time::Instant::now();
    let mut complained = false;
    loop {
        let acts = tokio::select! {
            // Cancelled, it keeps in `line` what it has read.
            read = reader.read_until(b'\n', &mut line) => {
                if read? == 0 || line.len() > LINE {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let acts = monitor.take(&String::from_utf8_lossy(&line));
                line.clear();
                acts
            }
            _ = tick.tick() => {
                if !monitor.ready() && !complained && begun.elapsed() > GREETING {
                    complained = true;
                    tracing::warn!(%vm, "QEMU's monitor does not greet: it has another client; give the agent one of its own");
                }
                monitor.tick()
            }
            Some((uri, cancel)) = orders.recv() => monitor.drive(&uri, cancel),
        };
        for act in acts {
            match act {
                Act::Send(text) => writer.write_all(text.as_bytes()).await?,
                Act::Say(what, time_us) => {
                    let mut word = Said::new(vm, "qmp", what);
                    if time_us != 0 {
                        word.time_us = time_us;
                    }
                    said.send(word).await.map_err(|_| gone())?;
                }
            }
        }
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
}
