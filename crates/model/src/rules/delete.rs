//! What must be gone before an object can go.

use super::{Problems, is_default};
use crate::{Key, Why, view::View};

/// Why an object cannot be deleted.
pub(super) fn check(view: &View<'_>, key: &Key, problems: &mut Problems) {
    if !view.existed(key) {
        problems.add(key.clone(), Why::NotFound);
        return;
    }
    let mut users = Users { first: None, more: 0 };
    match key {
        Key::Tenant(tenant) => {
            if is_default(tenant) {
                problems.add(key.clone(), Why::DefaultTenant);
                return;
            }
            let networks = view.networks.span(tenant.first_network(), |k| k.tenant == *tenant);
            users.add(networks.map(|(k, _)| Key::Network(k.clone())));
            users.add(
                view.vms.span(tenant.first_vm(), |k| k.tenant == *tenant).map(|(k, _)| Key::Vm(k.clone())),
            );
        }
        Key::Network(network) => {
            users.add(view.subnets_of(network).map(|s| Key::Subnet(s.name.clone())));
            users.add(view.routes_of(network).map(|r| Key::Route(r.network.clone(), r.prefix, r.next_hop)));
        }
        Key::Subnet(subnet) => {
            let ports = view.ports_of_tenant(&subnet.tenant).filter(|p| p.subnet == *subnet);
            users.add(ports.map(|p| Key::Port(p.name.clone())));
            let network = subnet.network_ref();
            if let Some(was) = view.subnets.before(subnet) {
                let routes = view.routes_of(&network).filter(|r| was.prefix_of(&r.next_hop).is_some());
                // Another subnet may have taken the prefix over in the same change.
                let stranded =
                    routes.filter(|r| !view.subnets_of(&network).any(|s| s.prefix_of(&r.next_hop).is_some()));
                users.add(stranded.map(|r| Key::Route(r.network.clone(), r.prefix, r.next_hop)));
            }
        }
        Key::Vm(vm) => users.add(view.migrations.get(vm).map(|m| Key::Migration(m.vm.clone())).into_iter()),
        Key::Port(port) => {
            let vm = port.vm_ref();
            if view.migrations.before(&vm).is_some() && view.migrations.get(&vm).is_some() {
                problems.add(key.clone(), Why::Migrating { migration: Key::Migration(vm) });
            }
        }
        Key::Host(host) => {
            let ports = view.ports.iter().filter(|(_, p)| p.host.as_ref() == Some(host));
            users.add(ports.map(|(k, _)| Key::Port(k.clone())));
            let migrations = view.migrations.iter().filter(|(_, m)| m.from == *host || m.to == *host);
            users.add(migrations.map(|(k, _)| Key::Migration(k.clone())));
        }
        Key::Route(..) | Key::Migration(_) | Key::Site => {}
    }
    if let Some(by) = users.first {
        problems.add(key.clone(), Why::InUse { by, more: users.more });
    }
}

/// One user by name, the others by number.
struct Users {
    first: Option<Key>,
    more: usize,
}

impl Users {
    fn add(&mut self, mut keys: impl Iterator<Item = Key>) {
        if self.first.is_none() {
            self.first = keys.next();
        }
        self.more += keys.count();
    }
}
