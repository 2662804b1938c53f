//! Prints what a change did.

use crate::command::{Context, not_in_sync};
use crate::failure::Outcome;
use crate::print;
use tenet_api::rest::{Applied, ChangeReply, Changed, Effect, Spec};

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
    Err(not_in_sync(
        format!("stored, but not yet confirmed by host {}", applied.waiting_for.join(", ")),
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
            let vsid = o.vsid.map_or_else(String::new, |v| format!(", VSID {v}"));
            let gateway = o.gateway.map_or_else(String::new, |g| format!(", gateway {g}"));
            format!("{}{vsid}{gateway}", o.prefix)
        }
        Spec::Port(o) => {
            let mut parts: Vec<String> = o.addresses.iter().map(ToString::to_string).collect();
            parts.extend(o.mac.map(|m| format!("MAC {m}")));
            if let (Some(host), Some(device)) = (&o.host, &o.device) {
                parts.push(format!("{device} on host {host}"));
            }
            parts.join(", ")
        }
        Spec::Host(o) => format!("provider address {}", o.pa),
        Spec::Route(o) => format!("metric {}", o.metric),
    }
}
