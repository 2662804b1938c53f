//! Real guests: QEMU with Debian's kernel and a system of busybox and one program of ours, up in two seconds.
//!
//! Three things to know: [`Image`] (kernel and initial file system, built once and cached), [`Guest`] (one running
//! machine: commands inside it, its console, its monitors) and [`Qmp`] (QEMU's monitor).
//!
//! Always emulated (TCG): KVM inside of another virtual machine is often there and does not work. In a guest answer:
//! [`crate::tool::PORT`] as in every VM of a lab (UDP and TCP, checked streams), and port 7, UDP and TCP, by echo.
//!
//! ```no_run
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use tenet_hostnet::Netns;
//! use tenet_lab::guest::{Guest, GuestOptions, Image, Nic};
//! if let Some(why) = tenet_lab::guest::missing() {
//!     println!("SKIPPED: {why}");
//!     return Ok(());
//! }
//! let image = Image::build()?;
//! let mut nic = Nic::new("tap0", "52:54:00:00:00:21".parse()?, 1458);
//! nic.addresses = vec![("10.1.1.11".parse()?, 24)];
//! nic.gateways = vec!["10.1.1.1".parse()?];
//! let mut options = GuestOptions::new("contoso/sql", "/run/my-test/sql");
//! options.nics.push(nic);
//! let guest = Guest::boot(&image, &Netns::open("h1")?, options)?;
//! guest.wait_up(Duration::from_secs(20))?;
//! let ping = guest.exec(["ping", "-c1", "10.1.1.12"])?;
//! println!("{} {}", ping.code, ping.stdout());
//! guest.qmp()?.migrate("tcp:192.168.2.20:4444", Duration::from_secs(60))?;
//! # Ok(()) }
//! ```

mod arguments;
mod console;
mod cpio;
mod exec;
#[path = "inside/frame.rs"]
mod frame;
mod image;
mod kernel;
mod machine;
mod qmp;

pub use arguments::{GuestOptions, Nic};
pub use console::attach;
pub use exec::Output;
pub use image::{CACHE, Image};
pub use machine::{Guest, GuestRecord, Running};
pub use qmp::{Migrated, Qmp};

use std::path::Path;

/// The emulator's program.
pub const QEMU: &str = "qemu-system-x86_64";

/// What of this machine stands in the way of guests, in words for people; `None`: nothing does.
#[must_use]
pub fn missing() -> Option<String> {
    let tools = [
        (QEMU, "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("xz", "xz-utils"),
        ("dpkg-deb", "dpkg"),
        ("apt-get", "apt"),
    ];
    let lacking: Vec<_> = tools.iter().filter(|(program, _)| !in_path(program)).collect();
    if !lacking.is_empty() {
        let names: Vec<_> = lacking.iter().map(|(program, _)| *program).collect();
        let packages: Vec<_> = lacking.iter().map(|(_, package)| *package).collect();
        return Some(format!(
            "no {}: apt-get install --no-install-recommends {}",
            names.join(", "),
            packages.join(" ")
        ));
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("this kernel has no taps (/dev/net/tun)".to_owned());
    }
    image::PROGRAM.is_empty().then(|| {
        "this program was built without its part inside of guests: build it where a static libc is (Debian: libc6-dev)"
            .to_owned()
    })
}

/// How a kernel begins to say that it found itself damaged.
const CRASHES: [&str; 7] =
    ["BUG:", "Oops", "Kernel panic", "general protection", "Bad page", "segfault", "Call Trace"];

/// The line of a console's text in which a guest's kernel says that it crashed, if it does. Emulated guests do now and
/// then on a busy machine, above all when they have moved: QEMU 7.2's emulation loses a write, whatever the network.
#[must_use]
pub fn crash_in(console: &str) -> Option<&str> {
    console.lines().find(|line| CRASHES.iter().any(|sign| line.contains(sign))).map(str::trim)
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_known_by_what_the_kernel_says() {
        let oops = "[  3.1] BUG: unable to handle page fault for address: 0000000000001000\r";
        assert_eq!(crash_in(&format!("Loading\r\n{oops}\nRIP: 0010")), Some(oops.trim_end()));
        assert_eq!(crash_in("guest contoso/sql is up after 2.31 s\n~ # \n"), None);
    }
}
