//! What stands, as REST shows it.

use crate::{path, spec};
use std::collections::BTreeMap;
use tenet_api::rest::{
    HostStatus, HostView, MigrationView, NetworkStatus, NetworkView, Pool, PortStatusView, PortView,
    PrefixView, Progress, ReceiptView, RouteView, SettingsView, Site, SitePort, SiteVm, SubnetView,
    TenantSpec, TenantView, VmView,
};
use tenet_control::{Control, HostReport, Switching, state_name};
use tenet_model::{
    Desired, Host, HostName, Migration, Network, Phase, Port, Receipt, Route, Site as Settings, Subnet,
    Tenant, Versioned, Vm,
};

pub(crate) fn tenant(v: &Versioned<Tenant>) -> TenantView {
    TenantView { name: v.value.name.clone(), revision: v.revision }
}

pub(crate) fn network(core: &Control, v: &Versioned<Network>) -> NetworkView {
    let o = &v.value;
    NetworkView {
        name: o.name.clone(),
        rdid: o.rdid,
        id: o.id.0,
        method: o.method,
        switching: o.switching,
        waiting_for: core.switch_waits_for(&Switching::Method(o.name.clone())).into_iter().collect(),
        revision: v.revision,
    }
}

pub(crate) fn subnet(v: &Versioned<Subnet>) -> SubnetView {
    let o = &v.value;
    let prefixes = o.prefixes.iter().map(|p| PrefixView { prefix: p.prefix, gateway: p.gateway });
    SubnetView { name: o.name.clone(), vsid: o.vsid, prefixes: prefixes.collect(), revision: v.revision }
}

pub(crate) fn settings(core: &Control) -> SettingsView {
    let Versioned { value: o, revision } = &core.desired().site;
    let (vxlan, geneve) = (o.switching.map(|to| to.vxlan), o.switching.map(|to| to.geneve));
    SettingsView {
        vxlan_port: o.vxlan_port,
        geneve_port: o.geneve_port,
        next_vxlan_port: vxlan.filter(|to| *to != o.vxlan_port),
        next_geneve_port: geneve.filter(|to| *to != o.geneve_port),
        waiting_for: core.switch_waits_for(&Switching::UdpPorts).into_iter().collect(),
        hosts_begin_migrations: o.hosts_begin_migrations,
        revision: *revision,
    }
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
        tap: o.tap,
        queues: o.queues,
        security: o.security,
        rewrite: o.rewrite.clone(),
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
        through: m.through,
        uri: m.uri.clone(),
        post_copy: m.post_copy || core.is_in_post_copy(&m.vm),
        progress: core.migration_progress(&m.vm).map(|p| Progress {
            transferred: p.transferred,
            total: p.total,
            status: p.status.clone(),
        }),
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
        drained: r.drained,
        exact: r.exact,
        started_ms: r.started_ms,
        prepare_us: r.prepare_us,
        last_ack_us: r.last_ack_us,
        acks_us: r.acks_us,
        behind: r.behind,
        pause_us: r.pause_us,
        downtime_us: r.downtime_us,
        first_frame_us: r.first_frame_us,
        activated_by: r.activated_by,
        through: r.through,
        post_copy: r.post_copy,
        ports: r.ports,
    }
}

/// A digest as it is printed.
pub(crate) fn digest(d: u64) -> String {
    format!("{d:016x}")
}

pub(crate) fn host_status(core: &mut Control, name: &HostName, now: u64) -> Option<HostStatus> {
    let host = &core.desired().hosts.get(name)?.value;
    let (pa, pool) = (host.pa, pool(core.desired(), host));
    let r = core.host_report(name, now)?;
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
        desired_state: state_name(row.state).into(),
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
        measured,
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
        // It becomes part of command lines.
        qmp_dir: hello
            .map(|h| h.qmp_dir.clone())
            .filter(|dir| dir.starts_with('/') && !dir.contains(char::is_control)),
        measured: measured.into_iter().flat_map(|(m, _)| m.uplinks).map(path::uplink).collect(),
        pool,
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

pub(crate) fn hosts(core: &mut Control, now: u64) -> Vec<HostView> {
    let mut ports: BTreeMap<HostName, u64> = BTreeMap::new();
    for host in core.desired().ports.values().filter_map(|p| p.value.host.as_ref()) {
        *ports.entry(host.clone()).or_default() += 1;
    }
    let desired = core.desired();
    let all: Vec<_> = desired.hosts.values().map(|v| (v.clone(), pool(desired, &v.value))).collect();
    all.into_iter()
        .map(|(v, pool)| {
            let report = core.host_report(&v.value.name, now);
            HostView {
                connected: report.as_ref().is_some_and(|r| r.connected),
                in_sync: report.as_ref().is_some_and(|r| r.in_sync),
                version: report.and_then(|r| r.hello).map(|h| h.version),
                ports: ports.get(&v.value.name).copied().unwrap_or(0),
                name: v.value.name,
                pa: v.value.pa,
                pool,
                revision: v.revision,
            }
        })
        .collect()
}

/// A host's rewrite pool. In use is what stands for a port there, or will once its VM has moved there.
pub(crate) fn pool(d: &Desired, host: &Host) -> Pool {
    // Without those that would be a network's, broadcast's or anycast's, which are not handed out.
    let size = |range: &ipnet::IpNet| {
        let bits = u32::from(range.max_prefix_len() - range.prefix_len());
        let all = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
        let kept_back = match range {
            _ if bits < 2 => 0,
            ipnet::IpNet::V4(_) => 2,
            ipnet::IpNet::V6(_) => 1,
        };
        all - kept_back
    };
    let size = host.rewrite_pool.iter().map(size).fold(0, u128::saturating_add);
    let ports = d.ports.values().map(|p| &p.value).filter(|p| p.host.as_ref() == Some(&host.name));
    let moving = d.migrations.values().map(|m| &m.value).filter(|m| m.to == host.name);
    let used = ports.map(|p| p.rewrite.len()).sum::<usize>()
        + moving.flat_map(|m| m.rewrite.values()).map(BTreeMap::len).sum::<usize>();
    Pool {
        ranges: host.rewrite_pool.clone(),
        used: u64::try_from(used).unwrap_or(u64::MAX),
        size: u64::try_from(size).unwrap_or(u64::MAX),
    }
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
                    device: p.device.clone().filter(|_| !p.tap),
                    queues: (p.queues != 1).then_some(p.queues),
                    security: p.security,
                };
                (key.port.clone(), port)
            })
            .collect(),
    });
    Site {
        revision: Some(d.revision),
        settings: (d.site.value != Settings::default()).then(|| spec::settings(&d.site.value)),
        tenants: d.tenants.keys().map(|name| TenantSpec { name: name.clone() }).collect(),
        hosts: d.hosts.values().map(|h| spec::host(&h.value)).collect(),
        networks: d.networks.values().map(|n| spec::network(&n.value)).collect(),
        subnets: d.subnets.values().map(|s| spec::subnet(&s.value)).collect(),
        vms: vms.collect(),
        routes: d.routes.values().map(|r| spec::route(&r.value)).collect(),
    }
}
