//! Prints what a change did.

use crate::command::{Context, not_in_sync};
use crate::failure::Outcome;
use crate::print;
use tenet_api::rest::{Applied, ChangeReply, Changed, Effect, Spec};
use tenet_model::tap_name;

/// Prints a change's effects and how far it had come on the hosts.
pub fn report(context: &Context, reply: &ChangeReply) -> Outcome {
    context.show(reply, |reply| {
        for changed in &reply.changed {
            print::line(&sentence(changed))?;
        }
        if reply.changed.is_empty() {
            print::line("nothing to do")?;
        }
        Ok(())
    })?;
    let wrote = reply.changed.iter().any(|c| c.effect != Effect::Unchanged);
    match &reply.applied {
        Some(applied) if wrote && !reply.dry_run => in_force(context, applied),
        Some(_) | None => Ok(()),
    }
}

/// A wait shorter than this was none: no connected host was concerned.
const NO_WAIT_US: u64 = 50;

/// Says when all hosts had a change, or fails with those that had not.
pub fn in_force(context: &Context, applied: &Applied) -> Outcome {
    if applied.complete {
        if !context.json() && applied.waited_us >= NO_WAIT_US {
            print::line(&format!(
                "in force on all connected hosts concerned after {}",
                print::micros(applied.waited_us)
            ))?;
        }
        return Ok(());
    }
    let who = match applied.waiting_for.as_slice() {
        [] => "all hosts".to_owned(),
        some => format!("host {}", some.join(", ")),
    };
    Err(not_in_sync(
        format!("stored, but not yet confirmed by {who}"),
        "`tenet status` shows how far they are; they get it as soon as they can",
    ))
}

/// One object's effect in words.
pub fn sentence(changed: &Changed) -> String {
    let name = title(&changed.object);
    let details = changed.now.as_ref().map(details).filter(|d| !d.is_empty());
    let details = details.map_or_else(String::new, |d| format!(" ({d})"));
    match changed.effect {
        Effect::Created => format!("created {name}{details}"),
        Effect::Updated => format!("updated {name}{details}"),
        Effect::Unchanged => format!("{name} is already so"),
        Effect::Deleted => format!("deleted {name}"),
    }
}

/// What a person calls an object that the API calls `kind/name`.
pub fn title(object: &str) -> String {
    object.parse::<tenet_model::Key>().map_or_else(|_| object.to_owned(), |key| key.title())
}

/// What the controller may have filled in.
fn details(spec: &Spec) -> String {
    match spec {
        Spec::Tenant(_) | Spec::Vm(_) => String::new(),
        Spec::Network(o) => o.method.map_or_else(String::new, |m| format!("method {m}")),
        Spec::Subnet(o) => {
            let mut parts: Vec<String> = o.prefixes.iter().map(|p| p.prefix.to_string()).collect();
            parts.extend(o.vsid.map(|v| format!("VSID {v}")));
            parts.extend(o.prefixes.iter().filter_map(|p| p.gateway).map(|g| format!("gateway {g}")));
            parts.join(", ")
        }
        Spec::Port(o) => {
            let mut parts: Vec<String> = o.addresses.iter().map(ToString::to_string).collect();
            parts.extend(o.mac.map(|m| format!("MAC {m}")));
            if let Some(host) = &o.host {
                let device = o.device.clone().unwrap_or_else(|| tap_name(&o.name));
                parts.push(format!("{device} on host {host}"));
            }
            parts.join(", ")
        }
        Spec::Host(o) => {
            let pool: Vec<String> = o.rewrite_pool.iter().flatten().map(ToString::to_string).collect();
            let pool =
                if pool.is_empty() { String::new() } else { format!(", rewrite pool {}", pool.join(" ")) };
            format!("provider address {}{pool}", o.pa)
        }
        Spec::Site(o) => {
            let vxlan = o.vxlan_port.map(|p| format!("VXLAN to UDP port {p}"));
            let geneve = o.geneve_port.map(|p| format!("Geneve to UDP port {p}"));
            let migrations = o.hosts_begin_migrations.map(|may| {
                if may { "hosts begin migrations" } else { "hosts begin no migrations" }.to_owned()
            });
            vxlan.into_iter().chain(geneve).chain(migrations).collect::<Vec<_>>().join(", ")
        }
        Spec::Route(o) => format!("metric {}", o.metric),
    }
}
