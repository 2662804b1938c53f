//! Writes a site file in one fixed form, so that two exports of one state are equal bytes.

use crate::Site;
use std::{fmt::Write as _, net::IpAddr};
use tenet_api::rest::{PortSpec, SettingsSpec, SubnetSpec};
use tenet_model::TenantName;

/// The text of a site file that [`crate::parse`] reads back as the same objects.
#[must_use]
pub fn write(site: &Site) -> String {
    let mut out = Out::default();
    if let Some(settings) = &site.settings {
        let SettingsSpec { vxlan_port, geneve_port, hosts_begin_migrations } = &settings.value;
        let said = [
            vxlan_port.map(|port| format!("vxlan_port: {port}")),
            geneve_port.map(|port| format!("geneve_port: {port}")),
            hosts_begin_migrations.map(|may| format!("hosts_begin_migrations: {may}")),
        ];
        out.line(
            0,
            &format!("settings: {{ {} }}", said.into_iter().flatten().collect::<Vec<_>>().join(", ")),
        );
    }
    if !site.hosts.is_empty() {
        out.line(0, "hosts:");
        for host in &site.hosts {
            let pool = host.value.rewrite_pool.as_deref().unwrap_or_default();
            let pool = if pool.is_empty() {
                String::new()
            } else {
                format!(", rewrite_pool: {}", one_or_list(pool.iter().map(|p| quote(&p.to_string()))))
            };
            out.line(1, &format!("{}: {{ pa: {}{pool} }}", host.value.name, flow(host.value.pa)));
        }
    }
    if !site.tenants.is_empty() {
        out.line(0, "tenants:");
        for name in &site.tenants {
            tenant(&mut out, site, &name.value.name);
        }
    }
    if out.0.is_empty() {
        out.line(0, "{}");
    }
    out.0
}

fn tenant(out: &mut Out, site: &Site, tenant: &TenantName) {
    let networks: Vec<_> = site.networks.iter().filter(|n| n.value.name.tenant == *tenant).collect();
    let vms: Vec<_> = site.vms.iter().filter(|v| v.value.name.tenant == *tenant).collect();
    if networks.is_empty() && vms.is_empty() {
        out.line(1, &format!("{tenant}: {{}}"));
        return;
    }
    out.line(1, &format!("{tenant}:"));
    if !networks.is_empty() {
        out.line(2, "networks:");
    }
    for network in networks.iter().map(|n| &n.value) {
        out.line(3, &format!("{}:", network.name.network));
        // A network that says nothing would read as an empty mapping, which is what it is.
        if let Some(method) = network.method {
            out.line(4, &format!("method: {method}"));
        }
        if let Some(rdid) = network.rdid {
            out.line(4, &format!("rdid: {rdid}"));
        }
        let subnets: Vec<_> =
            site.subnets.iter().filter(|s| s.value.name.network_ref() == network.name).collect();
        if !subnets.is_empty() {
            out.line(4, "subnets:");
        }
        for subnet in subnets.iter().map(|s| &s.value) {
            out.line(5, &subnet_line(subnet));
        }
        let routes: Vec<_> = site.routes.iter().filter(|r| r.value.network == network.name).collect();
        if !routes.is_empty() {
            out.line(4, "routes:");
        }
        for route in routes.iter().map(|r| &r.value) {
            let to = quote(&route.prefix.to_string());
            let via = flow(route.next_hop);
            out.line(5, &format!("- {{ to: {to}, via: {via}, metric: {} }}", route.metric));
        }
    }
    if !vms.is_empty() {
        out.line(2, "vms:");
    }
    for vm in vms.iter().map(|v| &v.value) {
        let ports: Vec<_> = site.ports.iter().filter(|p| p.value.name.vm_ref() == vm.name).collect();
        if ports.is_empty() {
            out.line(3, &format!("{}: {{}}", vm.name.vm));
            continue;
        }
        out.line(3, &format!("{}:", vm.name.vm));
        out.line(4, "ports:");
        for p in ports {
            port(out, &p.value);
        }
    }
}

/// One prefix stands alone, several in a list; a gateway stands with its prefix.
fn subnet_line(subnet: &SubnetSpec) -> String {
    let mut text = format!("{}: {{ ", subnet.name.subnet);
    let vsid = subnet.vsid.map_or_else(String::new, |vsid| format!(", vsid: {vsid}"));
    if let [one] = subnet.prefixes.as_slice() {
        let gateway = one.gateway.map_or_else(String::new, |g| format!(", gateway: {}", flow(g)));
        _ = write!(text, "prefix: {}{vsid}{gateway}", quote(&one.prefix.to_string()));
    } else {
        let prefixes = subnet.prefixes.iter().map(|p| match p.gateway {
            Some(gateway) => {
                format!("{{ prefix: {}, gateway: {} }}", quote(&p.prefix.to_string()), flow(gateway))
            }
            None => quote(&p.prefix.to_string()),
        });
        _ = write!(text, "prefixes: [{}]{vsid}", prefixes.collect::<Vec<_>>().join(", "));
    }
    text + " }"
}

/// `a`, or `[a, b]`.
fn one_or_list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    match items.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

fn port(out: &mut Out, port: &PortSpec) {
    out.line(5, &format!("{}:", port.name.port));
    out.line(6, &format!("subnet: {}/{}", port.subnet.network, port.subnet.subnet));
    if let Some(mac) = port.mac {
        out.line(6, &format!("mac: \"{mac}\""));
    }
    if !port.addresses.is_empty() {
        out.line(6, &format!("address: {}", one_or_list(port.addresses.iter().map(|a| flow(*a)))));
    }
    if let Some(host) = &port.host {
        out.line(6, &format!("host: {host}"));
    }
    if let Some(device) = &port.device {
        out.line(6, &format!("device: {}", quote(device)));
    }
    if let Some(queues) = port.queues.filter(|q| *q != 1) {
        out.line(6, &format!("queues: {queues}"));
    }
    if !port.security {
        out.line(6, "security: false");
    }
}

fn flow(address: IpAddr) -> String {
    quote(&address.to_string())
}

/// Quotes what plain YAML could read as something else.
fn quote(text: &str) -> String {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '-' | '_'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text != "null";
    if plain { text.to_owned() } else { format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")) }
}

#[derive(Default)]
struct Out(String);

impl Out {
    fn line(&mut self, level: usize, text: &str) {
        for _ in 0..level {
            self.0.push_str("  ");
        }
        self.0.push_str(text);
        self.0.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use crate::{Position, parse, write};

    #[test]
    fn what_is_written_reads_back_the_same() {
        let text = r#"settings: { vxlan_port: 8472, geneve_port: 6081, hosts_begin_migrations: false }
hosts:
  h1: { pa: 192.168.1.10, rewrite_pool: 192.168.1.128/25 }
  h2: { pa: "2001:db8::2", rewrite_pool: [192.168.2.128/25, "2001:db8:9::/64"] }
tenants:
  contoso:
    networks:
      blue:
        method: stt
        rdid: 11111111-2222-3333-4444-000000000000
        subnets:
          data: { prefix: 10.1.1.0/24, vsid: 5001, gateway: 10.1.1.1 }
          dual: { prefixes: [10.1.2.0/24, "fd00:2::/64"], vsid: 5002 }
          full: { prefixes: [{ prefix: 10.1.3.0/24, gateway: 10.1.3.254 }, { prefix: "fd00:3::/64", gateway: "fd00:3::9" }] }
          six: { prefix: "fd00:4::/64", gateway: "fd00:4::1" }
        routes:
          - { to: 0.0.0.0/0, via: 10.1.1.11, metric: 5 }
      empty:
    vms:
      sql:
        ports:
          eth0:
            subnet: blue/data
            mac: "02:00:00:00:00:01"
            address: [10.1.1.11, 10.1.1.12]
            host: h1
            device: "tap:0"
            queues: 4
            security: false
      bare: {}
  default: {}
"#;
        let site = parse("a", text).unwrap();
        assert_eq!(write(&site), text);
        assert_eq!(site.positions().values().copied().min(), Some(Position { line: 1, column: 11 }));
        assert_eq!(write(&parse("a", "").unwrap()), "{}\n");
    }
}
