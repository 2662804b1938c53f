//! Against a virsh of the tests' own.

use super::*;
use crate::options::Libvirt;
use crate::qmp::Want;
use std::fs;
use std::path::{Path, PathBuf};

const PATIENCE: Duration = Duration::from_secs(30);

/// A folder with a virsh that answers as its other files say.
struct Fake(PathBuf);

impl Fake {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tenet-virsh-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/virsh/testdata/virsh");
        std::os::unix::fs::symlink(script, dir.join("virsh")).unwrap();
        Self(dir)
    }

    /// Writes a file `COMMAND.KIND`.
    fn put(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.0.join(file), content).unwrap();
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.0.join(file)).unwrap();
    }

    /// What it was asked so far.
    fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.0.join("asked")).unwrap_or_default();
        asked.lines().map(str::to_owned).collect()
    }

    async fn until_asked(&self, command: &str, times: usize) {
        let asked = async {
            while self.asked().iter().filter(|line| line.starts_with(command)).count() < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, asked).await;
        waited.unwrap_or_else(|_| panic!("{command} was not asked {times} times: {:?}", self.asked()));
    }

    /// The libvirt behind it, with the domain `vm1` of `contoso/sql`.
    fn libvirt(&self) -> (Virsh, mpsc::Receiver<Said>) {
        let (said, heard) = mpsc::channel(64);
        let domains = Domains::load(&self.0);
        domains.note(&vm(), "vm1");
        // The script's own commands are found in the usual places.
        let path = format!("{}:/usr/bin:/bin", self.0.display());
        let finder = Finder::new(Libvirt::At("qemu:///system".into())).with_path(Path::new(&path));
        (Virsh::new(finder, domains, said), heard)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn vm() -> VmRef {
    "contoso/sql".parse().unwrap()
}

fn to(uri: &str) -> Drive {
    Drive { migration: "a".into(), uri: uri.into(), want: Want::Move, post_copy: false }
}

async fn hear(heard: &mut mpsc::Receiver<Said>) -> What {
    tokio::time::timeout(PATIENCE, heard.recv()).await.expect("nothing is said").unwrap().what
}

#[tokio::test]
async fn what_would_run_a_program_is_not_asked_of_libvirt() {
    let (said, mut heard) = mpsc::channel(4);
    let finder = Finder::new(Libvirt::At("qemu:///system".into()));
    let virsh = Virsh::new(finder, Domains::load(Path::new("/nowhere")), said);
    let wrong = ["qemu+ext:///system?command=/tmp/x", "qemu+ssh://h2/system?netcat=/tmp/x", "-c"];
    for (number, uri) in wrong.into_iter().enumerate() {
        virsh.clone().migrate(&vm(), &number.to_string(), Some(&to(uri))).await;
        let word = heard.try_recv().unwrap();
        let What::Migration(m) = word.what else { panic!("{:?}", word.what) };
        assert!(m.status == "failed" && m.error.contains("does not move a VM to"), "{}", m.error);
    }
    // A legal one comes as far as the question which domain it is.
    virsh.clone().migrate(&vm(), "legal", Some(&to("qemu+ssh://h2/system"))).await;
    let word = heard.try_recv().unwrap();
    assert!(matches!(&word.what, What::Migration(m) if m.error.contains("no libvirt domain")), "{word:?}");
}

#[tokio::test]
async fn a_move_that_is_given_up_before_virsh_is_started_does_not_begin() {
    let fake = Fake::new("early");
    let (virsh, mut heard) = fake.libvirt();
    fake.put("dominfo.waits", "");
    fake.put("domjobinfo.out", "Job type:         None\n");
    fake.put("domstate.out", "running (booted)\n");
    fake.put("domjobabort.err", "error: Requested operation is not valid: no job is active on the domain");
    fake.put("domjobabort.fails", "");
    let mover = virsh.clone();
    let work =
        tokio::spawn(async move { mover.migrate(&vm(), "a", Some(&to("qemu+ssh://h2/system"))).await });
    fake.until_asked("dominfo", 1).await;
    virsh.clone().cancel(&vm(), "a").await;
    assert!(heard.try_recv().is_err(), "it is not over yet");
    fake.remove("dominfo.waits");
    work.await.unwrap();
    assert_eq!(hear(&mut heard).await, What::Resumed);
    let end = hear(&mut heard).await;
    assert!(
        matches!(&end, What::Migration(m) if m.status == "failed" && m.error.contains("given up")),
        "{end:?}"
    );
    assert!(!fake.asked().iter().any(|line| line.starts_with("migrate")), "{:?}", fake.asked());
}

#[tokio::test]
async fn a_move_that_is_given_up_before_it_is_a_job_is_given_up_once_it_is_one() {
    let fake = Fake::new("late");
    let (virsh, _heard) = fake.libvirt();
    fake.put("migrate.waits", "");
    fake.put("domjobabort.fails", "");
    let mover = virsh.clone();
    let work =
        tokio::spawn(async move { mover.migrate(&vm(), "a", Some(&to("qemu+ssh://h2/system"))).await });
    fake.until_asked("migrate", 1).await;
    virsh.clone().cancel(&vm(), "a").await;
    fake.until_asked("domjobabort", 2).await;
    fake.remove("migrate.waits");
    work.await.unwrap();
}

#[tokio::test]
async fn neither_odd_bytes_nor_many_errors_keep_events_back() {
    let fake = Fake::new("odd");
    let (virsh, mut heard) = fake.libvirt();
    fake.put("domjobinfo.out", "Job type:         None\n");
    // More than a pipe holds, before the first event.
    fake.put("qemu-monitor-event.err", "debug: of no interest to anybody\n".repeat(8192));
    let event = |name: &str, domain: &str| {
        format!("2026-11-23 07:36:27.341+0000: event {name} for domain '{domain}': <null>\n").into_bytes()
    };
    let mut events = event("STOP", "another");
    events.splice(10..10, [0xff, 0xfe]);
    events.extend(event("RESUME", "vm1"));
    fake.put("qemu-monitor-event.out", events);
    fake.put("qemu-monitor-event.stays", "");
    let listener = tokio::spawn(virsh.listen());
    assert_eq!(hear(&mut heard).await, What::Resumed);
    listener.abort();
}

#[tokio::test]
async fn a_virsh_that_hangs_is_not_waited_for_for_ever() {
    let fake = Fake::new("hangs");
    let (virsh, _heard) = fake.libvirt();
    fake.put("uri.waits", "");
    let listener = tokio::spawn(virsh.listen());
    fake.until_asked("uri", 2).await;
    listener.abort();
}
