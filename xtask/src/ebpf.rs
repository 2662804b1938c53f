//! Builds the eBPF object and proves that the one in the repository belongs to its sources.
//!
//! The compiled object is kept in `crates/datapath/object/`, so that users need no eBPF toolchain. Beside
//! it stands a digest of everything that goes into it; [`check`] compares, [`build`] renews both.

use crate::{elf, packages};
use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Where the object is kept, seen from the root of the repository.
const OBJECT: &str = "crates/datapath/object/tenet.bpf.o";
/// Where its sources' digest is kept.
const DIGEST: &str = "crates/datapath/object/sources.sha256";
/// Folders whose files all go into the object.
const FOLDERS: [&str; 4] = ["ebpf/src", "crates/wire/src", "crates/tables/src", "crates/forward/src"];
/// Further files that go into it.
const FILES: [&str; 5] = [
    "ebpf/Cargo.toml",
    "ebpf/Cargo.lock",
    "crates/wire/Cargo.toml",
    "crates/tables/Cargo.toml",
    "crates/forward/Cargo.toml",
];
/// What in those folders is behind features that the object is built without.
const NOT_IN_OBJECT: [&str; 2] = ["crates/forward/src/model", "crates/tables/src/image.rs"];
/// More would not be read by anybody in a review of what the repository carries.
const LARGEST: usize = 1_000_000;
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";
const RUSTC: &str = "/usr/bin/rustc";
const LLVM: &str = "/usr/lib/x86_64-linux-gnu/libLLVM.so.22.1";

const RUSTC_WEB: packages::Package = packages::Package {
    name: "rustc-web",
    provides: "/usr/bin/rustc",
    reason: "a Rust compiler whose LLVM 22 is at hand as a library for bpf-linker",
};
const RUST_SRC: packages::Package = packages::Package {
    name: "rust-web-src",
    provides: "/usr/lib/rustlib/src/rust/library/Cargo.lock",
    reason: "Rust's core library as source, which is compiled for the eBPF target",
};

/// `cargo xtask ebpf [--check] [--out FILE]`.
///
/// # Errors
/// If the toolchain cannot be installed, the build fails, or `--check` finds a difference.
pub fn run(root: &Path, only_check: bool, out: Option<&Path>) -> Result<()> {
    if only_check {
        return check(root);
    }
    let object = build(root)?;
    if let Some(out) = out {
        fs::write(out, &object).with_context(|| format!("write {}", out.display()))?;
        println!("{}: {} bytes", out.display(), object.len());
        return Ok(());
    }
    let (path, digest) = (root.join(OBJECT), root.join(DIGEST));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::write(&path, &object).with_context(|| format!("write {OBJECT}"))?;
    fs::write(&digest, format!("{}\n", sources(root)?)).with_context(|| format!("write {DIGEST}"))?;
    println!("{OBJECT}: {} bytes", object.len());
    Ok(())
}

/// Compares the digest in the repository with the sources; needs no toolchain.
///
/// # Errors
/// If they differ, saying what to do.
pub fn check(root: &Path) -> Result<()> {
    let kept = fs::read_to_string(root.join(DIGEST)).with_context(|| format!("read {DIGEST}"))?;
    let now = sources(root)?;
    ensure!(
        kept.trim() == now,
        "the eBPF object is older than its sources (digest {now}, kept {}): run `cargo xtask ebpf` and commit {OBJECT} and {DIGEST}",
        kept.trim()
    );
    ensure!(root.join(OBJECT).exists(), "{OBJECT} is missing: run `cargo xtask ebpf`");
    Ok(())
}

/// Digest of all sources: SHA-256 over, for each file in the order of its path, the path, a zero byte, the
/// content's length as eight big-endian bytes, and the content.
///
/// # Errors
/// If a source cannot be read.
pub fn sources(root: &Path) -> Result<String> {
    let mut files: Vec<String> = FILES.iter().map(|f| (*f).to_owned()).collect();
    for folder in FOLDERS {
        collect(root, folder, &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        let content = fs::read(root.join(file)).with_context(|| format!("read {file}"))?;
        hash.update(file.as_bytes());
        hash.update([0]);
        hash.update((content.len() as u64).to_be_bytes());
        hash.update(&content);
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn collect(root: &Path, folder: &str, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join(folder)).with_context(|| format!("read folder {folder}"))? {
        let entry = entry.with_context(|| format!("read folder {folder}"))?;
        let name = entry.file_name();
        let path = format!("{folder}/{}", name.to_string_lossy());
        if NOT_IN_OBJECT.contains(&path.as_str()) {
            continue;
        }
        if entry.path().is_dir() {
            collect(root, &path, files)?;
        } else if path.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Builds the object, without debug information and without a path of this machine.
fn build(root: &Path) -> Result<Vec<u8>> {
    let tools = toolchain(root)?;
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|h| Path::new(&h).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let mut flags = String::from("-C target-cpu=v3 -C debuginfo=2 -C link-arg=--btf");
    // Line information in the BTF names files: by their place in the repository or their crate.
    let mut remap = |from: &Path, to: &str| {
        flags.push_str(&format!(" --remap-path-prefix={}={to}", from.display()));
    };
    remap(root, ".");
    for registry in fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten() {
        remap(&registry.path(), "crates");
    }
    remap(Path::new("/usr/lib/rustlib/src/rust"), "rust");
    for source in fs::read_dir("/usr/src").into_iter().flatten().flatten() {
        if source.file_name().to_string_lossy().starts_with("rustc-") {
            remap(&source.path(), "rust");
        }
    }
    let path = std::env::var("PATH").unwrap_or_default();
    run_tool(
        Command::new("cargo")
            .args(["build", "--release", "--locked", "--ignore-rust-version", "-Z", "build-std=core"])
            .args(["--target", "bpfel-unknown-none"])
            .current_dir(root.join("ebpf"))
            .env("PATH", format!("{}:{path}", tools.join("bin").display()))
            .env("RUSTC", RUSTC)
            .env("RUSTFLAGS", flags)
            // The target and building core are not stable; the compiler is a pinned package all the same.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", root.join("ebpf/target"))
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTC_WRAPPER"),
        "build the eBPF programs",
    )?;
    let built = root.join("ebpf/target/bpfel-unknown-none/release/tenet-ebpf");
    let object = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    let object = elf::without_debug(&object).context("take the debug information out of the object")?;
    ensure!(
        object.len() <= LARGEST,
        "the object has {} bytes, more than the {LARGEST} allowed",
        object.len()
    );
    let root_name = root.display().to_string();
    ensure!(
        !contains(&object, root_name.as_bytes()) && !contains(&object, home.display().to_string().as_bytes()),
        "the object names a path of this machine"
    );
    Ok(object)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|w| w == part)
}

/// Installs what is missing of the toolchain and returns where the linker is.
fn toolchain(root: &Path) -> Result<PathBuf> {
    packages::ensure(&[RUSTC_WEB, RUST_SRC])?;
    let tools = root.join("target/ebpf-toolchain");
    let linker = tools.join("bin").join(LINKER);
    let current = Command::new(&linker)
        .arg("--version")
        .output()
        .is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(LINKER_VERSION));
    if current {
        return Ok(tools);
    }
    let lib = tools.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("create {}", lib.display()))?;
    let link = lib.join("libLLVM.so");
    if !link.exists() {
        ensure!(Path::new(LLVM).exists(), "{LLVM} is missing; it comes with the package libllvm22");
        std::os::unix::fs::symlink(LLVM, &link).with_context(|| format!("link {}", link.display()))?;
    }
    eprintln!("installing {LINKER} {LINKER_VERSION} into {}: about a minute", tools.display());
    run_tool(
        Command::new("cargo")
            .args(["install", LINKER, "--version", LINKER_VERSION, "--locked", "--no-default-features"])
            .args(["--features", "llvm-22", "--root"])
            .arg(&tools)
            .env("LLVM_PREFIX", &tools)
            .env_remove("RUSTFLAGS"),
        "install the eBPF linker",
    )?;
    Ok(tools)
}

fn run_tool(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("{what}: start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{what}: {:?} ended with {status}", command.get_program());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
    }

    #[test]
    fn object_belongs_to_its_sources() {
        check(&root()).unwrap();
    }

    #[test]
    fn digest_is_stable() {
        assert_eq!(sources(&root()).unwrap(), sources(&root()).unwrap());
    }
}
