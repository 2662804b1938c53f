//! The kernel of this host: datapath for maps and programs, netlink for devices.

use crate::drain::DrainTap;
use crate::kernel::{Kernel, KernelError, ReceiveReport, Result};
use crate::options::Hook;
use crate::probe::open_tap;
use crate::receive::Ways;
use crate::seen::Seen;
use crate::session::chain;
use crate::slow::Slow;
use crate::taps::{self, Made, TapWish, Taps};
use ipnet::Ipv6Net;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};
use tenet_api::agent::UdpTunnel;
use tenet_datapath::{self as datapath, Datapath, Events, Receive};
use tenet_host::{Device, DeviceKind, Needs, Role, drain, probe::TAP};
use tenet_hostnet::{self as hostnet, FrameSocket, Kind, Link, LinkWatch, Links, Netns, Waiting};
use tenet_tables::image::{Image, Operation};
use tenet_tables::{Counters, DropKey, DropReason, Event, PORT_ACTIVE, PORT_PREPARED, Port};

/// MTU of the host's end of a veth port: the largest there is, so that frames which do not fit the provider network
/// reach our program, which answers them with the port's real limit.
///
/// Somebody else's tap is left alone: nothing compares its MTU with what the VM writes into it, nor with what we redirect to it.
const VETH_MTU: u32 = 65535;

/// The kernel of this host.
pub(crate) struct RealKernel {
    datapath: Datapath,
    ways: Ways,
    needs: Needs,
    events: Events,
    links: Links,
    watch: LinkWatch,
    seen: Seen,
    /// Devices that should carry a program, as far as we attached or found one.
    programs: BTreeMap<u32, Role>,
    /// Number of the hub that frames for taps go by, once there is a port on a tap; or why there is none.
    hub: Option<std::result::Result<u32, String>>,
    /// What STT cannot do in one step goes by this device.
    slow: Slow,
    taps: Taps,
    /// Where frames that waited for a VM are sent on, while a VM is about to leave.
    drain: Option<DrainTap>,
    /// By which frames are given to taps' readers, once there was one to be given.
    frames: Option<FrameSocket>,
    /// Ports that were prepared when last seen: if one is active now, the data plane did it.
    prepared: BTreeSet<u32>,
}

impl RealKernel {
    /// Opens what is pinned, or makes it.
    pub(crate) fn open(bpffs: PathBuf, hook: Hook, receive: Receive) -> Result<Self> {
        let hook = match hook {
            Hook::Auto => datapath::Hook::Auto,
            Hook::Tcx => datapath::Hook::Tcx,
            Hook::Clsact => datapath::Hook::Clsact,
        };
        let links = Links::here().map_err(error)?;
        let watch = links.watch().map_err(error)?;
        let options = datapath::Options { bpffs, hook, receive, ..datapath::Options::default() };
        let datapath = Datapath::open(&options).map_err(error)?;
        let ways = Ways::new(&datapath, &options);
        let events = datapath.events().map_err(error)?;
        let found = datapath.attached().map_err(error)?;
        let programs = found.into_iter().map(|a| (a.ifindex, from_datapath(a.role))).collect();
        // Before the first plan: one without the slow device would take it from the programs for a moment.
        let mut slow = Slow::default();
        slow.notice_all(&datapath.read().map_err(error)?);
        Ok(Self {
            datapath,
            ways,
            needs: Needs::default(),
            events,
            links,
            watch,
            seen: Seen::default(),
            programs,
            hub: None,
            slow,
            taps: Taps::default(),
            drain: None,
            frames: None,
            prepared: BTreeSet::new(),
        })
    }

    fn note(&mut self, ifindex: u32, port: Option<&Port>) {
        if port.is_some_and(|p| p.state == PORT_PREPARED) {
            self.prepared.insert(ifindex);
        } else {
            self.prepared.remove(&ifindex);
        }
    }

    /// Makes the hub or puts it right. A failure is told once: without a hub frames go into taps cut up.
    fn make_hub(&mut self) {
        let made = self.datapath.ensure_hub().map_err(|e| chain(&e));
        if self.hub.as_ref() != Some(&made) {
            match &made {
                Ok(ifindex) => {
                    tracing::info!(ifindex, "large frames stay whole on their way into taps (SRv6 End.DX2)")
                }
                Err(cause) => tracing::warn!(
                    %cause,
                    "no hub: large frames are cut up on their way into taps, VMs there receive at a third of the speed"
                ),
            }
        }
        self.hub = Some(made);
    }

    /// A write, unless the data plane has just activated the port: then its state stays.
    fn guarded(&self, operation: &Operation) -> Operation {
        if let Operation::Port(ifindex, Some(port)) = operation
            && port.state == PORT_PREPARED
            && self.prepared.contains(ifindex)
            && let Ok(Some(now)) = self.datapath.port(*ifindex)
        {
            let same =
                (now.net, now.vsid, now.mac, now.peer_pa) == (port.net, port.vsid, port.mac, port.peer_pa);
            if same && now.state == PORT_ACTIVE {
                return Operation::Port(*ifindex, Some(Port { state: PORT_ACTIVE, ..*port }));
            }
        }
        *operation
    }
}

impl Kernel for RealKernel {
    fn hook(&self) -> &'static str {
        match self.datapath.hook() {
            datapath::Hook::Tcx => "tcx",
            datapath::Hook::Clsact | datapath::Hook::Auto => "clsact",
        }
    }

    fn devices(&mut self) -> Result<BTreeMap<String, Device>> {
        let mut links = self.links.list().map_err(error)?;
        // Probes alone need no hub.
        let is_port = |l: &Link| {
            l.kind == Kind::Tap
                && ![TAP, drain::TAP].contains(&&*l.name)
                && self.programs.get(&l.index) == Some(&Role::Port)
        };
        if self.hub.is_none() && self.ways.chosen == Receive::Hub && links.iter().any(is_port) {
            self.make_hub();
            links = self.links.list().map_err(error)?;
        }
        if self.slow.make(&self.datapath, &self.links) {
            links = self.links.list().map_err(error)?;
        }
        self.seen.list(&links);
        let hub = self.hub.as_ref().and_then(|h| h.as_ref().ok().copied());
        // Made by an earlier run, or before it was measured.
        let hub = hub.filter(|_| self.ways.chosen == Receive::Hub);
        // Nobody else's device of that name is one of ours, and ours is gone as soon as it is let go of.
        let drain = self.drain.as_ref().map(|d| d.ifindex);
        links.retain(|l| l.name != drain::TAP || drain == Some(l.index));
        Ok(links.into_iter().map(|l| (l.name.clone(), device(&l, hub, self.slow.near()))).collect())
    }

    fn make_taps(&mut self, wishes: &[TapWish]) -> Made {
        self.taps.make(&self.links, wishes)
    }

    fn drop_taps(&mut self, wanted: &BTreeSet<&str>) -> Result<()> {
        self.taps.drop_unwanted(&self.links, wanted).map_err(error)
    }

    fn link_fd(&self) -> Option<OwnedFd> {
        self.watch.as_fd().try_clone_to_owned().ok()
    }

    fn links_changed(&mut self) -> bool {
        let mut changed = false;
        // Ends with `WouldBlock`; another error shows in the next list.
        while let Ok(events) = self.watch.try_next() {
            for event in &events {
                changed |= self.seen.is_news(event);
            }
        }
        changed
    }

    fn read(&mut self) -> Result<(Image, BTreeMap<u32, Role>)> {
        let image = self.datapath.read().map_err(error)?;
        self.slow.notice_all(&image);
        self.prepared =
            image.ports.iter().filter(|(_, p)| p.state == PORT_PREPARED).map(|(i, _)| *i).collect();
        let wanted: Vec<_> = self.programs.iter().map(|(i, r)| (*i, to_datapath(*r))).collect();
        let there = self.datapath.verify_attached(&wanted).map_err(error)?;
        Ok((image, there.into_iter().map(|a| (a.ifindex, from_datapath(a.role))).collect()))
    }

    fn apply(&mut self, operations: &[Operation]) -> Vec<String> {
        let mut errors = Vec::new();
        // The new device tells of itself as any other does, and its number gets into the tables.
        self.slow.notice(operations);
        self.slow.make(&self.datapath, &self.links);
        for operation in operations {
            if let Err(e) = self.datapath.apply(&[self.guarded(operation)]) {
                errors.push(chain(&e));
            }
            if let Operation::Port(ifindex, Some(port)) = operation
                && self.seen.mtu(*ifindex) != Some(port.mtu.into())
                && let Err(cause) = taps::set_mtu(&self.links, *ifindex, port)
            {
                tracing::warn!(%cause, ifindex, "the tap's MTU cannot be set; the VM's NIC is told the right one");
            }
        }
        errors
    }

    fn read_back(&mut self, operations: &[Operation]) -> Result<Vec<Operation>> {
        let back = self.datapath.read_back(operations).map_err(error)?;
        for operation in &back {
            if let Operation::Port(ifindex, port) = operation {
                self.note(*ifindex, port.as_ref());
            }
        }
        Ok(back)
    }

    fn leads_to(&mut self, pa: IpAddr) -> Option<bool> {
        self.links.route_to(pa).ok().map(|route| route.is_some())
    }

    fn carrier(&mut self, ifindex: u32) -> Option<bool> {
        // A device that is gone has none.
        self.links.by_index(ifindex).ok().map(|link| link.is_some_and(|l| l.up && l.carrier))
    }

    fn restore(&mut self) -> Result<Vec<String>> {
        let restored = self.datapath.restore_pins().map_err(error)?;
        if self.hub.is_some() {
            self.make_hub();
        }
        self.slow.restore(&self.datapath, &self.links);
        Ok(restored.into_iter().map(|map| format!("the pin of map {map} was gone: pinned again")).collect())
    }

    fn provide(&mut self, needs: &Needs) -> Vec<UdpTunnel> {
        let ports: Vec<u16> = needs.vxlan.iter().chain(&needs.geneve).copied().collect();
        if self.needs != *needs
            && let Err(cause) = self.links.keep_udp_gro(&ports)
        {
            tracing::warn!(%cause, "a socket that is not needed any more stays");
        }
        self.needs.clone_from(needs);
        let tunnels =
            [(hostnet::UdpTunnel::Vxlan, &needs.vxlan), (hostnet::UdpTunnel::Geneve, &needs.geneve)];
        let wanted =
            tunnels.into_iter().flat_map(|(tunnel, ports)| ports.iter().map(move |port| (tunnel, *port)));
        wanted.map(|(tunnel, port)| hold(&self.links, tunnel, port)).collect()
    }

    fn feature(&mut self, device: &str, feature: &str) -> Option<bool> {
        self.links.feature(device, feature).ok().flatten()
    }

    fn set_feature(&mut self, device: &str, feature: &str, on: bool) -> Result<bool> {
        if self.links.feature(device, feature).map_err(error)? != Some(!on) {
            return Ok(false);
        }
        self.links.set_feature(device, feature, on).map_err(error)
    }

    fn all_multicast(&mut self, device: &str) -> Option<bool> {
        self.links.find(device).ok().flatten().map(|link| link.all_multicast)
    }

    fn set_all_multicast(&mut self, device: &str, on: bool) -> Result<()> {
        self.links.set_all_multicast(device, on).map_err(error)
    }

    fn is_on_link(&mut self, device: &str, range: Ipv6Net) -> Option<bool> {
        let index = self.links.find(device).ok()?.map(|link| link.index);
        let Some(index) = index else { return Some(false) };
        // An address there whose prefix holds the range, or a route of the administrator's.
        let addresses = self.links.addrs().ok()?.into_iter().filter(|a| a.link == index);
        let overlaps = |prefix: Ipv6Net| prefix.contains(&range) || range.contains(&prefix);
        let beside = |a: hostnet::Address| match a.ip {
            IpAddr::V6(ip) => Ipv6Net::new(ip, a.prefix_len).is_ok_and(overlaps),
            IpAddr::V4(_) => false,
        };
        if addresses.into_iter().any(beside) {
            return Some(true);
        }
        let route = self.links.route_to(range.addr().into()).ok()?;
        Some(route.is_some_and(|r| r.link == index && r.gateway.is_none() && !r.local))
    }

    fn receive(&mut self) -> ReceiveReport {
        self.ways.look();
        let trouble = self.hub.as_ref().and_then(|h| h.as_ref().err()).map(String::as_str);
        let way = if trouble.is_some() { Receive::Plain } else { self.ways.chosen };
        ReceiveReport {
            way: way.name().to_owned(),
            reason: self.ways.reason(trouble),
            ways: self.ways.reports(),
        }
    }

    fn probe_tap(&mut self) -> Option<Result<OwnedFd>> {
        Some(open_tap(&self.links).map_err(error))
    }

    fn netns(&self) -> Option<Netns> {
        Some(self.links.netns().clone())
    }

    fn hold_drain(&mut self, wanted: bool) -> Result<bool> {
        match (wanted, self.drain.take()) {
            (true, None) => self.drain = Some(DrainTap::open(&self.links).map_err(error)?),
            (false, Some(tap)) => {
                // The kernel takes its time to remove a device.
                std::thread::spawn(move || drop(tap));
            }
            (_, kept) => {
                self.drain = kept;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn send_on(&mut self, port: &Port, frames: &[Waiting]) -> Result<BTreeMap<&'static str, u64>> {
        let Some(tap) = &mut self.drain else {
            return Err(KernelError(format!("there is no tap {}", drain::TAP)));
        };
        if !self.programs.contains_key(&tap.ifindex) {
            return Err(KernelError(format!("tap {} carries no program", drain::TAP)));
        }
        // The port is there while these frames are written, and no longer: nothing but the agent's own write sees it.
        let sender = Operation::Port(tap.ifindex, Some(drain::sender(port)));
        self.datapath.apply(&[sender]).map_err(error)?;
        let refused = frames.iter().filter(|waiting| tap.send(waiting).is_err()).count();
        let removed = self.datapath.apply(&[Operation::Port(tap.ifindex, None)]).map_err(error);
        tap.clear();
        let drops = self.datapath.drops().map_err(error)?;
        removed?;
        let mut lost = BTreeMap::new();
        for ((_, reason), now) in drops.into_iter().filter(|((ifindex, _), _)| *ifindex == tap.ifindex) {
            let before = tap.drops.insert(reason.name(), now).unwrap_or(0);
            if now > before {
                lost.insert(reason.name(), now - before);
            }
        }
        if refused > 0 {
            *lost.entry(DropReason::KernelRefused.name()).or_default() +=
                u64::try_from(refused).unwrap_or(u64::MAX);
        }
        Ok(lost)
    }

    fn attach(&mut self, device: &str, ifindex: u32, role: Role) -> Result<()> {
        if role == Role::Port {
            self.links.quiet(device).map_err(error)?;
        }
        // The program first: a port that is up without it would speak to the host's own stack.
        self.datapath.attach(ifindex, to_datapath(role)).map_err(error)?;
        self.programs.insert(ifindex, role);
        if role == Role::Port {
            let link = self.links.get(device).map_err(error)?;
            if link.kind == Kind::Veth && link.mtu != VETH_MTU {
                self.links.set_mtu(device, VETH_MTU).map_err(error)?;
            }
            if !link.up {
                self.links.set_up(device).map_err(error)?;
            }
        }
        Ok(())
    }

    fn detach(&mut self, ifindex: u32) -> Result<()> {
        self.programs.remove(&ifindex);
        self.prepared.remove(&ifindex);
        self.datapath.detach(ifindex).map_err(error)
    }

    fn counters(&mut self) -> Result<BTreeMap<u32, Counters>> {
        self.datapath.counters().map_err(error)
    }

    fn sent(&mut self, ifindex: u32) -> Option<u64> {
        self.datapath.counters_of(ifindex).ok().map(|c| c.tx_frames)
    }

    fn give(&mut self, ifindex: u32, frame: &[u8]) -> Result<()> {
        let socket = match self.frames.take() {
            Some(socket) => socket,
            None => FrameSocket::in_netns(self.links.netns()).map_err(error)?,
        };
        self.frames.insert(socket).send(ifindex, frame).map_err(error)
    }

    fn drops(&mut self) -> Result<BTreeMap<DropKey, u64>> {
        let drops = self.datapath.drops().map_err(error)?;
        Ok(drops.into_iter().map(|((ifindex, r), n)| (DropKey { ifindex, reason: r as u32 }, n)).collect())
    }

    fn unread(&mut self) -> Result<BTreeMap<u32, u64>> {
        let taps = self.links.list().map_err(error)?.into_iter().filter(|l| l.kind == Kind::Tap);
        Ok(taps.map(|l| (l.index, l.tx_dropped)).collect())
    }

    fn event_fd(&self) -> Option<OwnedFd> {
        self.events.as_fd().try_clone_to_owned().ok()
    }

    fn slow_path(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.slow.counters()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.next()).take(EVENTS_AT_ONCE).collect()
    }
}

/// Holds a port's socket; says how that went.
fn hold(links: &Links, tunnel: hostnet::UdpTunnel, port: u16) -> UdpTunnel {
    let method = match tunnel {
        hostnet::UdpTunnel::Vxlan => "vxlan",
        hostnet::UdpTunnel::Geneve => "geneve",
    };
    let (merges, detail) = match links.ensure_udp_gro(tunnel, port) {
        Ok(hostnet::UdpGro::Ours(_)) => (true, String::new()),
        Ok(hostnet::UdpGro::Others) => {
            let who = "something else on this host has the port: segments are joined only if it is a tunnel";
            (false, format!("{who}; choose another with `tenet site set --{method}-port`"))
        }
        Err(cause) => (false, format!("segments stay single, which costs speed: {}", chain(&cause))),
    };
    UdpTunnel { method: method.to_owned(), port: port.into(), merges, detail }
}

/// Events taken in one go; the rest waits until other work was done.
const EVENTS_AT_ONCE: usize = 1024;

fn device(link: &Link, hub: Option<u32>, slow: Option<u32>) -> Device {
    let kind = match link.kind {
        _ if hub == Some(link.index) => DeviceKind::Hub,
        _ if slow == Some(link.index) => DeviceKind::Slow,
        Kind::Veth if link.lower_elsewhere => DeviceKind::Veth,
        Kind::Tap if link.name == TAP => DeviceKind::Probe,
        Kind::Tap if link.name == drain::TAP => DeviceKind::Drain,
        Kind::Tap => DeviceKind::Tap,
        _ => DeviceKind::Plain,
    };
    let mac = tenet_tables::Mac::new(link.mac.unwrap_or_default());
    Device { ifindex: link.index, carrier: link.up && link.carrier, mtu: link.mtu, kind, mac }
}

const fn to_datapath(role: Role) -> datapath::Role {
    match role {
        Role::Port => datapath::Role::Port,
        Role::Uplink => datapath::Role::Uplink,
    }
}

const fn from_datapath(role: datapath::Role) -> Role {
    match role {
        datapath::Role::Port => Role::Port,
        datapath::Role::Uplink => Role::Uplink,
    }
}

fn error<E: std::error::Error + 'static>(error: E) -> KernelError {
    KernelError(chain(&error))
}
