//! Named bad cases: a change in short form in, the problems' text out.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test stops at the first surprise")]

use std::{collections::BTreeMap, net::IpAddr};
use tenet_model::{
    Change, Desired, Host, Key, Method, Migration, Name, NetId, Network, Object, Operation, Phase, Port,
    Route, Site, Subnet, SubnetPrefix, Tenant, Vm,
};
use uuid::Uuid;

/// Two tenants as in the demo: contoso has a VM on each host, and blue has two subnets.
const SITE: &str = "
    tenant default
    tenant contoso
    tenant fabrikam
    network contoso/blue 1 1
    network contoso/green 2 2
    network fabrikam/blue 3 3
    subnet contoso/blue/one 4096 10.1.1.0/24 10.1.1.1
    subnet contoso/blue/two 4097 10.1.2.0/24 10.1.2.1
    subnet fabrikam/blue/one 4098 10.1.1.0/24 10.1.1.1
    host h1 192.168.1.10
    host h2 192.168.2.20
    vm contoso/sql
    vm contoso/web
    vm contoso/idle
    vm fabrikam/sql
    port contoso/sql/eth0 contoso/blue/one 02:00:00:00:00:01 10.1.1.11 h1 tap0
    port contoso/web/eth0 contoso/blue/one 02:00:00:00:00:02 10.1.1.12 h2 tap0
    port contoso/idle/eth0 contoso/blue/two 02:00:00:00:00:03 10.1.2.13 - -
    port fabrikam/sql/eth0 fabrikam/blue/one 02:00:00:00:00:01 10.1.1.11 h1 tap1
    route contoso/blue 0.0.0.0/0 10.1.2.13 10
";

fn word<T: std::str::FromStr>(words: &mut std::str::SplitWhitespace<'_>) -> T
where
    T::Err: std::fmt::Debug,
{
    words.next().expect("a word is missing").parse().unwrap()
}

fn optional(words: &mut std::str::SplitWhitespace<'_>) -> Option<String> {
    words.next().filter(|w| *w != "-").map(str::to_owned)
}

/// `KIND FIELDS...` writes, `- KEY` deletes.
fn operation(line: &str) -> Operation {
    let w = &mut line.split_whitespace();
    Operation::Put(match w.next().unwrap() {
        "-" => return Operation::Delete(word(w)),
        "tenant" => Object::Tenant(Tenant { name: word(w) }),
        "network" => {
            let (name, id, rdid) = (word(w), NetId(word(w)), Uuid::from_u128(word(w)));
            let method = optional(w).map_or(Method::Nvgre, |m| m.parse().unwrap());
            let switching = optional(w).map(|m| m.parse().unwrap());
            Object::Network(Network { name, rdid, id, method, switching })
        }
        "subnet" => {
            let (name, vsid) = (word(w), word::<u32>(w).try_into().unwrap());
            let mut prefixes = Vec::new();
            while let Some(prefix) = optional(w) {
                prefixes.push(SubnetPrefix { prefix: prefix.parse().unwrap(), gateway: word(w) });
            }
            Object::Subnet(Subnet { name, vsid, prefixes })
        }
        "host" => Object::Host(Host {
            name: word(w),
            pa: word(w),
            rewrite_pool: w.map(|p| p.parse().unwrap()).collect(),
        }),
        "site" => Object::Site(Site { vxlan_port: word(w), geneve_port: word(w), ..Site::default() }),
        "vm" => Object::Vm(Vm { name: word(w) }),
        "port" => {
            let (name, subnet, mac) = (word(w), word(w), word(w));
            let addresses =
                word::<String>(w).split(',').filter(|a| *a != "-").map(|a| a.parse().unwrap()).collect();
            let host = optional(w).map(|h| h.parse().unwrap());
            let device = optional(w).map(|d| d.replace('_', " "));
            let (security, rewrite) = (true, BTreeMap::new());
            Object::Port(Port {
                name,
                subnet,
                mac,
                addresses,
                host,
                device,
                tap: false,
                queues: 1,
                security,
                rewrite,
            })
        }
        "route" => {
            Object::Route(Route { network: word(w), prefix: word(w), next_hop: word(w), metric: word(w) })
        }
        "migration" => {
            let (vm, id, from, to) = (word(w), Uuid::from_u128(word(w)), word(w), word(w));
            let phase = match word::<String>(w).as_str() {
                "preparing" => Phase::Preparing,
                "prepared" => Phase::Prepared,
                "switched" => Phase::Switched,
                other => panic!("{other}"),
            };
            let device = |d: &str| {
                let (port, device) = d.split_once('=').unwrap();
                (Name::new(port).unwrap(), device.to_owned())
            };
            let devices = w.map(device).collect();
            Object::Migration(Migration { phase, ..Migration::new(vm, id, from, to, devices) })
        }
        other => panic!("{other}"),
    })
}

fn change(text: &str) -> Change {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).map(operation).collect()
}

fn site() -> Desired {
    let mut desired = Desired::default();
    let checked = desired.check(&change(SITE)).unwrap();
    desired.apply(checked.operations(), 7);
    desired
}

/// Every case of the file has the outcome that stands there.
#[test]
fn changes_have_the_outcomes_of_the_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rules.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let found = outcomes(&text);
    if std::env::var_os("UPDATE_RULES").is_some() {
        std::fs::write(path, found).unwrap();
        return;
    }
    for (line, (found, expected)) in found.lines().zip(text.lines()).enumerate() {
        assert_eq!(found, expected, "rules.txt:{}", line + 1);
    }
    assert_eq!(found, text);
}

/// The file with the outcomes that the cases have.
fn outcomes(text: &str) -> String {
    let mut desired = site();
    let mut out = String::new();
    for block in text.trim_end().split("\n\n") {
        if let Some(given) = block.strip_prefix("given ") {
            let checked = desired.check(&change(given)).unwrap();
            desired.apply(checked.operations(), 8);
        }
        let case: Vec<&str> = block.lines().filter(|l| l.starts_with("> ")).collect();
        if case.is_empty() {
            out += &format!("{block}\n\n");
            continue;
        }
        let lines: Vec<&str> = case.iter().map(|l| &l[2..]).collect();
        out += &format!("{}\n", case.join("\n"));
        match desired.check(&change(&lines.join("\n"))) {
            Ok(checked) => {
                out += "fine\n";
                checked.operations().iter().for_each(|o| out += &rewrites(o));
                out += "\n";
            }
            Err(problems) => {
                problems.iter().for_each(|p| out += &format!("{p}\n"));
                out += "\n";
            }
        }
    }
    format!("{}\n", out.trim_end())
}

/// The rewrite addresses of a write, a line each.
fn rewrites(operation: &Operation) -> String {
    let line = |what: String, (ca, pa): (&IpAddr, &IpAddr)| format!("{what} rewrites {ca} as {pa}\n");
    match operation {
        Operation::Put(Object::Port(p)) => {
            p.rewrite.iter().map(|pair| line(format!("port {}", p.name), pair)).collect()
        }
        Operation::Put(Object::Migration(m)) => {
            let all = m.rewrite.iter().flat_map(|(port, r)| r.iter().map(move |pair| (port, pair)));
            all.map(|(port, pair)| line(format!("{} on {} to be", port, m.to), pair)).collect()
        }
        Operation::Put(_) | Operation::Delete(_) => String::new(),
    }
}

#[test]
fn a_deleted_vm_takes_its_ports_along() {
    let checked = site().check(&change("- vm/contoso/sql")).unwrap();
    let keys: Vec<String> = checked.operations().iter().map(|o| o.key().to_string()).collect();
    assert_eq!(keys, ["vm/contoso/sql", "port/contoso/sql/eth0"]);
}

#[test]
fn what_changes_nothing_is_left_out() {
    let text = format!("{SITE}\nvm contoso/new");
    let checked = site().check(&change(&text)).unwrap();
    assert_eq!(checked.operations().len(), 1);
    assert_eq!(checked.revision(), 7);
}

#[test]
fn all_problems_come_at_once_in_the_order_of_the_change() {
    let text =
        "host h3 127.0.0.1\nvm nobody/x\n- tenant/default\nsubnet contoso/green/x 4096 10.9.0.1/24 10.8.0.1";
    let problems = site().check(&change(text)).unwrap_err();
    let about: Vec<String> = problems.iter().map(|p| p.about.to_string()).collect();
    assert_eq!(
        about,
        ["host/h3", "vm/nobody/x", "tenant/default", "subnet/contoso/green/x", "subnet/contoso/green/x"]
    );
}

#[test]
fn keys_are_found_again() {
    let desired = site();
    let key: Key = "route/contoso/blue/0.0.0.0-0-10.1.2.13".parse().unwrap();
    assert_eq!(desired.get(&key).unwrap().revision, 7);
    let hop: IpAddr = "10.1.2.13".parse().unwrap();
    assert!(matches!(desired.get(&key).unwrap().value, Object::Route(r) if r.next_hop == hop));
}
