//! Maps: one handle for all kinds, which knows its sizes.

use super::{KEY_MAX, RDONLY_PROG, address, address_mut, bpf, obj_get, object_info, own};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

const MAP_CREATE: i64 = 0;
const MAP_LOOKUP: i64 = 1;
const MAP_UPDATE: i64 = 2;
const MAP_DELETE: i64 = 3;
const MAP_NEXT_KEY: i64 = 4;
const MAP_LOOKUP_BATCH: i64 = 24;

#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Type, sizes and number of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    /// Whether programs only read it, as they do their constants.
    pub constants: bool,
}

pub fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = [0u32; 32];
    object_info(fd, &mut info)?;
    Ok(MapInfo {
        kind: info[0],
        id: info[1],
        key_size: info[2],
        value_size: info[3],
        max_entries: info[4],
        constants: info[5] & RDONLY_PROG != 0,
    })
}

/// A map's name, of which the kernel keeps fifteen bytes.
pub fn map_name(fd: BorrowedFd<'_>) -> io::Result<String> {
    let mut info = [0u32; 32];
    object_info(fd, &mut info)?;
    let bytes = info[6..10].iter().flat_map(|word| word.to_ne_bytes()).take_while(|b| *b != 0).collect();
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// A map handle whose sizes are known, so that no call can read or write past a buffer.
#[derive(Debug)]
pub struct RawMap {
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes of a value as system calls see it: per-CPU maps have one for each possible CPU.
    stride: usize,
}

/// How many values a per-CPU map has for each key; fixed when the kernel starts.
fn possible_cpus() -> io::Result<usize> {
    static CPUS: OnceLock<usize> = OnceLock::new();
    if let Some(cpus) = CPUS.get() {
        return Ok(*cpus);
    }
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| source)?;
    Ok(*CPUS.get_or_init(|| cpus))
}

const KIND_PERCPU_HASH: u32 = 5;
const KIND_PERCPU_ARRAY: u32 = 6;
const KIND_LRU_PERCPU_HASH: u32 = 10;

impl RawMap {
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::new(obj_get(path)?)
    }

    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = map_info(fd.as_fd())?;
        let value = info.value_size as usize;
        let per_cpu = matches!(info.kind, KIND_PERCPU_HASH | KIND_PERCPU_ARRAY | KIND_LRU_PERCPU_HASH);
        let stride = if per_cpu { value.next_multiple_of(8) * possible_cpus()? } else { value };
        if info.key_size as usize > KEY_MAX {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        Ok(Self { fd, info, stride })
    }

    pub fn info(&self) -> MapInfo {
        self.info
    }

    pub fn stride(&self) -> usize {
        self.stride
    }

    fn raw(&self) -> u32 {
        self.fd.as_raw_fd().cast_unsigned()
    }

    fn check(&self, key: &[u8], value: Option<usize>) -> io::Result<()> {
        if key.len() == self.info.key_size as usize && value.is_none_or(|v| v == self.stride) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::InvalidInput))
        }
    }

    /// Reads a value; `None` if the key is not there.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.stride];
        self.check(key, None)?;
        let mut attr = Element {
            map_fd: self.raw(),
            key: address(key),
            value: address_mut(&mut value),
            ..Element::default()
        };
        // SAFETY: `check` compared the key's length; the value has the stride that the kernel writes.
        match unsafe { bpf(MAP_LOOKUP, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes a value, whether the key is there or not.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key, Some(value.len()))?;
        let mut attr =
            Element { map_fd: self.raw(), key: address(key), value: address(value), ..Element::default() };
        // SAFETY: `check` compared both lengths with what the kernel reads.
        unsafe { bpf(MAP_UPDATE, &mut attr) }.map(drop)
    }

    /// Removes a key; says whether it was there.
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        self.check(key, None)?;
        let mut attr = Element { map_fd: self.raw(), key: address(key), ..Element::default() };
        // SAFETY: `check` compared the key's length.
        match unsafe { bpf(MAP_DELETE, &mut attr) } {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The key after `key` in the kernel's order, or the first.
    pub fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.info.key_size as usize];
        if let Some(key) = key {
            self.check(key, None)?;
        }
        let mut attr = Element {
            map_fd: self.raw(),
            key: key.map_or(0, address),
            value: address_mut(&mut next),
            ..Element::default()
        };
        // SAFETY: both buffers have the key's size, or the first address is null, which asks for the first key.
        match unsafe { bpf(MAP_NEXT_KEY, &mut attr) } {
            Ok(_) => Ok(Some(next)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads up to `keys.len() / key size` entries behind the token; `true` if there are no more.
    pub fn lookup_batch(
        &self,
        from: Option<&[u8; KEY_MAX]>,
        token: &mut [u8; KEY_MAX],
        keys: &mut [u8],
        values: &mut [u8],
    ) -> io::Result<(usize, bool)> {
        #[repr(C)]
        struct Batch {
            input: u64,
            output: u64,
            keys: u64,
            values: u64,
            count: u32,
            map_fd: u32,
            element_flags: u64,
            flags: u64,
        }
        let count = (keys.len() / self.info.key_size as usize).min(values.len() / self.stride.max(1));
        let mut attr = Batch {
            input: from.map_or(0, |t| address(t)),
            output: address_mut(token),
            keys: address_mut(keys),
            values: address_mut(values),
            count: u32::try_from(count).unwrap_or(u32::MAX),
            map_fd: self.raw(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: both buffers hold at least `count` entries; a token is at most a key, which is at most `KEY_MAX`.
        match unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => Ok((attr.count as usize, false)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count as usize, true)),
            Err(e) => Err(e),
        }
    }
}

/// Creates a map; for probing what the kernel has.
pub fn map_create(
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = [kind, key_size, value_size, max_entries, flags, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: no addresses; the words are the head of `bpf_attr` for this command.
    unsafe { bpf(MAP_CREATE, &mut attr).map(|fd| own(fd)) }
}
