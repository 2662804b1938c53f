//! Moves of VMs between hosts.

use std::net::IpAddr;
use std::time::Duration;
use tenet_api::rest::Table;
use tenet_lab::Moved;

use crate::{Load, World, block_on, until};

impl World {
    /// Moves a VM and waits until that is done.
    ///
    /// # Panics
    /// If it fails.
    pub fn migrate(&mut self, vm: &str, to: &str) -> Moved {
        block_on(self.lab.migrate(vm, to)).unwrap_or_else(|e| panic!("move {vm} to {to}: {e}"))
    }

    /// The lookup table as it stands in a host's kernel.
    #[must_use]
    pub fn table(&self, host: &str) -> Table {
        block_on(self.client.table(Some(&host.parse().unwrap()))).unwrap()
    }

    /// Every host that has a record of a VM says that it is on this host, and nothing else.
    ///
    /// # Panics
    /// If one says otherwise for seconds.
    pub fn lives_on(&self, vm: &str, host: &str) {
        self.address_lives_on(vm, IpAddr::V4(self.ip(vm)), host);
    }

    /// The same of an address of a VM that the lab did not make.
    ///
    /// # Panics
    /// As above.
    pub fn address_lives_on(&self, vm: &str, ca: IpAddr, host: &str) {
        let pa = self.lab.host(host).unwrap().record().pa;
        let (tenant, _) = vm.split_once('/').expect("a full name");
        for other in self.lab.record().hosts.iter().map(|h| h.name.to_string()) {
            until(&format!("{other}'s record of {vm} says {host}"), Duration::from_secs(10), || {
                let table = self.table(&other);
                let row = table.rows.iter().find(|r| r.ca == ca && r.network.tenant.as_str() == tenant)?;
                (row.pa == pa && row.alt_pa.is_none() && row.in_sync).then_some(())
            });
        }
    }
}

/// Moves a VM there and back under load and holds what is lost against the VM's own pauses.
///
/// # Panics
/// If more is lost than a paused VM must lose.
pub fn check_moves(world: &mut World, askers: &[&str], vm: &str, path: &[&str]) {
    let loads: Vec<Load> = askers.iter().map(|from| Load::start(world, from, vm)).collect();
    let mut pause = Duration::ZERO;
    for to in path {
        let from = world.host_of(vm);
        let moved = world.migrate(vm, to);
        println!(
            "{from} to {to}: prepared in {:?}, pause {:?}, done after {:?}, {} redirected, {} lost, last ack {} us",
            moved.prepare,
            moved.pause,
            moved.settle,
            moved.receipt.redirected,
            moved.receipt.lost,
            moved.receipt.last_ack_us
        );
        let receipt = &moved.receipt;
        assert!(receipt.moved && receipt.reason.is_none(), "{receipt:?}");
        assert_eq!(
            (receipt.vm.to_string().as_str(), receipt.from.as_str(), receipt.to.as_str()),
            (vm, &*from, *to)
        );
        assert!(receipt.prepare_us > 0 && receipt.last_ack_us > 0, "{receipt:?}");
        assert!(receipt.acks_us.values().all(|us| *us <= receipt.last_ack_us), "{receipt:?}");
        assert_eq!(world.host_of(vm), *to);
        pause += moved.pause;
        world.in_sync();
        world.lives_on(vm, to);
    }
    loads[0].run(Duration::from_millis(200));
    for (load, from) in loads.into_iter().zip(askers) {
        let (probe, stream) = load.stop();
        println!(
            "{from}: {} of {} questions lost in {} pauses of {} us together; longest silence {} us, TCP's {} us",
            probe.lost,
            probe.sent,
            path.len(),
            pause.as_micros(),
            probe.longest_gap_us,
            stream.received.longest_gap_us
        );
        // One a millisecond is sent; each pause may cut one more at either end.
        let fair = pause.as_millis() as u64 + 2 * path.len() as u64 + 1;
        assert!(probe.lost <= fair, "{} lost, {fair} were during the pauses: {probe:?}", probe.lost);
    }
}
