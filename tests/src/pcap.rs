//! Capture files and tshark's judgement of them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes frames as a capture file.
///
/// # Panics
/// If it cannot be written.
pub fn write(path: &Path, frames: &[Vec<u8>]) {
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, 1] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for (number, frame) in frames.iter().enumerate() {
        let length = u32::try_from(frame.len()).unwrap();
        for word in [0, u32::try_from(number).unwrap(), length, length] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(frame);
    }
    std::fs::write(path, bytes).unwrap();
}

/// A folder that ends with its handle.
#[derive(Debug)]
pub struct TempDir(pub PathBuf);

impl TempDir {
    /// A new folder.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new(tag: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tenet-{tag}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether tshark is here.
#[must_use]
pub fn has_tshark() -> bool {
    Command::new("tshark").arg("--version").output().is_ok_and(|o| o.status.success())
}

/// Runs tshark on a capture with all checksums checked; one line per frame with the fields, separated by tabs; several
/// values of one field by commas.
///
/// # Panics
/// If tshark refuses.
#[must_use]
pub fn fields(path: &Path, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    // What is above TCP and UDP would be guessed from port numbers that mean nothing here.
    let plain = ["-d", "tcp.port==1-65535,data", "-d", "udp.port==1-65535,data"];
    fields_as(path, filter, fields, &plain)
}

/// The same with tshark's options for what is above TCP and UDP.
///
/// # Panics
/// If tshark refuses.
#[must_use]
pub fn fields_as(path: &Path, filter: &str, fields: &[&str], options: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(path).args(options);
    for check in ["ip.check_checksum", "tcp.check_checksum", "udp.check_checksum"] {
        command.args(["-o", &format!("{check}:TRUE")]);
    }
    if !filter.is_empty() {
        command.args(["-Y", filter]);
    }
    command.args(["-T", "fields", "-E", "separator=/t", "-E", "occurrence=a"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|l| l.split('\t').map(str::to_owned).collect()).collect()
}
