//! What this kernel has and lacks, each found by trying, with the consequence in plain words.

use crate::sys::{self, KEY_MAX};
use crate::{DEFAULT_BPFFS, bpffs, hub};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use tenet_hostnet::{Links, Netns};

/// One thing that Tenet uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// Whether it is there.
    pub ok: bool,
    /// Whether Tenet cannot run without it.
    pub required: bool,
    /// What it is needed for, and what happens without it.
    pub needed_for: &'static str,
    /// What was found.
    pub detail: String,
}

type Probe = fn() -> io::Result<String>;

/// Name, whether required, what for, how to try.
const PROBES: [(&str, bool, &str, Probe); 19] = [
    ("kernel 5.15", true, "all of it: older kernels were never tried and lack helpers", kernel),
    ("CAP_BPF or CAP_SYS_ADMIN", true, "loading programs and maps; run the agent as root", cap_bpf),
    ("CAP_NET_ADMIN", true, "attaching programs to devices; run the agent as root", cap_net_admin),
    (
        "bpffs",
        true,
        "keeping forwarding alive without the agent: maps and programs are pinned there",
        bpf_file_system,
    ),
    ("memory for maps", true, "the tables; raise LimitMEMLOCK if this fails", memory),
    ("classifier programs", true, "forwarding at all", classifier),
    ("LPM trie", true, "customer routes", lpm),
    ("per-CPU hash", true, "counters", per_cpu_hash),
    ("ring buffer", true, "events to the agent", ring_buffer),
    ("adjust_room", true, "encapsulation that keeps large frames whole", adjust_room),
    (
        "redirect_neigh",
        true,
        "following the host's routes and neighbours on the provider network",
        redirect_neigh,
    ),
    (
        "redirect_peer",
        false,
        "fast delivery into veth ports; without it they get frames through the queue",
        redirect_peer,
    ),
    (
        "TCX",
        false,
        "programs that are swapped and coexist most cleanly (6.6); without it clsact does the same",
        tcx,
    ),
    (
        "version-aware adjust_room",
        false,
        "IPv6 in IPv4 and IPv4 in IPv6 into veth ports without their queue, and any large frames into taps (6.4)",
        turns_versions,
    ),
    (
        "tunnel-aware adjust_room",
        false,
        "large frames into taps; without it they go by SRv6 End.DX2, which costs a little more",
        forgets_tunnels,
    ),
    (
        "SRv6 End.DX2",
        false,
        "large frames into taps where adjust_room forgets no tunnel; without it (or without TCX) VMs on taps receive \
         at a third of the speed",
        srv6,
    ),
    ("clsact", false, "attaching programs before kernel 6.6; not needed where TCX is there", clsact),
    (
        "batch operations",
        false,
        "fast reading of large tables; without them the periodic compare takes longer",
        batch,
    ),
    ("BPF JIT", false, "speed: without it programs are interpreted, several times slower", jit),
];

/// Tries everything that Tenet uses. Nothing on the host is changed.
#[must_use]
pub fn check() -> Vec<Feature> {
    let probe = |(name, required, needed_for, probe): (_, _, _, Probe)| {
        let (ok, detail) = match probe() {
            Ok(detail) => (true, detail),
            Err(e) => (false, e.to_string()),
        };
        Feature { name, ok, required, needed_for, detail }
    };
    let mut features: Vec<Feature> = PROBES.into_iter().map(probe).collect();
    let has = |name: &str| features.iter().any(|f| f.name == name && f.ok);
    let no_hook = !has("TCX") && !has("clsact");
    for feature in &mut features {
        // One of the two has to be there.
        feature.required |= no_hook && matches!(feature.name, "TCX" | "clsact");
    }
    features.push(btf());
    features
}

fn kernel() -> io::Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 15) { Ok(release) } else { Err(io::Error::other(format!("this is {release}"))) }
}

fn cap_bpf() -> io::Result<String> {
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_BPF: u32 = 39;
    capability(&[CAP_BPF, CAP_SYS_ADMIN])
}

fn cap_net_admin() -> io::Result<String> {
    const CAP_NET_ADMIN: u32 = 12;
    capability(&[CAP_NET_ADMIN])
}

fn capability(one_of: &[u32]) -> io::Result<String> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap_or_default().trim();
    let set = u64::from_str_radix(line, 16).map_err(io::Error::other)?;
    if one_of.iter().any(|bit| set & (1 << bit) != 0) {
        Ok("held".into())
    } else {
        Err(io::Error::other("not held"))
    }
}

fn bpf_file_system() -> io::Result<String> {
    let root = Path::new(DEFAULT_BPFFS).parent().unwrap_or(Path::new("/"));
    if bpffs::is_bpffs(root) {
        return Ok(format!("mounted on {}", root.display()));
    }
    let known = fs::read_to_string("/proc/filesystems")?;
    if known.lines().any(|l| l.split_whitespace().last() == Some("bpf")) && root.exists() {
        Ok(format!("will be mounted on {}", root.display()))
    } else {
        Err(io::Error::other("the kernel does not have it"))
    }
}

const HASH: u32 = 1;
const PERCPU_HASH: u32 = 5;
const LPM: u32 = 11;
const RING: u32 = 27;
const NO_PREALLOC: u32 = 1;

fn made(result: io::Result<std::os::fd::OwnedFd>) -> io::Result<String> {
    result.map(|_| "works".into())
}

fn memory() -> io::Result<String> {
    // As large as the largest of ours that is allocated at once.
    made(sys::map_create(HASH, 20, 56, 65_536, 0))
}

fn lpm() -> io::Result<String> {
    made(sys::map_create(LPM, 24, 32, 16, NO_PREALLOC))
}

fn per_cpu_hash() -> io::Result<String> {
    made(sys::map_create(PERCPU_HASH, 4, 64, 16, 0))
}

fn ring_buffer() -> io::Result<String> {
    made(sys::map_create(RING, 0, 0, 65_536, 0))
}

fn batch() -> io::Result<String> {
    let map = sys::RawMap::new(sys::map_create(HASH, 4, 4, 16, 0)?)?;
    map.update(&[1; 4], &[2; 4])?;
    let (mut token, mut keys, mut values) = ([0; KEY_MAX], [0; 64], [0; 64]);
    let (count, _) = map.lookup_batch(None, &mut token, &mut keys, &mut values)?;
    if count == 1 { Ok("works".into()) } else { Err(io::Error::other("reads nothing")) }
}

fn jit() -> io::Result<String> {
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        Ok(text) if text.trim() == "0" => Err(io::Error::other("off: sysctl net.core.bpf_jit_enable=1")),
        Ok(_) => Ok("on".into()),
        Err(e) => Err(e),
    }
}

const fn instruction(code: u8, registers: u8, immediate: i32) -> u64 {
    code as u64 | (registers as u64) << 8 | (immediate.cast_unsigned() as u64) << 32
}

const fn set(register: u8, value: i32) -> u64 {
    instruction(0xb7, register, value)
}

const EXIT: u64 = instruction(0x95, 0, 0);
const PASS: [u64; 2] = [set(0, 0), EXIT];

const fn call(helper: i32) -> u64 {
    instruction(0x85, 0, helper)
}

fn classifier() -> io::Result<String> {
    made(sys::load_classifier(&PASS))
}

fn adjust_room() -> io::Result<String> {
    const BPF_SKB_ADJUST_ROOM: i32 = 50;
    const MODE_MAC: i32 = 1;
    made(sys::load_classifier(&[
        set(2, 8),
        set(3, MODE_MAC),
        set(4, 0),
        call(BPF_SKB_ADJUST_ROOM),
        set(0, 0),
        EXIT,
    ]))
}

/// Whether the kernel forgets a GRE tunnel that a program takes off, so that a bundle goes into a tap as it is.
pub fn forgets_tunnels() -> io::Result<String> {
    const DECAP_L4_GRE: i32 = 1 << 9;
    takes_off(DECAP_L4_GRE)
}

/// Whether the kernel can be told that what is left of a frame is of the other IP version (6.4).
///
/// # Errors
/// If it cannot, or programs cannot be loaded at all.
pub fn turns_versions() -> io::Result<String> {
    const DECAP_L3_IPV6: i32 = 1 << 8;
    takes_off(DECAP_L3_IPV6)
}

/// Takes forty-two bytes off a frame with this flag beside the usual ones.
fn takes_off(flag: i32) -> io::Result<String> {
    const BPF_SKB_ADJUST_ROOM: i32 = 50;
    const MODE_MAC: i32 = 1;
    const FIXED_GSO_KEEP_CHECKSUM: i32 = 1 | 1 << 5;
    let program = sys::load_classifier(&[
        set(2, -42),
        set(3, MODE_MAC),
        set(4, FIXED_GSO_KEEP_CHECKSUM | flag),
        call(BPF_SKB_ADJUST_ROOM),
        EXIT,
    ])?;
    let mut frame = [0; 128];
    frame[12..15].copy_from_slice(&[8, 0, 0x45]);
    match sys::test_run(program.as_fd(), &frame)?.cast_signed() {
        0 => Ok("works".into()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

fn srv6() -> io::Result<String> {
    hub::try_route().map_err(io::Error::other)?;
    Ok("works".into())
}

fn redirect_neigh() -> io::Result<String> {
    const BPF_REDIRECT_NEIGH: i32 = 152;
    made(sys::load_classifier(&[set(1, 1), set(2, 0), set(3, 0), set(4, 0), call(BPF_REDIRECT_NEIGH), EXIT]))
}

fn redirect_peer() -> io::Result<String> {
    const BPF_REDIRECT_PEER: i32 = 155;
    made(sys::load_classifier(&[set(1, 1), set(2, 0), call(BPF_REDIRECT_PEER), EXIT]))
}

/// Both hooks are tried on the loopback of a namespace that nobody else sees.
fn tcx() -> io::Result<String> {
    let netns = Netns::anonymous().map_err(io::Error::other)?;
    let program = sys::load_classifier(&PASS)?;
    netns.run(|| sys::tcx_attach(program.as_fd(), 1)).map_err(io::Error::other)??;
    Ok("works".into())
}

fn clsact() -> io::Result<String> {
    let program = sys::load_classifier(&PASS)?;
    let attach = || {
        let links = Links::in_netns(&Netns::anonymous()?)?;
        links.ensure_clsact(1)?;
        links.put_filter(1, 1, 1, "tenet probe", program.as_fd())
    };
    attach().map_err(io::Error::other)?;
    Ok("works".into())
}

fn btf() -> Feature {
    let found = fs::metadata("/sys/kernel/btf/vmlinux");
    Feature {
        name: "BTF",
        ok: found.is_ok(),
        required: false,
        needed_for: "readable map contents in bpftool; Tenet itself does without",
        detail: match found {
            Ok(_) => "present".into(),
            Err(e) => e.to_string(),
        },
    }
}
