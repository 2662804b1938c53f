//! The objects of a site, as the store keeps them.

use crate::{
    Family, HostName, Key, Mac, Method, Name, NetId, NetworkRef, OtherPort, PortRef, SubnetRef, TenantName,
    UdpPorts, VmRef, Vsid,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use uuid::Uuid;

/// Who owns networks and VMs (HNV's customer).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
}

/// A tenant's isolated routing domain with its own address space (HNV's VM network).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: NetworkRef,
    /// Routing domain id (HNV's RDID).
    pub rdid: Uuid,
    /// Its number in the kernel's maps.
    pub id: NetId,
    /// How its frames cross the provider network.
    pub method: Method,
    /// The method that it is about to have: receivers are made ready for it while senders still use [`Self::method`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switching: Option<Method>,
}

impl Network {
    /// Whether its customer addresses need rewrite addresses, now or soon.
    #[must_use]
    pub fn rewrites(&self) -> bool {
        self.method == Method::Rewrite || self.switching == Some(Method::Rewrite)
    }
}

/// A prefix of a subnet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SubnetPrefix {
    /// The prefix, host bits zero.
    pub prefix: IpNet,
    /// The distributed gateway's address in it.
    pub gateway: IpAddr,
}

impl SubnetPrefix {
    /// IPv4 or IPv6.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self.prefix {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }
}

/// One L2 segment and its prefixes in a network (HNV's virtual subnet).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "SubnetForm")]
pub struct Subnet {
    /// Its name.
    pub name: SubnetRef,
    /// Its number on the wire.
    pub vsid: Vsid,
    /// Its prefixes: one of IPv4, one of IPv6, or both.
    pub prefixes: Vec<SubnetPrefix>,
}

impl Subnet {
    /// The prefix that an address is in.
    #[must_use]
    pub fn prefix_of(&self, address: &IpAddr) -> Option<&SubnetPrefix> {
        self.prefixes.iter().find(|p| p.prefix.contains(address))
    }

    /// The prefix of a family.
    #[must_use]
    pub fn prefix(&self, family: Family) -> Option<&SubnetPrefix> {
        self.prefixes.iter().find(|p| p.family() == family)
    }
}

/// A subnet as it may stand in a store: once it had exactly one prefix.
#[derive(Deserialize)]
struct SubnetForm {
    name: SubnetRef,
    vsid: Vsid,
    #[serde(default)]
    prefixes: Vec<SubnetPrefix>,
    prefix: Option<IpNet>,
    gateway: Option<IpAddr>,
}

impl From<SubnetForm> for Subnet {
    fn from(form: SubnetForm) -> Self {
        let single = form.prefix.zip(form.gateway).map(|(prefix, gateway)| SubnetPrefix { prefix, gateway });
        let prefixes = if form.prefixes.is_empty() { single.into_iter().collect() } else { form.prefixes };
        Self { name: form.name, vsid: form.vsid, prefixes }
    }
}

/// A machine whose NICs are ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vm {
    /// Its name.
    pub name: VmRef,
}

/// One NIC of a VM, attached to one subnet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub name: PortRef,
    /// The subnet it is attached to.
    pub subnet: SubnetRef,
    /// Its MAC.
    pub mac: Mac,
    /// Its customer addresses, at least one.
    pub addresses: Vec<IpAddr>,
    /// The host it lives on, if it is attached.
    pub host: Option<HostName>,
    /// The device on that host (tap or host side of a veth), if it is attached.
    pub device: Option<String>,
    /// Whether the host's agent makes, owns and removes the device, which is a tap of the name [`crate::tap_name`].
    /// Else it is somebody else's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tap: bool,
    /// Queues that the VM may open of such a tap: with 1 it can open one only, with more it must ask for several.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub queues: u16,
    /// Whether source MAC and address must be the port's (off for appliances).
    pub security: bool,
    /// The address that stands for each of its own on the provider network, while its network's method is, becomes or
    /// was just [`Method::Rewrite`]. Filled in by [`crate::Desired::check`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rewrite: BTreeMap<IpAddr, IpAddr>,
}

const fn one() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_one(queues: &u16) -> bool {
    *queues == 1
}

/// A server that runs an agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// Its provider address.
    pub pa: IpAddr,
    /// Ranges of the addresses that may stand for customer addresses on this host ([`Method::Rewrite`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rewrite_pool: Vec<IpNet>,
}

/// What holds for the whole site; always there, with its defaults until it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Site {
    /// UDP port to which VXLAN is sent.
    pub vxlan_port: u16,
    /// UDP port to which Geneve is sent.
    pub geneve_port: u16,
    /// Whether what runs on a host may fetch a VM of another host: else a migration is asked for by an operator.
    #[serde(default = "yes")]
    pub hosts_begin_migrations: bool,
    /// The ports that are about to be sent to: receivers are made ready for them while senders still use the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switching: Option<UdpPorts>,
    /// The port that was sent to until now, and may still be by hosts that do not know better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<OtherPort>,
}

/// What a site that was written by an earlier version means.
const fn yes() -> bool {
    true
}

impl Default for Site {
    fn default() -> Self {
        Self {
            vxlan_port: 4789,
            geneve_port: 6081,
            hosts_begin_migrations: yes(),
            switching: None,
            leaving: None,
        }
    }
}

/// A customer route of a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Route {
    /// The network.
    pub network: NetworkRef,
    /// Destination, host bits zero.
    pub prefix: IpNet,
    /// Next hop's customer address, in one of the network's subnets.
    pub next_hop: IpAddr,
    /// Lowest wins.
    pub metric: u32,
}

impl Route {
    /// What tells it from other routes: network, prefix and next hop.
    #[must_use]
    pub fn key_parts(&self) -> (NetworkRef, IpNet, IpAddr) {
        (self.network.clone(), self.prefix, self.next_hop)
    }
}

/// How far a migration is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The destination gets the ports (prepared) and all hosts of the networks the second legal address.
    Preparing,
    /// All of them acknowledged; the VM may move.
    Prepared,
    /// The VM runs on the destination; records are rewritten, the source redirects.
    Switched,
}

/// Who moves the VM's memory in a migration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Through {
    /// Another tool, after the migration was asked for here: Tenet prepares and follows.
    #[default]
    SwitchOnly,
    /// The source's agent, by QMP.
    Qmp,
    /// The source's agent, by libvirt.
    Libvirt,
    /// Another tool that began it itself (`virsh migrate`, virt-manager) and was noticed at the destination.
    Other,
}

impl Through {
    /// Stable name, as in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SwitchOnly => "switch-only",
            Self::Qmp => "qmp",
            Self::Libvirt => "libvirt",
            Self::Other => "other",
        }
    }

    /// Whether the source's agent moves the VM.
    #[must_use]
    pub const fn driven(self) -> bool {
        match self {
            Self::Qmp | Self::Libvirt => true,
            Self::SwitchOnly | Self::Other => false,
        }
    }
}

/// What told that the VM runs on the destination.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivatedBy {
    /// Its first frame there (which may be QEMU's RARP).
    Frame,
    /// Its hypervisor.
    Resume,
    /// An operator.
    Operator,
}

impl ActivatedBy {
    /// Stable name, as in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Resume => "resume",
            Self::Operator => "operator",
        }
    }
}

/// A running migration of a VM with all its attached ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Migration {
    /// The VM.
    pub vm: VmRef,
    /// Identifies this migration in events and receipts.
    pub id: Uuid,
    /// Source host.
    pub from: HostName,
    /// Destination host.
    pub to: HostName,
    /// Devices on the destination, by port name.
    pub devices: BTreeMap<Name, String>,
    /// What [`Port::rewrite`] is on the destination, by port name. Filled in by [`crate::Desired::check`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rewrite: BTreeMap<Name, BTreeMap<IpAddr, IpAddr>>,
    /// How far it is.
    pub phase: Phase,
    /// When it was asked for, in milliseconds since 1970 (UTC).
    pub started_ms: u64,
    /// When the switch was seen, in milliseconds since 1970 (UTC).
    pub switched_ms: Option<u64>,
    /// Who moves the VM's memory.
    #[serde(default)]
    pub through: Through,
    /// Where it is moved to, in the hypervisor's words (`tcp:10.0.0.2:49152`, `qemu+ssh://h2/system`), if it is driven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Whether who moves the memory shall switch to post-copy once the first pass over it is done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub post_copy: bool,
}

impl Migration {
    /// One that begins, and that another tool moves; `devices` are those on the destination, by port name.
    #[must_use]
    pub fn new(vm: VmRef, id: Uuid, from: HostName, to: HostName, devices: BTreeMap<Name, String>) -> Self {
        Self {
            vm,
            id,
            from,
            to,
            devices,
            rewrite: BTreeMap::new(),
            phase: Phase::Preparing,
            started_ms: 0,
            switched_ms: None,
            through: Through::default(),
            uri: None,
            post_copy: false,
        }
    }
}

/// What a finished migration cost.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// The VM.
    pub vm: VmRef,
    /// The migration.
    pub id: Uuid,
    /// Source host.
    pub from: HostName,
    /// Destination host.
    pub to: HostName,
    /// Whether the VM runs on the destination (else it was rolled back to the source).
    pub moved: bool,
    /// Why it was rolled back, in plain words.
    pub reason: Option<String>,
    /// Frames that the source sent on to the destination.
    pub redirected: u64,
    /// Frames for the VM that either host had to drop while it moved (`port_down`, `port_blocked`, `loop`), that its tap
    /// there did not take (`tap_unread`), or that it had left unread on the source and that could not be sent on.
    pub lost: u64,
    /// Of `redirected`: frames that the VM had left unread in its tap on the source when it was stopped.
    #[serde(default)]
    pub drained: u64,
    /// Whether both hosts told their counters before and after the move; else the two numbers above are only what is
    /// known: too low where a host did not answer, too high where the controller started again meanwhile.
    #[serde(default)]
    pub exact: bool,
    /// When it was asked for, in milliseconds since 1970 (UTC).
    pub started_ms: u64,
    /// From the request until all hosts were prepared, in microseconds.
    pub prepare_us: u64,
    /// From the switch until the last host acknowledged its new records, in microseconds.
    pub last_ack_us: u64,
    /// Per host: microseconds from the switch to its acknowledgement.
    pub acks_us: BTreeMap<HostName, u64>,
    /// Hosts that have not acknowledged them: their VMs do not reach the VM until they do.
    #[serde(default)]
    pub behind: BTreeSet<HostName>,
    /// From the VM's stop on the source until it ran on the destination, in microseconds, as their hypervisors' words
    /// reached the controller; none if one of them was not heard.
    #[serde(default)]
    pub pause_us: Option<u64>,
    /// The same in QEMU's own words (it does not count all of it).
    #[serde(default)]
    pub downtime_us: Option<u64>,
    /// From RESUME on the destination to the VM's first frame there, in microseconds.
    #[serde(default)]
    pub first_frame_us: Option<u64>,
    /// What told that the VM runs on the destination.
    #[serde(default)]
    pub activated_by: Option<ActivatedBy>,
    /// Who moved the VM's memory.
    #[serde(default)]
    pub through: Through,
    /// Whether the VM ran on the destination before all of its memory was there.
    #[serde(default)]
    pub post_copy: bool,
    /// Its ports, all of which moved as one; empty in one of an earlier version.
    #[serde(default)]
    pub ports: BTreeSet<Name>,
}

/// Anything that is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Object {
    /// A tenant.
    Tenant(Tenant),
    /// A network.
    Network(Network),
    /// A subnet.
    Subnet(Subnet),
    /// A VM.
    Vm(Vm),
    /// A port.
    Port(Port),
    /// A host.
    Host(Host),
    /// A customer route.
    Route(Route),
    /// A running migration.
    Migration(Migration),
    /// What holds for the whole site.
    Site(Site),
}

impl Object {
    /// The object's key.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Tenant(o) => Key::Tenant(o.name.clone()),
            Self::Network(o) => Key::Network(o.name.clone()),
            Self::Subnet(o) => Key::Subnet(o.name.clone()),
            Self::Vm(o) => Key::Vm(o.name.clone()),
            Self::Port(o) => Key::Port(o.name.clone()),
            Self::Host(o) => Key::Host(o.name.clone()),
            Self::Route(o) => Key::Route(o.network.clone(), o.prefix, o.next_hop),
            Self::Migration(o) => Key::Migration(o.vm.clone()),
            Self::Site(_) => Key::Site,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Object {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_store_of_the_time_of_one_method_and_one_prefix_is_read() {
        let Object::Subnet(subnet) = read(
            r#"{"kind":"subnet","name":"a/n/s","vsid":5001,"prefix":"10.1.1.0/24","gateway":"10.1.1.254"}"#,
        ) else {
            panic!("no subnet");
        };
        let (prefix, gateway) = ("10.1.1.0/24".parse().unwrap(), "10.1.1.254".parse().unwrap());
        assert_eq!(subnet.prefixes, [SubnetPrefix { prefix, gateway }]);
        let written = serde_json::to_string(&Object::Subnet(subnet.clone())).unwrap();
        assert_eq!(read(&written), Object::Subnet(subnet));

        let Object::Network(network) = read(
            r#"{"kind":"network","name":"a/n","rdid":"00000000-0000-0000-0000-000000000001","id":1,"method":"nvgre"}"#,
        ) else {
            panic!("no network");
        };
        assert_eq!((network.method, network.switching), (Method::Nvgre, None));
        let Object::Host(host) = read(r#"{"kind":"host","name":"h1","pa":"192.168.1.10"}"#) else {
            panic!("no host");
        };
        assert!(host.rewrite_pool.is_empty());
        let Object::Port(port) = read(
            r#"{"kind":"port","name":"a/v/p","subnet":"a/n/s","mac":"02:00:00:00:00:01",
                "addresses":["10.1.1.5"],"host":null,"device":null,"security":true}"#,
        ) else {
            panic!("no port");
        };
        assert!(port.rewrite.is_empty());
    }

    #[test]
    fn rewrite_addresses_are_kept() {
        let pair = |a: &str, b: &str| (a.parse().unwrap(), b.parse().unwrap());
        let rewrite = BTreeMap::from([pair("10.1.1.5", "192.168.1.130"), pair("fd00::5", "2001:db8::7")]);
        let port = Object::Port(Port {
            name: "a/v/p".parse().unwrap(),
            subnet: "a/n/s".parse().unwrap(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            addresses: vec![],
            host: None,
            device: None,
            tap: false,
            queues: 1,
            security: true,
            rewrite,
        });
        assert_eq!(read(&serde_json::to_string(&port).unwrap()), port);
    }
}
