//! Moves a VM to another host while it runs: the VM's part of a live migration.
//!
//! A namespace cannot move between machines as a guest does: it gets a second leg to the destination and from one
//! moment on speaks by that alone. It hears what still comes by the first leg until the source host redirects it, as
//! a hypervisor hands on what waits in a guest's queue. Addresses and connections stay, as a guest's would.

use crate::lab::Lab;
use crate::packet::{PacketSocket, gratuitous_arp, unsolicited_advertisement};
use crate::record::{PortRecord, Record};
use crate::up::refused;
use crate::{Error, Result, network, real};
use std::fs::File;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tenet_api::client::Client;
use tenet_api::rest::{Migrate, MigrationView, ReceiptView};
use tenet_hostnet::{Links, Netns};
use tenet_model::VmRef;

/// How long a step of the controller may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a move took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moved {
    /// The controller's receipt.
    pub receipt: ReceiptView,
    /// From the request until the VM was allowed to move.
    pub prepare: Duration,
    /// How long the guest stood still, from STOP on the source to RESUME on the destination; a namespace: how long it
    /// took to change legs.
    pub pause: Duration,
    /// From the VM's first frame on the destination until the controller called it done.
    pub settle: Duration,
}

/// A port's two legs.
#[derive(Debug)]
struct Legs {
    port: PortRecord,
    /// The VM's end of the new leg, until it takes the old one's name.
    fresh: String,
    /// What the VM says first by it: where its addresses are now.
    hello: Vec<(PacketSocket, Vec<u8>)>,
}

/// A move that is prepared: the VM may go to the destination now, or stay.
///
/// Dropped without an end it leaves the VM where it is and the migration to the controller.
#[derive(Debug)]
pub struct Move {
    /// The controller's migration.
    pub migration: MigrationView,
    /// From the request until the VM was allowed to move.
    pub prepare: Duration,
    vm: VmRef,
    client: Client,
    legs: Vec<Legs>,
    vm_links: Links,
    source: Links,
    target: Links,
    _lock: File,
}

impl Move {
    /// Takes the VM to the destination; how long it was without a leg.
    ///
    /// # Errors
    /// [`Error::Net`] if its devices cannot be switched over.
    pub fn switch(&self) -> Result<Duration> {
        switch(&self.legs, &self.vm_links)
    }

    /// Gives up: the VM goes on at the source, and the controller is told if it does not know.
    ///
    /// # Errors
    /// [`Error::Net`] if the VM's devices cannot be put back.
    pub async fn give_up(self) -> Result<()> {
        // It may have been rolled back already, which is as good.
        _ = self.client.migrate_cancel(&self.vm).await;
        self.back()
    }

    fn back(&self) -> Result<()> {
        demolish(&self.legs, &self.target);
        restore(&self.legs, &self.vm_links)
    }
}

impl Lab {
    /// Moves a running VM to another host and waits until the controller calls it done.
    ///
    /// # Errors
    /// The controller's refusal; in that case the VM stays where it is.
    pub async fn migrate(&mut self, vm: &str, to: &str) -> Result<Moved> {
        if self.vm_record(vm)?.real {
            return real::migrate(self, vm, to).await;
        }
        let prepared = self.prepare_move(vm, to).await?;
        match prepared.switch() {
            Ok(pause) => self.finish_move(prepared, pause).await,
            Err(e) => {
                // What cannot be put back is told with the first error's text.
                _ = prepared.give_up().await;
                Err(e)
            }
        }
    }

    /// The first part of a move: makes the new legs and waits until the VM may go.
    ///
    /// # Errors
    /// The controller's refusal; in that case the VM stays where it is.
    pub async fn prepare_move(&mut self, vm: &str, to: &str) -> Result<Move> {
        let lock = Record::lock(&self.record.dir)?;
        self.record = Record::load(&self.record.dir, self.record.name.as_str())?;
        let to = self.host_record(to)?.name.clone();
        // A guest has no legs that could be switched by hand.
        let record = self.vm(vm)?.record().clone();
        let attached = || record.ports.iter().filter_map(|p| p.host.clone().map(|h| (p, h)));
        let Some((_, from)) = attached().next() else {
            return Err(Error::Plan(format!("VM {} is on no host: attach it first", record.name)));
        };
        if from == to {
            return Err(Error::Plan(format!("VM {} is on host {to} already", record.name)));
        }
        let vm_netns = Netns::open(&record.netns)?;
        let vm_links = Links::in_netns(&vm_netns)?;
        let source = Links::in_netns(self.host(from.as_str())?.netns())?;
        let target = Links::in_netns(self.host(to.as_str())?.netns())?;
        let client = self.client()?;

        let mut legs = Vec::new();
        for (at, (port, _)) in attached().enumerate() {
            legs.push(Legs { port: port.clone(), fresh: format!("leg.{at}"), hello: Vec::new() });
        }
        let begin = Instant::now();
        let prepared = match build(&mut legs, &target, &vm_netns, &vm_links) {
            Ok(()) => {
                let device = |l: &Legs| (l.port.name.port.clone(), l.port.device.clone());
                let devices = legs.iter().map(device).collect();
                let migrate = Migrate {
                    to: to.clone(),
                    devices,
                    through: Default::default(),
                    uri: None,
                    post_copy: false,
                };
                prepare(&client, &record.name, &migrate).await
            }
            Err(e) => Err(e),
        };
        match prepared {
            Ok(migration) => {
                let (vm, prepare) = (record.name, begin.elapsed());
                Ok(Move { migration, prepare, vm, client, legs, vm_links, source, target, _lock: lock })
            }
            Err(e) => {
                demolish(&legs, &target);
                Err(e)
            }
        }
    }

    /// The last part of a move: waits until the controller calls it done, then removes the old legs.
    ///
    /// # Errors
    /// The reason of a roll-back; in that case the VM goes on where it was.
    pub async fn finish_move(&mut self, moving: Move, pause: Duration) -> Result<Moved> {
        let switched = Instant::now();
        let receipt = done(&moving.client, &moving.vm, &moving.migration).await?;
        let settle = switched.elapsed();
        if !receipt.moved {
            moving.back()?;
            let reason = receipt.reason.clone().unwrap_or_else(|| "the controller gave no reason".to_owned());
            let (vm, from) = (&moving.vm, &receipt.from);
            return Err(Error::Plan(format!("VM {vm} was rolled back to host {from}: {reason}")));
        }
        for leg in &moving.legs {
            moving.source.delete_link(&leg.port.device)?;
            rename(&moving.vm_links, &leg.fresh, &leg.port)?;
        }
        for vm in self.record.vms.iter_mut().filter(|v| v.name == moving.vm) {
            for port in vm.ports.iter_mut().filter(|p| p.host.is_some()) {
                port.host = Some(receipt.to.clone());
            }
        }
        self.record.save()?;
        Ok(Moved { prepare: moving.prepare, receipt, pause, settle })
    }
}

/// Makes the new legs. They say nothing: no address, IPv6 off.
fn build(legs: &mut [Legs], target: &Links, vm: &Netns, links: &Links) -> Result<()> {
    for leg in legs {
        let port = &leg.port;
        let mac = port.mac.ok_or_else(|| Error::Plan(format!("port {} has no MAC on record", port.name)))?;
        network::leg(target, &port.device, vm, &leg.fresh, port.mtu)?;
        network::wake(links, &leg.fresh, mac)?;
        leg.hello.clear();
        for ip in &port.addresses {
            let frame = match ip {
                IpAddr::V4(ip) => gratuitous_arp(mac.octets(), ip.octets()).to_vec(),
                IpAddr::V6(ip) => unsolicited_advertisement(mac.octets(), ip.octets()),
            };
            leg.hello.push((PacketSocket::sender(vm, &leg.fresh)?, frame));
        }
    }
    Ok(())
}

/// Asks the controller for a move and waits until the VM may go.
pub async fn prepare(client: &Client, vm: &VmRef, migrate: &Migrate) -> Result<MigrationView> {
    let to = &migrate.to;
    let action = format!("move VM {vm} to host {to}");
    let begin = Instant::now();
    let mut view = client.migrate(vm, migrate).await.map_err(|e| refused(&action, e))?;
    while view.phase == "preparing" {
        if begin.elapsed() > crate::patience(PATIENCE) {
            _ = client.migrate_cancel(vm).await;
            let waiting = view.waiting_for.join(", ");
            return Err(Error::Plan(format!(
                "{action}: not prepared after {} s, waiting for {waiting}",
                crate::patience(PATIENCE).as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = client.vm(vm).await.map_err(|e| refused(&action, e))?;
        view = now.migration.ok_or_else(|| {
            Error::Plan(format!("{action}: it was rolled back while preparing; `tenet receipts` says why"))
        })?;
    }
    Ok(view)
}

/// The VM's part of the switch. Each step leaves it with a route, so that no program in it sees an error.
fn switch(legs: &[Legs], vm: &Links) -> Result<Duration> {
    let begin = Instant::now();
    for (at, leg) in legs.iter().enumerate() {
        network::address(vm, &leg.fresh, &leg.port, at == 0)?;
        // With the address goes the route by the old leg; from here on nothing is said there any more.
        network::silence(vm, &leg.port.link, &leg.port)?;
        for (socket, frame) in &leg.hello {
            socket.send(frame)?;
        }
    }
    Ok(begin.elapsed())
}

/// Waits for a move's receipt.
pub async fn done(client: &Client, vm: &VmRef, migration: &MigrationView) -> Result<ReceiptView> {
    let action = format!("finish moving VM {vm}");
    let begin = Instant::now();
    loop {
        // A controller that is away for a moment finishes the move when it is back.
        let receipts = match client.receipts().await {
            Err(e) if begin.elapsed() > crate::patience(PATIENCE) => return Err(refused(&action, e)),
            receipts => receipts.unwrap_or_default(),
        };
        if let Some(receipt) = receipts.into_iter().rev().find(|r| r.id == migration.id) {
            return Ok(receipt);
        }
        if begin.elapsed() > crate::patience(PATIENCE) {
            return Err(Error::Plan(format!(
                "{action}: no receipt after {} s; look at `tenet migrations`",
                crate::patience(PATIENCE).as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Puts the old legs back into use.
fn restore(legs: &[Legs], vm: &Links) -> Result<()> {
    for (at, leg) in legs.iter().enumerate() {
        vm.set_up(&leg.port.link)?;
        // Whether the addresses are still there depends on how far the switch came.
        network::silence(vm, &leg.port.link, &leg.port)?;
        network::address(vm, &leg.port.link, &leg.port, at == 0)?;
    }
    Ok(())
}

/// Removes new legs that will not be used; those that were never made are no error.
fn demolish(legs: &[Legs], target: &Links) {
    for leg in legs {
        _ = target.delete_link(&leg.port.device);
    }
}

/// Kernels before 6.2 rename only links that are down, which costs the routes: they are made again.
fn rename(vm: &Links, fresh: &str, port: &PortRecord) -> Result<()> {
    if vm.rename(fresh, &port.link).is_ok() {
        return Ok(());
    }
    vm.set_down(fresh)?;
    vm.rename(fresh, &port.link)?;
    vm.set_up(&port.link)?;
    network::silence(vm, &port.link, port)?;
    network::address(vm, &port.link, port, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrefixRecord;
    use tenet_model::{Family, Mac, Name, PortRef};

    /// Namespaces that go with the test.
    struct Namespaces(Vec<String>);

    impl Namespaces {
        fn add(&mut self, name: &str) -> (Netns, Links) {
            let name = format!("legs-{}-{:04x}-{name}", std::process::id(), rand::random::<u16>());
            self.0.push(name.clone());
            network::namespace(&name).unwrap()
        }
    }

    impl Drop for Namespaces {
        fn drop(&mut self) {
            for name in &self.0 {
                _ = Netns::delete(name);
            }
        }
    }

    #[test]
    fn a_vm_changes_legs_without_losing_its_name_address_and_route() {
        let mut all = Namespaces(Vec::new());
        let ((vm, links), (_, source), (_, target)) = (all.add("vm"), all.add("h1"), all.add("h2"));
        let port = PortRecord {
            name: PortRef {
                tenant: Name::new("t").unwrap(),
                vm: Name::new("v").unwrap(),
                port: Name::new("p").unwrap(),
            },
            link: "eth0".into(),
            device: "t-v".into(),
            tap: false,
            host: Some(Name::new("h1").unwrap()),
            mac: Some(Mac::new([2, 0, 0, 0, 0, 1]).unwrap()),
            addresses: vec!["10.1.1.11".parse().unwrap(), "fd00:1::11".parse().unwrap()],
            prefixes: vec![
                PrefixRecord {
                    prefix: "10.1.1.0/24".parse().unwrap(),
                    gateway: Some("10.1.1.1".parse().unwrap()),
                },
                PrefixRecord {
                    prefix: "fd00:1::/64".parse().unwrap(),
                    gateway: Some("fd00:1::1".parse().unwrap()),
                },
            ],
            mtu: 1458,
        };
        network::leg(&source, &port.device, &vm, &port.link, port.mtu).unwrap();
        network::wake(&links, &port.link, port.mac.unwrap()).unwrap();
        network::address(&links, &port.link, &port, true).unwrap();
        let mut legs = vec![Legs { port: port.clone(), fresh: "leg.0".into(), hello: Vec::new() }];
        build(&mut legs, &target, &vm, &links).unwrap();
        let there = PacketSocket::receiver(target.netns(), "t-v").unwrap();
        let pause = switch(&legs, &links).unwrap();
        let mut said = Vec::new();
        let mut buffer = [0; 256];
        while let Some(frame) = there.receive(&mut buffer, Duration::from_millis(300)).unwrap() {
            said.push(frame.to_vec());
        }
        assert!(said.contains(&gratuitous_arp([2, 0, 0, 0, 0, 1], [10, 1, 1, 11]).to_vec()), "{said:x?}");
        let address: std::net::Ipv6Addr = "fd00:1::11".parse().unwrap();
        let hello = unsolicited_advertisement([2, 0, 0, 0, 0, 1], address.octets());
        assert!(said.contains(&hello), "{said:x?}");
        assert!(pause < Duration::from_secs(1), "{pause:?}");
        println!("pause {pause:?}");

        // Back and forth, as a rolled back migration does.
        demolish(&legs, &target);
        restore(&legs, &links).unwrap();
        let route = links.route_to("8.8.8.8".parse().unwrap()).unwrap().unwrap();
        assert_eq!(route.link, links.index("eth0").unwrap());

        build(&mut legs, &target, &vm, &links).unwrap();
        switch(&legs, &links).unwrap();
        source.delete_link("t-v").unwrap();
        rename(&links, "leg.0", &port).unwrap();
        let link = links.get("eth0").unwrap();
        assert_eq!((link.mac, link.mtu, link.up), (Some([2, 0, 0, 0, 0, 1]), 1458, true));
        let route = links.route_to("8.8.8.8".parse().unwrap()).unwrap().unwrap();
        assert_eq!(
            (route.link, route.gateway, route.source),
            (link.index, port.gateway(Family::V4), Some(port.addresses[0]))
        );
        let route = links.route_to("2001:db8::1".parse().unwrap()).unwrap().unwrap();
        assert_eq!((route.link, route.gateway), (link.index, port.gateway(Family::V6)));
    }
}
