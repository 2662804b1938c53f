//! Post-copy: when a move goes on in it, and what a QEMU lacks that does not.

use super::{Act, Asked, Monitor};
use tenet_model::NEXT;

/// How far a move is with post-copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum PostCopy {
    /// It is not to be in post-copy.
    #[default]
    No,
    /// It is to be once the first pass over the memory is done: most of it has been moved then, so that the VM waits for
    /// little. One that comes to its end with that pass needs no post-copy.
    Later,
    /// QEMU was told to.
    Told,
}

impl PostCopy {
    /// A move that is found under way is followed.
    pub(super) fn follows(&mut self, wanted: bool) {
        if wanted && *self == Self::No {
            *self = Self::Later;
        }
    }
}

impl Monitor {
    /// QEMU has begun so many passes over the memory.
    pub(super) fn passed(&mut self, passes: u64) -> Option<Act> {
        if passes < 2 || self.post_copy != PostCopy::Later || !self.driven.lives() {
            return None;
        }
        self.post_copy = PostCopy::Told;
        Some(self.ask(Asked::PostCopy, "migrate-start-postcopy", None))
    }
}

/// What to do about a move in post-copy that failed before it was in it: QEMU itself says only that nobody listens any
/// more (7.2: `Unable to write to socket: Bad file descriptor`), and on the other side `RAM postcopy is disabled but have
/// 16 byte advise`.
pub(super) fn unready(uri: &str) -> String {
    format!(
        "{NEXT}read what the destination's QEMU said when it ended, and see that the one which listens at {uri} is the one \
         whose monitor the agent there has: only that is made ready for post-copy"
    )
}

/// QEMU has no post-copy.
pub(super) fn no_post_copy(which: &str, why: &str) -> String {
    format!(
        "the QEMU that {which} takes no post-copy: {why}{NEXT}let its user have userfaultfd (`sysctl \
         vm.unprivileged_userfaultfd=1`) and lock none of its memory, or move the VM without --post-copy"
    )
}
