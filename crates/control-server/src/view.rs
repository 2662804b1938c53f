//! What stands, as REST shows it.

use std::collections::BTreeMap;
use tenet_api::rest::{
    HostStatus, HostView, MigrationView, NetworkSpec, NetworkStatus, NetworkView, PortStatusView, PortView,
    ReceiptView, RouteSpec, RouteView, Site, SitePort, SiteVm, SubnetSpec, SubnetView, TenantSpec,
    TenantView, VmView,
};
use tenet_compile::PortState;
use tenet_control::{Control, HostReport};
use tenet_model::{
    Desired, HostName, Migration, Network, Phase, Port, Receipt, Route, Subnet, Tenant, Versioned, Vm,
};

pub(crate) fn tenant(v: &Versioned<Tenant>) -> TenantView {
    TenantView { name: v.value.name.clone(), revision: v.revision }
}

pub(crate) fn network(v: &Versioned<Network>) -> NetworkView {
    let o = &v.value;
    NetworkView { name: o.name.clone(), rdid: o.rdid, id: o.id.0, method: o.method, revision: v.revision }
}

pub(crate) fn subnet(v: &Versioned<Subnet>) -> SubnetView {
    let o = &v.value;
    let (prefix, gateway) = first_prefix(o);
    SubnetView { name: o.name.clone(), vsid: o.vsid, prefix, gateway, revision: v.revision }
}

/// A subnet's first prefix and gateway; a subnet without does not pass the rules.
fn first_prefix(subnet: &Subnet) -> (ipnet::IpNet, std::net::IpAddr) {
    let none = (ipnet::Ipv4Net::default().into(), std::net::Ipv4Addr::UNSPECIFIED.into());
    subnet.prefixes.first().map_or(none, |own| (own.prefix, own.gateway))
}

pub(crate) fn route(v: &Versioned<Route>) -> RouteView {
    let o = &v.value;
    let (network, prefix, next_hop, metric) = (o.network.clone(), o.prefix, o.next_hop, o.metric);
    RouteView { network, prefix, next_hop, metric, revision: v.revision }
}

pub(crate) fn port(v: &Versioned<Port>) -> PortView {
    let o = &v.value;
    PortView {
        name: o.name.clone(),
        subnet: o.subnet.clone(),
        mac: o.mac,
        addresses: o.addresses.clone(),
        host: o.host.clone(),
        device: o.device.clone(),
        security: o.security,
        revision: v.revision,
    }
}

pub(crate) fn vm(core: &Control, v: &Versioned<Vm>) -> VmView {
    let desired = core.desired();
    VmView {
        name: v.value.name.clone(),
        ports: desired.ports_of(&v.value.name).map(|(_, p)| port(p)).collect(),
        migration: desired.migrations.get(&v.value.name).map(|m| migration(core, &m.value)),
        revision: v.revision,
    }
}

pub(crate) const fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Preparing => "preparing",
        Phase::Prepared => "prepared",
        Phase::Switched => "switched",
    }
}

pub(crate) fn migration(core: &Control, m: &Migration) -> MigrationView {
    MigrationView {
        vm: m.vm.clone(),
        id: m.id,
        from: m.from.clone(),
        to: m.to.clone(),
        devices: m.devices.clone(),
        phase: phase(m.phase).into(),
        started_ms: m.started_ms,
        switched_ms: m.switched_ms,
        waiting_for: core.migration_waits_for(&m.vm).iter().map(ToString::to_string).collect(),
    }
}

pub(crate) fn receipt(r: Receipt) -> ReceiptView {
    ReceiptView {
        vm: r.vm,
        id: r.id,
        from: r.from,
        to: r.to,
        moved: r.moved,
        reason: r.reason,
        redirected: r.redirected,
        lost: r.lost,
        exact: r.exact,
        started_ms: r.started_ms,
        prepare_us: r.prepare_us,
        last_ack_us: r.last_ack_us,
        acks_us: r.acks_us,
    }
}

const fn state(s: PortState) -> &'static str {
    match s {
        PortState::Blocked => "blocked",
        PortState::Active => "active",
        PortState::Prepared => "prepared",
        PortState::Moved => "moved",
    }
}

/// A digest as it is printed.
pub(crate) fn digest(d: u64) -> String {
    format!("{d:016x}")
}

pub(crate) fn host_status(core: &mut Control, name: &HostName, now: u64) -> Option<HostStatus> {
    let pa = core.desired().hosts.get(name)?.value.pa;
    let r = core.host_report(name)?;
    let age = |at: u64| now.saturating_sub(at) / 1000;
    let applied = r.applied;
    let networks = r.networks.iter().map(|n| NetworkStatus {
        network: n.network.clone(),
        desired_generation: n.desired,
        desired_digest: digest(n.digest),
        applied_generation: applied,
        proven_digest: n.proven.map(|(d, ..)| digest(d)),
        proven_generation: n.proven.map(|(_, _, g, _)| g),
        proven_age_ms: n.proven.map(|(.., at)| age(at)),
        rows: n.proven.map_or(0, |(_, rows, ..)| rows),
        in_sync: n.in_sync,
    });
    let ports = r.ports.iter().map(|(row, report)| PortStatusView {
        port: row.name.clone(),
        device: row.device.clone(),
        desired_state: state(row.state).into(),
        state: report.as_ref().map(|p| p.state.clone()),
        present: report.as_ref().is_some_and(|p| p.present),
        carrier: report.as_ref().is_some_and(|p| p.carrier),
        ifindex: report.as_ref().map_or(0, |p| p.ifindex),
        mtu: report.as_ref().map_or(0, |p| p.mtu),
        detail: report.as_ref().map_or_else(String::new, |p| p.detail.clone()),
    });
    let (networks, ports) = (networks.collect(), ports.collect());
    let HostReport {
        connected,
        since,
        hello,
        desired,
        applied,
        proven,
        error,
        problems,
        repaired,
        in_sync,
        ..
    } = r;
    let hello = hello.as_ref();
    Some(HostStatus {
        name: name.clone(),
        pa,
        connected,
        since_ms: Some(since / 1000),
        version: hello.map(|h| h.version.clone()),
        kernel: hello.map(|h| h.kernel.clone()),
        hook: hello.map(|h| h.hook.clone()),
        uplinks: hello.map(|h| h.uplinks.clone()).unwrap_or_default(),
        uplink_mtu: hello.map(|h| h.uplink_mtu),
        desired_generation: desired,
        applied_generation: applied,
        proven_generation: proven.map(|(g, _)| g),
        proven_age_ms: proven.map(|(_, at)| age(at)),
        in_sync,
        error,
        networks,
        ports,
        problems,
        repaired,
    })
}

pub(crate) fn hosts(core: &mut Control) -> Vec<HostView> {
    let mut ports: BTreeMap<HostName, u64> = BTreeMap::new();
    for host in core.desired().ports.values().filter_map(|p| p.value.host.as_ref()) {
        *ports.entry(host.clone()).or_default() += 1;
    }
    let all: Vec<_> = core.desired().hosts.values().cloned().collect();
    all.into_iter()
        .map(|v| {
            let report = core.host_report(&v.value.name);
            HostView {
                connected: report.as_ref().is_some_and(|r| r.connected),
                in_sync: report.as_ref().is_some_and(|r| r.in_sync),
                version: report.and_then(|r| r.hello).map(|h| h.version),
                ports: ports.get(&v.value.name).copied().unwrap_or(0),
                name: v.value.name,
                pa: v.value.pa,
                revision: v.revision,
            }
        })
        .collect()
}

/// The whole desired state as a document.
pub(crate) fn site(d: &Desired) -> Site {
    let vms = d.vms.keys().map(|name| SiteVm {
        name: name.clone(),
        ports: d
            .ports_of(name)
            .map(|(key, p)| {
                let p = &p.value;
                let port = SitePort {
                    subnet: p.subnet.clone(),
                    mac: Some(p.mac),
                    addresses: p.addresses.clone(),
                    host: p.host.clone(),
                    device: p.device.clone(),
                    security: p.security,
                };
                (key.port.clone(), port)
            })
            .collect(),
    });
    Site {
        revision: Some(d.revision),
        tenants: d.tenants.keys().map(|name| TenantSpec { name: name.clone() }).collect(),
        hosts: d
            .hosts
            .values()
            .map(|h| tenet_api::rest::HostSpec { name: h.value.name.clone(), pa: h.value.pa })
            .collect(),
        networks: d
            .networks
            .values()
            .map(|n| NetworkSpec {
                name: n.value.name.clone(),
                rdid: Some(n.value.rdid),
                method: Some(n.value.method),
            })
            .collect(),
        subnets: d
            .subnets
            .values()
            .map(|s| SubnetSpec {
                name: s.value.name.clone(),
                vsid: Some(s.value.vsid),
                prefix: first_prefix(&s.value).0,
                gateway: Some(first_prefix(&s.value).1),
            })
            .collect(),
        vms: vms.collect(),
        routes: d
            .routes
            .values()
            .map(|r| RouteSpec {
                network: r.value.network.clone(),
                prefix: r.value.prefix,
                next_hop: r.value.next_hop,
                metric: r.value.metric,
            })
            .collect(),
    }
}
