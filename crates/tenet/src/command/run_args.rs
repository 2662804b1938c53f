//! `vm run-args`: the arguments with which QEMU opens a VM's ports.

use crate::cli::RunArgs;
use crate::command::Context;
use crate::failure::{Failure, Outcome};
use crate::print;
use std::path::{Path, PathBuf};
use tenet_api::client::Client;
use tenet_api::local::LocalClient;
use tenet_api::rest::PortView;
use tenet_model::{Mac, Name, VmRef};

/// One NIC as QEMU is told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Nic {
    port: Name,
    tap: String,
    mac: Mac,
    /// 0: not known yet.
    mtu: u32,
    queues: u16,
}

/// `vm run-args`
pub async fn run_args(context: &Context, args: RunArgs) -> Outcome {
    let (nics, told) = if context.global.lab.is_none() && !context.global.admin_file.exists() {
        of_agent(&args).await?
    } else {
        of_controller(&context.client()?, &args).await?
    };
    for nic in nics.iter().filter(|n| n.mtu == 0) {
        print::note(&format!(
            "port {} is not ready on {}: `tenet status` says what it lacks",
            nic.port,
            place(&args)
        ));
    }
    // An agent that is older than the question, or is told to look nowhere, says nothing.
    let monitors = args.qmp_dir.or(told).unwrap_or_else(|| tenet_host_agent::QMP_DIR.into());
    let words = words(&nics, &args.vm, &monitors);
    if context.json() {
        return print::json(&words);
    }
    if args.lines {
        return print::line(&words.join("\n"));
    }
    print::line(&words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" "))
}

/// There is nothing to print; `ports` are those that the VM has, on whatever host.
fn nothing(args: &RunArgs, ports: &[PortView]) -> Failure {
    let vm = &args.vm;
    let text = format!("VM {vm} has no port on {}", place(args));
    let elsewhere = ports.iter().find_map(|p| p.host.as_ref());
    match (elsewhere, &args.host, ports.first()) {
        (Some(on), Some(to), _) => Failure::new(
            format!("{text}: it is on host {on}"),
            format!("`tenet vm migrate {vm} --to {to}` moves it; once that is prepared, run this again"),
        ),
        (_, _, None) => Failure::new(
            text,
            format!("attach one first: `tenet vm attach {vm} --host HOST --subnet NETWORK/SUBNET`"),
        ),
        (..) => Failure::new(text, format!("attach one first: `tenet vm attach {vm} --host HOST`")),
    }
}

fn place(args: &RunArgs) -> String {
    args.host.as_ref().map_or_else(|| "any host".to_owned(), |h| format!("host {h}"))
}

/// As the site has them: on the host where the VM is, or on the one where it moves.
async fn of_controller(client: &Client, args: &RunArgs) -> Outcome<(Vec<Nic>, Option<PathBuf>)> {
    let vm = client.vm(&args.vm).await?;
    let status = client.status().await?;
    let (mut nics, mut monitors) = (Vec::new(), None);
    for port in &vm.ports {
        let moves = vm.migration.as_ref().filter(|m| args.host.as_ref() == Some(&m.to));
        let here = match moves {
            Some(m) => m.devices.get(&port.name.port).map(|device| (&m.to, device)),
            None => port.host.as_ref().zip(port.device.as_ref()),
        };
        let Some((host, device)) = here.filter(|(h, _)| args.host.as_ref().is_none_or(|a| a == *h)) else {
            continue;
        };
        let found = status.hosts.iter().find(|h| h.name == *host);
        monitors = monitors.or_else(|| found.and_then(|h| h.qmp_dir.as_ref()).map(PathBuf::from));
        let ports = found.into_iter().flat_map(|h| &h.ports);
        let mtu = ports.filter(|p| p.port == port.name && p.present).map(|p| p.mtu).next();
        nics.push(Nic {
            port: port.name.port.clone(),
            tap: device.clone(),
            mac: port.mac,
            mtu: mtu.unwrap_or(0),
            queues: port.queues,
        });
    }
    if nics.is_empty() { Err(nothing(args, &vm.ports)) } else { Ok((nics, monitors)) }
}

/// As this host's agent has them.
async fn of_agent(args: &RunArgs) -> Outcome<(Vec<Nic>, Option<PathBuf>)> {
    let vms = LocalClient::new(&args.socket.socket)?.vms().await?;
    let vm = vms.into_iter().find(|v| v.vm == args.vm);
    let monitors = vm.as_ref().and_then(|v| v.qmp_dir.as_ref()).map(PathBuf::from);
    let nics: Vec<Nic> = vm
        .into_iter()
        .flat_map(|v| v.ports)
        .map(|p| Nic { port: p.port.port, tap: p.device, mac: p.mac, mtu: p.mtu, queues: p.queues })
        .collect();
    if nics.is_empty() {
        // It may well be on another host, which this one's agent does not know.
        return Err(Failure::new(
            format!("VM {} has no port on this host", args.vm),
            format!(
                "where the controller is, `tenet vm show {vm}` tells where it is: `tenet vm migrate {vm} --to HOST` moves \
                 it from another host, `tenet vm attach {vm} --host HOST` is for one that is on none",
                vm = args.vm
            ),
        ));
    }
    Ok((nics, monitors))
}

fn words(nics: &[Nic], vm: &VmRef, qmp_dir: &Path) -> Vec<String> {
    let mut words = Vec::new();
    for nic in nics {
        // QEMU's ids begin with a letter.
        let id = format!("tenet-{}", nic.port);
        let mut netdev =
            format!("tap,id={id},ifname={},script=no,downscript=no,vnet_hdr=on", comma(&nic.tap));
        // No boot ROM: it would cost each migration the same ROM on both sides, and a machine may have none.
        let mut device = format!("virtio-net-pci,netdev={id},mac={},romfile=", nic.mac);
        if nic.mtu != 0 {
            device += &format!(",host_mtu={}", nic.mtu);
        }
        if nic.queues > 1 {
            netdev += &format!(",queues={}", nic.queues);
            // Two for each queue, and one each for configuration and control.
            device += &format!(",mq=on,vectors={}", 2 * u32::from(nic.queues) + 2);
        }
        words.extend(["-netdev".to_owned(), netdev, "-device".to_owned(), device]);
    }
    let socket = comma(&tenet_host_agent::monitor_path(qmp_dir, vm).display().to_string());
    words.extend(["-qmp".to_owned(), format!("unix:{socket},server=on,wait=off")]);
    words
}

/// As QEMU's options write a comma.
fn comma(text: &str) -> String {
    text.replace(',', ",,")
}

/// One word for a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Socket;

    fn nic(port: &str, mtu: u32, queues: u16) -> Nic {
        let mac = Mac::new([2, 0, 0, 0, 0, 7]).unwrap();
        Nic { port: Name::new(port).unwrap(), tap: "tn01234567890".into(), mac, mtu, queues }
    }

    #[test]
    fn arguments_name_tap_mac_mtu_and_socket() {
        let vm = "contoso/sql".parse().unwrap();
        let words = words(&[nic("eth0", 1458, 1)], &vm, Path::new("/run/tenet/qmp"));
        assert_eq!(
            words,
            [
                "-netdev",
                "tap,id=tenet-eth0,ifname=tn01234567890,script=no,downscript=no,vnet_hdr=on",
                "-device",
                "virtio-net-pci,netdev=tenet-eth0,mac=02:00:00:00:00:07,romfile=,host_mtu=1458",
                "-qmp",
                "unix:/run/tenet/qmp/contoso.sql.sock,server=on,wait=off",
            ]
        );
    }

    #[test]
    fn a_vm_that_is_elsewhere_is_moved_and_not_attached() {
        let port = |host: &str| {
            serde_json::from_value::<PortView>(serde_json::json!({
                "name": "contoso/sql/eth0", "subnet": "contoso/blue/web", "mac": "02:00:00:00:00:07",
                "addresses": [], "host": Some(host).filter(|h| !h.is_empty()), "device": null, "security": true,
                "revision": 1,
            }))
            .unwrap()
        };
        let hint = |host: Option<&str>, ports: &[PortView]| {
            let args = RunArgs {
                vm: "contoso/sql".parse().unwrap(),
                host: host.map(|h| h.parse().unwrap()),
                lines: false,
                qmp_dir: None,
                socket: Socket { socket: "/run/tenet/agent.sock".into() },
            };
            nothing(&args, ports).to_string()
        };
        let elsewhere = hint(Some("h2"), &[port("h1")]);
        assert!(elsewhere.contains("it is on host h1"), "{elsewhere}");
        assert!(elsewhere.contains("`tenet vm migrate contoso/sql --to h2`"), "{elsewhere}");
        assert!(!elsewhere.contains("vm attach"), "{elsewhere}");
        let nowhere = hint(Some("h2"), &[port("")]);
        assert!(nowhere.contains("`tenet vm attach contoso/sql --host HOST`"), "{nowhere}");
        assert!(hint(None, &[]).contains("--subnet NETWORK/SUBNET"));
    }

    #[test]
    fn several_queues_are_asked_for_at_both_ends() {
        let vm = "contoso/sql".parse().unwrap();
        let words = words(&[nic("eth0", 0, 4)], &vm, Path::new("/a,b"));
        assert!(words[1].ends_with(",queues=4"), "{words:?}");
        assert!(words[3].ends_with(",mq=on,vectors=10") && !words[3].contains("host_mtu"), "{words:?}");
        assert!(words[5].starts_with("unix:/a,,b/"), "{words:?}");
    }

    #[test]
    fn a_shell_reads_each_word_as_it_is() {
        assert_eq!(quoted("tap,id=a"), "tap,id=a");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }
}
