//! What QEMU is asked, and why.

use super::{Act, ended};
use crate::qmp::{Drive, line::Migrate};

/// What a command was asked for.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Asked {
    Capabilities,
    /// Its answer does not matter.
    Nothing,
    Status,
    Progress,
    /// How this migration ended, and how often that was asked before.
    End {
        migration: String,
        status: String,
        tries: u32,
    },
    /// Whether it may be moved there.
    StatusToMove(Drive),
    ProgressToMove(Drive),
    /// How this migration, which may have been begun before, stands.
    StatusToFollow(Drive),
    ProgressToFollow(Drive),
    /// That it can go on in post-copy, before it is moved there.
    PostCopyToMove(Drive),
    /// This migration begins.
    Move(String),
    /// It goes on in post-copy.
    PostCopy,
    /// Whether this is the QEMU that waits for the VM, and that it is ready for post-copy.
    StatusToReceive(Drive),
    PostCopyToReceive(Drive),
    /// Whether there is anything left to give up of this one.
    ProgressToCancel(String),
    StatusToCancel(String),
}

impl Asked {
    /// The migration that begins once this, and what is asked after it, is answered.
    pub(super) fn leads_to(&self) -> Option<&str> {
        match self {
            Self::StatusToMove(drive) | Self::ProgressToMove(drive) | Self::PostCopyToMove(drive) => {
                Some(&drive.migration)
            }
            Self::Capabilities
            | Self::Nothing
            | Self::Status
            | Self::Progress
            | Self::End { .. }
            | Self::StatusToFollow(_)
            | Self::ProgressToFollow(_)
            | Self::Move(_)
            | Self::PostCopy
            | Self::StatusToReceive(_)
            | Self::PostCopyToReceive(_)
            | Self::ProgressToCancel(_)
            | Self::StatusToCancel(_) => None,
        }
    }

    /// What is said where no answer comes.
    pub(super) fn unanswered(self, why: &str) -> Option<Act> {
        match self {
            // Only its figures are lacking.
            Self::End { migration, status, .. } => Some(ended(Migrate::word(&migration, &status))),
            Self::StatusToMove(drive)
            | Self::ProgressToMove(drive)
            | Self::PostCopyToMove(drive)
            | Self::StatusToFollow(drive)
            | Self::ProgressToFollow(drive)
            | Self::StatusToReceive(drive)
            | Self::PostCopyToReceive(drive) => Some(ended(drive.hopeless_here(why))),
            Self::Capabilities
            | Self::Nothing
            | Self::Status
            | Self::Progress
            | Self::Move(_)
            | Self::PostCopy
            | Self::ProgressToCancel(_)
            | Self::StatusToCancel(_) => None,
        }
    }
}
