//! The maps' content: read back whole, written one operation at a time.

use crate::table::{PoolTrieKey, Table, TrieKey};
use crate::{Datapath, Image, Operation, Result};
use std::collections::BTreeMap;
use std::fmt::Debug;
use tenet_tables::image::Prefix;
use tenet_tables::{Config, Port};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The one entry of map `CONFIG`.
const ONLY: u32 = 0;

impl Datapath {
    /// Reads all maps back from the kernel.
    pub fn read(&self) -> Result<Image> {
        let tables = &self.tables;
        Ok(Image {
            config: self.config()?,
            peers: map(&tables.peers)?,
            subnets: map(&tables.subnets)?,
            pools: tables.pools.all()?.into_iter().map(|(k, v)| ((k.key, k.bits), v)).collect(),
            rewrites: map(&tables.rewrites)?,
            records: map(&tables.records)?,
            macs: map(&tables.macs)?,
            flood: map(&tables.flood)?,
            routes: tables
                .routes
                .all()?
                .into_iter()
                .map(|(k, v)| (Prefix::from_trie(k.bits, k.key), v))
                .collect(),
            ports: map(&tables.ports)?,
        })
    }

    /// Writes operations in their order, each one system call; the first that fails ends it.
    ///
    /// A put of a port overwrites its state. The programs change a state themselves (PREPARED to ACTIVE with the
    /// first frame), so ask [`Datapath::port_state`] before writing one that may have changed.
    pub fn apply(&self, operations: &[Operation]) -> Result<()> {
        operations.iter().try_for_each(|operation| self.apply_one(operation))
    }

    fn apply_one(&self, operation: &Operation) -> Result<()> {
        let tables = &self.tables;
        match operation {
            Operation::Configure(config) => tables.config.put(&ONLY, config),
            Operation::Peer(key, value) => write(&tables.peers, key, value.as_ref()),
            Operation::Subnet(key, value) => write(&tables.subnets, key, value.as_ref()),
            Operation::Pool((key, bits), value) => {
                write(&tables.pools, &PoolTrieKey { bits: *bits, key: *key }, value.as_ref())
            }
            Operation::Rewrite(key, value) => write(&tables.rewrites, key, value.as_ref()),
            Operation::Record(key, value) => write(&tables.records, key, value.as_ref()),
            Operation::Mac(key, value) => write(&tables.macs, key, value.as_ref()),
            Operation::Flood(key, value) => write(&tables.flood, key, value.as_ref()),
            Operation::Route(prefix, value) => {
                let (bits, key) = prefix.to_trie();
                write(&tables.routes, &TrieKey { bits, key }, value.as_ref())
            }
            Operation::Port(key, value) => write(&tables.ports, key, value.as_ref()),
        }
    }

    /// What the maps hold now at the operations' keys, as operations.
    pub fn read_back(&self, operations: &[Operation]) -> Result<Vec<Operation>> {
        // A trie answers with the longest prefix that covers the key, so that only a walk tells what it holds.
        let mut routes = None;
        let one = |operation: &Operation| {
            let tables = &self.tables;
            Ok(match *operation {
                Operation::Configure(_) => Operation::Configure(self.config()?.unwrap_or_default()),
                Operation::Peer(key, _) => Operation::Peer(key, tables.peers.get(&key)?),
                Operation::Subnet(key, _) => Operation::Subnet(key, tables.subnets.get(&key)?),
                Operation::Pool((key, bits), _) => {
                    let pools: BTreeMap<_, _> = map(&tables.pools)?;
                    Operation::Pool((key, bits), pools.get(&PoolTrieKey { bits, key }).copied())
                }
                Operation::Rewrite(key, _) => Operation::Rewrite(key, tables.rewrites.get(&key)?),
                Operation::Record(key, _) => Operation::Record(key, tables.records.get(&key)?),
                Operation::Mac(key, _) => Operation::Mac(key, tables.macs.get(&key)?),
                Operation::Flood(key, _) => Operation::Flood(key, tables.flood.get(&key)?),
                Operation::Route(prefix, _) => {
                    let routes: &mut BTreeMap<_, _> = match &mut routes {
                        Some(routes) => routes,
                        none => none.insert(map(&tables.routes)?),
                    };
                    let (bits, key) = prefix.to_trie();
                    Operation::Route(prefix, routes.get(&TrieKey { bits, key }).copied())
                }
                Operation::Port(key, _) => Operation::Port(key, tables.ports.get(&key)?),
            })
        };
        operations.iter().map(one).collect()
    }

    /// The host's configuration, if it was ever written.
    pub fn config(&self) -> Result<Option<Config>> {
        Ok(self.tables.config.get(&ONLY)?.filter(|config| config.layout != 0))
    }

    /// A port as the kernel has it now.
    pub fn port(&self, ifindex: u32) -> Result<Option<Port>> {
        self.tables.ports.get(&ifindex)
    }

    /// A port's state as the kernel has it now: one of the `PORT_*`.
    pub fn port_state(&self, ifindex: u32) -> Result<Option<u8>> {
        Ok(self.port(ifindex)?.map(|port| port.state))
    }
}

fn map<K, V>(table: &Table<K, V>) -> Result<BTreeMap<K, V>>
where
    K: FromBytes + IntoBytes + Immutable + Copy + Debug + Ord,
    V: FromBytes + IntoBytes + Immutable + Copy,
{
    Ok(table.all()?.into_iter().collect())
}

fn write<K, V>(table: &Table<K, V>, key: &K, value: Option<&V>) -> Result<()>
where
    K: FromBytes + IntoBytes + Immutable + Copy + Debug,
    V: FromBytes + IntoBytes + Immutable + Copy,
{
    match value {
        Some(value) => table.put(key, value),
        None => table.delete(key),
    }
}
