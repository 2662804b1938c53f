//! Which of the controller's migrations a hypervisor's words belong to.

use tenet_model::under_way;

/// The migration of a VM that this agent was told to drive last.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Driven {
    id: String,
    over: bool,
}

impl Driven {
    /// The agent begins with, or follows, this one.
    pub(crate) fn begin(&mut self, id: &str) {
        *self = Self { id: id.to_owned(), over: false };
    }

    /// Its id; empty if there is none.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Whether it is another than this one, and not over.
    pub(crate) fn holds_against(&self, id: &str) -> bool {
        !self.over && !self.id.is_empty() && self.id != id
    }

    /// Whether it has begun and is not over.
    pub(crate) fn lives(&self) -> bool {
        !self.over && !self.id.is_empty()
    }

    /// The migration that a word of this status belongs to; empty: one that this agent was not told of.
    pub(crate) fn of(&mut self, status: &str) -> String {
        if !under_way(status) {
            self.over = true;
        } else if self.over {
            // Somebody else has begun one after it.
            *self = Self::default();
        }
        self.id.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_belong_to_what_was_driven_last_until_somebody_else_begins() {
        let mut driven = Driven::default();
        assert_eq!(driven.of("active"), "");
        driven.begin("a");
        assert!(driven.holds_against("b") && !driven.holds_against("a"));
        assert_eq!((driven.of("setup").as_str(), driven.of("active").as_str()), ("a", "a"));
        assert_eq!((driven.of("failed").as_str(), driven.of("failed").as_str()), ("a", "a"));
        assert!(!driven.holds_against("b") && !driven.lives());
        assert_eq!(driven.of("setup"), "");
    }
}
