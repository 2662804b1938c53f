//! Transactions: comparisons, and what to do if they hold.

use crate::{KeyValue, StoreError};
use std::{cmp::Ordering, collections::BTreeSet};

/// How a number is compared with the given one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// It is equal.
    Equal,
    /// It is another.
    NotEqual,
    /// It is greater.
    Greater,
    /// It is less.
    Less,
}

/// What must hold of a key. The numbers of a key that is not there are 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Of the revision that created it.
    CreateRevision(Order, u64),
    /// Of the revision that last wrote it.
    ModRevision(Order, u64),
    /// Of the number of its writes.
    Version(Order, u64),
    /// Of its value, bytewise; a key that is not there has none and fails.
    Value(Order, Vec<u8>),
    /// It is there.
    Exists,
    /// It is not there.
    Absent,
}

/// A condition on a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// What must hold.
    pub condition: Condition,
}

/// A write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Creates or replaces a key.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// Deletes a key; nothing if it is not there.
    Delete {
        /// The key.
        key: String,
    },
}

/// If all comparisons hold, `then`; else `otherwise`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Txn {
    /// What must hold.
    pub compare: Vec<Compare>,
    /// What to do if all of it holds.
    pub then: Vec<Op>,
    /// What to do if not.
    pub otherwise: Vec<Op>,
}

/// What a transaction did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TxnResult {
    /// Whether all comparisons held.
    pub succeeded: bool,
    /// The store's revision after it; a new one if it wrote anything.
    pub revision: u64,
}

impl Txn {
    /// Adds a comparison.
    #[must_use]
    pub fn when(mut self, key: impl Into<String>, condition: Condition) -> Self {
        self.compare.push(Compare { key: key.into(), condition });
        self
    }

    /// Adds a put to `then`.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.then.push(Op::Put { key: key.into(), value: value.into() });
        self
    }

    /// Adds a deletion to `then`.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.then.push(Op::Delete { key: key.into() });
        self
    }

    /// Checks what must hold of every transaction, as etcd does: no key twice in a branch.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        for branch in [&self.then, &self.otherwise] {
            let mut seen = BTreeSet::new();
            for op in branch {
                if !seen.insert(op.key()) {
                    return Err(StoreError::Twice { key: op.key().to_owned() });
                }
            }
        }
        Ok(())
    }
}

impl Op {
    /// The key that is written.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

impl Condition {
    /// Whether it holds of a pair or of a key that is not there.
    #[must_use]
    pub fn holds(&self, pair: Option<&KeyValue>) -> bool {
        match self {
            Self::CreateRevision(order, n) => order.holds(pair.map_or(0, |p| p.create_revision).cmp(n)),
            Self::ModRevision(order, n) => order.holds(pair.map_or(0, |p| p.mod_revision).cmp(n)),
            Self::Version(order, n) => order.holds(pair.map_or(0, |p| p.version).cmp(n)),
            Self::Value(order, value) => pair.is_some_and(|p| order.holds(p.value.cmp(value))),
            Self::Exists => pair.is_some(),
            Self::Absent => pair.is_none(),
        }
    }
}

impl Order {
    const fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Greater => ordering.is_gt(),
            Self::Less => ordering.is_lt(),
        }
    }
}
