//! Talks to libvirt by its own program: no library of it is linked, so that `tenet` runs where libvirt is not, and
//! with every version of it.

use crate::failure::{Code, Failure, Outcome};
use std::io::ErrorKind;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

/// Longest run of one command.
const PATIENCE: Duration = Duration::from_secs(60);

/// libvirt at a URI.
pub struct Virsh {
    uri: String,
}

/// What `virsh dominfo` says.
pub struct Info {
    /// Whether it runs (or is paused).
    pub active: bool,
    /// Whether it is there after it was shut down.
    pub persistent: bool,
}

impl Virsh {
    /// libvirt at a URI.
    pub fn new(uri: &str) -> Self {
        Self { uri: uri.to_owned() }
    }

    /// Runs a command to its end; what it printed.
    pub async fn run(&self, args: &[&str]) -> Outcome<String> {
        self.with_input(args, "").await
    }

    /// The same with text on its standard input, which it reads as `/dev/stdin`.
    pub async fn with_input(&self, args: &[&str], input: &str) -> Outcome<String> {
        let command = args.first().copied().unwrap_or_default();
        let mut child = Command::new("virsh")
            .args(["--connect", &self.uri, "--quiet"])
            .args(args)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| match e.kind() {
                ErrorKind::NotFound => Failure::new(
                    "there is no program `virsh` here",
                    "install libvirt's clients (Debian: apt-get install libvirt-clients)",
                ),
                _ => Failure::of(&e, "check the limits on processes"),
            })?;
        let work = async {
            if let Some(mut stdin) = child.stdin.take() {
                // A reader that ended early says why on its standard error.
                _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = timeout(PATIENCE, work).await.map_err(|_| {
            let text = format!("virsh {command} has not ended within {} s", PATIENCE.as_secs());
            Failure::new(text, "look whether libvirtd hangs (`systemctl status libvirtd`)")
        })?;
        let output = output.map_err(|e| Failure::of(&e, "try again"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> =
            said.lines().map(|l| l.trim().trim_start_matches("error: ")).filter(|l| !l.is_empty()).collect();
        let text = format!("virsh {command}: {}", said.join("; "));
        if text.contains("failed to connect") {
            let hint = format!("check that libvirtd runs and that {} is its URI (--connect)", self.uri);
            return Err(Failure::new(text, hint).code(Code::Unreachable));
        }
        let hint = next(&text, &self.uri, args);
        Err(Failure::new(text, hint))
    }

    /// State of a domain.
    pub async fn info(&self, domain: &str) -> Outcome<Info> {
        let text = self.run(&["dominfo", "--domain", domain]).await?;
        let is = |key: &str, value: &str| {
            text.lines().any(|l| l.strip_prefix(key).is_some_and(|v| v.trim() == value))
        };
        Ok(Info { active: !is("Id:", "-"), persistent: is("Persistent:", "yes") })
    }

    /// A domain's description as it runs.
    pub async fn live(&self, domain: &str) -> Outcome<String> {
        self.run(&["dumpxml", "--domain", domain]).await
    }

    /// A domain's description as it starts the next time; with its secrets, as it is defined anew.
    pub async fn stored(&self, domain: &str) -> Outcome<String> {
        self.run(&["dumpxml", "--inactive", "--security-info", "--domain", domain]).await
    }

    /// Stores a domain's description.
    pub async fn define(&self, xml: &str) -> Outcome {
        self.with_input(&["define", "/dev/stdin"], xml).await.map(drop)
    }
}

/// What to do about virsh's words.
fn next(said: &str, uri: &str, args: &[&str]) -> String {
    let virsh = format!("virsh --connect {uri}");
    if said.contains("failed to get domain") {
        format!("`{virsh} list --all` shows the domains that are there")
    } else if said.contains("failed to get network") {
        format!("`{virsh} net-list --all` shows the networks that are there")
    } else if said.contains("authentication") || said.contains("access denied") {
        "run as root, or as a member of group libvirt".to_owned()
    } else if said.contains("read only") || said.contains("forbidden") {
        "name a connection that may write with --connect, such as qemu:///system".to_owned()
    } else {
        let command: Vec<&str> = args.iter().map(|a| if a.is_empty() { "''" } else { *a }).collect();
        format!(
            "run `{virsh} {}` by hand; `journalctl -u libvirtd` (or `virtqemud`) has the details",
            command.join(" ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_virsh_has_a_next_step() {
        let uri = "qemu:///system";
        let attach = ["attach-device", "--domain", "sql", "/dev/stdin", "--live"];
        for (said, hint) in [
            ("virsh dominfo: failed to get domain 'x'", "`virsh --connect qemu:///system list --all`"),
            ("virsh net-dumpxml: failed to get network 'x'", "net-list --all"),
            ("virsh define: authentication unavailable", "as root"),
            ("virsh define: operation define forbidden for read only access", "--connect"),
            ("virsh attach-device: internal error: no more PCI slots", "attach-device --domain sql"),
            ("virsh attach-device: ", "journalctl -u libvirtd"),
        ] {
            let next = next(said, uri, &attach);
            assert!(next.contains(hint), "{said}: {next}");
        }
    }
}
