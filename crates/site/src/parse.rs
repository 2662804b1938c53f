//! Reads a site file: all that is wrong in it at once, each with its place.

use crate::yaml::{self, Key, Node, Value};
use crate::{At, Position, Problem, Site, SiteError};
use ipnet::IpNet;
use std::{fmt::Display, str::FromStr};
use tenet_api::rest::{
    HostSpec, NetworkSpec, PortSpec, PrefixSpec, RouteSpec, SettingsSpec, SubnetSpec, TenantSpec, VmSpec,
};
use tenet_model::{Name, NetworkRef, PortRef, SubnetRef, TenantName, VmRef, Vsid};

/// Reads a site file's text; `file` is its name in messages.
///
/// # Errors
/// [`SiteError`] with everything that is wrong.
pub fn parse(file: &str, text: &str) -> Result<Site, SiteError> {
    let mut reader = Reader::default();
    match yaml::read(text) {
        Ok(root) => reader.site(&root),
        Err(problem) => reader.problems.push(problem),
    }
    if reader.problems.is_empty() {
        return Ok(reader.site);
    }
    reader.problems.sort_by_key(|p| p.at);
    Err(SiteError { file: file.to_owned(), problems: reader.problems })
}

#[derive(Default)]
struct Reader {
    site: Site,
    problems: Vec<Problem>,
}

/// The fields of one mapping; what nobody asked for is a problem.
struct Fields<'a> {
    what: String,
    at: Position,
    pairs: Vec<(&'a Key, &'a Node)>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    fn take(&mut self, name: &'static str) -> Option<&'a Node> {
        self.known.push(name);
        let at = self.pairs.iter().position(|(k, _)| k.text == name)?;
        let (_, node) = self.pairs.remove(at);
        (!node.is_null()).then_some(node)
    }
}

impl Reader {
    fn site(&mut self, root: &Node) {
        let Some(mut fields) = self.fields(root, root.at, "the site") else { return };
        if let Some(node) = fields.take("settings") {
            self.settings(node);
        }
        for (name, node) in self.named(fields.take("hosts"), "hosts") {
            self.host(name, node);
        }
        for (name, node) in self.named(fields.take("tenants"), "tenants") {
            self.tenant(name, node);
        }
        self.finish(fields);
    }

    fn settings(&mut self, node: &Node) {
        let Some(mut fields) = self.fields(node, node.at, "settings") else { return };
        let vxlan_port = self.optional(&mut fields, "vxlan_port", "a UDP port such as 4789");
        let geneve_port = self.optional(&mut fields, "geneve_port", "a UDP port such as 6081");
        let hosts_begin_migrations = self.optional(&mut fields, "hosts_begin_migrations", "true or false");
        self.finish(fields);
        let value = SettingsSpec { vxlan_port, geneve_port, hosts_begin_migrations };
        self.site.settings = Some(At { value, at: node.at });
    }

    fn host(&mut self, name: At<Name>, node: &Node) {
        let Some(mut fields) = self.fields(node, name.at, &format!("host {}", name.value)) else { return };
        let pa = self.required(&mut fields, "pa", "an address such as 192.168.1.10");
        let ranges = fields.take("rewrite_pool");
        let rewrite_pool = ranges.map(|node| {
            one_or_more(node)
                .iter()
                .filter_map(|n| self.prefix(n, "a prefix such as 192.168.1.128/25"))
                .collect()
        });
        self.finish(fields);
        if let Some(pa) = pa {
            self.site.hosts.push(At { value: HostSpec { name: name.value, pa, rewrite_pool }, at: name.at });
        }
    }

    fn tenant(&mut self, name: At<Name>, node: &Node) {
        let tenant = name.value.clone();
        self.site.tenants.push(At { value: TenantSpec { name: tenant.clone() }, at: name.at });
        let Some(mut fields) = self.fields(node, name.at, &format!("tenant {tenant}")) else { return };
        for (network, node) in self.named(fields.take("networks"), "networks") {
            self.network(&tenant, network, node);
        }
        for (vm, node) in self.named(fields.take("vms"), "vms") {
            self.vm(&tenant, vm, node);
        }
        self.finish(fields);
    }

    fn network(&mut self, tenant: &TenantName, network: At<Name>, node: &Node) {
        let name = NetworkRef { tenant: tenant.clone(), network: network.value };
        let Some(mut fields) = self.fields(node, network.at, &format!("network {name}")) else { return };
        let method =
            self.optional(&mut fields, "method", "a method: use nvgre, vxlan, geneve, stt or rewrite");
        let rdid = self.optional(&mut fields, "rdid", "a UUID");
        self.site
            .networks
            .push(At { value: NetworkSpec { name: name.clone(), method, rdid }, at: network.at });
        for (subnet, node) in self.named(fields.take("subnets"), "subnets") {
            self.subnet(&name, subnet, node);
        }
        for node in self.list(fields.take("routes"), "routes") {
            self.route(&name, node);
        }
        self.finish(fields);
    }

    fn subnet(&mut self, network: &NetworkRef, subnet: At<Name>, node: &Node) {
        let NetworkRef { tenant, network } = network.clone();
        let name = SubnetRef { tenant, network, subnet: subnet.value };
        let Some(mut fields) = self.fields(node, subnet.at, &format!("subnet {name}")) else { return };
        let (one, several) = (fields.take("prefix"), fields.take("prefixes"));
        let vsid = self.optional::<u32>(&mut fields, "vsid", "a number from 4096 to 16777214");
        let vsid = vsid.and_then(|n| self.ok(Vsid::new(n), subnet.at));
        let gateway = fields.take("gateway");
        let prefixes = match (one, several) {
            (Some(_), Some(node)) => {
                self.problem(
                    node.at,
                    format!("{} has both `prefix` and `prefixes`: use one of them", fields.what),
                );
                Vec::new()
            }
            (Some(node), None) => {
                let gateway = gateway.and_then(|g| self.value(g, "an address"));
                let prefix = self.prefix(node, "a prefix such as 10.1.1.0/24");
                prefix.map(|prefix| PrefixSpec { prefix, gateway }).into_iter().collect()
            }
            (None, Some(list)) => {
                if let Some(node) = gateway {
                    let text = "with `prefixes`, write each gateway with its prefix: \
                                { prefix: 10.1.1.0/24, gateway: 10.1.1.1 }";
                    self.problem(node.at, text.to_owned());
                }
                let nodes = one_or_more(list);
                if nodes.is_empty() {
                    self.problem(list.at, format!("{} needs a prefix such as 10.1.1.0/24", fields.what));
                }
                nodes.iter().filter_map(|node| self.prefix_and_gateway(node, &fields.what)).collect()
            }
            (None, None) => {
                self.missing(&fields, "prefix", "a prefix such as 10.1.1.0/24");
                Vec::new()
            }
        };
        self.finish(fields);
        if !prefixes.is_empty() {
            self.site.subnets.push(At { value: SubnetSpec { name, prefixes, vsid }, at: subnet.at });
        }
    }

    /// `10.1.1.0/24`, or `{ prefix: 10.1.1.0/24, gateway: 10.1.1.1 }`.
    fn prefix_and_gateway(&mut self, node: &Node, what: &str) -> Option<PrefixSpec> {
        let form = "a prefix such as 10.1.1.0/24 or fd00:1::/64";
        if !matches!(node.value, Value::Mapping(_)) {
            return self.prefix(node, form).map(|prefix| PrefixSpec { prefix, gateway: None });
        }
        let mut fields = self.fields(node, node.at, &format!("a prefix of {what}"))?;
        let prefix = fields.take("prefix");
        if prefix.is_none() {
            self.missing(&fields, "prefix", form);
        }
        let gateway = self.optional(&mut fields, "gateway", "an address");
        self.finish(fields);
        prefix.and_then(|p| self.prefix(p, form)).map(|prefix| PrefixSpec { prefix, gateway })
    }

    /// A prefix without host bits.
    fn prefix(&mut self, node: &Node, form: &str) -> Option<IpNet> {
        self.value(node, form).and_then(|prefix| self.whole(prefix, node.at))
    }

    fn route(&mut self, network: &NetworkRef, node: &Node) {
        let Some(mut fields) = self.fields(node, node.at, &format!("route of {network}")) else { return };
        let prefix = self.required(&mut fields, "to", "a prefix such as 0.0.0.0/0");
        let next_hop = self.required(&mut fields, "via", "an address in one of the network's subnets");
        let metric = self.optional(&mut fields, "metric", "a number").unwrap_or(0);
        self.finish(fields);
        if let (Some(prefix), Some(next_hop)) = (prefix.and_then(|p| self.whole(p, node.at)), next_hop) {
            let value = RouteSpec { network: network.clone(), prefix, next_hop, metric };
            self.site.routes.push(At { value, at: node.at });
        }
    }

    fn vm(&mut self, tenant: &TenantName, vm: At<Name>, node: &Node) {
        let name = VmRef { tenant: tenant.clone(), vm: vm.value };
        self.site.vms.push(At { value: VmSpec { name: name.clone() }, at: vm.at });
        let Some(mut fields) = self.fields(node, vm.at, &format!("vm {name}")) else { return };
        for (port, node) in self.named(fields.take("ports"), "ports") {
            self.port(&name, port, node);
        }
        self.finish(fields);
    }

    fn port(&mut self, vm: &VmRef, port: At<Name>, node: &Node) {
        let VmRef { tenant, vm } = vm.clone();
        let name = PortRef { tenant: tenant.clone(), vm, port: port.value };
        let Some(mut fields) = self.fields(node, port.at, &format!("port {name}")) else { return };
        let subnet = fields.take("subnet");
        if subnet.is_none() {
            self.missing(&fields, "subnet", "NETWORK/SUBNET");
        }
        let subnet = subnet.and_then(|n| self.text(n)).and_then(|(text, at)| {
            self.ok(
                format!("{tenant}/{text}")
                    .parse::<SubnetRef>()
                    .map_err(|_| format!("`{text}` is no subnet: write NETWORK/SUBNET")),
                at,
            )
        });
        let mac = self.optional(&mut fields, "mac", "a MAC address such as 02:00:00:00:00:01");
        let addresses = fields.take("address").map(one_or_more).unwrap_or_default();
        let addresses = addresses.iter().filter_map(|n| self.value(n, "an address")).collect();
        let host = self.optional(&mut fields, "host", "a host's name");
        let device = self.optional(&mut fields, "device", "a device's name");
        let queues = self.optional(&mut fields, "queues", "a number from 1 to 256");
        let security = self.optional(&mut fields, "security", "true or false").unwrap_or(true);
        self.finish(fields);
        if let Some(subnet) = subnet {
            let value = PortSpec { name, subnet, mac, addresses, host, device, queues, security };
            self.site.ports.push(At { value, at: port.at });
        }
    }

    fn fields<'a>(&mut self, node: &'a Node, at: Position, what: &str) -> Option<Fields<'a>> {
        let pairs = match &node.value {
            Value::Mapping(pairs) => pairs.iter().map(|(k, v)| (k, v)).collect(),
            Value::Scalar(_) if node.is_null() => Vec::new(),
            Value::Scalar(_) | Value::Sequence(_) => {
                self.problem(node.at, format!("{what} should be a mapping, not {}", node.kind()));
                return None;
            }
        };
        Some(Fields { what: what.to_owned(), at, pairs, known: Vec::new() })
    }

    fn finish(&mut self, fields: Fields<'_>) {
        for (key, _) in fields.pairs {
            let text =
                format!("{} has no field `{}`: use {}", fields.what, key.text, fields.known.join(", "));
            self.problem(key.at, text);
        }
    }

    /// The entries of a mapping from names to something.
    fn named<'a>(&mut self, node: Option<&'a Node>, what: &str) -> Vec<(At<Name>, &'a Node)> {
        match node.map(|n| (&n.value, n)) {
            None => Vec::new(),
            Some((Value::Mapping(pairs), _)) => pairs
                .iter()
                .filter_map(|(key, node)| {
                    let value = self.ok(Name::new(key.text.clone()), key.at)?;
                    Some((At { value, at: key.at }, node))
                })
                .collect(),
            Some((Value::Scalar(_) | Value::Sequence(_), node)) => {
                self.problem(node.at, format!("{what} should be a mapping from names, not {}", node.kind()));
                Vec::new()
            }
        }
    }

    fn list<'a>(&mut self, node: Option<&'a Node>, what: &str) -> &'a [Node] {
        match node.map(|n| (&n.value, n)) {
            None => &[],
            Some((Value::Sequence(nodes), _)) => nodes,
            Some((Value::Scalar(_) | Value::Mapping(_), node)) => {
                self.problem(node.at, format!("{what} should be a list, not {}", node.kind()));
                &[]
            }
        }
    }

    fn required<T: FromStr>(&mut self, fields: &mut Fields<'_>, name: &'static str, form: &str) -> Option<T> {
        match fields.take(name) {
            Some(node) => self.value(node, form),
            None => {
                self.missing(fields, name, form);
                None
            }
        }
    }

    fn optional<T: FromStr>(&mut self, fields: &mut Fields<'_>, name: &'static str, form: &str) -> Option<T> {
        fields.take(name).and_then(|node| self.value(node, form))
    }

    fn value<T: FromStr>(&mut self, node: &Node, form: &str) -> Option<T> {
        let (text, at) = self.text(node)?;
        self.ok(text.parse::<T>().map_err(|_| format!("`{text}` is not {form}")), at)
    }

    fn text<'a>(&mut self, node: &'a Node) -> Option<(&'a str, Position)> {
        match &node.value {
            Value::Scalar(text) => Some((text, node.at)),
            Value::Sequence(_) | Value::Mapping(_) => {
                self.problem(node.at, format!("one value should stand here, not {}", node.kind()));
                None
            }
        }
    }

    /// A prefix without host bits.
    fn whole(&mut self, prefix: IpNet, at: Position) -> Option<IpNet> {
        let trunc = prefix.trunc();
        self.ok(
            (trunc == prefix).then_some(prefix).ok_or(format!("{prefix} has host bits: write {trunc}")),
            at,
        )
    }

    fn missing(&mut self, fields: &Fields<'_>, name: &str, form: &str) {
        self.problem(fields.at, format!("{} lacks `{name}`: {form}", fields.what));
    }

    fn ok<T, E: Display>(&mut self, result: Result<T, E>, at: Position) -> Option<T> {
        result.map_err(|e| self.problem(at, e.to_string())).ok()
    }

    fn problem(&mut self, at: Position, text: String) {
        self.problems.push(Problem { at, text, other: None });
    }
}

/// The items of a list; what is no list is its only one.
fn one_or_more(node: &Node) -> &[Node] {
    match &node.value {
        Value::Sequence(nodes) => nodes,
        Value::Scalar(_) | Value::Mapping(_) => std::slice::from_ref(node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        parse("site.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn errors_point_at_line_and_column() {
        for (text, expected) in [
            (
                "hosts:\n  h1: { pa: 192.168.1 }\n",
                "site.yaml:2:13: `192.168.1` is not an address such as 192.168.1.10",
            ),
            ("hosts:\n  h1: {}\n", "site.yaml:2:3: host h1 lacks `pa`: an address such as 192.168.1.10"),
            (
                "hosts:\n  H_1: { pa: 1.2.3.4 }\n",
                "site.yaml:2:3: `H_1` is not a name: use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit",
            ),
            ("host: {}\n", "site.yaml:1:1: the site has no field `host`: use settings, hosts, tenants"),
            ("hosts: [a]\n", "site.yaml:1:8: hosts should be a mapping from names, not a list"),
            (
                "hosts:\n  h1: { pa: 1.2.3.4 }\n  h1: { pa: 1.2.3.5 }\n",
                "site.yaml:3:3: `h1` stands here twice: remove or rename one\nsite.yaml:2:3: the first is here",
            ),
            (
                "tenants:\n  a:\n    networks:\n      b:\n        subnets:\n          c: { prefix: 10.0.0.1/24 }\n",
                "site.yaml:6:24: 10.0.0.1/24 has host bits: write 10.0.0.0/24",
            ),
            (
                "tenants:\n  a:\n    networks:\n      b:\n        subnets:\n          c: { prefixes: [10.0.0.0/24, fd00::1/64] }\n",
                "site.yaml:6:40: fd00::1/64 has host bits: write fd00::/64",
            ),
            (
                "tenants:\n  a:\n    networks:\n      b:\n        subnets:\n          c: { prefixes: [{ prefix: x, gateway: fd00::1 }] }\n",
                "site.yaml:6:37: `x` is not a prefix such as 10.1.1.0/24 or fd00:1::/64",
            ),
            (
                "tenants:\n  a:\n    networks:\n      b:\n        subnets:\n          c: { prefix: 10.0.0.0/24, prefixes: [] }\n",
                "site.yaml:6:47: subnet a/b/c has both `prefix` and `prefixes`: use one of them",
            ),
            (
                "tenants:\n  a:\n    networks:\n      b: { method: gre }\n",
                "site.yaml:4:20: `gre` is not a method: use nvgre, vxlan, geneve, stt or rewrite",
            ),
            (
                "hosts:\n  h1: { pa: 1.2.3.4, rewrite_pool: [10.0.0.0/24, 10.0.1.9/24] }\n",
                "site.yaml:2:50: 10.0.1.9/24 has host bits: write 10.0.1.0/24",
            ),
            ("settings: { vxlan_port: 70000 }\n", "site.yaml:1:25: `70000` is not a UDP port such as 4789"),
            (
                "settings: { hosts_begin_migrations: perhaps }\n",
                "site.yaml:1:37: `perhaps` is not true or false",
            ),
            (
                "tenants:\n  a:\n    vms:\n      v: { ports: { p: { subnet: x } } }\n",
                "site.yaml:4:34: `x` is no subnet: write NETWORK/SUBNET",
            ),
            ("a: &x 1\nb: *x\n", "site.yaml:2:4: aliases are not supported: write the value out"),
        ] {
            assert_eq!(wrong(text), expected);
        }
        assert!(wrong("hosts: {\n").starts_with("site.yaml:"));
        assert!(wrong("hosts:\n\t- x\n").starts_with("site.yaml:2:"));
    }

    #[test]
    fn tells_all_problems_at_once() {
        assert_eq!(wrong("hosts:\n  a: { pa: x }\n  b: { pa: y }\n").lines().count(), 2);
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(wrong(&"[".repeat(40)).contains("nested deeper"));
        // The parser itself has a limit too, whichever comes first.
        assert!(wrong(&"[".repeat(100_000)).starts_with("site.yaml:1:"));
    }
}
