//! A VM with two NICs, in two networks, moves as one.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::IpAddr;
use std::time::Duration;
use tenet_lab::tool::{Probe, Stream};
use tenet_model::Name;
use tenet_tests::{APART, World, skipped, until};

const VM: &str = "contoso/db";
const FRONT: &str = "10.1.1.20";
const BACK: &str = "10.9.1.20";
/// Each NIC has somebody to talk to on the VM's old host or its new one, and on another; every host knows both networks.
const TENANTS: &str = "
tenants:
  contoso:
    networks:
      prod:
        subnets:
          data: { prefix: 10.1.1.0/24, vsid: 5001 }
      back:
        subnets:
          disk: { prefix: 10.9.1.0/24, vsid: 5009 }
    vms:
      db:
        ports:
          eth0: { subnet: prod/data, address: 10.1.1.20, host: h1 }
          eth1: { subnet: back/disk, address: 10.9.1.20, host: h1 }
      web: { ports: { eth0: { subnet: prod/data, address: 10.1.1.12, host: h3 } } }
      app: { ports: { eth0: { subnet: prod/data, address: 10.1.1.13, host: h2 } } }
      log: { ports: { eth0: { subnet: prod/data, address: 10.1.1.14, host: h1 } } }
      nas: { ports: { eth0: { subnet: back/disk, address: 10.9.1.12, host: h3 } } }
      tape: { ports: { eth0: { subnet: back/disk, address: 10.9.1.13, host: h1 } } }
      safe: { ports: { eth0: { subnet: back/disk, address: 10.9.1.14, host: h2 } } }
";

/// A VM that talks to one of the NICs.
struct Talk {
    from: &'static str,
    probe: Probe,
    stream: Stream,
}

impl Talk {
    fn begin(world: &World, from: &'static str, to: &str) -> Self {
        let netns = world.lab.vm(from).unwrap().netns().clone();
        let to: IpAddr = to.parse().unwrap();
        let stream = Stream::start(&netns, to, Duration::from_millis(5)).unwrap();
        Self { from, probe: Probe::start(&netns, to, VM, 1000).unwrap(), stream }
    }
}

#[test]
fn both_nics_of_a_vm_move_as_one_and_neither_loses_more_than_the_pause() {
    if let Some(why) = tenet_tests::missing() {
        return skipped(why);
    }
    let mut world = World::up("two", &(APART.to_owned() + TENANTS), false);
    let talks: Vec<Talk> = [("contoso/web", FRONT), ("contoso/app", FRONT), ("contoso/nas", BACK)]
        .into_iter()
        .chain([("contoso/tape", BACK)])
        .map(|(from, to)| Talk::begin(&world, from, to))
        .collect();
    let path = ["h2", "h1", "h3"];
    let mut pause = Duration::ZERO;
    for to in path {
        let moved = world.migrate(VM, to);
        let receipt = &moved.receipt;
        println!("to {to}: pause {:?}, {receipt:?}", moved.pause);
        assert!(receipt.moved && receipt.exact, "{receipt:?}");
        assert_eq!(receipt.ports, ["eth0", "eth1"].map(|p| Name::new(p).unwrap()).into());
        pause += moved.pause;
        world.in_sync();
        for address in [FRONT, BACK] {
            world.address_lives_on(VM, address.parse().unwrap(), to);
        }
        // Both are live there, and neither is anywhere else.
        until("both ports are where the VM is", Duration::from_secs(10), || {
            let on = |host: &str| {
                let ports = world.host_status(host).ports.into_iter();
                ports
                    .filter(|p| p.port.vm_ref().to_string() == VM)
                    .map(|p| p.state.unwrap_or_default())
                    .collect::<Vec<_>>()
            };
            let elsewhere = ["h1", "h2", "h3"].into_iter().filter(|h| *h != to).all(|h| on(h).is_empty());
            (elsewhere && on(to) == ["active", "active"]).then_some(())
        });
    }
    for Talk { from, probe, stream } in talks {
        let (probe, stream) = (probe.stop().unwrap(), stream.stop().unwrap());
        println!("{from}: {probe:?}, {stream:?}; {} us of pauses", pause.as_micros());
        assert!(
            stream.received.in_order && stream.received.bytes == stream.sent && stream.sent > 0,
            "{from}: {stream:?}"
        );
        assert_eq!(probe.strangers, 0, "{from}: {probe:?}");
        // One a millisecond is sent; each pause may cut one more at either end.
        let fair = pause.as_millis() as u64 + 2 * path.len() as u64 + 1;
        assert!(probe.lost <= fair, "{from}: {} lost, {fair} were during the pauses: {probe:?}", probe.lost);
    }
}
