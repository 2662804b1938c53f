//! From what a user asks for to objects: names resolved, what was left out filled in.

use crate::{fault::Fault, spec};
use axum::http::StatusCode;
use std::collections::{BTreeMap, BTreeSet};
use tenet_api::rest::{ChangeItem, Changed, Effect, PortSpec, PrefixSpec, Spec, SubnetSpec};
use tenet_model::{
    Allocator, Change, Checked, Desired, Exhausted, Host, Key, Network, Object, Operation, Port, Route, Site,
    Subnet, SubnetPrefix, SubnetRef, Tenant, UdpPorts, Vm, default_gateway, tap_name,
};

/// The change that a list of items asks for.
///
/// What is left out stays as it is if the object exists; else it is chosen: VSIDs, network numbers, MACs and addresses
/// are the lowest free ones, after all that the items name themselves.
pub(crate) fn change(desired: &Desired, items: &[ChangeItem]) -> Result<Change, Fault> {
    let mut operations = Vec::with_capacity(items.len());
    let mut later = Vec::new();
    for item in items {
        match item {
            ChangeItem::Delete { object } => operations.push(Operation::Delete(object.key())),
            ChangeItem::Put { object } => match explicit(desired, object) {
                Some(object) => operations.push(Operation::Put(object)),
                None => later.push(object),
            },
        }
    }
    let mut change = Change { operations };
    let mut allocator = Allocator::new(desired);
    allocator.reserve(&change);
    // Ports last: their subnets may be of this very change. Those that name an address before those that take any.
    later.sort_by_key(|spec| match spec {
        Spec::Port(p) => 1 + u8::from(p.addresses.is_empty()),
        Spec::Tenant(_)
        | Spec::Network(_)
        | Spec::Subnet(_)
        | Spec::Vm(_)
        | Spec::Host(_)
        | Spec::Route(_)
        | Spec::Site(_) => 0,
    });
    let mut subnets: BTreeMap<SubnetRef, Subnet> = BTreeMap::new();
    let note = |subnets: &mut BTreeMap<SubnetRef, Subnet>, object: &Object| {
        if let Object::Subnet(s) = object {
            subnets.insert(s.name.clone(), s.clone());
        }
    };
    for operation in &change.operations {
        if let Operation::Put(object) = operation {
            note(&mut subnets, object);
        }
    }
    for spec in later {
        let object = allocated(desired, &mut allocator, &subnets, spec)?;
        allocator.reserve_object(&object);
        note(&mut subnets, &object);
        change.operations.push(Operation::Put(object));
    }
    Ok(change)
}

/// The change that creates what a list of items asks for; what is there already may only be as asked for.
pub(crate) fn create(desired: &Desired, items: &[ChangeItem]) -> Result<Change, Fault> {
    let change = change(desired, items)?;
    for operation in &change.operations {
        if let Operation::Put(object) = operation
            && !desired.holds(object)
            && desired.get(&object.key()).is_some()
        {
            return Err(Fault::exists(&object.key()));
        }
    }
    Ok(change)
}

/// The object of a spec that leaves nothing to be chosen.
fn explicit(desired: &Desired, spec: &Spec) -> Option<Object> {
    Some(match spec {
        Spec::Tenant(s) => Object::Tenant(Tenant { name: s.name.clone() }),
        Spec::Network(s) => {
            let was = &desired.networks.get(&s.name)?.value;
            // What the senders do, they go on doing until the receivers are ready: the core sees to that.
            let network = s.method.and_then(|method| desired.with_method(&s.name, method));
            let network = network.unwrap_or_else(|| was.clone());
            Object::Network(Network { rdid: s.rdid.unwrap_or(was.rdid), ..network })
        }
        Spec::Subnet(s) => {
            let was = desired.subnets.get(&s.name).map(|v| &v.value);
            let vsid = s.vsid.or(was.map(|w| w.vsid))?;
            Object::Subnet(subnet(s, was, vsid))
        }
        Spec::Vm(s) => Object::Vm(Vm { name: s.name.clone() }),
        Spec::Port(s) => {
            let was = desired.ports.get(&s.name).map(|v| &v.value);
            let mac = s.mac.or(was.map(|w| w.mac))?;
            let kept = was.filter(|w| w.subnet == s.subnet).map(|w| w.addresses.clone());
            let addresses = if s.addresses.is_empty() { kept? } else { s.addresses.clone() };
            Object::Port(port(s, was, mac, addresses))
        }
        Spec::Host(s) => {
            let was = desired.hosts.get(&s.name).map(|h| h.value.rewrite_pool.clone());
            let rewrite_pool = s.rewrite_pool.clone().or(was).unwrap_or_default();
            Object::Host(Host { name: s.name.clone(), pa: s.pa, rewrite_pool })
        }
        Spec::Site(s) => {
            let was = desired.site.value;
            let ports = was.wanted_ports();
            // Senders go on as they do until the receivers are ready: the core sees to that.
            let changing = desired.with_udp_ports(UdpPorts {
                vxlan: s.vxlan_port.unwrap_or(ports.vxlan),
                geneve: s.geneve_port.unwrap_or(ports.geneve),
            });
            let hosts_begin_migrations = s.hosts_begin_migrations.unwrap_or(was.hosts_begin_migrations);
            Object::Site(Site { hosts_begin_migrations, ..changing })
        }
        Spec::Route(s) => Object::Route(Route {
            network: s.network.clone(),
            prefix: s.prefix,
            next_hop: s.next_hop,
            metric: s.metric,
        }),
    })
}

fn allocated(
    desired: &Desired,
    allocator: &mut Allocator<'_>,
    subnets: &BTreeMap<SubnetRef, Subnet>,
    spec: &Spec,
) -> Result<Object, Fault> {
    match spec {
        Spec::Network(s) => Ok(Object::Network(Network {
            name: s.name.clone(),
            rdid: s.rdid.unwrap_or_else(crate::clock::random_id),
            id: allocator.net_id().map_err(exhausted)?,
            method: s.method.unwrap_or_default(),
            switching: None,
        })),
        Spec::Subnet(s) => {
            let was = desired.subnets.get(&s.name).map(|v| &v.value);
            Ok(Object::Subnet(subnet(s, was, allocator.vsid().map_err(exhausted)?)))
        }
        Spec::Port(s) => {
            let was = desired.ports.get(&s.name).map(|v| &v.value);
            let mac = match s.mac.or(was.map(|w| w.mac)) {
                Some(mac) => mac,
                None => allocator.mac(&s.name).map_err(exhausted)?,
            };
            let addresses = if s.addresses.is_empty() {
                let subnet = subnets.get(&s.subnet).or(desired.subnets.get(&s.subnet).map(|v| &v.value));
                // Without its subnet the port is refused by the model, which knows the words.
                subnet.map(|s| allocator.addresses(s).map_err(exhausted)).transpose()?.unwrap_or_default()
            } else {
                s.addresses.clone()
            };
            Ok(Object::Port(port(s, was, mac, addresses)))
        }
        Spec::Tenant(_) | Spec::Vm(_) | Spec::Host(_) | Spec::Route(_) | Spec::Site(_) => {
            explicit(desired, spec)
                .ok_or_else(|| Fault::bad_request("the object is incomplete", "give all of its fields"))
        }
    }
}

fn subnet(s: &SubnetSpec, was: Option<&Subnet>, vsid: tenet_model::Vsid) -> Subnet {
    let prefix = |p: &PrefixSpec| {
        let kept = was.and_then(|w| w.prefixes.iter().find(|w| w.prefix == p.prefix)).map(|w| w.gateway);
        let gateway = p.gateway.or(kept).or_else(|| default_gateway(&p.prefix));
        SubnetPrefix { prefix: p.prefix, gateway: gateway.unwrap_or_else(|| p.prefix.addr()) }
    };
    Subnet { name: s.name.clone(), vsid, prefixes: s.prefixes.iter().map(prefix).collect() }
}

fn port(s: &PortSpec, was: Option<&Port>, mac: tenet_model::Mac, addresses: Vec<std::net::IpAddr>) -> Port {
    let (host, device, tap) = match (&s.host, &s.device) {
        // Where it is attached is the business of attaching; it stays unless it is named.
        (None, None) => was.map_or((None, None, false), |w| (w.host.clone(), w.device.clone(), w.tap)),
        (Some(host), None) => (Some(host.clone()), Some(tap_name(&s.name)), true),
        (host, device) => (host.clone(), device.clone(), false),
    };
    Port {
        name: s.name.clone(),
        subnet: s.subnet.clone(),
        mac,
        addresses,
        host,
        device,
        tap,
        queues: s.queues.or_else(|| was.map(|w| w.queues)).unwrap_or(1),
        security: s.security,
        // Chosen by the model's check, where the network needs it.
        rewrite: was.map(|w| w.rewrite.clone()).unwrap_or_default(),
    }
}

fn exhausted(error: Exhausted) -> Fault {
    let text = error.to_string();
    let (message, hint) = text.rsplit_once(": ").map_or((text.as_str(), ""), |(m, h)| (m, h));
    Fault::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message, hint)
}

/// What becomes of each object of a change.
pub(crate) fn effects(desired: &Desired, change: &Change, checked: &Checked) -> Vec<Changed> {
    let mut all: Vec<Changed> = Vec::new();
    for operation in checked.operations() {
        let key = operation.key();
        let (effect, now) = match operation {
            Operation::Delete(_) => (Effect::Deleted, None),
            Operation::Put(object) if desired.get(&key).is_some() => (Effect::Updated, spec::of(object)),
            Operation::Put(object) => (Effect::Created, spec::of(object)),
        };
        all.push(Changed { object: key.to_string(), effect, now });
    }
    let written: BTreeSet<Key> = checked.operations().iter().map(Operation::key).collect();
    for operation in &change.operations {
        let key = operation.key();
        if let (Operation::Put(object), false) = (operation, written.contains(&key)) {
            all.push(Changed { object: key.to_string(), effect: Effect::Unchanged, now: spec::of(object) });
        }
    }
    all
}
