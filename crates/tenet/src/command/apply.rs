//! The site as a file: `apply` and `export`.

use crate::cli::ApplyArgs;
use crate::command::{Context, change};
use crate::failure::{Code, Failure, Outcome};
use crate::print;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use tenet_api::client::{Client, ClientError};
use tenet_api::rest::{ApiError, ChangeItem, ChangeReply, Changed, ChangesRequest, Effect, Spec, Target};
use tenet_model::{DEFAULT_TENANT, Key};
use tenet_site::{Position, Problem, Site, SiteError};

/// `apply`
pub async fn apply(context: &Context, args: ApplyArgs) -> Outcome {
    let (file, text) = read(&args.file)?;
    let wanted = tenet_site::parse(&file, &text)
        .map_err(|e| Failure::new(format!("the site file is wrong\n{e}"), "correct the lines named above"))?;
    let client = context.client()?;
    let current = client.site().await?;
    let revision = current.revision;
    let current = Site::from(current);
    let mut changes = wanted.puts();
    let surplus = surplus(&wanted, &current);
    if args.prune {
        changes.extend(surplus.iter().map(|t| ChangeItem::Delete { object: t.clone() }));
    }
    // Shown first, whatever is refused then.
    let mut request = ChangesRequest { changes, dry_run: true, if_revision: revision, force: true };
    let checked = send(&client, &request, &file, &wanted).await?;
    let todo: Vec<&Changed> = checked.changed.iter().filter(|c| c.effect != Effect::Unchanged).collect();
    let json = context.json();
    if !json {
        difference(&todo, &current)?;
        if !args.prune && !surplus.is_empty() {
            print::note(&format!("{} objects are not in {file}; --prune deletes them", surplus.len()));
        }
    }
    request.force = args.force;
    if !todo.is_empty() && !args.force {
        send(&client, &request, &file, &wanted).await?;
    }
    if todo.is_empty() || args.dry_run {
        let nothing = if todo.is_empty() { "nothing to do" } else { "this was only a check" };
        return if json { print::json(&checked) } else { print::line(nothing) };
    }
    if !args.yes && !agreed()? {
        return Err(Failure::new("nothing was changed", "say yes, or give --yes"));
    }
    request.dry_run = false;
    let work = send(&client, &request, &file, &wanted);
    let reply: ChangeReply = print::progress("waiting for the hosts", work).await?;
    if json {
        print::json(&reply)?;
    } else {
        print::line(&format!(
            "{} objects changed",
            reply.changed.iter().filter(|c| c.effect != Effect::Unchanged).count()
        ))?;
    }
    match &reply.applied {
        Some(applied) => change::in_force(context, applied),
        None => Ok(()),
    }
}

/// `export`
pub async fn export(context: &Context) -> Outcome {
    let site = context.client()?.site().await?;
    context.show(&site, |site| print::text(&tenet_site::write(&Site::from(site.clone()))))
}

fn read(path: &Path) -> Outcome<(String, String)> {
    let hint = "give a site file; `tenet export` prints one";
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(|e| Failure::of(&e, hint))?;
        return Ok(("standard input".to_owned(), text));
    }
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((file, text)),
        Err(e) => Err(Failure::new(format!("cannot read {file}: {e}"), hint)),
    }
}

/// What there is and the file does not have. Ports of a VM that goes, go with it; the default tenant stays.
fn surplus(wanted: &Site, current: &Site) -> Vec<Target> {
    let named: BTreeSet<Key> = wanted.positions().into_keys().collect();
    let gone = |key: &Key| !named.contains(key);
    let all = current.specs().into_iter().map(|(spec, _)| spec).filter(|spec| gone(&tenet_site::key(spec)));
    all.filter_map(|spec| match spec {
        Spec::Tenant(o) if o.name.as_str() == DEFAULT_TENANT => None,
        Spec::Tenant(o) => Some(Target::Tenant { name: o.name }),
        Spec::Network(o) => Some(Target::Network { name: o.name }),
        Spec::Subnet(o) => Some(Target::Subnet { name: o.name }),
        Spec::Vm(o) => Some(Target::Vm { name: o.name }),
        Spec::Port(o) if gone(&Key::Vm(o.name.vm_ref())) => None,
        Spec::Port(o) => Some(Target::Port { name: o.name }),
        Spec::Host(o) => Some(Target::Host { name: o.name }),
        // It is always there.
        Spec::Site(_) => None,
        Spec::Route(o) => Some(Target::Route { network: o.network, prefix: o.prefix, next_hop: o.next_hop }),
    })
    .collect()
}

/// Sends a change; a refusal points at the lines of the file.
async fn send(client: &Client, request: &ChangesRequest, file: &str, wanted: &Site) -> Outcome<ChangeReply> {
    match client.changes(request).await {
        Ok(reply) => Ok(reply),
        Err(ClientError::Refused { status, error }) if !error.problems.is_empty() => {
            let placed = placed(&error, file, wanted);
            let code = if status == 409 { Code::Conflict } else { Code::Failed };
            // A single problem is told by the message too; with its place is better.
            let told = error.problems.iter().any(|p| error.message.contains(&p.message));
            let head = if told { "the change is refused" } else { &error.message };
            Err(Failure::new(format!("{head}\n{placed}"), error.hint).code(code))
        }
        Err(e) => Err(e.into()),
    }
}

/// The controller's problems with the places of both objects.
fn placed(error: &ApiError, file: &str, wanted: &Site) -> String {
    let positions = wanted.positions();
    let lines = error.problems.iter().map(|p| {
        let about = p.object.parse::<Key>().ok();
        let text = if p.hint.is_empty() || p.message.contains(&p.hint) {
            p.message.clone()
        } else {
            format!("{}: {}", p.message, p.hint)
        };
        match about.as_ref().and_then(|key| positions.get(key)) {
            Some(at) => {
                let other = other(&p.message, about.as_ref(), &positions);
                let problem = Problem { at: *at, text, other };
                SiteError { file: file.to_owned(), problems: vec![problem] }.to_string()
            }
            None => text,
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The other object that a message names: the longest title in it, as titles may be beginnings of others.
fn other(
    message: &str,
    about: Option<&Key>,
    positions: &BTreeMap<Key, Position>,
) -> Option<(Position, String)> {
    let named = positions.iter().filter(|(key, _)| Some(*key) != about);
    let found =
        named.map(|(key, at)| (key.title(), *at)).filter(|(title, _)| message.contains(title.as_str()));
    found.max_by_key(|(title, _)| title.len()).map(|(title, at)| (at, format!("{title} is here")))
}

/// Prints what would change: `+` new, `-` gone, `~` altered with its fields.
fn difference(todo: &[&Changed], current: &Site) -> Outcome {
    let before: BTreeMap<Key, Spec> =
        current.specs().into_iter().map(|(spec, _)| (tenet_site::key(&spec), spec)).collect();
    let bold = print::fancy();
    let paint = |colour: &str, text: &str| {
        if bold { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    };
    for changed in todo {
        let title = change::title(&changed.object);
        let line = match changed.effect {
            Effect::Created => paint("32", &format!("+ {title}{}", fields(changed.now.as_ref()))),
            Effect::Deleted => paint("31", &format!("- {title}")),
            Effect::Updated => {
                let old = changed.object.parse::<Key>().ok().and_then(|key| before.get(&key).cloned());
                paint("33", &format!("~ {title}{}", altered(old.as_ref(), changed.now.as_ref())))
            }
            Effect::Unchanged => continue,
        };
        print::line(&line)?;
    }
    Ok(())
}

fn fields(spec: Option<&Spec>) -> String {
    let fields = values(spec).into_iter().map(|(name, value)| format!("{name} {value}"));
    let text = fields.collect::<Vec<_>>().join(", ");
    if text.is_empty() { text } else { format!(": {text}") }
}

fn altered(old: Option<&Spec>, new: Option<&Spec>) -> String {
    let (old, new) = (values(old), values(new));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let dash = "none".to_owned();
    let lines = names.into_iter().filter(|n| old.get(*n) != new.get(*n)).map(|name| {
        let (from, to) = (old.get(name).unwrap_or(&dash), new.get(name).unwrap_or(&dash));
        format!("\n    {name}: {from} -> {to}")
    });
    lines.collect()
}

/// A spec's fields as text, without its name and kind.
fn values(spec: Option<&Spec>) -> BTreeMap<String, String> {
    let Some(Ok(Value::Object(map))) = spec.map(serde_json::to_value) else { return BTreeMap::new() };
    let named =
        map.into_iter().filter(|(name, value)| !matches!(name.as_str(), "name" | "kind") && !value.is_null());
    named.map(|(name, value)| (name, plain(&value))).collect()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(" "),
        // A prefix and its gateway.
        Value::Object(fields) => fields.values().rev().map(plain).collect::<Vec<_>>().join(" with gateway "),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Asks at a terminal; elsewhere only --yes says yes.
fn agreed() -> Outcome<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    let ask = || {
        write!(io::stderr(), "Make these changes? [y/N] ")?;
        io::stderr().flush()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok::<_, io::Error>(matches!(answer.trim(), "y" | "Y" | "yes"))
    };
    ask().map_err(|e| Failure::of(&e, "give --yes"))
}
