//! A host of our own for a test: namespace, veth, directory of pins; gone with the test.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod rewrite;
pub mod tap;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use tenet_datapath::{Datapath, Hook, Options, detach_all};
use tenet_hostnet::{Links, Netns};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Says aloud why a test does nothing: the kernel lets only root load programs.
pub fn root() -> bool {
    // SAFETY: no arguments, no effects.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("SKIPPED: needs root to load BPF programs");
    }
    root
}

/// Whether the hook can be tried here.
pub fn has(hook: Hook) -> bool {
    let has = hook != Hook::Tcx || tenet_datapath::check().iter().any(|f| f.name == "TCX" && f.ok);
    if !has {
        eprintln!("SKIPPED: this kernel has no TCX");
    }
    has
}

/// Pins and a lock that no other test has.
pub struct Pins {
    pub options: Options,
    netns: Netns,
}

impl Pins {
    pub fn new(netns: &Netns, hook: Hook) -> Self {
        let name = format!("tenet-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let options = Options {
            bpffs: PathBuf::from("/sys/fs/bpf").join(&name),
            hook,
            object: None,
            lock: Some(std::env::temp_dir().join(format!("{name}.lock"))),
            ..Options::default()
        };
        Self { options, netns: netns.clone() }
    }

    pub fn open(&self) -> Datapath {
        self.netns.run(|| Datapath::open(&self.options)).unwrap().unwrap()
    }

    pub fn try_open(&self) -> tenet_datapath::Result<Datapath> {
        self.netns.run(|| Datapath::open(&self.options)).unwrap()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let options = self.options.clone();
        drop(self.netns.run(|| detach_all(&options)));
        drop(std::fs::remove_file(self.options.lock.as_ref().unwrap()));
    }
}

/// A namespace with the veth `port` whose other end `vm` is in a second namespace; both up and quiet.
pub struct Host {
    pub netns: Netns,
    pub vm: Netns,
    pub links: Links,
    pub port: u32,
}

impl Host {
    pub fn new() -> Self {
        let (netns, vm) = (Netns::anonymous().unwrap(), Netns::anonymous().unwrap());
        let links = Links::in_netns(&netns).unwrap();
        links.add_veth("port", "vm", &vm).unwrap();
        links.quiet("port").unwrap();
        links.set_up("port").unwrap();
        let inside = Links::in_netns(&vm).unwrap();
        inside.quiet("vm").unwrap();
        inside.set_up("vm").unwrap();
        let port = links.index("port").unwrap();
        Self { netns, vm, links, port }
    }

    /// Runs a closure where attaching means this host's devices.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.netns.run(f).unwrap()
    }

    /// Sends frames out of the VM's device that only a program can tell of.
    pub fn send(&self, frames: usize) {
        let index = Links::in_netns(&self.vm).unwrap().index("vm").unwrap();
        self.vm.run(|| send_frames(index, frames)).unwrap();
    }
}

fn send_frames(index: u32, frames: usize) {
    let mut frame = [0u8; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 7, 0x88, 0xb5]);
    // SAFETY: no pointers; the descriptor is closed below.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: `sockaddr_ll` is plain numbers, for which zero is valid.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index as i32;
    to.sll_halen = 6;
    for _ in 0..frames {
        let length = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: frame and address are live and as long as said.
        let sent = unsafe {
            libc::sendto(fd, frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), length)
        };
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
    }
    // SAFETY: ours, and not used after.
    unsafe { libc::close(fd) };
}
