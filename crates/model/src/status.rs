//! QEMU's words for how far a migration is.

/// Whether a migration of this status is under way (`MigrationStatus` of QMP, QEMU 7.2; libvirt's are told in the same
/// words).
#[must_use]
pub fn under_way(status: &str) -> bool {
    matches!(
        status,
        "setup"
            | "active"
            | "device"
            | "pre-switchover"
            | "wait-unplug"
            | "postcopy-active"
            | "postcopy-paused"
            | "postcopy-recover"
            | "cancelling"
    )
}
