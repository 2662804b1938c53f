//! Why a change is refused: which two objects disagree, and what to do.

mod words;

use crate::{Family, HostName, Key, Mac, Method, Name, NetId, Phase, SubnetRef, TenantName, Vsid};
use ipnet::IpNet;
use std::net::IpAddr;
use uuid::Uuid;
use words::{FirstOf, Listed, More, PhaseName, Remedy};

/// An object that cannot be as asked for, and why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}: {why}", .about.title())]
pub struct Problem {
    /// The object of the change that is at fault (so that a file's line can be shown).
    pub about: Key,
    /// Why.
    pub why: Why,
}

/// Why an object cannot be as asked for; one variant for each thing that the caller could do about it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Why {
    /// The change has two operations on the object.
    #[error("is written twice in one change: keep one of the two")]
    Twice,
    /// Deleted, but not there.
    #[error("does not exist, so it cannot be deleted: check its name")]
    NotFound,
    /// Names an object that does not exist.
    #[error("{} does not exist: create it first or correct the name", .0.title())]
    Unknown(Key),
    /// Deleted, but another object needs it.
    #[error("is still used by {}{}: {}", .by.title(), More(*.more), Remedy(.by))]
    InUse {
        /// One of its users.
        by: Key,
        /// How many users there are besides.
        more: usize,
    },
    /// The tenant `default`.
    #[error("always exists and cannot be deleted: leave it, it costs nothing")]
    DefaultTenant,
    /// A field that cannot change while the object exists.
    #[error("its {field} cannot change from {from} to {to}: delete it and create it anew")]
    Fixed {
        /// The field.
        field: &'static str,
        /// Its value.
        from: String,
        /// The wanted value.
        to: String,
    },
    /// Two networks with one routing domain id.
    #[error("RDID {rdid} is already that of {}: choose another RDID", .other.title())]
    RdidTaken {
        /// The id.
        rdid: Uuid,
        /// The other network.
        other: Key,
    },
    /// Two networks with one number, or the number 0.
    #[error("network number {} is already that of {}: choose another number", .id.0, .other.title())]
    NetIdTaken {
        /// The number.
        id: NetId,
        /// The other network.
        other: Key,
    },
    /// The number 0.
    #[error("network number 0 is reserved: use one from 1 on")]
    NetIdZero,
    /// Two subnets with one VSID.
    #[error("VSID {vsid} is already that of {}: choose another VSID or leave it out to have one allocated", .other.title())]
    VsidTaken {
        /// The number.
        vsid: Vsid,
        /// The other subnet.
        other: Key,
    },
    /// A subnet without prefix.
    #[error("has no prefix: give it one of IPv4, one of IPv6, or both")]
    NoPrefix,
    /// A subnet with two prefixes of one family.
    #[error("has more than one {family} prefix: keep one, and put the other one into a subnet of its own")]
    TwoPrefixes {
        /// The family.
        family: Family,
    },
    /// A prefix with bits set after its length.
    #[error("prefix {prefix} has bits set after its length: write {}", .prefix.trunc())]
    HostBits {
        /// The prefix.
        prefix: IpNet,
    },
    /// A subnet too small for a gateway and a port.
    #[error("prefix {prefix} leaves no room for a gateway and a port: use /{} or shorter", .prefix.max_prefix_len() - 2)]
    PrefixTooLong {
        /// The prefix.
        prefix: IpNet,
    },
    /// A prefix that customers cannot use.
    #[error("prefix {prefix} overlaps {reserved} ({use_}): choose another prefix")]
    PrefixReserved {
        /// The prefix.
        prefix: IpNet,
        /// What it overlaps.
        reserved: &'static str,
        /// What that is for.
        use_: &'static str,
    },
    /// Two overlapping subnets of one network.
    #[error("prefix {prefix} overlaps {other_prefix} of {}: choose another prefix, or another network (networks may overlap freely)", .other.title())]
    Overlap {
        /// The prefix.
        prefix: IpNet,
        /// The other subnet's.
        other_prefix: IpNet,
        /// The other subnet.
        other: Key,
    },
    /// A gateway that is not in its subnet.
    #[error("gateway {gateway} is outside of its prefix {prefix}: use {}", FirstOf(.prefix))]
    GatewayOutside {
        /// The gateway.
        gateway: IpAddr,
        /// The prefix.
        prefix: IpNet,
    },
    /// A gateway that is its subnet's network, broadcast or anycast address.
    #[error("gateway {gateway} is the {which} address of its prefix {prefix}: use {}", FirstOf(.prefix))]
    GatewayReserved {
        /// The gateway.
        gateway: IpAddr,
        /// `network`, `broadcast` or `subnet-router anycast`.
        which: &'static str,
        /// The prefix.
        prefix: IpNet,
    },
    /// Network and VM of a port are of two tenants.
    #[error("its VM is tenant {vm_tenant}'s, but subnet {subnet} is tenant {}'s: attach it to a subnet of its own tenant", .subnet.tenant)]
    ForeignSubnet {
        /// The VM's tenant.
        vm_tenant: TenantName,
        /// The subnet.
        subnet: SubnetRef,
    },
    /// A port without customer addresses.
    #[error("has no address: give it one of subnet {subnet}, or leave it out to have one allocated")]
    NoAddress {
        /// The subnet.
        subnet: SubnetRef,
    },
    /// Two equal customer addresses in a network.
    #[error("address {address} is already that of {}: choose another address", .other.title())]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        other: Key,
    },
    /// One customer address given twice.
    #[error("has address {address} twice: keep one")]
    AddressTwice {
        /// The address.
        address: IpAddr,
    },
    /// A customer address outside of the port's subnet.
    #[error(
        "address {address} is outside of {} of subnet {subnet}: choose an address inside, or another subnet",
        Listed(.prefixes)
    )]
    AddressOutside {
        /// The address.
        address: IpAddr,
        /// The subnet.
        subnet: SubnetRef,
        /// Its prefixes.
        prefixes: Vec<IpNet>,
    },
    /// An address that no machine can have.
    #[error("address {address} is {use_}: choose an address of the port's subnet")]
    AddressUnusable {
        /// The address.
        address: IpAddr,
        /// What it is for.
        use_: &'static str,
    },
    /// A customer address that no port can have.
    #[error("address {address} is the {which} address of subnet {subnet}: choose another address")]
    AddressReserved {
        /// The address.
        address: IpAddr,
        /// `network`, `broadcast`, `subnet-router anycast` or `gateway`.
        which: &'static str,
        /// The subnet.
        subnet: SubnetRef,
    },
    /// Two equal MACs in a subnet.
    #[error("MAC {mac} is already that of {} in the same subnet: choose another MAC or leave it out to have one allocated", .other.title())]
    MacTaken {
        /// The MAC.
        mac: Mac,
        /// The other port.
        other: Key,
    },
    /// The gateway's MAC.
    #[error(
        "MAC {mac} is that of every subnet's gateway: choose another MAC or leave it out to have one allocated"
    )]
    MacOfGateway {
        /// The MAC.
        mac: Mac,
    },
    /// Host without device or device without host.
    #[error("has a {has} but no {lacks}: give both to attach it, or neither")]
    HalfAttached {
        /// `host` or `device`.
        has: &'static str,
        /// The other.
        lacks: &'static str,
    },
    /// A tap of another name than the agent would give it, or of a port that is nowhere.
    #[error(
        "the tap that the agent makes for it is called {name}, and needs a host: give the host and leave the device out"
    )]
    TapName {
        /// What it would be called.
        name: String,
    },
    /// Queues that no tap can have.
    #[error("{queues} queues are not possible: give 1 to {limit}, as many as the VM's NIC has")]
    Queues {
        /// How many were asked for.
        queues: u16,
        /// How many a tap can have.
        limit: u16,
    },
    /// Not the name of a network device.
    #[error(
        "`{device}` cannot be the name of a device: use 1 to 15 characters without space, slash and colon, but not . and .."
    )]
    DeviceName {
        /// The text.
        device: String,
    },
    /// Two ports with one device.
    #[error("device {device} of host {host} is already that of {}: use another device, or {}", .other.title(), Remedy(.other))]
    DeviceTaken {
        /// The device.
        device: String,
        /// The host.
        host: HostName,
        /// Who has it (a port, or a migration towards this host).
        other: Key,
    },
    /// The port's VM is being migrated.
    #[error("cannot change during the {}: wait until that is done, or cancel it", .migration.title())]
    Migrating {
        /// The migration.
        migration: Key,
    },
    /// Two hosts with one provider address.
    #[error("provider address {pa} is already that of {}: give this host its own", .other.title())]
    PaTaken {
        /// The address.
        pa: IpAddr,
        /// The other host.
        other: Key,
    },
    /// An address that no host can have on the provider network.
    #[error("provider address {pa} is {use_}: use the address of the host's uplink")]
    PaUnusable {
        /// The address.
        pa: IpAddr,
        /// What it is.
        use_: &'static str,
    },
    /// Hosts of both families.
    #[error("provider address {pa} is {}, but that of {} is {}: give all hosts of the site addresses of one family", Family::of(.pa), .other.title(), Family::of(.other_pa))]
    PaFamily {
        /// The address.
        pa: IpAddr,
        /// That of another host.
        other_pa: IpAddr,
        /// The other host.
        other: Key,
    },
    /// Two ranges of rewrite addresses with an address in common.
    #[error("rewrite pool {pool} overlaps {other_pool} of {}: choose another range", .other.title())]
    PoolOverlap {
        /// The range.
        pool: IpNet,
        /// The other.
        other_pool: IpNet,
        /// Whose that is.
        other: Key,
    },
    /// A range of rewrite addresses with a host's own address in it.
    #[error("rewrite pool {pool} has the provider address {pa} of {} in it: choose a range without hosts", .other.title())]
    PoolOverPa {
        /// The range.
        pool: IpNet,
        /// The address.
        pa: IpAddr,
        /// The host whose address that is.
        other: Key,
    },
    /// A host's own address in a range of rewrite addresses.
    #[error("provider address {pa} is in the rewrite pool {pool} of {}: choose another address or change that pool first", .other.title())]
    PaInPool {
        /// The address.
        pa: IpAddr,
        /// The range.
        pool: IpNet,
        /// Whose that is.
        other: Key,
    },
    /// Rewrite addresses in use that would be in no pool any more.
    #[error("its rewrite pool would no longer have {address} of {}{}: keep that range, or detach the port first", .port.title(), More(*.more))]
    PoolInUse {
        /// The rewrite address.
        address: IpAddr,
        /// The port that has it.
        port: Key,
        /// How many more there are.
        more: usize,
    },
    /// An address that needs a rewrite address, on a host without a pool of its family.
    #[error("host {host} has no {family} rewrite pool for {address} of {}{}: tenet host set {host} --rewrite-pool RANGE", .port.title(), More(*.more))]
    NoPool {
        /// The host.
        host: HostName,
        /// The family.
        family: Family,
        /// The customer address.
        address: IpAddr,
        /// The port that has it.
        port: Key,
        /// How many more addresses there are.
        more: usize,
    },
    /// An address that needs a rewrite address, on a host whose pool has none left.
    #[error("the rewrite pool {} of host {host} ({size} addresses) is exhausted, none is left for {address} of {}{}: add a range with tenet host set {host} --rewrite-pool, or detach ports", Listed(.pool), .port.title(), More(*.more))]
    PoolExhausted {
        /// The host.
        host: HostName,
        /// Its pool of that family.
        pool: Vec<IpNet>,
        /// How many addresses that are, without those that nobody gets.
        size: u128,
        /// The customer address.
        address: IpAddr,
        /// The port that has it.
        port: Key,
        /// How many more addresses there are.
        more: usize,
    },
    /// A change of method in one step while the network is in use.
    #[error(
        "its method cannot change from {from} to {to} at once while ports are attached: write {to} as the method that it is switching to first"
    )]
    MethodAtOnce {
        /// Its method.
        from: Method,
        /// The wanted one.
        to: Method,
    },
    /// A switch to the method that the network has.
    #[error("is already using {method}: write no method to switch to")]
    SwitchToSame {
        /// The method.
        method: Method,
    },
    /// A UDP port of 0.
    #[error("the UDP port of {method} cannot be 0: use {} unless the provider network needs another", .default)]
    UdpPortZero {
        /// Whose port.
        method: Method,
        /// The usual port.
        default: u16,
    },
    /// Two methods on one UDP port.
    #[error(
        "{port} cannot be the UDP port of Geneve, as VXLAN uses it (4789 always): use 6081 or another port"
    )]
    UdpPortTaken {
        /// The port.
        port: u16,
    },
    /// A UDP port that another method leaves by the same change.
    #[error(
        "{by} is still sent to UDP port {port}, which another method is to have: change the port of {by} first, and then the other one"
    )]
    UdpPortInUse {
        /// The port.
        port: u16,
        /// Who has it.
        by: Method,
    },
    /// A next hop of another family than the route.
    #[error(
        "next hop {next_hop} is no {family} address like the prefix {prefix}: use the {family} address of a port of that network"
    )]
    NextHopFamily {
        /// The next hop.
        next_hop: IpAddr,
        /// The prefix's family.
        family: Family,
        /// The prefix.
        prefix: IpNet,
    },
    /// A next hop outside of all subnets of the network.
    #[error("next hop {next_hop} is in no subnet of {}: use the address of a port of that network", .network.title())]
    NextHopOutside {
        /// The next hop.
        next_hop: IpAddr,
        /// The network.
        network: Key,
    },
    /// A next hop that no port can have.
    #[error("next hop {next_hop} is the {which} address of {}: use the address of a port of that subnet", .subnet.title())]
    NextHopReserved {
        /// The next hop.
        next_hop: IpAddr,
        /// `network`, `broadcast`, `subnet-router anycast` or `gateway`.
        which: &'static str,
        /// The subnet.
        subnet: Key,
    },
    /// A route that would take addresses away from a subnet, seen from the route.
    #[error("prefix {prefix} lies inside {subnet_prefix} of {}, whose addresses are reached directly: use a shorter prefix or none of this subnet", .subnet.title())]
    RouteInSubnet {
        /// The route's prefix.
        prefix: IpNet,
        /// The subnet's.
        subnet_prefix: IpNet,
        /// The subnet.
        subnet: Key,
    },
    /// A route that would take addresses away from a subnet, seen from the subnet.
    #[error("prefix {prefix} covers that of {}: delete the route first or choose another prefix", .route.title())]
    SubnetOverRoute {
        /// The subnet's prefix.
        prefix: IpNet,
        /// The route.
        route: Key,
    },
    /// Source and destination of a migration are one.
    #[error("the VM is on host {host} already: choose another destination")]
    SameHost {
        /// The host.
        host: HostName,
    },
    /// The VM has no attached port.
    #[error(
        "the VM has no attached port, so there is nothing to move: attach its ports to host {to} instead"
    )]
    NothingAttached {
        /// The wanted destination.
        to: HostName,
    },
    /// A port of the VM is on another host than the migration's source.
    #[error("{} is on host {on}, not on the source {from}: attach all ports of the VM to one host first", .port.title())]
    PortElsewhere {
        /// The port.
        port: Key,
        /// Its host.
        on: HostName,
        /// The migration's source.
        from: HostName,
    },
    /// A port for which the destination has no device.
    #[error("no device on host {to} is given for {}: name one", .port.title())]
    DeviceMissing {
        /// The port.
        port: Key,
        /// The destination.
        to: HostName,
    },
    /// A device for a port that the VM does not have attached.
    #[error("a device is given for port {port}, which is no attached port of the VM: correct the name")]
    DeviceForNoPort {
        /// The port's own name.
        port: Name,
    },
    /// A second migration of the VM.
    #[error(
        "the VM is already being moved from host {from} to host {to}: wait until that is done, or cancel it"
    )]
    AlreadyMigrating {
        /// The running one's source.
        from: HostName,
        /// The running one's destination.
        to: HostName,
    },
    /// A migration that begins in the middle or goes back.
    #[error("cannot go from phase {} to {}: the phases are preparing, prepared, switched", PhaseName(*.from), PhaseName(Some(*.to)))]
    PhaseOrder {
        /// The phase that it has, if it exists.
        from: Option<Phase>,
        /// The wanted one.
        to: Phase,
    },
}
