//! QEMU's words for how far a migration is.

/// Not one of QEMU's: a VM has come to the host that says so, with how long it stood still. libvirt knows that only there,
/// and some time after; of a move away from there it says nothing.
pub const ARRIVED: &str = "arrived";

/// Whether a migration of this status is under way (`MigrationStatus` of QMP, as of QEMU 7.2 and with what later ones
/// added; libvirt's are told in the same words).
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
            | "postcopy-recover-setup"
            | "postcopy-device"
            | "cancelling"
    )
}

/// Whether a migration of this status is in post-copy: the VM runs on the destination, or is about to, and part of its
/// memory is on the source still. From then on neither host has all of it, so that there is no way back.
#[must_use]
pub fn in_post_copy(status: &str) -> bool {
    under_way(status) && status.starts_with("postcopy-")
}
