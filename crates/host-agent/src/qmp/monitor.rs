//! One QEMU's monitor: which line follows which, and what it means for the VM. No I/O, no clock.

use super::line::{self, Line, Migrate, under_way};
use crate::vms::What;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tenet_model::{Through, check_migration_uri};

/// How often the end of a migration is asked for until QEMU has its figures together.
const AGAIN: u32 = 10;

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Act {
    /// Write this.
    Send(String),
    /// Tell this, which happened then (0: now).
    Say(What, u64),
}

/// What a command was asked for.
#[derive(Clone, PartialEq, Debug)]
enum Asked {
    Capabilities,
    /// Its answer does not matter.
    Nothing,
    Status,
    Progress,
    /// How it ended, and how often that was asked before.
    End(u32, String),
    /// Whether it may be moved there.
    StatusToMove(String),
    ProgressToMove(String),
    Move,
    ProgressToCancel,
}

/// The dialogue with one QEMU.
#[derive(Debug, Default)]
pub(crate) struct Monitor {
    next: u64,
    asked: BTreeMap<u64, Asked>,
    ready: bool,
    /// QEMU moves the VM's memory away or takes it in.
    migrating: bool,
    /// Told before the dialogue had begun.
    early: Option<(String, bool)>,
}

impl Monitor {
    /// Takes a line.
    pub(crate) fn take(&mut self, line: &str) -> Vec<Act> {
        match line::parse(line) {
            Some(Line::Greeting) => vec![self.ask(Asked::Capabilities, "qmp_capabilities", None)],
            Some(Line::Return(id, value)) => match self.asked.remove(&id) {
                Some(asked) => self.answered(asked, &value),
                None => Vec::new(),
            },
            Some(Line::Error(id, why)) => match self.asked.remove(&id) {
                Some(Asked::Move) => vec![failed(why)],
                Some(Asked::End(_, status)) => vec![ended(Migrate { status, ..Migrate::default() })],
                _ => Vec::new(),
            },
            Some(Line::Event { name, data, time_us }) => self.happened(&name, &data, time_us),
            None => Vec::new(),
        }
    }

    /// Whether the dialogue has begun; before, another client may have the monitor.
    pub(crate) const fn ready(&self) -> bool {
        self.ready
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self) -> Vec<Act> {
        if !self.migrating || self.asked.values().any(|a| *a == Asked::Progress) {
            return Vec::new();
        }
        vec![self.ask(Asked::Progress, "query-migrate", None)]
    }

    /// The VM shall be moved, or that be given up. One that is being moved is only followed.
    pub(crate) fn drive(&mut self, uri: &str, cancel: bool) -> Vec<Act> {
        // A URI can have QEMU run programs: that is this host's to forbid, whatever the controller allows.
        if !cancel && let Err(why) = check_migration_uri(Through::Qmp, uri) {
            return vec![failed(format!("this agent does not move a VM to {uri:?}: {why}"))];
        }
        if !self.ready {
            self.early = Some((uri.to_owned(), cancel));
            return Vec::new();
        }
        vec![if cancel {
            self.ask(Asked::ProgressToCancel, "query-migrate", None)
        } else {
            self.ask(Asked::StatusToMove(uri.to_owned()), "query-status", None)
        }]
    }

    fn ask(&mut self, asked: Asked, name: &str, arguments: Option<Value>) -> Act {
        self.next += 1;
        self.asked.insert(self.next, asked);
        Act::Send(line::command(self.next, name, arguments))
    }

    fn answered(&mut self, asked: Asked, value: &Value) -> Vec<Act> {
        let status = || value.get("status").and_then(Value::as_str).unwrap_or_default();
        match asked {
            Asked::Capabilities => {
                self.ready = true;
                let mut acts = vec![
                    self.ask(Asked::Nothing, "migrate-set-capabilities", Some(line::events())),
                    self.ask(Asked::Progress, "query-migrate", None),
                    self.ask(Asked::Status, "query-status", None),
                ];
                if let Some((uri, cancel)) = self.early.take() {
                    acts.extend(self.drive(&uri, cancel));
                }
                acts
            }
            Asked::Nothing | Asked::Move => Vec::new(),
            Asked::Status => match status() {
                "running" => vec![Act::Say(What::Resumed, 0)],
                "postmigrate" | "finish-migrate" => vec![Act::Say(What::Stopped, 0)],
                _ => Vec::new(),
            },
            Asked::Progress => {
                let now = Migrate::new(value);
                self.migrating = under_way(&now.status);
                if self.migrating { vec![Act::Say(What::Migration(now), 0)] } else { Vec::new() }
            }
            Asked::End(tries, status) => {
                let now = Migrate::new(value);
                let whole = now.status == status && (status != "completed" || now.downtime_ms.is_some());
                if whole || tries >= AGAIN {
                    return vec![ended(Migrate { status, ..now })];
                }
                vec![self.ask(Asked::End(tries + 1, status), "query-migrate", None)]
            }
            Asked::StatusToMove(uri) => match status() {
                // Over already: this order is a repeated one.
                "postmigrate" => vec![self.ask(Asked::End(0, "completed".to_owned()), "query-migrate", None)],
                "inmigrate" => vec![failed("the VM waits for its memory on this host itself".to_owned())],
                _ => vec![self.ask(Asked::ProgressToMove(uri), "query-migrate", None)],
            },
            Asked::ProgressToMove(uri) => {
                let now = Migrate::new(value);
                if under_way(&now.status) {
                    self.migrating = true;
                    return vec![Act::Say(What::Migration(now), 0)];
                }
                vec![self.ask(Asked::Move, "migrate", Some(json!({ "uri": uri })))]
            }
            Asked::ProgressToCancel => {
                let now = Migrate::new(value);
                if under_way(&now.status) {
                    return vec![self.ask(Asked::Nothing, "migrate_cancel", None)];
                }
                vec![ended(Migrate { status: "cancelled".to_owned(), ..Migrate::default() })]
            }
        }
    }

    fn happened(&mut self, name: &str, data: &Value, time_us: u64) -> Vec<Act> {
        match name {
            // Any other stop is a pause: what comes for the VM waits for it here.
            "STOP" if self.migrating => vec![Act::Say(What::Stopped, time_us)],
            "RESUME" => vec![Act::Say(What::Resumed, time_us)],
            "MIGRATION" => {
                let status = data.get("status").and_then(Value::as_str).unwrap_or_default().to_owned();
                self.migrating = under_way(&status);
                match status.as_str() {
                    "completed" | "failed" => vec![self.ask(Asked::End(0, status), "query-migrate", None)],
                    _ if self.migrating => {
                        let said = Migrate { status, ..Migrate::default() };
                        let mut acts = vec![Act::Say(What::Migration(said), time_us)];
                        acts.extend(self.tick());
                        acts
                    }
                    _ => vec![Act::Say(What::Migration(Migrate { status, ..Migrate::default() }), time_us)],
                }
            }
            _ => Vec::new(),
        }
    }
}

fn ended(migrate: Migrate) -> Act {
    Act::Say(What::Migration(migrate), 0)
}

fn failed(error: String) -> Act {
    ended(Migrate { status: "failed".to_owned(), error, ..Migrate::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU that answers what it is asked from a list.
    fn talk(
        monitor: &mut Monitor,
        acts: Vec<Act>,
        answer: impl Fn(&str) -> Value,
    ) -> (Vec<String>, Vec<What>) {
        let (mut asked, mut said) = (Vec::new(), Vec::new());
        let mut todo: std::collections::VecDeque<Act> = acts.into();
        while let Some(act) = todo.pop_front() {
            match act {
                Act::Say(what, _) => said.push(what),
                Act::Send(line) => {
                    let command: Value = serde_json::from_str(&line).unwrap();
                    let name = command["execute"].as_str().unwrap().to_owned();
                    let mut reply = answer(&name);
                    reply["id"] = command["id"].clone();
                    asked.push(name);
                    todo.extend(monitor.take(&reply.to_string()));
                }
            }
        }
        (asked, said)
    }

    fn status(vm: &'static str, migration: &'static str) -> impl Fn(&str) -> Value {
        move |name| match name {
            "query-status" => json!({ "return": { "status": vm } }),
            "query-migrate" if migration.is_empty() => json!({ "return": {} }),
            "query-migrate" => {
                json!({ "return": { "status": migration, "downtime": 7, "error-desc": "no room" } })
            }
            _ => json!({ "return": {} }),
        }
    }

    fn begun(vm: &'static str, migration: &'static str) -> (Monitor, Vec<What>) {
        let mut monitor = Monitor::default();
        let acts = monitor.take(r#"{"QMP": {}}"#);
        let (asked, said) = talk(&mut monitor, acts, status(vm, migration));
        assert_eq!(asked[..2], ["qmp_capabilities", "migrate-set-capabilities"]);
        (monitor, said)
    }

    fn event(name: &str, status: Option<&str>) -> String {
        let data = status.map_or(json!({}), |s| json!({ "status": s }));
        json!({ "event": name, "data": data, "timestamp": { "seconds": 1, "microseconds": 2 } }).to_string()
    }

    #[test]
    fn what_a_vm_does_is_told_from_the_first_moment_on() {
        assert_eq!(begun("running", "").1, [What::Resumed]);
        assert_eq!(begun("inmigrate", "").1, []);
        assert_eq!(begun("paused", "").1, []);
        assert_eq!(begun("postmigrate", "completed").1, [What::Stopped]);
        let (mut monitor, said) = begun("running", "active");
        assert!(matches!(&said[..], [What::Migration(m), What::Resumed] if m.status == "active"), "{said:?}");
        // An agent that came late knows that this stop is the switch.
        assert_eq!(monitor.take(&event("STOP", None)), [Act::Say(What::Stopped, 1_000_002)]);
    }

    #[test]
    fn a_pause_is_no_switch() {
        let (mut monitor, _) = begun("running", "");
        assert_eq!(monitor.take(&event("STOP", None)), []);
        assert_eq!(monitor.take(&event("RESUME", None)), [Act::Say(What::Resumed, 1_000_002)]);
        let _ = monitor.take(&event("MIGRATION", Some("active")));
        assert_eq!(monitor.take(&event("STOP", None)).len(), 1);
        let _ = monitor.take(&event("MIGRATION", Some("failed")));
        assert_eq!(monitor.take(&event("STOP", None)), []);
    }

    #[test]
    fn the_end_comes_with_its_figures_or_its_reason() {
        let (mut monitor, _) = begun("running", "active");
        let acts = monitor.take(&event("MIGRATION", Some("completed")));
        let (_, said) = talk(&mut monitor, acts, status("postmigrate", "completed"));
        assert!(matches!(&said[..], [What::Migration(m)] if m.downtime_ms == Some(7)), "{said:?}");
        let acts = monitor.take(&event("MIGRATION", Some("failed")));
        let (_, said) = talk(&mut monitor, acts, status("running", "failed"));
        assert!(matches!(&said[..], [What::Migration(m)] if m.status == "failed" && m.error == "no room"));
        // Figures that never come do not keep the end back.
        let acts = monitor.take(&event("MIGRATION", Some("completed")));
        let (asked, said) = talk(&mut monitor, acts, status("postmigrate", ""));
        assert_eq!((asked.len(), said.len()), (1 + AGAIN as usize, 1));
    }

    #[test]
    fn a_vm_is_moved_once_however_often_it_is_said() {
        let (mut monitor, _) = begun("running", "");
        let acts = monitor.drive("tcp:x:1", false);
        let (asked, _) = talk(&mut monitor, acts, status("running", ""));
        assert_eq!(asked, ["query-status", "query-migrate", "migrate"]);
        let acts = monitor.drive("tcp:x:1", false);
        let (asked, said) = talk(&mut monitor, acts, status("running", "active"));
        assert_eq!(asked, ["query-status", "query-migrate"]);
        assert_eq!(said.len(), 1);
        let acts = monitor.drive("tcp:x:1", false);
        let (asked, said) = talk(&mut monitor, acts, status("postmigrate", "completed"));
        assert!(!asked.contains(&"migrate".to_owned()));
        assert!(matches!(&said[..], [What::Migration(m)] if m.status == "completed"), "{said:?}");
        // It came here by a migration, which QEMU still speaks of.
        let acts = monitor.drive("tcp:x:1", false);
        let (asked, _) = talk(&mut monitor, acts, status("running", "completed"));
        assert_eq!(asked[2], "migrate");
    }

    #[test]
    fn a_refusal_is_the_reason_and_giving_up_is_confirmed() {
        let (mut monitor, _) = begun("running", "");
        let acts = monitor.drive("tcp:x:1", false);
        let refuse = |name: &str| match name {
            "migrate" => json!({ "error": { "desc": "unknown migration protocol" } }),
            other => status("running", "")(other),
        };
        let (_, said) = talk(&mut monitor, acts, refuse);
        assert!(matches!(&said[..], [What::Migration(m)] if m.error == "unknown migration protocol"));
        let acts = monitor.drive("", true);
        let (asked, said) = talk(&mut monitor, acts, status("running", ""));
        assert_eq!(asked, ["query-migrate"]);
        assert!(matches!(&said[..], [What::Migration(m)] if m.status == "cancelled"));
        let acts = monitor.drive("", true);
        let (asked, said) = talk(&mut monitor, acts, status("running", "active"));
        assert_eq!((asked[1].as_str(), said.len()), ("migrate_cancel", 0));
    }

    #[test]
    fn what_would_run_a_program_is_not_even_asked_of_qemu() {
        let (mut monitor, _) = begun("running", "");
        let mut early = Monitor::default();
        for uri in ["exec:touch /tmp/x", "file:/etc/shadow", "fd:3", "-x", ""] {
            for monitor in [&mut monitor, &mut early] {
                let acts = monitor.drive(uri, false);
                assert!(
                    matches!(&acts[..], [Act::Say(What::Migration(m), _)]
                        if m.status == "failed" && m.error.contains("tcp:HOST:PORT")),
                    "{uri}: {acts:?}"
                );
            }
        }
        let (asked, _) = talk(&mut monitor, Vec::new(), status("running", ""));
        assert!(asked.is_empty(), "{asked:?}");
    }

    #[test]
    fn an_order_before_the_greeting_waits_for_it() {
        let mut monitor = Monitor::default();
        assert_eq!(monitor.drive("tcp:x:1", false), []);
        assert!(!monitor.ready());
        let acts = monitor.take(r#"{"QMP": {}}"#);
        let (asked, _) = talk(&mut monitor, acts, status("running", ""));
        assert!(asked.contains(&"migrate".to_owned()), "{asked:?}");
        // What nobody asked for and what no QEMU says is passed over.
        for line in ["", "{}", r#"{"return": {}, "id": 99}"#, r#"{"error": {}, "id": 98}"#] {
            assert_eq!(monitor.take(line), []);
        }
    }
}
