//! The kernel's own word on BPF: sizes and run times of programs, memory of maps; and the smallest program there is,
//! which the others are compared with. By the bare system call, so that what is measured does not measure itself.

use anyhow::{Context as _, Result};
use serde::Serialize;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const MAP_UPDATE: libc::c_long = 2;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_NEXT_KEY: libc::c_long = 4;
const PROG_LOAD: libc::c_long = 5;
const TEST_RUN: libc::c_long = 10;
const OBJ_GET: libc::c_long = 7;
const PROG_BY_ID: libc::c_long = 13;
const OBJ_INFO: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const ENABLE_STATS: libc::c_long = 32;
const TCX_INGRESS: u64 = 46;
const SCHED_CLS: u64 = 3;
const XDP: u64 = 6;
const ATTACH_XDP: u64 = 37;
/// In the driver, before anything joins segments.
const NATIVE: u64 = 1 << 2;

/// `union bpf_attr`, as words.
type Attr = [u64; 20];

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<i64> {
    // SAFETY: `attr` is live, writable and as long as said; pointers in it are live by the callers' contracts.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(command: libc::c_long, attr: &mut Attr) -> io::Result<OwnedFd> {
    let fd = i32::try_from(bpf(command, attr)?).map_err(io::Error::other)?;
    // SAFETY: these commands return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: &OwnedFd) -> u64 {
    u64::from(fd.as_raw_fd().unsigned_abs())
}

fn open(pin: &Path) -> Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attr: Attr = [0; 20];
    attr[0] = path.as_ptr() as u64;
    descriptor(OBJ_GET, &mut attr).with_context(|| format!("open {}", pin.display()))
}

/// What the kernel knows about an object: `bpf_prog_info`, `bpf_link_info` or `bpf_map_info`.
fn info(fd: &OwnedFd) -> io::Result<[u8; 256]> {
    let mut info = [0_u8; 256];
    let mut attr: Attr = [0; 20];
    attr[0] = raw(fd) | (info.len() as u64) << 32;
    attr[1] = info.as_mut_ptr() as u64;
    bpf(OBJ_INFO, &mut attr)?;
    Ok(info)
}

fn u32_at(info: &[u8; 256], at: usize) -> u32 {
    info.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn u64_at(info: &[u8; 256], at: usize) -> u64 {
    info.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// A loaded program as the kernel describes it.
#[derive(Clone, Debug, Serialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier walked.
    pub verified: u32,
    /// Instructions after the verifier's rewriting.
    pub instructions: u32,
    /// Bytes of machine code.
    pub machine_code: u32,
    /// Nanoseconds that it has run since statistics were turned on.
    pub run_ns: u64,
    /// How often.
    pub runs: u64,
}

/// The programs whose links are pinned in a folder, each once, by name.
pub fn programs(links: &Path) -> Result<Vec<Program>> {
    Ok(loaded(links)?.into_iter().map(|(program, _)| program).collect())
}

/// The same with descriptors.
fn loaded(links: &Path) -> Result<Vec<(Program, OwnedFd)>> {
    let mut found: Vec<(u32, (Program, OwnedFd))> = Vec::new();
    for entry in std::fs::read_dir(links).with_context(|| format!("read {}", links.display()))? {
        let Ok(link) = open(&entry?.path()) else { continue };
        // A pinned program instead of a link (clsact) describes itself.
        let about = info(&link)?;
        let id = u32_at(&about, 8);
        let mut attr: Attr = [0; 20];
        attr[0] = u64::from(id);
        let Ok(program) = descriptor(PROG_BY_ID, &mut attr) else { continue };
        let about = info(&program)?;
        if found.iter().any(|(other, _)| *other == id) {
            continue;
        }
        let name: Vec<u8> = about.iter().skip(64).take(16).copied().take_while(|b| *b != 0).collect();
        let described = Program {
            name: String::from_utf8_lossy(&name).into_owned(),
            verified: u32_at(&about, 216),
            instructions: u32_at(&about, 20) / 8,
            machine_code: u32_at(&about, 16),
            run_ns: u64_at(&about, 192),
            runs: u64_at(&about, 200),
        };
        found.push((id, (described, program)));
    }
    let mut programs: Vec<(Program, OwnedFd)> = found.into_iter().map(|(_, p)| p).collect();
    programs.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Ok(programs)
}

/// A loaded program that is run on a frame by `BPF_PROG_TEST_RUN`, one run a call: the kernel times the program alone,
/// with the maps that it has.
pub struct Runner {
    program: OwnedFd,
}

impl Runner {
    /// The program of that name whose links are pinned in a folder.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(links: &Path, name: &str) -> Result<Self> {
        let all = loaded(links)?;
        let found = all.into_iter().find(|(about, _)| about.name == name);
        let (_, program) = found.with_context(|| format!("no `{name}` in {}", links.display()))?;
        Ok(Self { program })
    }

    /// Runs it on a frame that came in at a device of the calling thread's namespace: the program's verdict, the frame
    /// as it left it, and how long it took, in nanoseconds.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn run(&self, frame: &[u8], ifindex: u32) -> Result<(u32, Vec<u8>, u32)> {
        // struct __sk_buff: `ifindex` is its eleventh word; those that may not be set are zero.
        let mut context = [0_u32; 48];
        context[10] = ifindex;
        let mut out = vec![0_u8; 2048];
        let mut attr: Attr = [0; 20];
        attr[0] = raw(&self.program);
        attr[1] = frame.len() as u64 | (out.len() as u64) << 32;
        attr[2] = frame.as_ptr() as u64;
        attr[3] = out.as_mut_ptr() as u64;
        attr[4] = 1;
        attr[5] = size_of_val(&context) as u64;
        attr[6] = context.as_mut_ptr() as u64;
        bpf(TEST_RUN, &mut attr).context("run a program on a frame")?;
        let (verdict, length, took) = (attr[0] >> 32, attr[1] >> 32, attr[4] >> 32);
        out.truncate(length as usize);
        Ok((verdict as u32, out, took as u32))
    }
}

/// Makes the kernel count the run time of every program until the handle is dropped; this costs some nanoseconds a run.
pub fn count_run_time() -> Result<OwnedFd> {
    descriptor(ENABLE_STATS, &mut [0; 20]).context("turn the kernel's BPF statistics on")
}

/// A pinned map.
pub struct Map {
    fd: OwnedFd,
    key: usize,
    value: usize,
}

impl Map {
    /// Opens one.
    pub fn open(pin: &Path) -> Result<Self> {
        let fd = open(pin)?;
        let about = info(&fd)?;
        Ok(Self { key: u32_at(&about, 8) as usize, value: u32_at(&about, 12) as usize, fd })
    }

    /// Some key and its value.
    pub fn first(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let (mut key, mut value) = (vec![0_u8; self.key], vec![0_u8; self.value]);
        let mut attr: Attr = [0; 20];
        attr[0] = raw(&self.fd);
        attr[2] = key.as_mut_ptr() as u64;
        bpf(MAP_NEXT_KEY, &mut attr).context("read the first key of a map")?;
        let mut attr: Attr = [0; 20];
        attr[0] = raw(&self.fd);
        attr[1] = key.as_ptr() as u64;
        attr[2] = value.as_mut_ptr() as u64;
        bpf(MAP_LOOKUP, &mut attr).context("read a map's first value")?;
        Ok((key, value))
    }

    /// Sets an entry.
    ///
    /// # Errors
    /// If key or value are of another length than the map's, or the map is full.
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<()> {
        anyhow::ensure!(key.len() == self.key && value.len() == self.value, "the map has another layout");
        let mut attr: Attr = [0; 20];
        attr[0] = raw(&self.fd);
        attr[1] = key.as_ptr() as u64;
        attr[2] = value.as_ptr() as u64;
        bpf(MAP_UPDATE, &mut attr).context("write a map's entry")?;
        Ok(())
    }

    /// Kernel memory that it takes, in bytes (`memlock` of its descriptor).
    pub fn memory(&self) -> Result<u64> {
        let path = format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd());
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = text.lines().find_map(|l| l.strip_prefix("memlock:"));
        line.and_then(|l| l.trim().parse().ok()).context("the kernel does not say what a map takes")
    }
}

/// Sends every frame that comes in at a device out of another, and nothing more; for as long as the handle lives.
/// To be called in the devices' namespace.
pub fn redirect(from: u32, to: u32) -> Result<OwnedFd> {
    // r1 = to; r2 = 0; call bpf_redirect; exit
    let code: [u64; 4] = [0x01b7 | u64::from(to) << 32, 0x02b7, 0x85 | 23 << 32, 0x95];
    let program = load(SCHED_CLS, &code).context("load a program that redirects")?;
    let mut attr: Attr = [0; 20];
    attr[0] = raw(&program) | u64::from(from) << 32;
    attr[1] = TCX_INGRESS;
    descriptor(LINK_CREATE, &mut attr).context("attach a program that redirects (TCX, kernel 6.6)")
}

/// Loses frames that come in at a device, each by chance (`of_million`), before anything joins segments; for as long
/// as the handle lives. To be called in the device's namespace.
pub fn lose(device: u32, of_million: u32) -> Result<OwnedFd> {
    let below = u64::from(u32::MAX) * u64::from(of_million.min(1_000_000)) / 1_000_000;
    // call bpf_get_prandom_u32; if w0 < below skip 2; r0 = XDP_PASS; exit; r0 = XDP_DROP; exit
    let code: [u64; 6] =
        [0x85 | 7 << 32, 0xa6 | 2 << 16 | below << 32, 0xb7 | 2 << 32, 0x95, 0xb7 | 1 << 32, 0x95];
    let program = load(XDP, &code).context("load a program that loses frames")?;
    let mut attr: Attr = [0; 20];
    attr[0] = raw(&program) | u64::from(device) << 32;
    attr[1] = ATTACH_XDP | NATIVE << 32;
    descriptor(LINK_CREATE, &mut attr).context("attach a program that loses frames (native XDP)")
}

fn load(kind: u64, code: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attr: Attr = [0; 20];
    attr[0] = kind | (code.len() as u64) << 32;
    attr[1] = code.as_ptr() as u64;
    attr[2] = license.as_ptr() as u64;
    descriptor(PROG_LOAD, &mut attr)
}
