//! Migrations, and who has which device.

use super::{Problems, port::legal_device};
use crate::{HostName, Key, Migration, Phase, Why, view::View};
use std::collections::BTreeMap;

/// What a migration needs.
pub(super) fn put(view: &View<'_>, migration: &Migration, problems: &mut Problems) {
    let about = Key::Migration(migration.vm.clone());
    let before = view.migrations.before(&migration.vm);
    if let Some(was) = before.filter(|was| !same(was, migration)) {
        let (from, to) = (was.from.clone(), was.to.clone());
        problems.add(about, Why::AlreadyMigrating { from, to });
        return;
    }
    let from = before.map(|was| was.phase);
    if !follows(from, migration.phase) {
        problems.add(about.clone(), Why::PhaseOrder { from, to: migration.phase });
    }
    if view.vms.get(&migration.vm).is_none() {
        problems.add(about, Why::Unknown(Key::Vm(migration.vm.clone())));
        return;
    }
    for host in [&migration.from, &migration.to] {
        if view.hosts.get(host).is_none() {
            problems.add(about.clone(), Why::Unknown(Key::Host(host.clone())));
        }
    }
    if migration.from == migration.to {
        // What else there is to say against it follows from this.
        problems.add(about, Why::SameHost { host: migration.to.clone() });
        return;
    }
    ports(view, migration, &about, problems);
}

/// Every attached port is on the source and has a device on the destination.
fn ports(view: &View<'_>, migration: &Migration, about: &Key, problems: &mut Problems) {
    let to = &migration.to;
    let mut attached = Vec::new();
    for port in view.ports_of(&migration.vm) {
        let Some(on) = &port.host else { continue };
        let key = Key::Port(port.name.clone());
        attached.push(&port.name.port);
        if *on != migration.from {
            let (on, from) = (on.clone(), migration.from.clone());
            problems.add(about.clone(), Why::PortElsewhere { port: key.clone(), on, from });
        }
        if !migration.devices.contains_key(&port.name.port) {
            problems.add(about.clone(), Why::DeviceMissing { port: key, to: to.clone() });
        }
    }
    if attached.is_empty() {
        problems.add(about.clone(), Why::NothingAttached { to: to.clone() });
    }
    for (port, device) in &migration.devices {
        if !attached.contains(&port) {
            problems.add(about.clone(), Why::DeviceForNoPort { port: port.clone() });
        }
        if !legal_device(device) {
            problems.add(about.clone(), Why::DeviceName { device: device.clone() });
        }
    }
}

/// On a host, each device is that of one port; a migration's destination counts.
pub(super) fn devices(view: &View<'_>, problems: &mut Problems) {
    let mut taken: BTreeMap<(&HostName, &str), Key> = BTreeMap::new();
    let ports = view.ports.written().filter_map(|(name, port)| {
        let (host, device) = (port.host.as_ref()?, port.device.as_deref()?);
        Some((host, device, Key::Port(name.clone())))
    });
    let migrations = view.migrations.written().filter(|(_, m)| m.from != m.to).flat_map(|(vm, m)| {
        m.devices.values().map(|device| (&m.to, device.as_str(), Key::Migration(vm.clone())))
    });
    for (host, device, key) in ports.chain(migrations) {
        if let Some(other) = taken.insert((host, device), key.clone()) {
            problems.add(key, Why::DeviceTaken { device: device.to_owned(), host: host.clone(), other });
        }
    }
    if taken.is_empty() {
        return;
    }
    for (name, port) in view.ports.kept() {
        let (Some(host), Some(device)) = (&port.host, &port.device) else { continue };
        if let Some(about) = taken.get(&(host, device.as_str())) {
            let (device, host, other) = (device.clone(), host.clone(), Key::Port(name.clone()));
            problems.add(about.clone(), Why::DeviceTaken { device, host, other });
        }
    }
    for (vm, migration) in view.migrations.kept() {
        for device in migration.devices.values() {
            if let Some(about) = taken.get(&(&migration.to, device.as_str())) {
                let (device, host, other) =
                    (device.clone(), migration.to.clone(), Key::Migration(vm.clone()));
                problems.add(about.clone(), Why::DeviceTaken { device, host, other });
            }
        }
    }
}

/// Whether two values are one migration, perhaps at different phases.
fn same(a: &Migration, b: &Migration) -> bool {
    a.id == b.id && a.from == b.from && a.to == b.to && a.devices == b.devices
}

/// Whether a phase may follow (or stay).
const fn follows(from: Option<Phase>, to: Phase) -> bool {
    match (from, to) {
        (None | Some(Phase::Preparing), Phase::Preparing)
        | (Some(Phase::Preparing | Phase::Prepared), Phase::Prepared)
        // The first frame at the destination may come before the last host said that it is prepared.
        | (Some(Phase::Preparing | Phase::Prepared | Phase::Switched), Phase::Switched) => true,
        (None, Phase::Prepared | Phase::Switched)
        | (Some(Phase::Prepared), Phase::Preparing)
        | (Some(Phase::Switched), Phase::Preparing | Phase::Prepared) => false,
    }
}
