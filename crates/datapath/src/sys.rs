//! The `bpf` system call, as far as the loader's library does not cover it: batches, links by pin,
//! queries of what is attached. Every function is one call and owns what it returns.

mod maps;

pub use maps::{MapInfo, RawMap, map_create, map_info, map_name};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const PROG_LOAD: i64 = 5;
const OBJ_PIN: i64 = 6;
const OBJ_GET: i64 = 7;
const PROG_TEST_RUN: i64 = 10;
const PROG_BY_ID: i64 = 13;
const MAP_BY_ID: i64 = 14;
const OBJ_INFO: i64 = 15;
const PROG_QUERY: i64 = 16;
const LINK_CREATE: i64 = 28;
const LINK_UPDATE: i64 = 29;
const LINK_BY_ID: i64 = 30;
const LINK_DETACH: i64 = 34;

/// Attach type: what a device receives.
pub const TCX_INGRESS: u32 = 46;
/// Attach type: what a device sends.
pub const TCX_EGRESS: u32 = 47;
const LINK_TYPE_TCX: u32 = 11;
/// Without an anchor: before all others.
const BEFORE: u32 = 1 << 3;
const PROG_TYPE_SCHED_CLS: u32 = 3;
/// Programs on one hook of one device; the kernel allows 64 (`BPF_MPROG_MAX`).
const MPROG_MAX: usize = 64;

const RDONLY_PROG: u32 = 1 << 7;

/// Longest key of our maps, and longest batch token.
pub const KEY_MAX: usize = 64;

/// # Safety
/// `attr` must be the variant of the kernel's `union bpf_attr` that belongs to `command`, and all
/// addresses in it must point to live memory of the sizes that the command implies.
unsafe fn bpf<T>(command: i64, attr: &mut T) -> io::Result<i32> {
    loop {
        // SAFETY: by the caller's promise; the size is that of the live `attr`.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
        if result >= 0 {
            return Ok(result as i32);
        }
        let error = io::Error::last_os_error();
        // EAGAIN: the verifier was interrupted by a signal.
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Err(error);
        }
    }
}

/// # Safety
/// `fd` must have just been returned by the kernel.
unsafe fn own(fd: i32) -> OwnedFd {
    // SAFETY: by the caller's promise nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}

fn address_mut(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr() as u64
}

/// Loads a classifier from instructions; for probing helpers.
pub fn load_classifier(instructions: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        version: u32,
        flags: u32,
        name: [u8; 16],
    }
    let mut attr = Load {
        kind: PROG_TYPE_SCHED_CLS,
        count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        version: 0,
        flags: 0,
        name: *b"tenet_probe\0\0\0\0\0",
    };
    // SAFETY: the instructions are live and counted, the licence is NUL-terminated and static, there is no log.
    unsafe { bpf(PROG_LOAD, &mut attr).map(|fd| own(fd)) }
}

/// Runs a classifier on a frame; what it returned.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<u32> {
    #[repr(C)]
    struct Run {
        program: u32,
        returned: u32,
        size_in: u32,
        size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
    }
    let size_in = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    let mut attr = Run {
        program: raw(program),
        returned: 0,
        size_in,
        size_out: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: the frame is live and as long as said; nothing is asked back.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.returned)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens what is pinned at a path.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Pin { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the path is live and NUL-terminated.
    unsafe { bpf(OBJ_GET, &mut attr).map(|fd| own(fd)) }
}

/// Pins an object at a path.
pub fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Pin { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 };
    // SAFETY: the path is live and NUL-terminated.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

fn object_info<T>(fd: BorrowedFd<'_>, info: &mut [T]) -> io::Result<()> {
    #[repr(C)]
    struct Info {
        fd: u32,
        length: u32,
        info: u64,
    }
    let length = u32::try_from(size_of_val(info)).unwrap_or(u32::MAX);
    let mut attr = Info { fd: raw(fd), length, info: info.as_mut_ptr() as u64 };
    // SAFETY: the buffer is live and as long as said; callers pass plain numbers, for which any bytes are valid.
    unsafe { bpf(OBJ_INFO, &mut attr) }.map(drop)
}

/// What the kernel knows of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramInfo {
    pub id: u32,
    pub tag: [u8; 8],
    pub jited_size: u32,
    pub translated_size: u32,
    pub verified_instructions: u32,
    pub run_ns: u64,
    pub runs: u64,
    /// Numbers of its maps, sorted.
    pub map_ids: Vec<u32>,
}

pub fn program_info(fd: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    const NR_MAP_IDS: usize = 52 / 4;
    const MAP_IDS: usize = 56 / 4;
    let mut info = [0u32; 64];
    object_info(fd, &mut info)?;
    let mut map_ids = vec![0u32; info[NR_MAP_IDS] as usize];
    let mut with_ids = [0u32; 64];
    with_ids[NR_MAP_IDS] = info[NR_MAP_IDS];
    let ids = map_ids.as_mut_ptr() as u64;
    with_ids[MAP_IDS..MAP_IDS + 2].copy_from_slice(&halves(ids));
    object_info(fd, &mut with_ids)?;
    map_ids.sort_unstable();
    let [tag_a, tag_b] = [info[2].to_ne_bytes(), info[3].to_ne_bytes()];
    Ok(ProgramInfo {
        id: info[1],
        tag: [tag_a[0], tag_a[1], tag_a[2], tag_a[3], tag_b[0], tag_b[1], tag_b[2], tag_b[3]],
        jited_size: info[4],
        translated_size: info[5],
        run_ns: whole(&info, 192),
        runs: whole(&info, 200),
        verified_instructions: info[216 / 4],
        map_ids,
    })
}

fn halves(n: u64) -> [u32; 2] {
    let b = n.to_ne_bytes();
    [u32::from_ne_bytes([b[0], b[1], b[2], b[3]]), u32::from_ne_bytes([b[4], b[5], b[6], b[7]])]
}

fn whole(words: &[u32; 64], offset: usize) -> u64 {
    let [a, b] = [words[offset / 4].to_ne_bytes(), words[offset / 4 + 1].to_ne_bytes()];
    u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]])
}

/// Opens a program by its number.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0];
    // SAFETY: no addresses.
    unsafe { bpf(PROG_BY_ID, &mut attr).map(|fd| own(fd)) }
}

/// Opens a map by its number.
pub fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0];
    // SAFETY: no addresses.
    unsafe { bpf(MAP_BY_ID, &mut attr).map(|fd| own(fd)) }
}

/// A TCX link, or what is left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkInfo {
    pub id: u32,
    pub program_id: u32,
    /// Device; 0 once the device is gone or the link was detached by hand.
    pub ifindex: u32,
}

/// Reads a link; `None` if it is not one at TCX ingress.
pub fn tcx_info(fd: BorrowedFd<'_>) -> io::Result<Option<LinkInfo>> {
    tcx_info_at(fd, TCX_INGRESS)
}

/// Reads a link; `None` if it is not one at this hook of TCX.
pub fn tcx_info_at(fd: BorrowedFd<'_>, attach_type: u32) -> io::Result<Option<LinkInfo>> {
    let mut info = [0u32; 32];
    object_info(fd, &mut info)?;
    Ok((info[0] == LINK_TYPE_TCX && info[5] == attach_type).then_some(LinkInfo {
        id: info[1],
        program_id: info[2],
        ifindex: info[4],
    }))
}

/// Puts a program at a device's TCX ingress, before all that are there.
pub fn tcx_attach(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    tcx_attach_at(program, ifindex, TCX_INGRESS)
}

/// Puts a program at a hook of a device's TCX, before all that are there.
pub fn tcx_attach_at(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        program: u32,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
        relative: u32,
        pad: u32,
        revision: u64,
    }
    let mut attr = Create {
        program: raw(program),
        ifindex,
        attach_type,
        flags: BEFORE,
        relative: 0,
        pad: 0,
        revision: 0,
    };
    // SAFETY: no addresses.
    unsafe { bpf(LINK_CREATE, &mut attr).map(|fd| own(fd)) }
}

/// Opens a link by its number.
pub fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0];
    // SAFETY: no addresses.
    unsafe { bpf(LINK_BY_ID, &mut attr).map(|fd| own(fd)) }
}

/// Swaps a link's program in one step.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [raw(link), raw(program), 0, 0];
    // SAFETY: no addresses.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes a link from its device, whoever else holds it.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [raw(link)];
    // SAFETY: no addresses.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

/// Programs and their links at a device's TCX ingress, in the order in which they run.
pub fn tcx_query(ifindex: u32) -> io::Result<Vec<(u32, u32)>> {
    #[repr(C)]
    struct Query {
        ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        programs: u64,
        count: u32,
        pad: u32,
        program_flags: u64,
        links: u64,
        link_flags: u64,
        revision: u64,
    }
    let (mut programs, mut links) = ([0u32; MPROG_MAX], [0u32; MPROG_MAX]);
    let mut attr = Query {
        ifindex,
        attach_type: TCX_INGRESS,
        query_flags: 0,
        attach_flags: 0,
        programs: programs.as_mut_ptr() as u64,
        count: MPROG_MAX as u32,
        pad: 0,
        program_flags: 0,
        links: links.as_mut_ptr() as u64,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: both arrays are live and as long as `count` says.
    match unsafe { bpf(PROG_QUERY, &mut attr) } {
        Ok(_) => Ok(programs.into_iter().zip(links).take(attr.count as usize).collect()),
        // No program was ever attached to the device.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}
