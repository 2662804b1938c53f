//! The guest's first and only file system: a cpio archive ("newc") that the kernel unpacks into memory.

use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive that grows.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    known: BTreeSet<PathBuf>,
}

impl Archive {
    /// A directory with those above it.
    pub fn directory(&mut self, path: &str) {
        let path = Path::new(path);
        if path.as_os_str().is_empty() || path == Path::new("/") || self.known.contains(path) {
            return;
        }
        if let Some(parent) = path.parent() {
            self.directory(&parent.to_string_lossy());
        }
        self.add(path, DIRECTORY, &[]);
    }

    /// A file that is not run.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.with_parent(path, FILE, content);
    }

    /// A file that is run, as it is given.
    pub fn script(&mut self, path: &str, content: &[u8]) {
        self.with_parent(path, PROGRAM, content);
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.with_parent(path, LINK, target.as_bytes());
    }

    /// A program of this machine without its symbols of debugging, and the shared libraries that it loads.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn program(&mut self, path: &str, source: &Path) -> Result<()> {
        let content = stripped(source)?;
        self.script(path, &content);
        for library in libraries(source)? {
            let name = library.to_string_lossy().into_owned();
            if !self.known.contains(&library) {
                let content = fs::read(&library).with_context(|| format!("read {name}"))?;
                self.script(&name, &content);
            }
        }
        Ok(())
    }

    /// The archive with its end.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn with_parent(&mut self, path: &str, mode: u32, content: &[u8]) {
        if let Some(parent) = Path::new(path).parent() {
            self.directory(&parent.to_string_lossy());
        }
        self.add(Path::new(path), mode, content);
    }

    fn add(&mut self, path: &Path, mode: u32, content: &[u8]) {
        if self.known.insert(path.to_owned()) {
            let name = path.to_string_lossy();
            self.entry(name.trim_start_matches('/'), mode, content);
        }
    }

    /// One entry: thirteen numbers of eight hexadecimal digits, name and content, each filled up to a multiple of 4.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let numbers = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        self.bytes.extend(numbers.iter().flat_map(|n| format!("{n:08x}").into_bytes()));
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.fill();
        self.bytes.extend(content);
        self.fill();
    }

    fn fill(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A program without what only a debugger reads: a tenth of the size, which the guest holds in memory.
fn stripped(source: &Path) -> Result<Vec<u8>> {
    let copy = std::env::temp_dir().join(format!("tenet-strip-{}", std::process::id()));
    let strip = Command::new("strip").arg("--strip-debug").arg("-o").arg(&copy).arg(source).output();
    let from = if strip.is_ok_and(|o| o.status.success()) { &copy } else { source };
    let content = fs::read(from).with_context(|| format!("read {}", source.display()));
    drop(fs::remove_file(&copy));
    content
}

/// The shared libraries that a program loads, by their paths; none for one that is linked statically.
fn libraries(source: &Path) -> Result<Vec<PathBuf>> {
    anyhow::ensure!(
        fs::metadata(source).is_ok_and(|m| m.permissions().mode() & 0o111 != 0),
        "{} is no program",
        source.display()
    );
    let output = Command::new("ldd").arg(source).output().context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "libc.so.6 => /lib/libc.so.6 (0x…)", or the loader's path alone.
    let path = |line: &str| line.split_whitespace().find(|w| w.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_names_each_directory_once_and_before_its_files() {
        let mut archive = Archive::default();
        archive.file("/a/b/one", b"12345");
        archive.link("/a/b/two", "one");
        archive.directory("/a");
        let text = String::from_utf8(archive.finish()).unwrap();
        let names = ["a\0", "a/b\0", "a/b/one\0", "a/b/two\0", "TRAILER!!!\0"];
        let places: Vec<_> = names.iter().map(|n| text.find(n).unwrap()).collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(text.matches("070701").count(), names.len());
        assert_eq!(text.len() % 4, 0);
        // Header of 110 bytes and name with its zero, filled up; content, filled up; the next.
        assert!(text.contains("a/b/one\x00") && text.contains("12345\x00\x00\x00070701"));
    }
}
