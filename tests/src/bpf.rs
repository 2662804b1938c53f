//! What somebody with root's rights does to the kernel's tables by hand. On purpose none of our own code.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

const MAP_DELETE: libc::c_long = 3;
const MAP_NEXT_KEY: libc::c_long = 4;
const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const PROG_QUERY: libc::c_long = 16;
const LINK_CREATE: libc::c_long = 28;
const LINK_DETACH: libc::c_long = 34;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
const TCX: [u32; 2] = [46, 47];

/// The largest key of any map of ours.
const KEY: usize = 32;

/// `union bpf_attr`, as words.
type Attr = [u64; 16];

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is live, writable and as long as said; pointers in it are live by the callers' contracts.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attr = [0; 16];
    attr[0] = path.as_ptr() as u64;
    let fd = bpf(OBJ_GET, &mut attr)?;
    // SAFETY: the kernel made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) })
}

/// Names of the pins in a folder.
#[must_use]
pub fn pins(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|e| e.unwrap().path()).collect()
}

/// Deletes one entry of a pinned hash map, the first whose key `chosen` accepts; its key.
///
/// # Panics
/// If the map cannot be opened.
pub fn delete_entry(map: &Path, chosen: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let map = open(map).unwrap_or_else(|e| panic!("open {}: {e}", map.display()));
    let fd = u64::from(map.as_raw_fd().unsigned_abs());
    let (mut key, mut next) = ([0_u8; KEY], [0_u8; KEY]);
    let mut first = true;
    loop {
        let mut attr = [0; 16];
        attr[0] = fd;
        attr[1] = if first { 0 } else { key.as_ptr() as u64 };
        attr[2] = next.as_mut_ptr() as u64;
        bpf(MAP_NEXT_KEY, &mut attr).ok()?;
        (key, first) = (next, false);
        if chosen(&key) {
            let mut attr = [0; 16];
            attr[0] = fd;
            attr[1] = key.as_ptr() as u64;
            bpf(MAP_DELETE, &mut attr).unwrap();
            return Some(key.to_vec());
        }
    }
}

/// Detaches a pinned link's program from its device and leaves the pin.
///
/// # Panics
/// If the kernel refuses.
pub fn detach_link(pin: &Path) {
    let link = open(pin).unwrap();
    let mut attr = [0; 16];
    attr[0] = u64::from(link.as_raw_fd().unsigned_abs());
    bpf(LINK_DETACH, &mut attr).unwrap();
}

/// How many programs are at TCX of a device of the calling thread's namespace; none where the kernel has no TCX.
#[must_use]
pub fn tcx_programs(ifindex: u32) -> usize {
    let count = |hook| {
        // Target and attach type, query and attach flags, program ids, count: a count alone is asked for.
        let mut attr = [0; 16];
        attr[0] = u64::from(ifindex) | u64::from(hook) << 32;
        match bpf(PROG_QUERY, &mut attr) {
            Ok(_) => (attr[3] & 0xffff_ffff) as usize,
            Err(_) => 0,
        }
    };
    TCX.into_iter().map(count).sum()
}

/// A device that loses frames of an IPv4 protocol that are to be cut up and are larger than so many bytes, as a NIC with
/// a broken offload does, until the descriptor is closed; an error where the kernel has no TCX. The device is one of
/// the calling thread's namespace.
///
/// # Errors
/// What the kernel says.
pub fn lose_large(ifindex: u32, protocol: u8, larger: i32) -> io::Result<OwnedFd> {
    // One instruction a word: opcode, registers, offset, immediate (Documentation/bpf/standardization).
    let word = |code: u8, registers: u8, offset: i16, value: i32| {
        u64::from(code)
            | u64::from(registers) << 8
            | u64::from(offset.cast_unsigned()) << 16
            | u64::from(value.cast_unsigned()) << 32
    };
    const GSO_SIZE: i16 = 176;
    let program = [
        word(0xbf, 0x16, 0, 0),               // r6 = the frame
        word(0x30, 0, 0, 23),                 // r0 = its byte 23, IPv4's protocol
        word(0x55, 0x00, 6, protocol.into()), // another: on to the end
        word(0x61, 0x62, GSO_SIZE, 0),        // r2 = size of its segments
        word(0x15, 0x02, 4, 0),               // none: on to the end
        word(0x61, 0x62, 0, 0),               // r2 = the frame's length
        word(0xb5, 0x02, 2, larger),          // not larger: on to the end
        word(0xb7, 0x00, 0, 2),               // TC_ACT_SHOT
        word(0x95, 0, 0, 0),
        word(0xb7, 0x00, 0, -1), // TCX_NEXT
        word(0x95, 0, 0, 0),
    ];
    let license = c"GPL";
    let mut attr = [0; 16];
    attr[0] = 3 | (program.len() as u64) << 32;
    attr[1] = program.as_ptr() as u64;
    attr[2] = license.as_ptr() as u64;
    let program = bpf(PROG_LOAD, &mut attr)?;
    // SAFETY: the kernel made this descriptor for us alone.
    let program = unsafe { OwnedFd::from_raw_fd(i32::try_from(program).expect("a descriptor")) };
    let mut attr = [0; 16];
    attr[0] = u64::from(program.as_raw_fd().unsigned_abs()) | u64::from(ifindex) << 32;
    attr[1] = u64::from(TCX[0]);
    let link = bpf(LINK_CREATE, &mut attr)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(link).expect("a descriptor")) })
}
