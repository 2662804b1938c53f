//! Puts the hook where libvirt finds it.

use crate::cli::InstallHookArgs;
use crate::failure::{Code, Failure, Outcome};
use crate::print;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What tells our script from others.
const MARK: &str = "# Installed by `tenet libvirt install-hook`, which may write it anew.";

/// `libvirt install-hook`
pub fn install(args: &InstallHookArgs) -> Outcome {
    let file = if args.single { args.dir.join("qemu") } else { args.dir.join("qemu.d/tenet") };
    let there = match fs::read(&file) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(failed("read", &file, &e)),
    };
    if let Some(text) = &there
        && !String::from_utf8_lossy(text).contains(MARK)
    {
        let hint = if args.single {
            "leave it and install without --single: libvirt from 6.5 on calls the folder qemu.d after it"
        } else {
            "move it away, or give it another name in that folder; then try again"
        };
        let text = format!("{} is a hook of somebody else: it was not touched", file.display());
        return Err(Failure::new(text, hint).code(Code::Conflict));
    }
    if args.remove {
        if there.is_none() {
            return print::line(&format!("{} is not there", file.display()));
        }
        fs::remove_file(&file).map_err(|e| failed("remove", &file, &e))?;
        return print::line(&format!(
            "removed {}: libvirt starts domains without asking Tenet",
            file.display()
        ));
    }
    let program = std::env::current_exe().map_err(|e| failed("find", Path::new("tenet"), &e))?;
    let script = script(&program, &args.agent.socket, args.agent.timeout)?;
    if there.as_deref() == Some(script.as_bytes()) {
        return print::line(&format!("{} is there already", file.display()));
    }
    write(&file, &script).map_err(|e| failed("write", &file, &e))?;
    print::line(&format!("installed {}", file.display()))?;
    if there.is_none() {
        print::line(
            "libvirt looks for hooks only when it starts: `systemctl restart libvirtd` (or virtqemud) once; \
             guests go on running",
        )?;
    }
    Ok(())
}

/// The script. Where the program is gone, only domains of Tenet's are refused.
fn script(program: &Path, socket: &Path, timeout: u64) -> Outcome<String> {
    let (program, socket) = (quote(program)?, quote(socket)?);
    let namespace = tenet_libvirt::NAMESPACE;
    Ok(format!(
        r#"#!/bin/sh
{MARK}
tenet={program}
if [ -x "$tenet" ]; then
  exec "$tenet" libvirt hook --socket {socket} --timeout {timeout} -- "$@"
fi
case "$2" in
prepare | migrate)
  if grep -q '{namespace}'; then
    echo "tenet: $tenet is not there and domain $1 needs it: install it, or remove $0" >&2
    exit 1
  fi
  ;;
esac
exit 0
"#
    ))
}

/// For the shell.
fn quote(path: &Path) -> Outcome<String> {
    match path.to_str() {
        Some(text) if path.is_absolute() => Ok(format!("'{}'", text.replace('\'', r"'\''"))),
        _ => Err(Failure::new(
            format!("{} cannot stand in a script", path.display()),
            "give it as an absolute path without odd characters",
        )
        .code(Code::Usage)),
    }
}

/// All at once, so that libvirt never calls half a script.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    // libvirt calls every file of qemu.d: what is not finished stands outside.
    let outside: PathBuf = match folder.file_name() {
        Some(name) if name == "qemu.d" => folder.parent().unwrap_or(folder).to_owned(),
        _ => folder.to_owned(),
    };
    let part = outside.join(".tenet-hook.part");
    fs::write(&part, text)?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755))?;
    fs::rename(&part, file)
}

fn failed(what: &str, file: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot {what} {}: {error}", file.display()), "run as root on the hypervisor host")
}
