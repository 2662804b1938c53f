//! Whether there is a libvirt to listen to, by signs that cost next to nothing to look at.

use crate::options::Libvirt;
use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// A host's own libvirt.
const SYSTEM: &str = "qemu:///system";
/// Where its daemon takes connections: libvirtd, and virtqemud where daemons are modular.
const SOCKETS: [&str; 2] = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"];
/// What libvirt itself takes for the URI of those who name none.
const DEFAULT_URI: &str = "LIBVIRT_DEFAULT_URI";
/// Where programs are if nobody says, as the C library has it.
const PATH: &str = "/bin:/usr/bin";

/// Looks for the libvirt that an agent shall follow.
#[derive(Clone, Debug)]
pub(crate) struct Finder {
    wish: Libvirt,
    uri: String,
    sockets: Vec<PathBuf>,
    path: OsString,
}

/// What is to be seen of a libvirt.
#[derive(Clone, Copy, Debug, Default)]
struct Signs {
    /// There is a program `virsh`.
    virsh: bool,
    /// A daemon takes connections, or systemd does so for it.
    socket: bool,
    /// Its hook has asked this agent for something.
    hook: bool,
}

/// What to do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// It is to be listened to.
    Here,
    /// It has domains of ours, and there is nothing to listen by.
    NoVirsh,
    /// There is none now.
    None,
    /// None is wanted.
    Off,
}

impl Finder {
    /// As this process' environment has it.
    pub(crate) fn new(wish: Libvirt) -> Self {
        let told = env::var(DEFAULT_URI).ok();
        let path = env::var_os("PATH").unwrap_or_else(|| PATH.into());
        let (uri, sockets) = match &wish {
            Libvirt::At(uri) => (uri.clone(), Vec::new()),
            Libvirt::Auto | Libvirt::Off => place(told.as_deref()),
        };
        Self { wish, uri, sockets, path }
    }

    /// The same, with programs looked for only here.
    #[cfg(test)]
    pub(crate) fn with_path(self, path: &Path) -> Self {
        Self { path: path.into(), ..self }
    }

    /// Its URI.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// Where programs are looked for, as `PATH` has it.
    pub(crate) fn path(&self) -> &OsStr {
        &self.path
    }

    /// Looks; `hook`: one of libvirt's has asked for something, or has brought domains that are still here.
    pub(crate) fn look(&self, hook: bool) -> Found {
        let socket = self.sockets.iter().any(|s| s.exists());
        judge(&self.wish, Signs { virsh: there_is("virsh", &self.path), socket, hook })
    }
}

fn judge(wish: &Libvirt, signs: Signs) -> Found {
    match (wish, signs) {
        (Libvirt::Off, _) => Found::Off,
        (Libvirt::Auto | Libvirt::At(_), Signs { virsh: false, hook: true, .. }) => Found::NoVirsh,
        // Who names one is told, by what virsh says, that it is not there.
        (Libvirt::At(_), _) => Found::Here,
        (Libvirt::Auto, Signs { virsh: true, socket, hook }) if socket || hook => Found::Here,
        (Libvirt::Auto, _) => Found::None,
    }
}

/// The libvirt of this host and where its sockets may be. The default that libvirt itself honours counts, as far as it
/// names QEMU on this host: domains of another one, or of another kind, are none of this agent's.
fn place(told: Option<&str>) -> (String, Vec<PathBuf>) {
    let of_system = || SOCKETS.iter().map(PathBuf::from).collect();
    let Some(uri) = told.filter(|u| ours(u)) else { return (SYSTEM.to_owned(), of_system()) };
    let parameters = uri.split_once('?').map_or("", |(_, p)| p);
    let sockets: Vec<PathBuf> =
        parameters.split('&').filter_map(|p| p.strip_prefix("socket=")).map(PathBuf::from).collect();
    (uri.to_owned(), if sockets.is_empty() { of_system() } else { sockets })
}

fn ours(uri: &str) -> bool {
    let plain = uri.split_once('?').map_or(uri, |(plain, _)| plain);
    matches!(plain, "qemu:///system" | "qemu+unix:///system")
}

/// Whether a program is found as `execvp` finds it.
fn there_is(program: &str, path: &OsStr) -> bool {
    let runs =
        |file: &Path| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    env::split_paths(path).any(|folder| runs(&folder.join(program)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_libvirt_is_followed_once_it_can_be_heard_and_shows_itself() {
        let auto = Libvirt::Auto;
        let signs = |virsh, socket, hook| Signs { virsh, socket, hook };
        for (signs, found) in [
            (signs(true, true, false), Found::Here),
            // A hook that asks is libvirt's own word that it is there, wherever its socket is.
            (signs(true, false, true), Found::Here),
            (signs(true, true, true), Found::Here),
            // virsh comes with the clients, also to hosts without a daemon.
            (signs(true, false, false), Found::None),
            // A daemon whose domains are none of ours needs no virsh.
            (signs(false, true, false), Found::None),
            (signs(false, false, false), Found::None),
            (signs(false, false, true), Found::NoVirsh),
            (signs(false, true, true), Found::NoVirsh),
        ] {
            assert_eq!(judge(&auto, signs), found, "{signs:?}");
        }
    }

    #[test]
    fn what_was_said_counts_more_than_what_is_seen() {
        let all = Signs { virsh: true, socket: true, hook: true };
        let named = Libvirt::At("qemu:///system".into());
        assert_eq!(
            (judge(&Libvirt::Off, all), judge(&Libvirt::Off, Signs::default())),
            (Found::Off, Found::Off)
        );
        assert_eq!((judge(&named, all), judge(&named, Signs::default())), (Found::Here, Found::Here));
        assert_eq!(judge(&named, Signs { hook: true, ..Signs::default() }), Found::NoVirsh);
    }

    #[test]
    fn libvirts_own_default_is_honoured_where_it_is_this_hosts() {
        let socket = "qemu+unix:///system?socket=/a/libvirt-sock";
        assert_eq!(place(Some(socket)), (socket.to_owned(), vec![PathBuf::from("/a/libvirt-sock")]));
        let direct = "qemu:///system?mode=direct";
        assert_eq!(place(Some(direct)), (direct.to_owned(), SOCKETS.map(PathBuf::from).to_vec()));
        for other in ["", "lxc:///system", "qemu:///session", "qemu+ssh://h2/system", "qemu://h2/system"] {
            assert_eq!(place(Some(other)), place(None), "{other}");
        }
        assert_eq!(place(None).0, "qemu:///system");
    }

    #[test]
    fn a_program_is_found_as_a_shell_finds_it() {
        assert!(there_is("sh", OsStr::new("/nowhere:/bin")));
        assert!(!there_is("sh", OsStr::new("/nowhere")) && !there_is("sh", OsStr::new("")));
        // Neither a file that nobody may run nor a folder.
        assert!(!there_is("passwd", OsStr::new("/etc")) && !there_is("etc", OsStr::new("/")));
    }
}
