//! The state machine of an agent: what it knows, what it wants, what is to be done.

use crate::event::{self, Limiter};
use crate::explain::explain;
use crate::message::{Ack, Message, NetworkProof, PortStatus, Proof};
use crate::part;
use crate::plan::{self, Device, DeviceKind, Plan, Uplink};
use crate::{probe, rows_back};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tenet_compile::{Delta, PortRow, PortState, Row, RowKey, Rows, digests};
use tenet_model::{NetId, PortRef};
use tenet_tables::image::{Image, Operation};
use tenet_tables::{Event, EventKind, PORT_ACTIVE, PORT_PREPARED, PROBE_NET};

/// Lines about repairs kept for a controller that is away, and sent in one message.
const REPAIRS_KEPT: usize = 50;

/// Which program a device carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// A VM's NIC.
    Port,
    /// A NIC that carries the provider network.
    Uplink,
}

/// How far a device's program is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AttachState {
    /// Asked for.
    Pending,
    /// It runs.
    Attached,
    /// It could not be attached, because of this.
    Failed(String),
}

/// What the core is told.
#[expect(clippy::large_enum_variant, reason = "it is handed over once and never kept")]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// The state that an earlier run of the agent had.
    Cached {
        /// Its generation.
        generation: u64,
        /// Its rows.
        rows: Rows,
    },
    /// A session with the controller began.
    Connected,
    /// It ended.
    Disconnected,
    /// The full state.
    Full {
        /// Its generation.
        generation: u64,
        /// Its rows.
        rows: Rows,
    },
    /// A change of state.
    Delta(Delta),
    /// All devices of the host, by name.
    Devices(BTreeMap<String, Device>),
    /// The measured MTU of the provider network to other hosts, by provider address; the uplink's holds for the others.
    Paths(BTreeMap<IpAddr, u16>),
    /// All that the kernel holds: the maps' content and the devices that carry our programs.
    Kernel {
        /// The maps.
        image: Image,
        /// Programs in place, by interface index.
        attached: BTreeMap<u32, Role>,
    },
    /// The kernel's maps cannot be read, because of this.
    Unreadable(String),
    /// The shell put something back that is neither entry nor program; each in plain words.
    Restored(Vec<String>),
    /// Result of [`Output::Attach`].
    Attached {
        /// The device's number.
        ifindex: u32,
        /// Whether its program runs now.
        result: Result<(), String>,
    },
    /// Result of [`Output::Apply`].
    Applied {
        /// What the maps hold now at the keys that were written.
        read_back: Vec<Operation>,
        /// What the kernel refused.
        errors: Vec<String>,
    },
    /// The data plane raised an event.
    Seen(Event),
}

/// What the shell must do, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Make a device ready and put the program on it; answer with [`Input::Attached`].
    Attach {
        /// The device's name.
        device: String,
        /// Its number.
        ifindex: u32,
        /// Which program.
        role: Role,
    },
    /// Take a program off, or forget it where the device is gone.
    Detach {
        /// The device's number.
        ifindex: u32,
    },
    /// Write these in this order, read their keys back, answer with [`Input::Applied`]. May be empty.
    Apply(Vec<Operation>),
    /// Tell the controller; without a session, drop it.
    Send(Message),
}

/// Figures for the metrics.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Differences between kernel and wanted state that were put right.
    pub repairs: u64,
    /// Events by kind.
    pub events: BTreeMap<&'static str, u64>,
    /// Full states and deltas taken.
    pub changes: u64,
}

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
    paths: BTreeMap<IpAddr, u16>,
    wanted: Image,
    actual: Option<Image>,
    problems: BTreeMap<Option<NetId>, Vec<String>>,
    attached: BTreeMap<u32, AttachState>,
    roles: BTreeMap<u32, Role>,
    prepared: BTreeSet<PortRef>,
    activated: BTreeMap<PortRef, Option<IpAddr>>,
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
            paths: BTreeMap::new(),
            wanted: Image::default(),
            actual: None,
            problems: BTreeMap::new(),
            attached: BTreeMap::new(),
            roles: BTreeMap::new(),
            prepared: BTreeSet::new(),
            activated: BTreeMap::new(),
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
                self.take(generation, rows);
                self.owed.ack = Some((generation, None));
                self.reconcile(None)
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
            Input::Attached { ifindex, result } => {
                let state = result.map_or_else(AttachState::Failed, |()| AttachState::Attached);
                self.attached.insert(ifindex, state);
                Vec::new()
            }
            Input::Applied { read_back, errors } => self.applied(&read_back, &errors),
            Input::Seen(event) => self.seen(now, &event),
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

    /// Devices of ports that are about to move, with the carrier that we know of: worth a look every few milliseconds.
    pub fn moving(&self) -> impl Iterator<Item = Device> {
        let rows = self.state.iter().flat_map(|(_, rows)| plan::ports(rows));
        let moving = rows.filter(|(p, _)| p.peer_pa.is_some() && p.state != PortState::Moved);
        moving.filter_map(|(p, _)| self.devices.get(&p.device).copied())
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
        let Some((generation, rows)) = &mut self.state else {
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
        rows.apply(delta);
        *generation = delta.generation;
        self.stats.changes += 1;
        self.owed.ack = Some((delta.generation, (!host_wide).then(|| nets.clone())));
        self.reconcile(if host_wide { None } else { Some(nets) })
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

    /// Plans afresh (all, or some networks) and brings programs and maps to it.
    fn reconcile(&mut self, nets: Option<BTreeSet<NetId>>) -> Vec<Output> {
        let (mut outputs, operations) = self.difference(nets);
        if self.actual.is_some() {
            outputs.push(Output::Apply(operations));
        }
        outputs
    }

    /// As `reconcile` of all; each write is a repair.
    fn reconcile_explained(&mut self) -> Vec<Output> {
        let (mut outputs, operations) = self.difference(None);
        let (Some(actual), Some((_, rows))) = (&self.actual, &self.state) else { return outputs };
        // Maps that nobody has configured are new: filling them is no repair.
        if actual.config.is_some_and(|c| c.layout != 0) {
            let explained = operations.iter().take(REPAIRS_KEPT).map(|o| explain(o, actual, rows));
            let lines: Vec<String> = explained.collect();
            for line in lines {
                self.repair_line(line);
            }
            if operations.len() > REPAIRS_KEPT {
                self.repair_line(format!("and {} more entries", operations.len() - REPAIRS_KEPT));
            }
            self.stats.repairs += operations.len() as u64;
        }
        outputs.push(Output::Apply(operations));
        outputs
    }

    fn difference(&mut self, nets: Option<BTreeSet<NetId>>) -> (Vec<Output>, Vec<Operation>) {
        let mut outputs = self.attachments();
        let Some((_, rows)) = &self.state else { return (outputs, Vec::new()) };
        let uplink = self.uplink();
        let devices = self.port_devices(rows);
        let empty = Image::default();
        let actual = self.actual.as_ref().unwrap_or(&empty);
        let mut host = Plan::default();
        plan::plan_host(rows, uplink, &mut host);
        let all = || plan::networks(rows).into_iter().chain([NetId(PROBE_NET)]).collect();
        let planned = nets.clone().unwrap_or_else(all);
        let mut new = host.image;
        if nets.is_none() {
            self.problems.clear();
        }
        self.problems.insert(None, host.problems);
        for net in &planned {
            let mut plan = Plan { image: new, problems: Vec::new() };
            if net.0 == PROBE_NET {
                probe::plan_probe(rows, &self.devices, &mut plan);
            } else {
                plan::plan_network(rows, *net, &devices, uplink, &self.paths, &mut plan);
            }
            new = plan.image;
            self.problems.insert(Some(*net), plan.problems);
        }
        self.problems.retain(|_, p| !p.is_empty());

        // The states of ports that the data plane changed by itself stay.
        let still = |port: &PortRef, peer: &Option<IpAddr>| match self.port_row(port) {
            Some(row) => row.state == PortState::Prepared && row.peer_pa == *peer,
            None => false,
        };
        let stale: Vec<PortRef> =
            self.activated.iter().filter(|(p, peer)| !still(p, peer)).map(|(p, _)| p.clone()).collect();
        let mut found = Vec::new();
        for (row, _) in
            plan::ports(rows).filter(|(p, _)| p.state == PortState::Prepared && planned.contains(&p.net))
        {
            let Some(ifindex) = devices.get(&row.device).map(|d| d.ifindex) else { continue };
            let (Some(want), Some(have)) = (new.ports.get_mut(&ifindex), actual.ports.get(&ifindex)) else {
                continue;
            };
            let same = (want.net, want.vsid, want.mac, want.peer_pa)
                == (have.net, have.vsid, have.mac, have.peer_pa);
            let known = self.activated.get(&row.name) == Some(&row.peer_pa);
            // The generation tells an activation from an active port that was told to prepare.
            let ours = have.generation == want.generation || self.prepared.contains(&row.name);
            if known || (same && have.state == PORT_ACTIVE && ours) {
                want.state = PORT_ACTIVE;
                if !known {
                    found.push((row.name.clone(), row.peer_pa));
                }
            }
        }
        self.prepared = plan::ports(rows)
            .filter(|(p, _)| p.state == PortState::Prepared)
            .map(|(p, _)| p.name.clone())
            .collect();

        let operations = if let Some(nets) = &nets {
            let nets: BTreeSet<u32> = nets.iter().map(|n| n.0).collect();
            let mut vsids = part::vsids(&new, &nets);
            vsids.extend(part::vsids(&self.wanted, &nets));
            vsids.extend(part::vsids(actual, &nets));
            let old = Image {
                peers: self.wanted.peers.clone(),
                config: self.wanted.config,
                pools: self.wanted.pools.clone(),
                ..part::part(&self.wanted, &nets, &vsids)
            };
            let have = Image {
                peers: actual.peers.clone(),
                config: actual.config,
                pools: actual.pools.clone(),
                ..part::part(actual, &nets, &vsids)
            };
            let operations = have.operations_to(&new);
            part::replace(&mut self.wanted, &old, &new);
            operations
        } else {
            let operations = actual.operations_to(&new);
            self.wanted = new;
            operations
        };
        for port in stale {
            self.activated.remove(&port);
        }
        for (port, peer) in found {
            outputs.push(Output::Send(Message::PortActivated(port.clone())));
            self.activated.insert(port, peer);
        }
        (outputs, operations)
    }

    /// Takes over ports that the kernel shows active where we wanted them prepared.
    fn adopt_activations(&mut self, only: Option<u32>) -> Vec<Output> {
        let mut outputs = Vec::new();
        let Some(actual) = &self.actual else { return outputs };
        let turned: Vec<u32> = (self.wanted.ports.iter())
            .filter(|(i, _)| only.is_none_or(|o| o == **i))
            .filter(|(i, p)| {
                p.state == PORT_PREPARED && actual.ports.get(i).is_some_and(|a| a.state == PORT_ACTIVE)
            })
            .map(|(i, _)| *i)
            .collect();
        for ifindex in turned {
            if let Some(port) = self.wanted.ports.get_mut(&ifindex) {
                port.state = PORT_ACTIVE;
            }
            let Some(row) = self.device_name(ifindex).and_then(|d| self.port_at(d)) else { continue };
            let (name, peer) = (row.name.clone(), row.peer_pa);
            outputs.push(Output::Send(Message::PortActivated(name.clone())));
            self.activated.insert(name, peer);
        }
        outputs
    }

    /// Programs to attach: the uplinks' first.
    fn attachments(&mut self) -> Vec<Output> {
        let mut needed: Vec<(String, u32, Role)> =
            self.uplink_devices().map(|(name, d)| (name.clone(), d.ifindex, Role::Uplink)).collect();
        if let Some((_, rows)) = &self.state {
            let devices = self.port_devices(rows);
            needed.extend(devices.into_iter().map(|(name, d)| (name, d.ifindex, Role::Port)));
            needed.extend(probe::tap(&self.devices).map(|(name, d)| (name.clone(), d.ifindex, Role::Port)));
        }
        // What is attached is known only after the first look at the kernel.
        needed.retain(|(_, ifindex, _)| self.actual.is_some() && !self.attached.contains_key(ifindex));
        for (_, ifindex, role) in &needed {
            self.attached.insert(*ifindex, AttachState::Pending);
            self.roles.insert(*ifindex, *role);
        }
        needed.into_iter().map(|(device, ifindex, role)| Output::Attach { device, ifindex, role }).collect()
    }

    fn proofs(&self, nets: Option<&BTreeSet<NetId>>) -> Vec<NetworkProof> {
        let (Some(actual), Some((_, rows))) = (&self.actual, &self.state) else { return Vec::new() };
        let known = || rows.0.keys().filter_map(|k| if let RowKey::Network(n) = k { Some(*n) } else { None });
        let (back, mut nets) = match nets {
            Some(nets) => {
                let numbers: BTreeSet<u32> = nets.iter().map(|n| n.0).collect();
                let vsids = part::vsids(actual, &numbers);
                (rows_back(&part::part(actual, &numbers, &vsids), rows), nets.clone())
            }
            None => (rows_back(actual, rows), known().collect()),
        };
        let digests = digests(&back);
        let mut counts: BTreeMap<NetId, u64> = BTreeMap::new();
        for net in back.0.keys().filter_map(RowKey::network) {
            *counts.entry(net).or_default() += 1;
        }
        nets.extend(digests.keys());
        nets.remove(&NetId(PROBE_NET));
        let number = |map: &BTreeMap<NetId, u64>, net| map.get(net).copied().unwrap_or(0);
        nets.iter()
            .map(|n| NetworkProof { net: *n, digest: number(&digests, n), rows: number(&counts, n) })
            .collect()
    }

    fn statuses(&self, nets: Option<&BTreeSet<NetId>>) -> Vec<PortStatus> {
        let Some((_, rows)) = &self.state else { return Vec::new() };
        let mut all: Vec<PortStatus> = plan::ports(rows)
            .filter(|(p, _)| nets.is_none_or(|n| n.contains(&p.net)))
            .map(|(p, _)| self.status(p))
            .collect();
        all.reverse();
        all
    }

    fn status(&self, row: &PortRow) -> PortStatus {
        let device = self.devices.get(&row.device);
        let name = &row.device;
        let attach = device.and_then(|d| self.attached.get(&d.ifindex));
        let entry = device.and_then(|d| self.actual.as_ref().and_then(|a| a.ports.get(&d.ifindex)));
        let detail = match (device, attach) {
            (None, _) => format!("device {name} does not exist on this host yet"),
            (Some(_), _) if self.uplinks.contains(name) => format!("device {name} is an uplink of this host"),
            (Some(d), _) if is_own(d) => format!("device {name} is the agent's own"),
            (Some(_), None | Some(AttachState::Pending)) => {
                format!("the program on {name} is not attached yet")
            }
            (Some(_), Some(AttachState::Failed(why))) => {
                format!("the program cannot be attached to {name}: {why}")
            }
            (Some(_), Some(AttachState::Attached)) if entry.is_none() => {
                format!("port table has no entry for {name}")
            }
            (Some(d), Some(AttachState::Attached)) if !d.carrier => format!("device {name} has no carrier"),
            (Some(_), Some(AttachState::Attached)) => String::new(),
        };
        PortStatus {
            port: row.name.clone(),
            present: attach == Some(&AttachState::Attached) && entry.is_some(),
            carrier: device.is_some_and(|d| d.carrier),
            ifindex: device.map_or(0, |d| d.ifindex),
            mtu: entry.map_or(0, |e| e.mtu),
            state: entry.map_or("", |e| plan::state_name(e.state)),
            detail,
        }
    }

    /// The existing devices that ports name; an uplink is never a port.
    fn port_devices(&self, rows: &Rows) -> BTreeMap<String, Device> {
        plan::ports(rows)
            .filter(|(p, _)| !self.uplinks.contains(&p.device))
            .filter_map(|(p, _)| self.devices.get(&p.device).map(|d| (p.device.clone(), *d)))
            .filter(|(_, d)| !is_own(d))
            .collect()
    }

    fn uplink_devices(&self) -> impl Iterator<Item = (&String, &Device)> {
        self.uplinks.iter().filter_map(|name| self.devices.get(name).map(|d| (name, d)))
    }

    fn device_name(&self, ifindex: u32) -> Option<&str> {
        self.devices.iter().find(|(_, d)| d.ifindex == ifindex).map(|(name, _)| name.as_str())
    }

    fn port_at(&self, device: &str) -> Option<&PortRow> {
        plan::ports(self.rows()?).map(|(p, _)| p).find(|p| p.device == device)
    }

    fn port_row(&self, name: &PortRef) -> Option<&PortRow> {
        plan::ports(self.rows()?).map(|(p, _)| p).find(|p| p.name == *name)
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
        DeviceKind::Hub | DeviceKind::Slow | DeviceKind::Probe => true,
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
