//! What one would ask for to get what stands.

use tenet_api::rest::{
    HostSpec, NetworkSpec, PortSpec, PrefixSpec, RouteSpec, SettingsSpec, Spec, SubnetSpec, TenantSpec,
    VmSpec,
};
use tenet_model::{Host, Network, Object, Port, Route, Site, Subnet};

/// The spec that gives exactly this object; migrations have none.
pub(crate) fn of(object: &Object) -> Option<Spec> {
    Some(match object {
        Object::Tenant(o) => Spec::Tenant(TenantSpec { name: o.name.clone() }),
        Object::Network(o) => Spec::Network(network(o)),
        Object::Subnet(o) => Spec::Subnet(subnet(o)),
        Object::Vm(o) => Spec::Vm(VmSpec { name: o.name.clone() }),
        Object::Port(o) => Spec::Port(port(o)),
        Object::Host(o) => Spec::Host(host(o)),
        Object::Route(o) => Spec::Route(route(o)),
        Object::Site(o) => Spec::Site(settings(o)),
        Object::Migration(_) => return None,
    })
}

/// A network that changes its method is asked for with the new one.
pub(crate) fn network(o: &Network) -> NetworkSpec {
    let method = o.switching.unwrap_or(o.method);
    NetworkSpec { name: o.name.clone(), rdid: Some(o.rdid), method: Some(method) }
}

pub(crate) fn subnet(o: &Subnet) -> SubnetSpec {
    let prefixes = o.prefixes.iter().map(|p| PrefixSpec { prefix: p.prefix, gateway: Some(p.gateway) });
    SubnetSpec { name: o.name.clone(), vsid: Some(o.vsid), prefixes: prefixes.collect() }
}

/// Rewrite addresses are not asked for: the controller chooses them.
pub(crate) fn port(o: &Port) -> PortSpec {
    PortSpec {
        name: o.name.clone(),
        subnet: o.subnet.clone(),
        mac: Some(o.mac),
        addresses: o.addresses.clone(),
        host: o.host.clone(),
        // A tap needs no name: it has always the same.
        device: o.device.clone().filter(|_| !o.tap),
        queues: (o.queues != 1).then_some(o.queues),
        security: o.security,
    }
}

pub(crate) fn host(o: &Host) -> HostSpec {
    let rewrite_pool = (!o.rewrite_pool.is_empty()).then(|| o.rewrite_pool.clone());
    HostSpec { name: o.name.clone(), pa: o.pa, rewrite_pool }
}

pub(crate) fn route(o: &Route) -> RouteSpec {
    RouteSpec { network: o.network.clone(), prefix: o.prefix, next_hop: o.next_hop, metric: o.metric }
}

/// Ports that change are asked for with the new ones.
pub(crate) fn settings(o: &Site) -> SettingsSpec {
    let ports = o.wanted_ports();
    SettingsSpec {
        vxlan_port: Some(ports.vxlan),
        geneve_port: Some(ports.geneve),
        hosts_begin_migrations: Some(o.hosts_begin_migrations),
    }
}
