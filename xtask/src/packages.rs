//! System packages that a task needs, each with its reason; installed only where they are missing.

use anyhow::{Context as _, Result, bail};
use std::{path::Path, process::Command};

/// A Debian package, the program that shows it is there, and why it is needed.
pub struct Package {
    /// Name in Debian.
    pub name: &'static str,
    /// A file that exists once it is installed.
    pub provides: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// `ip` builds the comparison topologies and looks at what Tenet left behind.
pub const IPROUTE2: Package = Package {
    name: "iproute2",
    provides: "/sbin/ip",
    reason: "`ip` and `tc` build and inspect the test networks",
};
/// `ping` is the probe that everybody knows.
pub const PING: Package =
    Package { name: "iputils-ping", provides: "/bin/ping", reason: "`ping` from inside the lab's VMs" };
/// The independent judge of what Tenet emits.
pub const TSHARK: Package = Package {
    name: "tshark",
    provides: "/usr/bin/tshark",
    reason: "decodes and judges the frames on the wire",
};
/// Turns the underlay's offloads off for captures and benches.
pub const ETHTOOL: Package =
    Package { name: "ethtool", provides: "/sbin/ethtool", reason: "switches offloads of the test networks" };

/// The other switch: what our frames must work with, and what our speed is compared with.
pub const OPENVSWITCH: Package = Package {
    name: "openvswitch-switch",
    provides: "/usr/sbin/ovs-vswitchd",
    reason: "its userspace datapath is the other end of interop tests; started in namespaces, no service is used",
};

/// Real guests, emulated: they run on every machine.
pub const QEMU: Package = Package {
    name: "qemu-system-x86",
    provides: "/usr/bin/qemu-system-x86_64",
    reason: "the bench of migrations moves real guests",
};
/// What a guest's system is made of.
pub const BUSYBOX: Package = Package {
    name: "busybox-static",
    provides: "/bin/busybox",
    reason: "the system inside of real guests, as it needs no libraries",
};
/// Unpacks the guests' kernel.
pub const XZ: Package =
    Package { name: "xz-utils", provides: "/usr/bin/xz", reason: "unpacks the kernel of real guests" };
/// Reads the guests' archives.
pub const CPIO: Package = Package {
    name: "cpio",
    provides: "/usr/bin/cpio",
    reason: "a test has it read the first file system of real guests",
};
#[cfg(feature = "bench")]
/// OVN's databases and its controller's central part.
pub const OVN_CENTRAL: Package = Package {
    name: "ovn-central",
    provides: "/usr/bin/ovn-northd",
    reason: "the other network that real guests move on; started in namespaces, no service is used",
};
#[cfg(feature = "bench")]
/// OVN's part on hosts.
pub const OVN_HOST: Package =
    Package { name: "ovn-host", provides: "/usr/bin/ovn-controller", reason: "see ovn-central" };
/// Domains on the hosts of a lab: the daemon, started in namespaces; no service is used.
pub const LIBVIRTD: Package = Package {
    name: "libvirt-daemon-system",
    provides: "/usr/sbin/libvirtd",
    reason: "real domains in end-to-end tests; its daemon is started in namespaces, no service is used",
};
/// Drives it.
pub const VIRSH: Package = Package {
    name: "libvirt-clients",
    provides: "/usr/bin/virsh",
    reason: "`virsh` drives the tests' domains",
};

/// Installs those that are missing, saying which and why.
///
/// # Errors
/// If apt-get fails; the message names what to install by hand.
pub fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> =
        packages.iter().filter(|p| !Path::new(p.provides).exists() && !usr(p.provides)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for p in &missing {
        eprintln!("installing {}: {}", p.name, p.reason);
    }
    let names: Vec<&str> = missing.iter().map(|p| p.name).collect();
    apt(&["update", "-qq"])?;
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(&names);
    apt(&install).with_context(|| format!("install by hand, as root: apt-get install {}", names.join(" ")))
}

fn usr(path: &str) -> bool {
    Path::new("/usr").join(path.trim_start_matches('/')).exists()
}

fn apt(args: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("run apt-get (this needs Debian or a relative of it)")?;
    if !output.status.success() {
        bail!("apt-get {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
