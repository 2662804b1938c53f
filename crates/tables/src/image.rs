//! The content of a host's maps as plain data: what the agent wants, or what it read back.
//!
//! Pure. [`Image::operations_to`] orders its result so that no frame of a correct program is lost
//! on the way: what receivers need is put before what senders use, and removed after it.

extern crate alloc;

use crate::{
    Config, FloodEntry, FloodKey, MacEntry, MacKey, Peer, PeerKey, Pool, PoolKey, Port, Record, RecordKey,
    Rewrite, RewriteKey, Route, RouteKey, Subnet,
};
use alloc::{collections::BTreeMap, vec::Vec};

/// Key of map `ROUTES` with its length, ordered for use in an [`Image`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Prefix {
    /// Network id in host order.
    pub net: u32,
    /// Address; bits behind the length are zero.
    pub ca: crate::Addr,
    /// Prefix length in bits of the `Addr` form (IPv4: 96 + length).
    pub len: u32,
}

impl Prefix {
    /// The trie's key data and its length in bits, network id included.
    #[must_use]
    pub const fn to_trie(self) -> (u32, RouteKey) {
        (32 + self.len, RouteKey { net_be: self.net.to_be(), ca: self.ca })
    }

    /// Reads the trie's key back.
    #[must_use]
    pub const fn from_trie(bits: u32, key: RouteKey) -> Self {
        Self { net: u32::from_be(key.net_be), ca: key.ca, len: bits.saturating_sub(32) }
    }
}

/// Declares the image, its operations and the order in which maps are written.
macro_rules! image {
    ($($(#[$m:meta])* $field:ident: $variant:ident($k:ty => $v:ty),)*) => {
        /// All that the agent keeps in the kernel's maps for one host.
        #[derive(Clone, PartialEq, Eq, Debug, Default)]
        pub struct Image {
            /// Map `CONFIG`, if it was ever written.
            pub config: Option<Config>,
            $($(#[$m])* pub $field: BTreeMap<$k, $v>,)*
        }

        /// One write to a map.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Operation {
            /// Writes map `CONFIG`.
            Configure(Config),
            $($(#[$m])* $variant($k, Option<$v>),)*
        }

        impl Image {
            /// The writes that turn `self` into `wanted`, in a safe order: puts of the receiving side first
            /// (the order of the fields), then removals the other way round.
            #[must_use]
            pub fn operations_to(&self, wanted: &Self) -> Vec<Operation> {
                let mut puts = Vec::new();
                let mut removals = Vec::new();
                if let Some(config) = wanted.config.filter(|c| self.config != Some(*c)) {
                    puts.push(Operation::Configure(config));
                }
                $(
                    for (k, v) in &wanted.$field {
                        if self.$field.get(k) != Some(v) { puts.push(Operation::$variant(*k, Some(*v))); }
                    }
                    for k in self.$field.keys() {
                        if !wanted.$field.contains_key(k) { removals.push(Operation::$variant(*k, None)); }
                    }
                )*
                removals.reverse();
                puts.extend(removals);
                puts
            }

            /// Applies one operation.
            pub fn apply(&mut self, operation: Operation) {
                match operation {
                    Operation::Configure(c) => self.config = Some(c),
                    $(
                        Operation::$variant(k, Some(v)) => { self.$field.insert(k, v); }
                        Operation::$variant(k, None) => { self.$field.remove(&k); }
                    )*
                }
            }
        }
    };
}

image! {
    /// Map `PEERS`.
    peers: Peer(PeerKey => Peer),
    /// Map `SUBNETS`.
    subnets: Subnet(u32 => Subnet),
    /// Map `POOLS`; key: first address and length in bits of the `Addr` form.
    pools: Pool((PoolKey, u32) => Pool),
    /// Map `REWRITES`.
    rewrites: Rewrite(RewriteKey => Rewrite),
    /// Map `RECORDS`.
    records: Record(RecordKey => Record),
    /// Map `MACS`.
    macs: Mac(MacKey => MacEntry),
    /// Map `FLOOD`.
    flood: Flood(FloodKey => FloodEntry),
    /// Map `ROUTES`.
    routes: Route(Prefix => Route),
    /// Map `PORTS`.
    ports: Port(u32 => Port),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_turn_one_image_into_another_and_ports_come_last() {
        let mut wanted = Image::default();
        wanted.ports.insert(3, Port { vsid: 5001, ..Port::default() });
        wanted.records.insert(RecordKey::default(), Record { vsid: 5001, ..Record::default() });
        let mut now = Image::default();
        now.ports.insert(4, Port::default());
        now.peers.insert(PeerKey::default(), Peer::default());
        let operations = now.operations_to(&wanted);
        let order: Vec<bool> = operations.iter().map(|o| matches!(o, Operation::Port(..))).collect();
        assert_eq!(order, [false, true, true, false], "{operations:?}");
        for o in operations {
            now.apply(o);
        }
        assert_eq!(now, wanted);
    }
}
