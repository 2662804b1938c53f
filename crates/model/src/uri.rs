//! Where a VM's memory may be moved to.
//!
//! A hypervisor's URI can do more than name a place: QEMU runs what stands after `exec:` in a shell, libvirt runs the
//! parameter `command`, as root. Whoever may change networks shall not thereby run programs on hosts. So only what is
//! known to do nothing but connect is let through, by the controller and once more by the agent that acts on it.

use crate::Through;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest URI that is looked at.
const LONGEST: usize = 512;

/// Why a URI is not one that a VM's memory may be moved to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UriError {
    /// No form that QEMU's monitor is given.
    #[error(
        "QEMU may be told to move a VM to tcp:HOST:PORT, rdma:HOST:PORT or unix:/PATH (an IPv6 address in brackets), \
         and to nothing that runs a program or reads a file"
    )]
    Qmp,
    /// No form that libvirt is given.
    #[error(
        "libvirt may be told to move a VM to qemu+ssh://[USER@]HOST[:PORT]/system, the same with qemu+tls, qemu+tcp or \
         qemu, to qemu:///system or qemu+unix:///system (/session as well); with no parameter but socket=/PATH and \
         mode=auto, direct or legacy of qemu+unix, for others run programs or read files"
    )]
    Libvirt,
    /// Nobody is told to move the VM there.
    #[error("a URI is for a migration through qmp or libvirt")]
    NotDriven,
}

/// Whether a hypervisor may be told to move a VM there. What is not known to do nothing but connect is refused.
///
/// # Errors
/// The forms that are allowed.
pub fn check_migration_uri(through: Through, uri: &str) -> Result<(), UriError> {
    // Nothing that a shell, an option's parser or a percent decoder would look at twice.
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-._:/?=&@[]".contains(c);
    let plain = uri.len() <= LONGEST && uri.chars().all(plain);
    match through {
        Through::Qmp if plain && is_qmp(uri) => Ok(()),
        Through::Qmp => Err(UriError::Qmp),
        Through::Libvirt if plain && is_libvirt(uri) => Ok(()),
        Through::Libvirt => Err(UriError::Libvirt),
        Through::SwitchOnly | Through::Other => Err(UriError::NotDriven),
    }
}

fn is_qmp(uri: &str) -> bool {
    match uri.split_once(':') {
        Some(("tcp" | "rdma", place)) => {
            place.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port))
        }
        Some(("unix", path)) => is_path(path),
        _ => false,
    }
}

fn is_libvirt(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once("://") else { return false };
    let Some((authority, rest)) = rest.find('/').and_then(|at| rest.split_at_checked(at)) else {
        return false;
    };
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    if !matches!(path, "/system" | "/session") {
        return false;
    }
    match scheme {
        "qemu" | "qemu+tls" | "qemu+tcp" | "qemu+ssh" if !authority.is_empty() => {
            query.is_none() && is_authority(authority)
        }
        "qemu" => authority.is_empty() && query.is_none(),
        // libvirt connects to this socket and speaks its own protocol there; no program is run.
        "qemu+unix" => authority.is_empty() && query.is_none_or(|query| query.split('&').all(is_harmless)),
        _ => false,
    }
}

/// A parameter of `qemu+unix`.
fn is_harmless(parameter: &str) -> bool {
    match parameter.split_once('=') {
        Some(("socket", path)) => is_path(path),
        Some(("mode", mode)) => matches!(mode, "auto" | "direct" | "legacy"),
        _ => false,
    }
}

/// `[USER@]HOST[:PORT]`; ssh gets user and host as arguments, which must not look like options.
fn is_authority(authority: &str) -> bool {
    let (user, place) = authority.split_once('@').map_or((None, authority), |(u, p)| (Some(u), p));
    if !user.is_none_or(is_word) {
        return false;
    }
    is_host(place) || place.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port))
}

/// A name, an IPv4 address, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok() || is_word(host),
    }
}

/// Letters, digits, `.`, `-`, `_`, and no `-` or `.` in front.
fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// An absolute path to a socket, without a way up, an empty part or a parameter in it.
fn is_path(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| {
        rest.split('/')
            .all(|part| !part.is_empty() && part != ".." && !part.contains(['?', '=', '&', '@', '[', ']']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_connects_is_allowed() {
        for uri in [
            "tcp:10.0.0.2:49152",
            "tcp:h2:1",
            "tcp:h2.dc-1.example:65535",
            "tcp:[2001:db8::2]:49152",
            "rdma:10.0.0.2:4444",
            "unix:/tmp/tenet-1/memory",
            "unix:/tmp/.tmpA_b/x.sock",
        ] {
            assert_eq!(check_migration_uri(Through::Qmp, uri), Ok(()), "{uri}");
        }
        for uri in [
            "qemu:///system",
            "qemu:///session",
            "qemu://h2/system",
            "qemu+ssh://h2/system",
            "qemu+ssh://root@h2.example:2222/system",
            "qemu+ssh://root@[2001:db8::2]:22/system",
            "qemu+tls://h2/system",
            "qemu+tcp://10.0.0.2:16509/system",
            "qemu+unix:///system",
            "qemu+unix:///system?socket=/tmp/.tmpXy/h2/libvirt-sock",
            "qemu+unix:///system?socket=/run/x&mode=direct",
        ] {
            assert_eq!(check_migration_uri(Through::Libvirt, uri), Ok(()), "{uri}");
        }
    }

    #[test]
    fn what_runs_programs_or_reads_files_is_refused() {
        for uri in [
            "",
            "exec:touch /tmp/x",
            "exec:/bin/x",
            "EXEC:/bin/x",
            "fd:3",
            "file:/etc/shadow",
            "file:/dev/sda,offset=0",
            "defer",
            "-incoming",
            " tcp:h2:1",
            "tcp:h2:1\n",
            "tcp:h2:1,to=9",
            "tcp:h2",
            "tcp::1",
            "tcp:-h2:1",
            "tcp:h2:0",
            "tcp:h2:+1",
            "tcp:h2:65536",
            "tcp:2001:db8::2:1",
            "unix:",
            "unix:x",
            "unix:/a/../b",
            "unix://a",
            "unix:/a b",
            "unix:/a,b",
            "vsock:2:1",
            "qemu+ssh://h2/system",
        ] {
            assert_eq!(check_migration_uri(Through::Qmp, uri), Err(UriError::Qmp), "{uri:?}");
        }
        for uri in [
            "",
            "-c",
            "--help",
            "qemu+ext:///system?command=/tmp/x",
            "qemu+ext://h2/system",
            "qemu+ssh://h2/system?command=/tmp/x",
            "qemu+ssh://h2/system?netcat=/tmp/x",
            "qemu+ssh://h2/system?proxy=native",
            "qemu+ssh://h2/system?sshauth=privkey",
            "qemu+ssh://h2/system?keyfile=/home/admin/.ssh/id_rsa",
            "qemu+ssh://h2/system?no_verify=1",
            "qemu+ssh://h2/system?socket=/run/x",
            "qemu+ssh://h2/system?",
            "qemu+tls://h2/system?pkipath=/tmp",
            "qemu+unix:///system?socket=/run/x&command=/tmp/x",
            "qemu+unix:///system?socket=/run/x;command=/tmp/x",
            "qemu+unix:///system?socket=/run/x?command=/tmp/x",
            "qemu+unix:///system?socket=x",
            "qemu+unix:///system?socket=/run/../x",
            "qemu+unix:///system?socket",
            "qemu+unix:///system?name=qemu:///session",
            "qemu+unix:///system?mode=other",
            "qemu+unix:///system?%63ommand=/tmp/x",
            "qemu+unix://h2/system?socket=/run/x",
            "qemu+libssh2://h2/system",
            "qemu+ssh:///system",
            "qemu+ssh://-oProxyCommand=x/system",
            "qemu+ssh://-oProxyCommand@h2/system",
            "qemu+ssh://a@b@h2/system",
            "qemu+ssh://h2:22:22/system",
            "qemu+ssh://h2:x/system",
            "qemu+ssh://h2",
            "qemu+ssh://h2/",
            "qemu+ssh://h2/embed?root=/tmp",
            "qemu+ssh://h2/system#x",
            "qemu+ssh://h2/system x",
            "lxc:///system",
            "xen+ssh://h2/system",
            "test:///default",
            "QEMU+EXT://h2/system",
            "tcp:10.0.0.2:49152",
        ] {
            assert_eq!(check_migration_uri(Through::Libvirt, uri), Err(UriError::Libvirt), "{uri:?}");
        }
        let long = format!("unix:/{}", "a".repeat(LONGEST));
        assert_eq!(check_migration_uri(Through::Qmp, &long), Err(UriError::Qmp));
        assert_eq!(check_migration_uri(Through::Other, "tcp:h2:1"), Err(UriError::NotDriven));
    }
}
