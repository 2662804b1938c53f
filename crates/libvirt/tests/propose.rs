//! What is proposed for domains that are there.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use tenet_libvirt::{Domain, Found, Network, Proposal, Source, addresses, propose};

const BRIDGED: &str = include_str!("bridged.xml");
const OURS: &str = include_str!("ours.xml");

fn found(xml: &str, addresses: &[(&str, &str)]) -> Found {
    let mut all = BTreeMap::new();
    for (mac, address) in addresses {
        all.entry(mac.parse().unwrap()).or_insert_with(Vec::new).push(address.parse().unwrap());
    }
    Found { domain: Domain::parse(xml).unwrap(), running: !addresses.is_empty(), addresses: all }
}

fn check(found: &[Found], prefixes: &[(Source, &str)]) -> Proposal {
    let mut known = BTreeMap::new();
    for (source, prefix) in prefixes {
        known.entry(source.clone()).or_insert_with(Vec::new).push(prefix.parse().unwrap());
    }
    propose(found, &known, &"contoso".parse().unwrap())
}

fn says(proposal: &Proposal, text: &str) -> bool {
    proposal.notes.iter().any(|n| n.contains(text))
}

#[test]
fn networks_vms_and_ports_come_from_what_is_there() {
    let default = Source::Network("default".into());
    let addresses = [("52:54:00:00:00:02", "192.168.122.50"), ("52:54:00:00:00:01", "10.7.0.9")];
    let proposal = check(
        &[found(BRIDGED, &addresses)],
        &[(default.clone(), "192.168.122.1/24"), (default, "fd00:122::1/64")],
    );
    let segments: Vec<_> =
        proposal.segments.iter().map(|s| (s.name.to_string(), format!("{:?}", s.prefixes))).collect();
    assert_eq!(
        segments,
        [
            ("contoso/default/default".to_owned(), "[192.168.122.0/24, fd00:122::/64]".to_owned()),
            ("contoso/br0-vlan-10/br0-vlan-10".to_owned(), "[10.7.0.0/24]".to_owned()),
        ]
    );
    let ports: Vec<_> = proposal
        .ports
        .iter()
        .map(|p| format!("{} {} {} {} {:?}", p.vm, p.port, p.subnet, p.mac, p.addresses))
        .collect();
    assert_eq!(
        ports,
        [
            "contoso/sql-1 eth0 contoso/br0-vlan-10/br0-vlan-10 52:54:00:00:00:01 [10.7.0.9]",
            "contoso/sql-1 eth1 contoso/default/default 52:54:00:00:00:02 [192.168.122.50]",
        ]
    );
    assert!(says(&proposal, "guessed") && says(&proposal, "52:54:00:00:00:03"));
    assert!(proposal.ports.iter().all(|p| p.queues == 1));
    let several = BRIDGED.replacen("<model type='virtio'/>", "<model type='virtio'/><driver queues='4'/>", 1);
    let queues: Vec<_> = check(&[found(&several, &[])], &[]).ports.iter().map(|p| p.queues).collect();
    assert_eq!(queues.iter().filter(|q| **q == 4).count(), 1, "{queues:?}");
}

#[test]
fn what_is_ours_is_left_out_and_names_are_made_legal() {
    let odd = BRIDGED.replace("<name>sql-1<", "<name>Web_Server 1.<");
    let proposal = check(&[found(OURS, &[]), found(&odd, &[]), found(&odd, &[])], &[]);
    assert!(says(&proposal, "sql-1 is Tenet's already, as VM contoso/sql"));
    let vms: Vec<_> = proposal.vms.iter().map(ToString::to_string).collect();
    assert_eq!(vms, ["contoso/web-server-1", "contoso/web-server-1-2"]);
    assert!(says(&proposal, "named VM contoso/web-server-1 here") && says(&proposal, "made up"));
    // Clones with the same MACs cannot both be in one subnet.
    assert_eq!(proposal.ports.len(), 2);
    assert!(says(&proposal, "has the MAC of another domain's"));
    let prefixes: Vec<_> = proposal.segments.iter().flat_map(|s| s.prefixes.clone()).collect();
    assert_eq!(prefixes.len(), 2);
    assert_ne!(prefixes[0], prefixes[1]);
}

#[test]
fn an_address_that_no_machine_can_have_is_left_out() {
    let default = Source::Network("default".into());
    for bad in ["192.168.122.1", "192.168.122.0", "192.168.122.255", "10.0.0.1"] {
        let proposal =
            check(&[found(BRIDGED, &[("52:54:00:00:00:02", bad)])], &[(default.clone(), "192.168.122.1/24")]);
        let port = proposal.ports.iter().find(|p| p.mac.to_string() == "52:54:00:00:00:02").unwrap();
        assert!(port.addresses.is_empty(), "{bad}: {port:?}");
        assert!(says(&proposal, "left out"), "{bad}");
    }
}

#[test]
fn networks_and_addresses_of_libvirt_are_read() {
    let xml = "<network><name>default</name><forward mode='nat'/><bridge name='virbr0'/>\
               <ip address='192.168.122.1' netmask='255.255.255.0'><dhcp/></ip>\
               <ip family='ipv6' address='fd00::1' prefix='64'/><ip address='x'/></network>";
    let network = Network::parse(xml).unwrap();
    assert_eq!(network.bridge.as_deref(), Some("virbr0"));
    assert_eq!(format!("{:?}", network.prefixes), "[192.168.122.1/24, fd00::1/64]");
    assert!(Network::parse("<domain/>").is_err());
    let text = " Name       MAC address          Protocol     Address\n\
                -------------------------------------------------------------------------------\n \
                vnet0      52:54:00:00:00:02    ipv4         192.168.122.50/24\n \
                -          -                    ipv6         fd00::2/64\n \
                vnet1      52:54:00:00:00:03    ipv6         fe80::1/64\n \
                vnet1      52:54:00:00:00:03    N/A          N/A\n";
    assert_eq!(
        addresses(text),
        [("52:54:00:00:00:02".parse().unwrap(), "192.168.122.50".parse::<IpAddr>().unwrap())]
    );
}
