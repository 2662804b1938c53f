//! Builds namespaces, devices, addresses and routes of a lab, as recorded.

use crate::plan::PROVIDER_MTU;
use crate::record::{HostRecord, PortRecord, Record, Segment};
use crate::{Error, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tenet_hostnet::{Links, Netns};
use tenet_model::{Family, Mac};

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
/// The controller's device and the router's towards it.
const CONTROLLER_DEVICE: &str = "eth0";
const TO_CONTROLLER: &str = "to.controller";

/// Makes the physical network: router, controller's and hosts' namespaces with their uplinks.
pub fn physical(record: &Record) -> Result<()> {
    let (router, links) = namespace(&record.router)?;
    for path in ["ipv4/ip_forward", "ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
        links.set_sysctl(path, "1")?;
    }
    let (_, controller) = namespace(&record.controller.netns)?;
    controller.add_veth(CONTROLLER_DEVICE, TO_CONTROLLER, &router)?;
    let length = subnet_len(record.controller.address);
    give(&links, TO_CONTROLLER, record.controller.gateway, length)?;
    give(&controller, CONTROLLER_DEVICE, record.controller.address, length)?;
    controller.add_route(any(record.controller.gateway), 0, Some(record.controller.gateway), None)?;
    for segment in record.segments.iter().filter(|s| s.bridge) {
        links.add_bridge(&segment.device)?;
        router_addresses(&links, segment)?;
    }
    for host in &record.hosts {
        uplink(record, host, &router, &links)?;
    }
    Ok(())
}

fn uplink(record: &Record, host: &HostRecord, router: &Netns, at_router: &Links) -> Result<()> {
    let segment = record.segments.get(host.segment).ok_or_else(|| {
        Error::Plan(format!(
            "host {} names provider subnet {}, which is not recorded",
            host.name, host.segment
        ))
    })?;
    let (_, links) = namespace(&host.netns)?;
    links.add_veth(&host.uplink, &host.router_device, router)?;
    links.set_mtu(&host.uplink, PROVIDER_MTU)?;
    give(&links, &host.uplink, host.pa, segment.prefix_len)?;
    if segment.bridge {
        at_router.set_master(&host.router_device, Some(&segment.device))?;
        at_router.set_up(&host.router_device)?;
    } else {
        router_addresses(at_router, segment)?;
    }
    links.add_route(any(segment.gateway), 0, Some(segment.gateway), None)?;
    if let (Some(own), Some(gateway)) = (host.other, segment.other_gateway) {
        give(&links, &host.uplink, own, subnet_len(own))?;
        links.add_route(any(gateway), 0, Some(gateway), None)?;
    }
    Ok(())
}

fn router_addresses(links: &Links, segment: &Segment) -> Result<()> {
    give(links, &segment.device, segment.gateway, segment.prefix_len)?;
    match segment.other_gateway {
        Some(other) => give(links, &segment.device, other, subnet_len(other)),
        None => Ok(()),
    }
}

/// Length of the provider network's subnets.
pub const fn subnet_len(of: IpAddr) -> u8 {
    match of {
        IpAddr::V4(_) => 24,
        IpAddr::V6(_) => 64,
    }
}

/// Everything of a family.
const fn any(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => ANY,
        IpAddr::V6(_) => ANY6,
    }
}

/// Turns a device's IPv6 on. Addresses are at once usable, and routers are not asked for theirs: the lab gives both.
fn speak_v6(links: &Links, device: &str) -> Result<()> {
    for (name, value) in
        [("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0"), ("disable_ipv6", "0")]
    {
        links.set_sysctl(&format!("ipv6/conf/{device}/{name}"), value)?;
    }
    Ok(())
}

/// A new namespace with loopback up and IPv6 off, so that only what we ask for is on the wire.
pub fn namespace(name: &str) -> Result<(Netns, Links)> {
    let netns = Netns::create(name)?;
    let links = Links::in_netns(&netns)?;
    for path in ["ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"] {
        links.set_sysctl(path, "1")?;
    }
    // Bridges and routers answer for one address on several devices; strictness here would only mask mistakes there.
    for path in ["ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"] {
        links.set_sysctl(path, "0")?;
    }
    links.set_up("lo")?;
    Ok((netns, links))
}

/// Makes a port's leg: its device on a host and the other end in the VM, which stays down.
pub fn leg(host: &Links, device: &str, vm: &Netns, link: &str, mtu: u32) -> Result<()> {
    host.add_veth(device, link, vm)?;
    host.quiet(device)?;
    host.set_mtu(device, mtu)?;
    Links::in_netns(vm)?.set_mtu(link, mtu)?;
    host.set_up(device)?;
    Ok(())
}

/// Gives a VM's end of a leg the port's MAC and sets it up; it says nothing yet, as it has no address.
pub fn wake(vm: &Links, link: &str, mac: Mac) -> Result<()> {
    vm.set_mac(link, mac.octets())?;
    vm.set_up(link)?;
    Ok(())
}

/// Gives a VM's link the port's addresses and, if it is the VM's first, the default routes.
pub fn address(vm: &Links, link: &str, port: &PortRecord, first: bool) -> Result<()> {
    if port.addresses.iter().any(IpAddr::is_ipv6) {
        speak_v6(vm, link)?;
    }
    for ip in &port.addresses {
        vm.add_addr(link, *ip, port.prefix_len(*ip))?;
    }
    for family in [Family::V4, Family::V6] {
        if let (true, Some(_), Some(gateway)) = (first, port.address(family), port.gateway(family)) {
            vm.add_route(any(gateway), 0, Some(gateway), Some(link))?;
        }
    }
    Ok(())
}

/// Takes the port's addresses from a VM's link, which from then on says nothing; those it does not have are no error.
pub fn silence(vm: &Links, link: &str, port: &PortRecord) -> Result<()> {
    for ip in &port.addresses {
        _ = vm.delete_addr(link, *ip, port.prefix_len(*ip));
    }
    Ok(vm.set_sysctl(&format!("ipv6/conf/{link}/disable_ipv6"), "1")?)
}

fn give(links: &Links, device: &str, ip: IpAddr, prefix_len: u8) -> Result<()> {
    if ip.is_ipv6() {
        // A namespace speaks to its own IPv6 addresses by its loopback.
        speak_v6(links, "lo")?;
        speak_v6(links, device)?;
    }
    links.add_addr(device, ip, prefix_len)?;
    links.set_up(device)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{PlanOptions, plan};
    use std::net::UdpSocket;
    use std::time::Duration;
    use tenet_model::Name;

    /// Removes the namespaces of a record that was never saved.
    struct Gone(Record);

    impl Drop for Gone {
        fn drop(&mut self) {
            for name in self.0.namespaces() {
                _ = Netns::delete(name);
            }
        }
    }

    fn physical_of(site: &str) -> Gone {
        let options = PlanOptions {
            name: Name::new("nettest").unwrap(),
            id: format!("{}-{:04x}", std::process::id(), rand::random::<u16>()),
            dir: "/nowhere".into(),
            bpffs: "/nowhere".into(),
            binary: "/nowhere".into(),
            clsact: false,
            file: "site".into(),
            vm_mtu: None,
            guests: crate::Guests::None,
        };
        let gone = Gone(plan(&options, &tenet_site::parse("site", site).unwrap()).unwrap());
        physical(&gone.0).unwrap();
        gone
    }

    /// Whether a datagram crosses from one namespace to an address of another.
    fn crosses(from: &str, to: &str, address: IpAddr) -> bool {
        let listener = Netns::open(to).unwrap().run(|| UdpSocket::bind((address, 9))).unwrap().unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sender = Netns::open(from).unwrap().run(|| UdpSocket::bind((any(address), 0))).unwrap().unwrap();
        sender.send_to(b"hello", (address, 9)).unwrap();
        listener.recv(&mut [0; 8]).is_ok_and(|n| n == 5)
    }

    #[test]
    fn hosts_reach_each_other_and_the_controller() {
        let v4 = "hosts:\n  a: { pa: 192.168.1.10 }\n  b: { pa: 192.168.2.20 }\n  c: { pa: 192.168.2.21 }\n";
        let v6 =
            "hosts:\n  a: { pa: \"fd00:1::10\" }\n  b: { pa: \"fd00:2::20\" }\n  c: { pa: \"fd00:2::21\" }\n";
        all_reach_all(v4);
        all_reach_all(v6);
    }

    fn all_reach_all(site: &str) {
        let gone = physical_of(site);
        for from in &gone.0.hosts {
            assert!(crosses(&from.netns, &from.netns, from.pa), "{} to itself", from.name);
            assert!(
                crosses(&from.netns, &gone.0.controller.netns, gone.0.controller.address),
                "{}",
                from.name
            );
            for to in gone.0.hosts.iter().filter(|h| h.name != from.name) {
                assert!(crosses(&from.netns, &to.netns, to.pa), "{} to {}", from.name, to.name);
            }
        }
    }
}
