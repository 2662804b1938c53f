//! The state machine of an agent: what it knows, what it wants, what is to be done.

mod here;
mod reconcile;
mod status;
mod superseded;
mod switch;

pub use here::Here;

use crate::event::{self, Limiter};
use crate::input::{AttachState, Input, Output, Role, Stats};
use crate::message::{Ack, Message, Proof};
use crate::plan::{self, Device, DeviceKind, Uplink};
use crate::{probe, rows_back};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tenet_compile::{Delta, PortRow, PortState, Row, RowKey, Rows};
use tenet_model::{NetId, PortRef, VmRef};
use tenet_tables::image::{Image, Operation};
use tenet_tables::{Event, EventKind, PORT_ACTIVE, PORT_PREPARED, PROBE_NET};

/// Lines about repairs kept for a controller that is away, and sent in one message.
const REPAIRS_KEPT: usize = 50;

/// What is owed to the controller once the writes under way are done.
#[derive(Debug, Default)]
struct Owed {
    /// The generation to acknowledge and the networks that it concerns (none: all).
    ack: Option<(u64, Option<BTreeSet<NetId>>)>,
    proof: bool,
}

/// The state machine. One input at a time; its outputs are carried out, and answered, before the next.
#[derive(Debug)]
pub struct HostCore {
    uplinks: Vec<String>,
    state: Option<(u64, Rows)>,
    devices: BTreeMap<String, Device>,
    /// Taps that cannot be had, and why.
    taps: BTreeMap<String, String>,
    /// What an operator should know of ports that work.
    notes: BTreeMap<PortRef, String>,
    paths: BTreeMap<IpAddr, u16>,
    wanted: Image,
    actual: Option<Image>,
    problems: BTreeMap<Option<NetId>, Vec<String>>,
    attached: BTreeMap<u32, AttachState>,
    roles: BTreeMap<u32, Role>,
    prepared: BTreeSet<PortRef>,
    activated: BTreeMap<PortRef, Option<IpAddr>>,
    /// VMs of which a hypervisor here says that they run, or that they stand still to be switched.
    vms: BTreeMap<VmRef, bool>,
    /// Ports that this host redirects by itself, and where to.
    redirected: BTreeMap<PortRef, IpAddr>,
    /// Ports that came here by a migration that is not over: what their rows say of it looks the same on both sides.
    arrived: BTreeSet<PortRef>,
    owed: Owed,
    /// Generation that was acknowledged with an error.
    refused: Option<u64>,
    repaired: Vec<String>,
    connected: bool,
    limiter: Limiter,
    stats: Stats,
}

impl HostCore {
    /// The core of a host whose provider network is on the devices of these names.
    #[must_use]
    pub fn new(uplinks: Vec<String>) -> Self {
        Self {
            uplinks,
            state: None,
            devices: BTreeMap::new(),
            taps: BTreeMap::new(),
            notes: BTreeMap::new(),
            paths: BTreeMap::new(),
            wanted: Image::default(),
            actual: None,
            problems: BTreeMap::new(),
            attached: BTreeMap::new(),
            roles: BTreeMap::new(),
            prepared: BTreeSet::new(),
            activated: BTreeMap::new(),
            vms: BTreeMap::new(),
            redirected: BTreeMap::new(),
            arrived: BTreeSet::new(),
            owed: Owed::default(),
            refused: None,
            repaired: Vec::new(),
            connected: false,
            limiter: Limiter::default(),
            stats: Stats::default(),
        }
    }

    /// Takes an input; `now` is the time since any fixed point.
    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Output> {
        match input {
            Input::Cached { generation, rows } => {
                if self.state.is_none() {
                    self.take(generation, rows);
                    return self.reconcile(None);
                }
                Vec::new()
            }
            Input::Connected => {
                self.connected = true;
                self.activated.keys().map(|p| Output::Send(Message::PortActivated(p.clone()))).collect()
            }
            Input::Disconnected => {
                self.connected = false;
                self.owed.ack = None;
                Vec::new()
            }
            Input::Full { generation, rows } => {
                self.stats.changes += 1;
                let mut outputs = self.superseded(generation, &rows);
                let had = self.vms_here();
                self.take(generation, rows);
                self.forget_left(had);
                self.owed.ack = Some((generation, None));
                outputs.extend(self.reconcile(None));
                outputs
            }
            Input::Delta(delta) => self.delta(&delta),
            Input::Devices(devices) => self.devices(devices),
            Input::Paths(paths) => self.paths(paths),
            Input::Kernel { image, attached } => self.kernel(image, attached),
            Input::Unreadable(why) => self.unreadable(&why),
            Input::Restored(lines) => {
                for line in lines {
                    self.repair(line);
                }
                Vec::new()
            }
            // Told with the next proof, which is not far.
            Input::Notes(notes) => {
                self.notes = notes;
                Vec::new()
            }
            Input::Taps(taps) => {
                if taps == self.taps {
                    return Vec::new();
                }
                self.taps = taps;
                if self.state.is_none() {
                    return Vec::new();
                }
                self.owed.proof = true;
                self.reconcile(None)
            }
            Input::Attached { ifindex, result } => {
                let state = result.map_or_else(AttachState::Failed, |()| AttachState::Attached);
                self.attached.insert(ifindex, state);
                Vec::new()
            }
            Input::Applied { read_back, errors } => self.applied(&read_back, &errors),
            Input::Seen(event) => self.seen(now, &event),
            Input::Congested { ifindex, frames } => {
                vec![Output::Send(Message::Event(event::congested(self.name_of(ifindex), frames)))]
            }
            Input::VmStopped(vm) => self.vm_is(vm, Some(false)),
            Input::VmResumed(vm) => self.vm_is(vm, Some(true)),
            Input::VmForgotten(vm) => self.vm_is(vm, None),
        }
    }

    /// Generation of the state that the agent has; 0: none.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.state.as_ref().map_or(0, |(g, _)| *g)
    }

    /// The rows that the agent has.
    #[must_use]
    pub fn rows(&self) -> Option<&Rows> {
        self.state.as_ref().map(|(_, r)| r)
    }

    /// Ports that live here, will live here, or have just left.
    pub fn ports(&self) -> impl Iterator<Item = &PortRow> {
        self.state.iter().flat_map(|(_, rows)| plan::ports(rows)).map(|(p, _)| p)
    }

    /// Of these, those whose device is a tap that the agent makes.
    pub fn taps(&self) -> impl Iterator<Item = &PortRow> {
        self.ports().filter(|p| p.tap)
    }

    /// The uplink, if one of the ticked devices exists: the first, with the smallest MTU of all.
    #[must_use]
    pub fn uplink(&self) -> Option<Uplink> {
        let mut found = self.uplinks.iter().filter_map(|name| self.devices.get(name));
        let first = found.next()?;
        let own = |kind| self.devices.values().find(|d| d.kind == kind && d.carrier).map_or(0, |d| d.ifindex);
        Some(Uplink {
            ifindex: first.ifindex,
            mtu: found.map(|d| d.mtu).fold(first.mtu, u32::min),
            hub: own(DeviceKind::Hub),
            slow: own(DeviceKind::Slow),
            mac: first.mac,
        })
    }

    /// Number of a device, if it exists.
    #[must_use]
    pub fn device_index(&self, name: &str) -> Option<u32> {
        self.devices.get(name).map(|d| d.ifindex)
    }

    /// A device, if it exists.
    pub(crate) fn device(&self, name: &str) -> Option<&Device> {
        self.devices.get(name)
    }

    /// Whether a hypervisor says that a VM stands still, to be switched.
    pub(crate) fn stands_still(&self, vm: &VmRef) -> bool {
        self.vms.get(vm) == Some(&false)
    }

    /// Whether a port came here by a migration that is not over.
    pub(crate) fn has_arrived(&self, port: &PortRef) -> bool {
        self.arrived.contains(port)
    }

    /// MTU of a device, if it exists.
    #[must_use]
    pub fn device_mtu(&self, name: &str) -> Option<u32> {
        self.devices.get(name).map(|d| d.mtu)
    }

    /// Whether all ticked uplinks that exist carry the program, and at least one does.
    #[must_use]
    pub fn ready(&self) -> bool {
        let mut existing = self.uplinks.iter().filter_map(|name| self.devices.get(name)).peekable();
        self.actual.is_some()
            && existing.peek().is_some()
            && existing.all(|d| self.attached.get(&d.ifindex) == Some(&AttachState::Attached))
    }

    /// Whether a port leaves this host or has come to it by a migration that is not over.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        self.moving().next().is_some()
    }

    /// Devices of ports that are about to move and that this host has not switched yet, with the carrier that we know of:
    /// worth a look every few milliseconds.
    pub fn about_to_switch(&self) -> impl Iterator<Item = Device> {
        let switched = |p: &PortRow| {
            let arrived = p.state == PortState::Active && self.has_arrived(&p.name);
            arrived || self.redirected.contains_key(&p.name) || self.activated.contains_key(&p.name)
        };
        let moving = self.moving().filter(move |p| !switched(p));
        moving.filter_map(|p| self.devices.get(&p.device).copied())
    }

    fn moving(&self) -> impl Iterator<Item = &PortRow> {
        self.ports().filter(|p| p.peer_pa.is_some() && p.state != PortState::Moved)
    }

    /// Prepared ports on taps that somebody has open, with the taps' numbers: hypervisors that wait for their VMs. None of
    /// a VM that runs already, as far as the kernel or its hypervisor told: the row says `prepared` for some time still.
    pub fn awaited(&self) -> impl Iterator<Item = (PortRef, u32)> {
        let rows = self.state.iter().flat_map(|(_, rows)| plan::ports(rows));
        let prepared = rows.filter(|(p, _)| p.state == PortState::Prepared);
        prepared.filter_map(|(p, _)| {
            let device = self.devices.get(&p.device).filter(|d| d.kind == DeviceKind::Tap && d.carrier)?;
            let entry = self.actual.as_ref()?.ports.get(&device.ifindex)?;
            (entry.state == PORT_PREPARED).then(|| (p.name.clone(), device.ifindex))
        })
    }

    /// Figures for the metrics.
    #[must_use]
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What was last seen in the kernel.
    #[must_use]
    pub const fn actual(&self) -> Option<&Image> {
        self.actual.as_ref()
    }

    /// Name of the port or uplink at an interface, as in messages; empty if it is neither.
    #[must_use]
    pub fn name_of(&self, ifindex: u32) -> String {
        if let Some(name) = self.device_name(ifindex) {
            if self.uplinks.iter().any(|u| u == name) {
                return format!("uplink:{name}");
            }
            if let Some(port) = self.port_at(name) {
                return port.name.to_string();
            }
        }
        String::new()
    }

    /// Those names of all ports and uplinks whose devices exist, by the devices' numbers.
    #[must_use]
    pub fn names(&self) -> BTreeMap<u32, String> {
        let mut names: BTreeMap<u32, String> =
            self.uplink_devices().map(|(name, d)| (d.ifindex, format!("uplink:{name}"))).collect();
        for (port, _) in self.rows().into_iter().flat_map(plan::ports) {
            if let Some(device) = self.devices.get(&port.device) {
                names.entry(device.ifindex).or_insert_with(|| port.name.to_string());
            }
        }
        names
    }

    /// What an image of the kernel says, as rows: subnets, records, routes, and ports in the state that they have.
    #[must_use]
    pub fn table(&self, image: &Image) -> Rows {
        let empty = Rows::default();
        let rows = self.rows().unwrap_or(&empty);
        let mut table = rows_back(image, rows);
        for (port, _) in plan::ports(rows) {
            let Some(entry) = self.devices.get(&port.device).and_then(|d| image.ports.get(&d.ifindex)) else {
                continue;
            };
            let states = [PortState::Blocked, PortState::Active, PortState::Prepared, PortState::Moved];
            let Some(state) = states.into_iter().find(|s| plan::state_number(*s) == entry.state) else {
                continue;
            };
            let row = Row::Port(PortRow { state, ..port.clone() });
            table.0.insert(row.key(), (row, entry.generation));
        }
        table
    }

    fn take(&mut self, generation: u64, rows: Rows) {
        self.state = Some((generation, rows));
    }

    fn delta(&mut self, delta: &Delta) -> Vec<Output> {
        let Some((generation, rows)) = &self.state else {
            return resync("a change came before the full state".to_owned());
        };
        let again = delta.generation == *generation && delta.base < delta.generation;
        if delta.base != *generation && !again {
            return resync(format!("the change is to generation {}, this host has {generation}", delta.base));
        }
        let keys = || delta.upserts.iter().map(|(r, _)| r.key()).chain(delta.deletes.iter().cloned());
        let host_wide = keys().any(|k| k == RowKey::Host);
        let mut nets: BTreeSet<NetId> = keys().filter_map(|k| k.network()).collect();
        // The agents' probes go to all hosts.
        nets.extend(keys().any(|k| matches!(k, RowKey::Peer(_))).then_some(NetId(PROBE_NET)));
        // A prepared port that has just become active here, and now is not to.
        let prepared =
            |k: &RowKey| matches!(rows.0.get(k), Some((Row::Port(p), _)) if p.state == PortState::Prepared);
        let late = delta.deletes.iter().any(prepared).then(|| {
            let mut next = rows.clone();
            next.apply(delta);
            next
        });
        let mut outputs = late.map(|next| self.superseded(delta.generation, &next)).unwrap_or_default();
        let had = self.vms_here();
        if let Some((generation, rows)) = &mut self.state {
            rows.apply(delta);
            *generation = delta.generation;
        }
        self.forget_left(had);
        self.stats.changes += 1;
        self.owed.ack = Some((delta.generation, (!host_wide).then(|| nets.clone())));
        outputs.extend(self.reconcile(if host_wide { None } else { Some(nets) }));
        outputs
    }

    fn devices(&mut self, devices: BTreeMap<String, Device>) -> Vec<Output> {
        let before = self.uplink();
        let old = std::mem::replace(&mut self.devices, devices);
        let mut outputs = Vec::new();
        let alive: BTreeSet<u32> = self.devices.values().map(|d| d.ifindex).collect();
        let gone: Vec<u32> = self.roles.keys().filter(|i| !alive.contains(i)).copied().collect();
        for ifindex in gone {
            self.roles.remove(&ifindex);
            self.attached.remove(&ifindex);
            outputs.push(Output::Detach { ifindex });
        }
        let Some((_, rows)) = &self.state else {
            outputs.extend(self.attachments());
            return outputs;
        };
        // MTUs of port devices are ours to set and say nothing.
        let seen = |d: Option<&Device>| d.map(|d| (d.ifindex, d.carrier, d.kind));
        let changed = |name: &String| seen(old.get(name)) != seen(self.devices.get(name));
        let mut nets: BTreeSet<NetId> =
            plan::ports(rows).filter(|(p, _)| changed(&p.device)).map(|(p, _)| p.net).collect();
        let probe_changed =
            seen(probe::tap(&old).map(|t| t.1)) != seen(probe::tap(&self.devices).map(|t| t.1));
        nets.extend(probe_changed.then_some(NetId(PROBE_NET)));
        let host_wide = before != self.uplink();
        if host_wide || !nets.is_empty() {
            self.owed.proof = true;
            outputs.extend(self.reconcile(if host_wide { None } else { Some(nets) }));
        } else {
            outputs.extend(self.attachments());
        }
        outputs
    }

    fn paths(&mut self, paths: BTreeMap<IpAddr, u16>) -> Vec<Output> {
        if paths == self.paths {
            return Vec::new();
        }
        self.paths = paths;
        if self.state.is_none() {
            return Vec::new();
        }
        self.owed.proof = true;
        self.reconcile(None)
    }

    fn kernel(&mut self, image: Image, attached: BTreeMap<u32, Role>) -> Vec<Output> {
        let mut outputs = Vec::new();
        let ticked: BTreeSet<u32> = self.uplink_devices().map(|(_, d)| d.ifindex).collect();
        for (ifindex, role) in &attached {
            if *role == Role::Uplink && !ticked.contains(ifindex) {
                self.roles.remove(ifindex);
                outputs.push(Output::Detach { ifindex: *ifindex });
            }
        }
        let missing: Vec<u32> = self
            .attached
            .iter()
            .filter(|(i, s)| **s == AttachState::Attached && attached.get(i) != self.roles.get(i))
            .map(|(i, _)| *i)
            .collect();
        for ifindex in missing {
            let name = self.device_name(ifindex).unwrap_or("?").to_owned();
            self.repair(format!("the program on {name} was gone: attached again"));
            self.attached.remove(&ifindex);
        }
        for (ifindex, role) in attached {
            if role == Role::Port || ticked.contains(&ifindex) {
                self.roles.insert(ifindex, role);
                self.attached.insert(ifindex, AttachState::Attached);
            }
        }
        self.attached.retain(|_, s| *s == AttachState::Attached);
        self.actual = Some(image);
        if self.state.is_some() {
            self.owed.proof = true;
            // What could not be written then may be now.
            if let Some(generation) = self.refused.take().filter(|g| *g == self.generation()) {
                self.owed.ack.get_or_insert((generation, None));
            }
            outputs.extend(self.reconcile_explained());
        } else {
            outputs.extend(self.attachments());
        }
        outputs
    }

    /// What was proven before is so no longer; nothing else would tell the controller.
    fn unreadable(&mut self, why: &str) -> Vec<Output> {
        if !self.connected {
            return Vec::new();
        }
        let mut problems = vec![format!("the kernel's tables cannot be read: {why}")];
        problems.extend(self.problems.values().flatten().cloned());
        let proof = Proof {
            generation: self.generation(),
            networks: Vec::new(),
            ports: self.statuses(None),
            repaired: std::mem::take(&mut self.repaired),
            problems,
        };
        vec![Output::Send(Message::Proof(proof))]
    }

    fn applied(&mut self, read_back: &[Operation], errors: &[String]) -> Vec<Output> {
        let Some(actual) = &mut self.actual else { return Vec::new() };
        for operation in read_back {
            actual.apply(*operation);
        }
        let mut outputs = self.adopt_activations(None);
        let actual = self.actual.as_ref();
        let wrong = read_back.iter().filter(|o| actual.is_some_and(|a| !agrees(o, a, &self.wanted))).count();
        let mut error = errors.join("; ");
        if error.is_empty() && wrong > 0 {
            error = format!("{wrong} entries read back from the kernel are not what was written");
        }
        outputs.extend(self.settle(error));
        outputs
    }

    /// Sends what is owed.
    fn settle(&mut self, error: String) -> Vec<Output> {
        let mut outputs = Vec::new();
        let mut problems: Vec<String> = Vec::new();
        if !error.is_empty() {
            problems.push(error.clone());
        }
        if let Some((generation, nets)) = self.owed.ack.take() {
            self.refused = (!error.is_empty()).then_some(generation);
            let ack = Ack {
                generation,
                error,
                networks: self.proofs(nets.as_ref()),
                ports: self.statuses(nets.as_ref()),
            };
            outputs.push(Output::Send(Message::Ack(ack)));
        }
        if std::mem::take(&mut self.owed.proof) && self.connected {
            problems.extend(self.problems.values().flatten().cloned());
            let proof = Proof {
                generation: self.generation(),
                networks: self.proofs(None),
                ports: self.statuses(None),
                repaired: std::mem::take(&mut self.repaired),
                problems,
            };
            outputs.push(Output::Send(Message::Proof(proof)));
        }
        outputs
    }

    fn seen(&mut self, now: Duration, event: &Event) -> Vec<Output> {
        if let Some(kind) = EventKind::from_number(event.kind) {
            *self.stats.events.entry(kind.name()).or_default() += 1;
            if kind == EventKind::PortActivated {
                // The data plane has already turned the state; our picture of the kernel follows.
                let port = self.actual.as_mut().and_then(|a| a.ports.get_mut(&event.ifindex));
                if let Some(port) = port.filter(|p| p.state == PORT_PREPARED) {
                    port.state = PORT_ACTIVE;
                }
                return self.adopt_activations(Some(event.ifindex));
            }
        }
        let Some(held_back) = self.limiter.admit(now, event) else { return Vec::new() };
        let port = self.name_of(event.ifindex);
        event::report(event, port, held_back).map(|r| Output::Send(Message::Event(r))).into_iter().collect()
    }

    fn port_devices(&self, rows: &Rows) -> BTreeMap<String, Device> {
        plan::ports(rows)
            .filter(|(p, _)| !self.uplinks.contains(&p.device) && !self.is_strange(p))
            .filter_map(|(p, _)| self.devices.get(&p.device).map(|d| (p.device.clone(), *d)))
            .filter(|(_, d)| !is_own(d))
            .collect()
    }

    /// Whether what bears the name of the port's tap is somebody else's.
    fn is_strange(&self, row: &PortRow) -> bool {
        row.tap && self.taps.contains_key(&row.device)
    }

    fn uplink_devices(&self) -> impl Iterator<Item = (&String, &Device)> {
        self.uplinks.iter().filter_map(|name| self.devices.get(name).map(|d| (name, d)))
    }

    fn device_name(&self, ifindex: u32) -> Option<&str> {
        self.devices.iter().find(|(_, d)| d.ifindex == ifindex).map(|(name, _)| name.as_str())
    }

    fn port_at(&self, device: &str) -> Option<&PortRow> {
        self.ports().find(|p| p.device == device)
    }

    fn port_row(&self, name: &PortRef) -> Option<&PortRow> {
        self.ports().find(|p| p.name == *name)
    }

    fn repair(&mut self, line: String) {
        self.stats.repairs += 1;
        self.repair_line(line);
    }

    fn repair_line(&mut self, line: String) {
        if self.repaired.len() <= REPAIRS_KEPT {
            self.repaired.push(line);
        }
    }
}

/// Whether a device is the agent's own, and so never a VM's.
const fn is_own(device: &Device) -> bool {
    match device.kind {
        DeviceKind::Hub | DeviceKind::Slow | DeviceKind::Probe | DeviceKind::Drain => true,
        DeviceKind::Plain | DeviceKind::Veth | DeviceKind::Tap => false,
    }
}

fn resync(reason: String) -> Vec<Output> {
    vec![Output::Send(Message::Resync { reason })]
}

/// Whether both images hold the same at an operation's key.
fn agrees(operation: &Operation, a: &Image, b: &Image) -> bool {
    match operation {
        Operation::Configure(_) => a.config == b.config,
        Operation::Peer(k, _) => a.peers.get(k) == b.peers.get(k),
        Operation::Subnet(k, _) => a.subnets.get(k) == b.subnets.get(k),
        Operation::Pool(k, _) => a.pools.get(k) == b.pools.get(k),
        Operation::Rewrite(k, _) => a.rewrites.get(k) == b.rewrites.get(k),
        Operation::Record(k, _) => a.records.get(k) == b.records.get(k),
        Operation::Mac(k, _) => a.macs.get(k) == b.macs.get(k),
        Operation::Flood(k, _) => a.flood.get(k) == b.flood.get(k),
        Operation::Route(k, _) => a.routes.get(k) == b.routes.get(k),
        Operation::Port(k, _) => a.ports.get(k) == b.ports.get(k),
    }
}
