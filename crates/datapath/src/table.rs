//! One pinned map with its Rust types.

use crate::sys::{KEY_MAX, MapInfo, RawMap};
use crate::{Error, Result};
use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::path::Path;
use tenet_tables::{
    Bucket, Config, Counters, DropKey, FloodEntry, FloodKey, MacEntry, MacKey, Peer, PeerKey, Pool, PoolKey,
    Port, Record, RecordKey, Rewrite, RewriteKey, Route, RouteKey, Subnet,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The kernel's ENOTSUPP, which is not an error of the C library.
const ENOTSUPP: i32 = 524;
/// Entries per batch; a hash bucket longer than this makes the kernel ask for more room.
const BATCH: usize = 4096;

/// Key of map `ROUTES` as the trie wants it: length in bits, then the bits.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, FromBytes, IntoBytes, Immutable)]
pub struct TrieKey {
    pub bits: u32,
    pub key: RouteKey,
}

/// Key of map `POOLS` likewise.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, FromBytes, IntoBytes, Immutable)]
pub struct PoolTrieKey {
    pub bits: u32,
    pub key: PoolKey,
}

/// Name and shape of a map.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    kind: u32,
    key_size: usize,
    value_size: usize,
}

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_HASH: u32 = 5;
const LPM: u32 = 11;
const RING: u32 = 27;

const fn shape<K, V>(name: &'static str, kind: u32) -> Shape {
    Shape { name, kind, key_size: size_of::<K>(), value_size: size_of::<V>() }
}

/// When the agent last looked at the slow device; [`crate::SlowPath`] writes it.
pub const JOINER: &str = "JOINER";

/// All maps of the object; `CONFIG` first, as it tells whether the others may be read at all.
pub const SHAPES: [Shape; 15] = [
    shape::<u32, Config>("CONFIG", ARRAY),
    shape::<u32, Port>("PORTS", HASH),
    shape::<u32, Subnet>("SUBNETS", HASH),
    shape::<RecordKey, Record>("RECORDS", HASH),
    shape::<RewriteKey, Rewrite>("REWRITES", HASH),
    shape::<PoolTrieKey, Pool>("POOLS", LPM),
    shape::<MacKey, MacEntry>("MACS", HASH),
    shape::<TrieKey, Route>("ROUTES", LPM),
    shape::<PeerKey, Peer>("PEERS", HASH),
    shape::<FloodKey, FloodEntry>("FLOOD", HASH),
    shape::<u32, Counters>("COUNTERS", PERCPU_HASH),
    shape::<DropKey, u64>("DROPS", PERCPU_HASH),
    shape::<u32, Bucket>("BUCKETS", HASH),
    shape::<u32, u64>(JOINER, ARRAY),
    shape::<(), ()>("EVENTS", RING),
];

impl Shape {
    /// Whether a map is what its name says. The capacity may differ: an older one is adopted as it is.
    pub fn fits(&self, info: &MapInfo) -> bool {
        info.kind == self.kind
            && info.key_size as usize == self.key_size
            && info.value_size as usize == self.value_size
    }

    pub fn describe(&self) -> String {
        describe(self.kind, self.key_size, self.value_size)
    }
}

/// Text for messages.
pub fn describe(kind: u32, key_size: usize, value_size: usize) -> String {
    let kind = match kind {
        HASH => "hash".to_owned(),
        ARRAY => "array".to_owned(),
        PERCPU_HASH => "per-CPU hash".to_owned(),
        LPM => "LPM trie".to_owned(),
        RING => "ring buffer".to_owned(),
        other => format!("map of type {other}"),
    };
    format!("a {kind} of {key_size} to {value_size} bytes")
}

/// A map whose sizes were compared with `K` and `V`.
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    raw: RawMap,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Table<K, V>
where
    K: FromBytes + IntoBytes + Immutable + Copy + Debug,
    V: FromBytes + IntoBytes + Immutable + Copy,
{
    pub fn open(directory: &Path, name: &'static str) -> Result<Self> {
        let raw = RawMap::open(&directory.join(name)).map_err(fail("open", name, String::new()))?;
        Ok(Self { name, raw, types: PhantomData })
    }

    /// Reads the value of a key.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let found = self.raw.lookup(key.as_bytes()).map_err(fail("read", self.name, format!("{key:?}")))?;
        found.map(|bytes| self.value(&bytes)).transpose()
    }

    /// Writes the value of a key.
    pub fn put(&self, key: &K, value: &V) -> Result<()> {
        self.raw.update(key.as_bytes(), value.as_bytes()).map_err(|source| match source.raw_os_error() {
            // Hashes and arrays say E2BIG, tries ENOSPC.
            Some(libc::E2BIG | libc::ENOSPC) => Error::MapFull {
                map: self.name,
                key: format!("{key:?}"),
                capacity: self.raw.info().max_entries,
            },
            _ => fail("write", self.name, format!("{key:?}"))(source),
        })
    }

    /// Removes a key; that it is gone already is no error.
    pub fn delete(&self, key: &K) -> Result<()> {
        self.raw.delete(key.as_bytes()).map(drop).map_err(fail("delete from", self.name, format!("{key:?}")))
    }

    /// All entries. Entries that change meanwhile are seen before or after, or, if somebody deletes, perhaps twice.
    pub fn all(&self) -> Result<Vec<(K, V)>> {
        self.walk(|value| self.value(value))
    }

    /// All entries of a per-CPU map, each with its values on the possible CPUs.
    pub fn all_per_cpu(&self) -> Result<Vec<(K, Vec<V>)>> {
        self.walk(|values| {
            values.chunks_exact(size_of::<V>().next_multiple_of(8)).map(|v| self.value(v)).collect()
        })
    }

    /// A per-CPU map's values of a key, one for each possible CPU.
    pub fn get_per_cpu(&self, key: &K) -> Result<Vec<V>> {
        let found = self.raw.lookup(key.as_bytes()).map_err(fail("read", self.name, format!("{key:?}")))?;
        let values = found.unwrap_or_default();
        values.chunks_exact(size_of::<V>().next_multiple_of(8)).map(|v| self.value(v)).collect()
    }

    fn walk<T>(&self, read: impl Fn(&[u8]) -> Result<T>) -> Result<Vec<(K, T)>> {
        let mut found = Vec::new();
        self.entries(|key, value| {
            let key = K::read_from_bytes(key).map_err(|_| self.misread())?;
            found.push((key, read(value)?));
            Ok(())
        })?;
        Ok(found)
    }

    fn value(&self, bytes: &[u8]) -> Result<V> {
        V::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| self.misread())
    }

    /// Sizes were compared when the map was opened, so that this tells of a bug, not of the kernel.
    fn misread(&self) -> Error {
        fail("read", self.name, String::new())(io::Error::from(io::ErrorKind::InvalidData))
    }

    fn entries(&self, each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let mut each = each;
        if self.entries_by_batch(&mut each)? { Ok(()) } else { self.entries_by_key(&mut each) }
    }

    /// Reads in batches; `false` if this kernel cannot do that for this kind of map.
    fn entries_by_batch(&self, each: &mut impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<bool> {
        let (key_size, stride) = (size_of::<K>(), self.raw.stride());
        // Per-CPU values are long on big machines; keep a batch below some megabytes.
        let mut room = BATCH.min(((4 << 20) / stride.max(1)).max(64));
        let (mut from, mut token) = (None, [0; KEY_MAX]);
        let (mut keys, mut values) = (vec![0; room * key_size], vec![0; room * stride]);
        loop {
            match self.raw.lookup_batch(from.as_ref(), &mut token, &mut keys, &mut values) {
                Ok((count, last)) => {
                    let pairs = keys.chunks_exact(key_size).zip(values.chunks_exact(stride)).take(count);
                    for (key, value) in pairs {
                        each(key, value)?;
                    }
                    if last {
                        return Ok(true);
                    }
                    from = Some(token);
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => {
                    room *= 2;
                    keys.resize(room * key_size, 0);
                    values.resize(room * stride, 0);
                }
                Err(e) if from.is_none() && is_unsupported(&e) => return Ok(false),
                Err(e) => return Err(fail("read", self.name, String::new())(e)),
            }
        }
    }

    fn entries_by_key(&self, each: &mut impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let failed = |e| fail("read", self.name, String::new())(e);
        let mut key = self.raw.next_key(None).map_err(failed)?;
        while let Some(now) = key {
            if let Some(value) = self.raw.lookup(&now).map_err(failed)? {
                each(&now, &value)?;
            }
            key = self.raw.next_key(Some(&now)).map_err(failed)?;
        }
        Ok(())
    }
}

fn is_unsupported(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP))
}

fn fail(action: &'static str, map: &'static str, key: String) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Map { action, map, key, source }
}
