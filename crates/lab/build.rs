//! Compiles the program that runs inside of guests: static, as a guest has no libraries, which cargo cannot say for one
//! program of a workspace alone.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=src/guest/inside");
    println!("cargo::rerun-if-changed=src/tool/serve.rs");
    println!("cargo::rerun-if-changed=src/tool/measure.rs");
    println!("cargo::rustc-check-cfg=cfg(inside_guest)");
    let out = Path::new(&env::var("OUT_DIR")?).join("tenet-guest");
    let target = env::var("TARGET")?;
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc
        .args([
            "--edition",
            "2024",
            "--crate-type",
            "bin",
            "--crate-name",
            "tenet_guest",
            "--target",
            &target,
        ])
        .args(["-C", "target-feature=+crt-static", "-C", "opt-level=s", "-C", "panic=abort"])
        .args(["-C", "strip=symbols", "-C", "codegen-units=1", "-D", "warnings", "--cfg", "inside_guest"])
        .arg("-o")
        .arg(&out)
        .arg("src/guest/inside/main.rs");
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    if !rustc.status()?.success() {
        // Everything but real guests works without it, and they say what is missing.
        println!("cargo::warning=no program for guests: a static libc is needed (Debian: libc6-dev)");
        std::fs::write(&out, [])?;
    }
    Ok(())
}
