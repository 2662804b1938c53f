//! Whether a port is as it was asked for, and what is missing. Pure.

use serde::{Deserialize, Serialize};
use tenet_api::agent::ClaimedPort;
use tenet_api::local::{LocalPort, LocalPrefix, PreparePort};
use tenet_compile::PortState;
use tenet_host::Here;
use tenet_model::{SubnetRef, VmRef};

/// Something wrong, and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Missing {
    pub(super) message: String,
    pub(super) hint: String,
}

impl Missing {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

/// Where a VM is, by the last state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stay {
    /// It was not noted.
    #[default]
    Unsaid,
    /// On its way to this host, by a migration.
    Arriving,
    /// On this host.
    Here,
    /// It has no port here, or none that has not moved away.
    Away,
}

/// Where a VM with these ports is.
pub(super) fn stay(here: &[Here]) -> Stay {
    let any = |state: &[PortState]| here.iter().any(|h| state.contains(&h.row.state));
    if any(&[PortState::Prepared]) {
        Stay::Arriving
    } else if any(&[PortState::Active, PortState::Blocked]) {
        Stay::Here
    } else {
        Stay::Away
    }
}

/// What is missing of a port that the controller granted; none: it is ready.
pub(super) fn missing(claimed: &ClaimedPort, here: &[Here], incoming: bool) -> Option<Missing> {
    let port = &claimed.port;
    let Some(found) = here.iter().find(|h| h.row.name.to_string() == *port) else {
        let hint = "see `tenet status` for this host; its agent may be behind";
        return Some(Missing::new(format!("the controller has not sent port {port} to this host yet"), hint));
    };
    if found.generation < claimed.revision || found.row.device != claimed.device {
        let hint = "see `tenet status` for this host; its agent may be behind";
        return Some(Missing::new(
            format!("the controller has not sent the change of port {port} yet"),
            hint,
        ));
    }
    unready(found, incoming)
}

/// What is missing of a port of this host; none: it is ready.
pub(super) fn unready(found: &Here, incoming: bool) -> Option<Missing> {
    let (port, status) = (&found.row.name, &found.status);
    if !status.present {
        let hint = if found.row.tap {
            "the agent makes this tap: its log says what hinders it".to_owned()
        } else {
            format!("make device {} first; or name none, and the agent makes a tap", found.row.device)
        };
        return Some(Missing::new(format!("port {port} is not ready: {}", status.detail), hint));
    }
    match (status.state, incoming) {
        ("active", _) | ("prepared", true) => None,
        ("blocked", _) => Some(Missing::new(
            format!("port {port} is still blocked: other hosts do not have its records yet"),
            "see `tenet status` for the hosts that do not answer",
        )),
        (state, _) => Some(Missing::new(
            format!("port {port} is {state} on this host"),
            "wait until its move is done: `tenet migrations` shows how far it is",
        )),
    }
}

/// What a host without a controller may say to a request: the ports of the VM that the last state gives it.
///
/// # Errors
/// What is not there or is not so.
pub(super) fn fail_static<'a>(
    vm: &VmRef,
    asked: &[PreparePort],
    here: &'a [Here],
) -> Result<Vec<&'a Here>, Missing> {
    let without = "this host has no session with the controller";
    let hint = "try again when the controller answers: without it, only what this host had last can start";
    let ours: Vec<&Here> = here
        .iter()
        .filter(|h| matches!(h.row.state, PortState::Active | PortState::Blocked | PortState::Prepared))
        .collect();
    if ours.is_empty() {
        let message = format!("{without}, and VM {vm} was not on this host when it had one");
        return Err(Missing::new(message, hint));
    }
    if asked.is_empty() {
        return Ok(ours);
    }
    asked
        .iter()
        .map(|a| {
            let one = (asked.len() == 1 && ours.len() == 1).then(|| ours.first().copied()).flatten();
            let found = match (&a.port, a.mac) {
                (Some(name), _) => ours.iter().find(|h| h.row.name.port == *name).copied(),
                (None, Some(mac)) => ours.iter().find(|h| h.row.mac == mac).copied(),
                (None, None) => one,
            };
            let found = found.ok_or_else(|| {
                let which = a.port.as_ref().map(ToString::to_string).or(a.mac.map(|m| m.to_string()));
                let which = which.map_or_else(String::new, |w| format!(" {w}"));
                Missing::new(format!("{without}, and port{which} of VM {vm} was not on this host"), hint)
            })?;
            agrees(a, found, hint, without)?;
            Ok(found)
        })
        .collect()
}

fn agrees(asked: &PreparePort, found: &Here, hint: &str, without: &str) -> Result<(), Missing> {
    let name = &found.row.name;
    let differs = |what: &str, has: String, asked: String| {
        let message = format!("{without}, and port {name} had {what} {has} on this host, not {asked}");
        Err(Missing::new(message, hint))
    };
    if let Some(mac) = asked.mac.filter(|m| *m != found.row.mac) {
        return differs("MAC", found.row.mac.to_string(), mac.to_string());
    }
    if let Some(device) = asked.device.as_ref().filter(|d| **d != found.row.device) {
        return differs("device", found.row.device.clone(), device.clone());
    }
    if let Some(queues) = asked.queues.filter(|q| *q != found.row.queues) {
        return differs("queues", found.row.queues.to_string(), queues.to_string());
    }
    let subnet = found.subnet.as_ref().map(|s| &s.name);
    let same = |s: &&SubnetRef| {
        asked.network.as_ref().is_none_or(|n| s.tenant == n.tenant && s.network == n.network)
            && asked.subnet.as_ref().is_none_or(|name| s.subnet == *name)
    };
    if let Some(subnet) = subnet.filter(|s| !same(s)) {
        return differs("subnet", subnet.to_string(), "the one asked for".into());
    }
    if let Some(other) = asked.addresses.iter().find(|a| !found.addresses.contains(a)) {
        let has: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
        return differs("address", has.join(", "), other.to_string());
    }
    Ok(())
}

/// A port as the socket tells of it.
pub(super) fn local_port(here: &Here) -> Option<LocalPort> {
    // Rows of a subnet and its ports come together.
    let subnet = here.subnet.as_ref()?;
    Some(LocalPort {
        port: here.row.name.clone(),
        device: here.row.device.clone(),
        tap: here.row.tap,
        queues: here.row.queues,
        mac: here.row.mac,
        mtu: here.status.mtu.into(),
        addresses: here.addresses.clone(),
        subnet: subnet.name.clone(),
        prefixes: subnet
            .prefixes
            .iter()
            .map(|p| LocalPrefix { prefix: p.prefix, gateway: p.gateway })
            .collect(),
        gateway: subnet.prefixes.first().map(|p| p.gateway),
        state: here.status.state.to_owned(),
        detail: here.status.detail.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenet_compile::{PortRow, SubnetRow};
    use tenet_host::PortStatus;
    use tenet_model::{NetId, SubnetPrefix, Vsid};

    fn here(port: &str, state: &'static str, row: PortState) -> Here {
        let name: tenet_model::PortRef = port.parse().unwrap();
        let vsid = Vsid::new(5001).unwrap();
        let prefix =
            SubnetPrefix { prefix: "10.1.1.0/24".parse().unwrap(), gateway: "10.1.1.1".parse().unwrap() };
        Here {
            row: PortRow {
                net: NetId(1),
                name: name.clone(),
                vsid,
                mac: "52:54:00:00:00:01".parse().unwrap(),
                device: "tap0".into(),
                tap: false,
                queues: 1,
                state: row,
                peer_pa: None,
                security: true,
            },
            generation: 7,
            status: PortStatus {
                port: name,
                present: true,
                carrier: true,
                ifindex: 3,
                mtu: 1458,
                state,
                detail: String::new(),
            },
            host: Some("h1".parse().unwrap()),
            addresses: vec!["10.1.1.7".parse().unwrap()],
            subnet: Some(SubnetRow {
                net: NetId(1),
                vsid,
                name: "a/blue/web".parse().unwrap(),
                prefixes: vec![prefix],
            }),
        }
    }

    fn claimed(revision: u64) -> ClaimedPort {
        ClaimedPort { port: "a/sql/eth0".into(), device: "tap0".into(), revision }
    }

    #[test]
    fn a_port_is_ready_when_the_kernel_has_what_was_granted() {
        let active = here("a/sql/eth0", "active", PortState::Active);
        assert_eq!(missing(&claimed(7), std::slice::from_ref(&active), false), None);
        // What stands there is of an earlier stay.
        let late = missing(&claimed(8), std::slice::from_ref(&active), false).unwrap();
        assert!(late.message.contains("has not sent the change"), "{late:?}");
        let other = ClaimedPort { device: "tap1".into(), ..claimed(7) };
        assert!(missing(&other, std::slice::from_ref(&active), false).is_some());
        assert!(missing(&claimed(7), &[], false).unwrap().message.contains("has not sent port a/sql/eth0"));
        let prepared = here("a/sql/eth0", "prepared", PortState::Prepared);
        assert_eq!(missing(&claimed(0), std::slice::from_ref(&prepared), true), None);
        assert!(missing(&claimed(0), &[prepared], false).is_some());
        for (state, word) in [("blocked", "blocked"), ("moved", "moved")] {
            let there = here("a/sql/eth0", state, PortState::Blocked);
            assert!(missing(&claimed(0), &[there], true).unwrap().message.contains(word));
        }
        let mut absent = here("a/sql/eth0", "", PortState::Active);
        absent.status.present = false;
        absent.status.detail = "device tap0 does not exist on this host yet".into();
        let said = unready(&absent, false).unwrap();
        assert!(
            said.message.contains("does not exist") && said.hint.contains("make device tap0"),
            "{said:?}"
        );
        absent.row.tap = true;
        assert!(unready(&absent, false).unwrap().hint.contains("log"));
    }

    #[test]
    fn without_a_controller_only_what_was_here_is_given() {
        let vm = "a/sql".parse().unwrap();
        let ours = [here("a/sql/eth0", "active", PortState::Active)];
        assert_eq!(fail_static(&vm, &[], &ours).unwrap().len(), 1);
        assert!(fail_static(&vm, &[], &[]).is_err());
        let moved = [here("a/sql/eth0", "moved", PortState::Moved)];
        assert!(fail_static(&vm, &[], &moved).is_err());
        let ask = |port: PreparePort| fail_static(&vm, &[port], &ours).map(|p| p.len());
        assert_eq!(ask(PreparePort::default()), Ok(1));
        let name = |text: &str| Some(text.parse().unwrap());
        assert_eq!(ask(PreparePort { port: name("eth0"), ..PreparePort::default() }), Ok(1));
        assert!(ask(PreparePort { port: name("eth1"), ..PreparePort::default() }).is_err());
        let mac = Some("52:54:00:00:00:02".parse().unwrap());
        assert!(ask(PreparePort { mac, ..PreparePort::default() }).is_err());
        assert!(ask(PreparePort { device: Some("tap9".into()), ..PreparePort::default() }).is_err());
        let network = Some("a/blue".parse().unwrap());
        assert_eq!(ask(PreparePort { network: network.clone(), ..PreparePort::default() }), Ok(1));
        assert!(ask(PreparePort { network, subnet: name("db"), ..PreparePort::default() }).is_err());
        assert_eq!(ask(PreparePort { queues: Some(1), ..PreparePort::default() }), Ok(1));
        assert!(ask(PreparePort { queues: Some(2), ..PreparePort::default() }).is_err());
        let addresses = vec!["10.1.1.8".parse().unwrap()];
        assert!(ask(PreparePort { addresses, ..PreparePort::default() }).is_err());
    }

    #[test]
    fn a_vm_is_where_its_ports_are() {
        let with = |states: &[PortState]| {
            let here: Vec<Here> = states.iter().map(|state| here("a/sql/eth0", "", *state)).collect();
            stay(&here)
        };
        assert_eq!((with(&[]), with(&[PortState::Moved])), (Stay::Away, Stay::Away));
        assert_eq!((with(&[PortState::Active]), with(&[PortState::Blocked])), (Stay::Here, Stay::Here));
        assert_eq!(with(&[PortState::Moved, PortState::Prepared]), Stay::Arriving);
    }

    #[test]
    fn a_port_is_told_with_its_subnet() {
        let port = local_port(&here("a/sql/eth0", "active", PortState::Active)).unwrap();
        assert_eq!((port.mtu, port.gateway), (1458, Some("10.1.1.1".parse().unwrap())));
        assert_eq!(port.subnet.to_string(), "a/blue/web");
    }
}
