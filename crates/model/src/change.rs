//! What a caller wants changed, and the same change once it is known to be sound.

use crate::{Desired, Key, Object, Problem, rules};

/// One write to the desired state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Creates or replaces an object.
    Put(Object),
    /// Deletes an object.
    Delete(Key),
}

impl Operation {
    /// The object that is written or deleted.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Put(object) => object.key(),
            Self::Delete(key) => key.clone(),
        }
    }
}

/// Operations that happen together or not at all; judged by their joint result, so their order means nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// At most one for each object.
    pub operations: Vec<Operation>,
}

impl Change {
    /// A change of one write.
    #[must_use]
    pub fn put(object: Object) -> Self {
        Self { operations: vec![Operation::Put(object)] }
    }

    /// A change of one deletion.
    #[must_use]
    pub fn delete(key: Key) -> Self {
        Self { operations: vec![Operation::Delete(key)] }
    }
}

impl FromIterator<Operation> for Change {
    fn from_iter<I: IntoIterator<Item = Operation>>(operations: I) -> Self {
        Self { operations: operations.into_iter().collect() }
    }
}

/// A change that [`Desired::check`] found sound at one revision.
///
/// Without the operations that would change nothing, and with the ones that follow from others (deleting a VM deletes
/// its ports); rewrite addresses are filled in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checked {
    revision: u64,
    operations: Vec<Operation>,
}

impl Checked {
    /// The revision of the state that the change was checked against; it may be written over that state only.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// What to write.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Whether everything already is as asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

impl Desired {
    /// Judges a change by the state that it would lead to. Work is proportional to what the change touches, plus one
    /// light pass over the tenant's ports (all ports, if it attaches some).
    ///
    /// # Errors
    /// Every problem found, in the order of the operations.
    pub fn check(&self, change: &Change) -> Result<Checked, Vec<Problem>> {
        let operations = rules::check(self, change)?;
        Ok(Checked { revision: self.revision, operations })
    }

    /// Writes operations at a revision.
    pub fn apply(&mut self, operations: &[Operation], revision: u64) {
        self.revision = self.revision.max(revision);
        for operation in operations {
            match operation {
                Operation::Put(object) => self.put(object.clone(), revision),
                Operation::Delete(key) => drop(self.delete(key, revision)),
            }
        }
    }
}
