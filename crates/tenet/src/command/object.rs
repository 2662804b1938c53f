//! The commands on objects.

use crate::cli::{HostCommand, NetworkCommand, RouteCommand, SubnetCommand, TenantCommand, VmCommand};
use crate::command::{Context, change, migrate, migrations, run_args, status};
use crate::failure::{Code, Failure, Outcome};
use crate::print::{self, Table, or_dash, yes};
use ipnet::IpNet;
use std::net::IpAddr;
use tenet_api::rest::{
    Attach, CreateVm, CreateVmPort, Detach, HostPatch, HostSpec, Migrate, NetworkPatch, NetworkSpec,
    NetworkView, Pool, PortView, PrefixSpec, RouteSpec, RouteView, SubnetSpec, SubnetView, TenantSpec,
    TokenRequest, VmView,
};
use tenet_model::Vsid;

/// `host …`
pub async fn host(context: &Context, command: HostCommand) -> Outcome {
    let client = context.client()?;
    match command {
        HostCommand::List => context.show(&client.hosts().await?, |hosts| {
            let mut table =
                Table::new(["HOST", "PA", "CONNECTED", "IN SYNC", "PORTS", "REWRITE POOL", "VERSION"]);
            for h in hosts {
                let cells = [
                    h.name.to_string(),
                    h.pa.to_string(),
                    yes(h.connected),
                    yes(h.in_sync),
                    h.ports.to_string(),
                    pool_use(&h.pool),
                    or_dash(h.version.as_ref()),
                ];
                table.row(cells);
            }
            print::table(&table, "no hosts; let one join: tenet host token NAME --pa ADDRESS")
        }),
        HostCommand::Show { host } => context.show(&client.host(&host).await?, status::host),
        HostCommand::Token { host, pa, ttl } => {
            let request = TokenRequest { name: host.clone(), pa, ttl_s: Some(ttl) };
            context.show(&client.host_token(&request).await?, |token| {
                print::line(&token.token)?;
                // From the controller's own machine it is reached by an address that means nothing to others.
                let local = ["//127.", "//localhost", "//[::1]"].iter().any(|l| client.url().contains(l));
                let url = if local { "https://CONTROLLER:7443" } else { client.url() };
                print::note(&format!("For one use within {ttl} s. On host {host}:"));
                print::note(&format!(
                    "  TENET_JOIN_TOKEN=TOKEN tenet agent --controller {url} --uplink DEVICE"
                ));
                Ok(())
            })
        }
        HostCommand::Add { host, pa, rewrite_pool } => {
            let rewrite_pool = (!rewrite_pool.is_empty()).then_some(rewrite_pool);
            let spec = HostSpec { name: host, pa, rewrite_pool };
            change::report(context, &client.create_host(&spec).await?)
        }
        HostCommand::Set { host, rewrite_pool, no_rewrite_pool: _ } => {
            let patch = HostPatch { rewrite_pool: Some(rewrite_pool) };
            change::report(context, &client.set_host(&host, &patch).await?)
        }
        HostCommand::Remove { host } => change::report(context, &client.delete_host(&host).await?),
    }
}

/// `tenant …`
pub async fn tenant(context: &Context, command: TenantCommand) -> Outcome {
    let client = context.client()?;
    match command {
        TenantCommand::Create { tenant } => {
            change::report(context, &client.create_tenant(&TenantSpec { name: tenant }).await?)
        }
        TenantCommand::List => {
            let (networks, vms) = (client.networks().await?, client.vms().await?);
            context.show(&client.tenants().await?, |tenants| {
                let mut table = Table::new(["TENANT", "NETWORKS", "VMS"]);
                for tenant in tenants {
                    let networks = networks.iter().filter(|n| n.name.tenant == tenant.name).count();
                    let vms = vms.iter().filter(|v| v.name.tenant == tenant.name).count();
                    table.row([tenant.name.to_string(), networks.to_string(), vms.to_string()]);
                }
                print::table(&table, "no tenants")
            })
        }
        TenantCommand::Show { tenant } => {
            let site = client.site().await?;
            if !site.tenants.iter().any(|t| t.name == tenant) {
                return Err(missing(
                    &format!("tenant {tenant}"),
                    "`tenet tenant list` shows those there are",
                ));
            }
            let mut site = tenet_site::Site::from(site);
            site.hosts.clear();
            site.settings = None;
            site.tenants.retain(|t| t.value.name == tenant);
            let specs: Vec<_> =
                site.specs().into_iter().map(|(s, _)| s).filter(|s| owner(s) == Some(&tenant)).collect();
            context.show(&specs, |_| print::text(&tenet_site::write(&site)))
        }
        TenantCommand::Delete { tenant } => change::report(context, &client.delete_tenant(&tenant).await?),
    }
}

/// Whose an object is; hosts are nobody's.
fn owner(spec: &tenet_api::rest::Spec) -> Option<&tenet_model::TenantName> {
    use tenet_api::rest::Spec;
    match spec {
        Spec::Tenant(o) => Some(&o.name),
        Spec::Network(o) => Some(&o.name.tenant),
        Spec::Subnet(o) => Some(&o.name.tenant),
        Spec::Vm(o) => Some(&o.name.tenant),
        Spec::Port(o) => Some(&o.name.tenant),
        Spec::Route(o) => Some(&o.network.tenant),
        Spec::Host(_) | Spec::Site(_) => None,
    }
}

/// `network …`
pub async fn network(context: &Context, command: NetworkCommand) -> Outcome {
    let client = context.client()?;
    match command {
        NetworkCommand::Create { network, method, rdid } => {
            let spec = NetworkSpec { name: network, method, rdid };
            change::report(context, &client.create_network(&spec).await?)
        }
        NetworkCommand::Set { network, method } => {
            let patch = NetworkPatch { method: Some(method) };
            let work = client.set_network(&network, &patch);
            let reply = print::progress("waiting for the hosts, receivers first", work).await?;
            change::report(context, &reply)
        }
        NetworkCommand::List => context.show(&client.networks().await?, |networks| {
            let mut table = Table::new(["NETWORK", "METHOD", "RDID"]);
            for n in networks {
                table.row([n.name.to_string(), method(n), n.rdid.to_string()]);
            }
            print::table(&table, "no networks; make one: tenet network create NAME")
        }),
        NetworkCommand::Show { network } => {
            let view = client.network(&network).await?;
            let mut subnets = client.subnets().await?;
            subnets.retain(|s| s.name.network_ref() == network);
            let mut routes = client.routes().await?;
            routes.retain(|r| r.network == network);
            let all = serde_json::json!({ "network": view, "subnets": subnets, "routes": routes });
            context.show(&all, |_| {
                print::line(&format!(
                    "network {}: method {}, RDID {}, number {}",
                    view.name,
                    method(&view),
                    view.rdid,
                    view.id
                ))?;
                print::line("")?;
                print::table(&subnet_table(&subnets), "no subnets")?;
                print::line("")?;
                print::table(&route_table(&routes), "no routes besides those between its subnets")
            })
        }
        NetworkCommand::Delete { network } => {
            change::report(context, &client.delete_network(&network).await?)
        }
    }
}

/// `subnet …`
pub async fn subnet(context: &Context, command: SubnetCommand) -> Outcome {
    let client = context.client()?;
    match command {
        SubnetCommand::Create { subnet, prefixes, vsid, gateways } => {
            let vsid = vsid.map(Vsid::new).transpose();
            let vsid = vsid.map_err(|e| {
                Failure::new(e.to_string(), "leave it out to have one chosen").code(Code::Usage)
            })?;
            let prefixes = with_gateways(&prefixes, &gateways)?;
            let spec = SubnetSpec { name: subnet, vsid, prefixes };
            change::report(context, &client.create_subnet(&spec).await?)
        }
        SubnetCommand::List => context.show(&client.subnets().await?, |subnets| {
            print::table(
                &subnet_table(subnets),
                "no subnets; make one: tenet subnet create NETWORK/NAME --prefix PREFIX",
            )
        }),
        SubnetCommand::Show { subnet } => {
            let view = client.subnet(&subnet).await?;
            let ports: Vec<PortView> = client
                .vms()
                .await?
                .into_iter()
                .flat_map(|v| v.ports)
                .filter(|p| p.subnet == subnet)
                .collect();
            let all = serde_json::json!({ "subnet": view, "ports": ports });
            context.show(&all, |_| {
                print::text(&subnet_table(std::slice::from_ref(&view)).text(print::fancy()))?;
                print::line("")?;
                print::table(&port_table(ports.iter()), "no ports")
            })
        }
        SubnetCommand::Delete { subnet } => change::report(context, &client.delete_subnet(&subnet).await?),
    }
}

/// `vm …`
pub async fn vm(context: &Context, command: VmCommand) -> Outcome {
    let client = context.client()?;
    match command {
        VmCommand::Create { vm, port } => {
            let port = port.subnet.map(|subnet| CreateVmPort {
                name: Some(port.port),
                subnet,
                mac: port.mac,
                address: None,
                addresses: port.addresses,
                security: !port.no_security,
            });
            change::report(context, &client.create_vm(&CreateVm { name: vm, port }).await?)
        }
        VmCommand::List => context.show(&client.vms().await?, |vms| {
            print::table(&vm_table(vms), "no VMs; make one: tenet vm create NAME --subnet NETWORK/SUBNET")
        }),
        VmCommand::Show { vm } => context.show(&client.vm(&vm).await?, |vm| {
            print::table(&port_table(vm.ports.iter()), "no ports")?;
            match &vm.migration {
                Some(m) => print::line(&format!("moving from host {} to host {}: {}", m.from, m.to, m.phase)),
                None => Ok(()),
            }
        }),
        VmCommand::Delete { vm } => change::report(context, &client.delete_vm(&vm).await?),
        VmCommand::Attach { vm, host, device, queues, port, subnet, force } => {
            let attach = Attach { port, host, device, queues, subnet, force };
            change::report(context, &client.attach(&vm, &attach).await?)
        }
        VmCommand::RunArgs(args) => run_args::run_args(context, args).await,
        VmCommand::Detach { vm, port } => {
            change::report(context, &client.detach(&vm, &Detach { port }).await?)
        }
        VmCommand::Migrate { vm, to, devices, through, post_copy, no_wait } => {
            let (through, uri) = through.chosen(&to);
            let request = Migrate { to, devices: Default::default(), through, uri, post_copy };
            migrate::migrate(context, &vm, request, devices, no_wait).await
        }
        VmCommand::Switch { vm } => migrate::switch(context, &vm).await,
        VmCommand::Cancel { vm } => {
            let receipt = client.migrate_cancel(&vm).await?;
            context.show(&receipt, migrations::receipt)
        }
    }
}

/// `route …`
pub async fn route(context: &Context, command: RouteCommand) -> Outcome {
    let client = context.client()?;
    match command {
        RouteCommand::Create { network, to, via, metric } => {
            let spec = RouteSpec { network, prefix: to, next_hop: via, metric };
            change::report(context, &client.create_route(&spec).await?)
        }
        RouteCommand::List => context.show(&client.routes().await?, |routes| {
            print::table(&route_table(routes), "no routes besides those between a network's subnets")
        }),
        RouteCommand::Show { network } => {
            let mut routes = client.routes().await?;
            routes.retain(|r| r.network == network);
            context.show(&routes, |routes| print::table(&route_table(routes), "no routes"))
        }
        RouteCommand::Delete { network, to, via } => {
            change::report(context, &client.delete_route(&network, to, via).await?)
        }
    }
}

fn missing(what: &str, hint: &str) -> Failure {
    Failure::new(format!("{what} does not exist"), hint)
}

fn subnet_table(subnets: &[SubnetView]) -> Table {
    let mut table = Table::new(["SUBNET", "VSID", "PREFIX", "GATEWAY"]);
    for s in subnets {
        // The second prefix has a line of its own.
        for (n, p) in s.prefixes.iter().enumerate() {
            let first = |text: String| if n == 0 { text } else { String::new() };
            let (name, vsid) = (first(s.name.to_string()), first(s.vsid.to_string()));
            table.row([name, vsid, p.prefix.to_string(), p.gateway.to_string()]);
        }
    }
    table
}

/// Each gateway goes with the prefix that holds it.
fn with_gateways(prefixes: &[IpNet], gateways: &[IpAddr]) -> Outcome<Vec<PrefixSpec>> {
    let mut all: Vec<PrefixSpec> = prefixes.iter().map(|p| PrefixSpec::from(*p)).collect();
    for gateway in gateways {
        // Without one that holds it, the only prefix takes it and the controller says what is wrong.
        let alone = all.len() == 1;
        let place = all.iter_mut().find(|p| alone || p.prefix.contains(gateway));
        let Some(place) = place.filter(|p| p.gateway.is_none()) else {
            let text = format!("gateway {gateway} is in none of the prefixes, or is a second one");
            return Err(
                Failure::new(text, "give each prefix at most one gateway that is in it").code(Code::Usage)
            );
        };
        place.gateway = Some(*gateway);
    }
    Ok(all)
}

/// `vxlan`, or `nvgre, changing to vxlan`.
pub fn method(n: &NetworkView) -> String {
    match n.switching {
        None => n.method.to_string(),
        Some(to) => {
            let waiting: Vec<String> = n.waiting_for.iter().map(ToString::to_string).collect();
            let waiting = if waiting.is_empty() {
                String::new()
            } else {
                format!(", waiting for {}", waiting.join(" "))
            };
            format!("{}, changing to {to}{waiting}", n.method)
        }
    }
}

/// `3 of 128 used`, or a dash.
pub fn pool_use(pool: &Pool) -> String {
    match pool.size {
        0 if pool.used == 0 => "-".to_owned(),
        u64::MAX => format!("{} used", pool.used),
        size => format!("{} of {size} used", pool.used),
    }
}

fn route_table(routes: &[RouteView]) -> Table {
    let mut table = Table::new(["NETWORK", "TO", "VIA", "METRIC"]);
    for r in routes {
        table.row([
            r.network.to_string(),
            r.prefix.to_string(),
            r.next_hop.to_string(),
            r.metric.to_string(),
        ]);
    }
    table
}

/// One line per VM; those of its first port, and how many more there are.
fn vm_table(vms: &[VmView]) -> Table {
    let mut table = Table::new(["VM", "ADDRESS", "SUBNET", "MAC", "HOST", "DEVICE", "STATE"]);
    for vm in vms {
        let first = vm.ports.first();
        let state = match &vm.migration {
            Some(m) => format!("moving to {} ({})", m.to, m.phase),
            None if vm.ports.len() > 1 => format!("{} ports", vm.ports.len()),
            None => match first {
                None => "no port".to_owned(),
                Some(p) if p.host.is_none() => "not attached".to_owned(),
                Some(_) => "attached".to_owned(),
            },
        };
        table.row([
            vm.name.to_string(),
            first.map_or_else(|| "-".to_owned(), addresses),
            or_dash(first.map(|p| &p.subnet)),
            or_dash(first.map(|p| p.mac)),
            or_dash(first.and_then(|p| p.host.as_ref())),
            or_dash(first.and_then(|p| p.device.as_ref())),
            state,
        ]);
    }
    table
}

fn port_table<'a>(ports: impl Iterator<Item = &'a PortView>) -> Table {
    let ports: Vec<_> = ports.collect();
    let rewritten = ports.iter().any(|p| !p.rewrite.is_empty());
    let mut table = Table::new(["PORT", "ADDRESS", "SUBNET", "MAC", "HOST", "DEVICE", "SECURITY"]);
    if rewritten {
        table.heading("REWRITTEN TO");
    }
    for p in ports {
        table.row([
            p.name.to_string(),
            addresses(p),
            p.subnet.to_string(),
            p.mac.to_string(),
            or_dash(p.host.as_ref()),
            or_dash(p.device.as_ref()),
            if p.security { "on" } else { "off" }.to_owned(),
        ]);
        if rewritten {
            let pas: Vec<String> = p.addresses.iter().map(|ca| or_dash(p.rewrite.get(ca))).collect();
            table.cell(pas.join(" "));
        }
    }
    table
}

fn addresses(port: &PortView) -> String {
    let all: Vec<_> = port.addresses.iter().map(ToString::to_string).collect();
    all.join(" ")
}
