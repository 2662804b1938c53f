//! One QEMU's monitor: which line follows which, and what it means for the VM. No I/O, no clock.

use super::line::{self, Line, Migrate};
use super::{Drive, IDLE, WAITING, Want};
use crate::vms::{Driven, What};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tenet_model::{NEXT, Through, check_migration_uri, under_way};

/// How often the end of a migration is asked for until QEMU has its figures together.
const AGAIN: u32 = 10;
/// Ticks between two attempts to begin where nobody listens yet.
const PAUSE: u32 = 5;
/// So many attempts; with ticks of 200 ms, two minutes of them. Whoever starts the destination's QEMU by hand can do so
/// only once its tap is there, which is when all is prepared and this agent is told to begin.
const ATTEMPTS: u32 = 120;

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
    /// How this migration ended, and how often that was asked before.
    End {
        migration: String,
        status: String,
        tries: u32,
    },
    /// Whether it may be moved there.
    StatusToMove(Drive),
    ProgressToMove(Drive),
    /// How this migration, which may have been begun before, stands.
    StatusToFollow(Drive),
    ProgressToFollow(Drive),
    /// This migration begins.
    Move(String),
    /// Whether there is anything left to give up of this one.
    ProgressToCancel(String),
    StatusToCancel(String),
}

/// A move that is begun again as long as nobody listens at the destination.
#[derive(Debug)]
struct Attempt {
    drive: Drive,
    number: u32,
    /// Ticks until the next one; none: it is under way.
    pause: Option<u32>,
}

/// The dialogue with one QEMU.
#[derive(Debug, Default)]
pub(crate) struct Monitor {
    next: u64,
    asked: BTreeMap<u64, Asked>,
    ready: bool,
    /// QEMU moves the VM's memory away or takes it in.
    migrating: bool,
    driven: Driven,
    /// The move that was begun last.
    attempt: Option<Attempt>,
    /// Told before the dialogue had begun.
    early: Option<Drive>,
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
                Some(Asked::Move(migration)) => {
                    let _ = self.driven.of("failed");
                    if self.begins_again(&migration, &Migrate::failed(&migration, why.as_str())) {
                        return vec![waits(&migration)];
                    }
                    vec![failed(&migration, why)]
                }
                Some(
                    Asked::StatusToMove(drive)
                    | Asked::ProgressToMove(drive)
                    | Asked::StatusToFollow(drive)
                    | Asked::ProgressToFollow(drive),
                ) => vec![ended(drive.hopeless(why))],
                Some(Asked::End { migration, status, .. }) => vec![ended(Migrate::word(&migration, &status))],
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
        if let Some(Attempt { drive, pause: pause @ Some(_), .. }) = &mut self.attempt {
            *pause = pause.and_then(|ticks| ticks.checked_sub(1));
            if pause.is_none() {
                let drive = drive.clone();
                return vec![self.ask(Asked::StatusToMove(drive), "query-status", None)];
            }
            return Vec::new();
        }
        if !self.migrating || self.asked.values().any(|a| *a == Asked::Progress) {
            return Vec::new();
        }
        vec![self.ask(Asked::Progress, "query-migrate", None)]
    }

    /// The VM shall be moved, or that be given up. One that is being moved is only followed.
    pub(crate) fn drive(&mut self, drive: Drive) -> Vec<Act> {
        // A URI can have QEMU run programs: that is this host's to forbid, whatever the controller allows.
        if drive.want == Want::Move
            && let Err(why) = check_migration_uri(Through::Qmp, &drive.uri)
        {
            let why =
                format!("this agent does not move a VM to {:?}: {why}{NEXT}give a plain URI", drive.uri);
            return vec![failed(&drive.migration, why)];
        }
        if !self.ready {
            let replaced = self.early.replace(drive).filter(|old| Some(&old.migration) != self.early_id());
            return replaced
                .map(|old| ended(old.hopeless("another order came before it began")))
                .into_iter()
                .collect();
        }
        if self.attempt.as_ref().is_some_and(|a| a.pause.is_some()) {
            // It waits for somebody to listen.
            let same = self.attempt.as_ref().is_some_and(|a| a.drive.migration == drive.migration);
            match drive.want {
                Want::Move | Want::Follow if same => return vec![waits(&drive.migration)],
                Want::Move | Want::Cancel => self.attempt = None,
                Want::Follow => {}
            }
        }
        vec![match drive.want {
            Want::Cancel => self.ask(Asked::ProgressToCancel(drive.migration), "query-migrate", None),
            Want::Move => self.ask(Asked::StatusToMove(drive), "query-status", None),
            Want::Follow => self.ask(Asked::StatusToFollow(drive), "query-status", None),
        }]
    }

    fn early_id(&self) -> Option<&String> {
        self.early.as_ref().map(|d| &d.migration)
    }

    /// The monitor does not greet: what was told early is not done.
    pub(crate) fn give_up(&mut self, why: &str) -> Vec<Act> {
        self.early.take().map(|drive| ended(drive.hopeless(why))).into_iter().collect()
    }

    /// The monitor is closed: what becomes of that which was under way.
    pub(crate) fn closed(&mut self, why: &str) -> Vec<Act> {
        let mut acts = self.give_up(why);
        let mut told = false;
        if let Some(Attempt { drive, pause: Some(_), .. }) = self.attempt.take() {
            acts.push(ended(drive.hopeless(why)));
        }
        for asked in std::mem::take(&mut self.asked).into_values() {
            match asked {
                // Only its figures are lacking.
                Asked::End { migration, status, .. } => {
                    told = true;
                    acts.push(ended(Migrate::word(&migration, &status)));
                }
                Asked::StatusToMove(drive)
                | Asked::ProgressToMove(drive)
                | Asked::StatusToFollow(drive)
                | Asked::ProgressToFollow(drive) => acts.push(ended(drive.hopeless(why))),
                _ => {}
            }
        }
        if !told && (self.migrating || self.driven.lives()) {
            acts.push(failed(self.driven.id(), why));
        }
        acts
    }

    fn ask(&mut self, asked: Asked, name: &str, arguments: Option<Value>) -> Act {
        self.next += 1;
        self.asked.insert(self.next, asked);
        Act::Send(line::command(self.next, name, arguments))
    }

    fn ask_end(&mut self, migration: String, status: &str, tries: u32) -> Act {
        self.ask(Asked::End { migration, status: status.to_owned(), tries }, "query-migrate", None)
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
                if let Some(drive) = self.early.take() {
                    acts.extend(self.drive(drive));
                }
                acts
            }
            Asked::Nothing | Asked::Move(_) => Vec::new(),
            Asked::Status => match status() {
                "running" => vec![Act::Say(What::Resumed, 0)],
                "postmigrate" | "finish-migrate" => vec![Act::Say(What::Stopped, 0)],
                _ => Vec::new(),
            },
            Asked::Progress => {
                let now = Migrate::new(value);
                self.migrating = under_way(&now.status);
                if self.migrating { vec![self.progress(now)] } else { Vec::new() }
            }
            Asked::End { migration, status, tries } => {
                let now = Migrate::new(value);
                // A destination's QEMU knows no figures, and asking it again takes time from the VM that begins to run.
                let figures = now.downtime_ms.is_some() || now.total == 0;
                let whole = now.status == status && (status != "completed" || figures);
                if whole && self.begins_again(&migration, &now) {
                    return vec![waits(&migration)];
                }
                if whole || tries >= AGAIN {
                    return vec![ended(Migrate { migration, status, ..now })];
                }
                vec![self.ask_end(migration, &status, tries + 1)]
            }
            Asked::StatusToMove(drive) => match status() {
                "postmigrate" if !self.driven.id().is_empty() && self.driven.id() != drive.migration => {
                    vec![failed(
                        &drive.migration,
                        "an earlier migration has moved the VM away from here already",
                    )]
                }
                // Over already: this order is a repeated one.
                "postmigrate" => vec![self.ask_end(drive.migration, "completed", 0)],
                "inmigrate" => {
                    vec![failed(&drive.migration, "the VM waits for its memory on this host itself")]
                }
                _ => vec![self.ask(Asked::ProgressToMove(drive), "query-migrate", None)],
            },
            Asked::ProgressToMove(drive) => {
                let now = Migrate::new(value);
                if under_way(&now.status) {
                    self.migrating = true;
                    if self.driven.holds_against(&drive.migration) {
                        let why =
                            "QEMU has not ended an earlier migration of the VM yet: try again in a moment";
                        return vec![failed(&drive.migration, why)];
                    }
                    self.driven.begin(&drive.migration);
                    return vec![self.progress(now)];
                }
                self.driven.begin(&drive.migration);
                let number = self.attempt.take().filter(|a| a.drive == drive).map_or(1, |a| a.number + 1);
                self.attempt = Some(Attempt { drive: drive.clone(), number, pause: None });
                let to = json!({ "uri": drive.uri });
                vec![self.ask(Asked::Move(drive.migration), "migrate", Some(to))]
            }
            Asked::StatusToFollow(drive) => match status() {
                "postmigrate" => vec![self.ask_end(drive.migration, "completed", 0)],
                "inmigrate" => vec![ended(drive.hopeless("its QEMU here waits for its memory itself"))],
                _ => vec![self.ask(Asked::ProgressToFollow(drive), "query-migrate", None)],
            },
            Asked::ProgressToFollow(drive) => {
                let now = Migrate::new(value);
                let ours = self.driven.id() == drive.migration;
                if under_way(&now.status) {
                    self.migrating = true;
                    if self.driven.holds_against(&drive.migration) {
                        return vec![ended(
                            drive.hopeless("QEMU has not ended an earlier migration of the VM yet"),
                        )];
                    }
                    self.driven.begin(&drive.migration);
                    return vec![self.progress(now)];
                }
                match now.status.as_str() {
                    // Of this one, and not of one before it.
                    "failed" | "cancelled" if ours => vec![self.progress(now)],
                    _ => vec![ended(Migrate::word(&drive.migration, IDLE))],
                }
            }
            Asked::ProgressToCancel(migration) => match Migrate::new(value).status.as_str() {
                status if under_way(status) && !self.driven.holds_against(&migration) => {
                    vec![self.ask(Asked::Nothing, "migrate_cancel", None)]
                }
                // That may be how the VM came here.
                "completed" => vec![self.ask(Asked::StatusToCancel(migration), "query-status", None)],
                _ => vec![ended(Migrate::word(&migration, "cancelled"))],
            },
            Asked::StatusToCancel(migration) => match status() {
                "postmigrate" => vec![self.ask_end(migration, "completed", 0)],
                _ => vec![ended(Migrate::word(&migration, "cancelled"))],
            },
        }
    }

    /// Whether a move that failed is begun again, for nobody listens at its destination yet.
    fn begins_again(&mut self, migration: &str, now: &Migrate) -> bool {
        match &mut self.attempt {
            Some(a) if a.drive.migration == migration && a.number < ATTEMPTS && nobody_listens(now) => {
                a.pause = Some(PAUSE);
                true
            }
            _ => false,
        }
    }

    /// How far it is.
    fn progress(&mut self, now: Migrate) -> Act {
        let migration = self.driven.of(&now.status);
        ended(Migrate { migration, ..now })
    }

    fn happened(&mut self, name: &str, data: &Value, time_us: u64) -> Vec<Act> {
        match name {
            // Any other stop is a pause: what comes for the VM waits for it here.
            "STOP" if self.migrating => vec![Act::Say(What::Stopped, time_us)],
            "RESUME" => vec![Act::Say(What::Resumed, time_us)],
            "MIGRATION" => {
                let status = data.get("status").and_then(Value::as_str).unwrap_or_default();
                self.migrating = under_way(status);
                let migration = self.driven.of(status);
                match status {
                    "completed" | "failed" => vec![self.ask_end(migration, status, 0)],
                    _ => {
                        let mut acts =
                            vec![Act::Say(What::Migration(Migrate::word(&migration, status)), time_us)];
                        acts.extend(self.tick());
                        acts
                    }
                }
            }
            _ => Vec::new(),
        }
    }
}

/// Whether QEMU could not begin because nobody had opened the destination's socket.
fn nobody_listens(end: &Migrate) -> bool {
    end.status == "failed"
        && ["Connection refused", "No such file or directory"].iter().any(|why| end.error.contains(why))
}

fn waits(migration: &str) -> Act {
    ended(Migrate::word(migration, WAITING))
}

fn ended(migrate: Migrate) -> Act {
    Act::Say(What::Migration(migrate), 0)
}

fn failed(migration: &str, error: impl Into<String>) -> Act {
    ended(Migrate::failed(migration, error))
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

    fn to(migration: &str) -> Drive {
        Drive { migration: migration.into(), uri: "tcp:x:1".into(), want: Want::Move }
    }

    fn no(migration: &str) -> Drive {
        Drive { migration: migration.into(), uri: String::new(), want: Want::Cancel }
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
        // A destination's QEMU has none.
        let acts = monitor.take(&event("MIGRATION", Some("completed")));
        let (asked, said) = talk(&mut monitor, acts, |_| json!({ "return": { "status": "completed" } }));
        assert_eq!((asked.len(), said.len()), (1, 1));
    }

    #[test]
    fn a_vm_is_moved_once_however_often_it_is_said() {
        let (mut monitor, _) = begun("running", "");
        let acts = monitor.drive(to("a"));
        let (asked, _) = talk(&mut monitor, acts, status("running", ""));
        assert_eq!(asked, ["query-status", "query-migrate", "migrate"]);
        let acts = monitor.drive(to("a"));
        let (asked, said) = talk(&mut monitor, acts, status("running", "active"));
        assert_eq!(asked, ["query-status", "query-migrate"]);
        assert_eq!(said.len(), 1);
        let acts = monitor.drive(to("a"));
        let (asked, said) = talk(&mut monitor, acts, status("postmigrate", "completed"));
        assert!(!asked.contains(&"migrate".to_owned()));
        assert!(matches!(&said[..], [What::Migration(m)] if m.status == "completed"), "{said:?}");
        // It came here by a migration, which QEMU still speaks of.
        let acts = monitor.drive(to("b"));
        let (asked, _) = talk(&mut monitor, acts, status("running", "completed"));
        assert_eq!(asked[2], "migrate");
    }

    #[test]
    fn a_refusal_is_the_reason_and_giving_up_is_confirmed() {
        let (mut monitor, _) = begun("running", "");
        let acts = monitor.drive(to("a"));
        let refuse = |name: &str| match name {
            "migrate" => json!({ "error": { "desc": "unknown migration protocol" } }),
            other => status("running", "")(other),
        };
        let (_, said) = talk(&mut monitor, acts, refuse);
        assert!(matches!(&said[..], [What::Migration(m)] if m.error == "unknown migration protocol"));
        let acts = monitor.drive(no("a"));
        let (asked, said) = talk(&mut monitor, acts, status("running", ""));
        assert_eq!(asked, ["query-migrate"]);
        assert!(matches!(&said[..], [What::Migration(m)] if m.status == "cancelled"));
        let acts = monitor.drive(no("a"));
        let (asked, said) = talk(&mut monitor, acts, status("running", "active"));
        assert_eq!((asked[1].as_str(), said.len()), ("migrate_cancel", 0));
    }

    #[test]
    fn what_would_run_a_program_is_not_even_asked_of_qemu() {
        let (mut monitor, _) = begun("running", "");
        let mut early = Monitor::default();
        for uri in ["exec:touch /tmp/x", "file:/etc/shadow", "fd:3", "-x", ""] {
            for monitor in [&mut monitor, &mut early] {
                let acts = monitor.drive(Drive { uri: uri.to_owned(), ..to("a") });
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
        assert_eq!(monitor.drive(to("a")), []);
        assert!(!monitor.ready());
        let acts = monitor.take(r#"{"QMP": {}}"#);
        let (asked, _) = talk(&mut monitor, acts, status("running", ""));
        assert!(asked.contains(&"migrate".to_owned()), "{asked:?}");
        // What nobody asked for and what no QEMU says is passed over.
        for line in ["", "{}", r#"{"return": {}, "id": 99}"#, r#"{"error": {}, "id": 98}"#] {
            assert_eq!(monitor.take(line), []);
        }
    }

    #[test]
    fn words_carry_the_migration_that_they_are_of() {
        let of = |said: &[What]| -> Vec<(String, String)> {
            let words = said.iter().filter_map(|w| if let What::Migration(m) = w { Some(m) } else { None });
            words.map(|m| (m.migration.clone(), m.status.clone())).collect()
        };
        let is = |id: &str, status: &str| vec![(id.to_owned(), status.to_owned())];
        let (mut monitor, _) = begun("running", "");
        let acts = monitor.drive(to("a"));
        let _ = talk(&mut monitor, acts, status("running", ""));
        let acts = monitor.take(&event("MIGRATION", Some("active")));
        let (_, said) = talk(&mut monitor, acts, status("running", "active"));
        assert_eq!(of(&said)[0], is("a", "active")[0]);
        // Another one waits its turn, and the first is not harmed by what is said of that.
        let acts = monitor.drive(to("b"));
        let (asked, said) = talk(&mut monitor, acts, status("running", "active"));
        assert_eq!((of(&said), asked.contains(&"migrate".to_owned())), (is("b", "failed"), false));
        let acts = monitor.drive(no("b"));
        let (asked, said) = talk(&mut monitor, acts, status("running", "active"));
        assert_eq!((of(&said), asked.len()), (is("b", "cancelled"), 1), "the first goes on");
        let acts = monitor.take(&event("MIGRATION", Some("failed")));
        let (_, said) = talk(&mut monitor, acts, status("running", "failed"));
        assert_eq!(of(&said), is("a", "failed"));
        // Somebody else begins one by a monitor of their own.
        let acts = monitor.take(&event("MIGRATION", Some("setup")));
        let (_, said) = talk(&mut monitor, acts, status("running", ""));
        assert_eq!(of(&said), is("", "setup"));
    }

    #[test]
    fn a_move_to_where_nobody_listens_is_begun_again_for_a_time() {
        // QEMU fails at once, and says why when it is asked.
        let fails = |monitor: &mut Monitor, acts, why: &'static str| {
            let (asked, mut said) = talk(monitor, acts, status("running", ""));
            let acts = monitor.take(&event("MIGRATION", Some("failed")));
            let reply = move |_: &str| json!({ "return": { "status": "failed", "error-desc": why } });
            said.extend(talk(monitor, acts, reply).1);
            let [What::Migration(m)] = &said[..] else { panic!("{said:?}") };
            (asked.contains(&"migrate".to_owned()), m.status.clone())
        };
        let (refused, waiting) = ("Failed to connect: Connection refused", (true, "waiting".to_owned()));
        let (mut monitor, _) = begun("running", "");
        let acts = monitor.drive(to("a"));
        assert_eq!(fails(&mut monitor, acts, refused), waiting);
        for _ in 2..ATTEMPTS {
            let acts = (0..PAUSE).flat_map(|_| monitor.tick()).collect::<Vec<_>>();
            assert!(acts.is_empty(), "too early: {acts:?}");
            let acts = monitor.tick();
            assert_eq!(fails(&mut monitor, acts, refused), waiting);
        }
        let acts = (0..=PAUSE).flat_map(|_| monitor.tick()).collect();
        assert_eq!(fails(&mut monitor, acts, refused), (true, "failed".to_owned()), "it was the last time");
        assert!((0..=2 * PAUSE).all(|_| monitor.tick().is_empty()));
        // Any other failure is one, and an end of the monitor ends the waiting.
        let acts = monitor.drive(to("b"));
        assert_eq!(fails(&mut monitor, acts, "no room"), (true, "failed".to_owned()));
        let acts = monitor.drive(to("c"));
        assert_eq!(fails(&mut monitor, acts, refused), waiting);
        let acts = monitor.closed("QEMU ended");
        assert_eq!(acts, [failed("c", "QEMU ended")]);
    }

    #[test]
    fn who_asks_how_it_stands_begins_nothing() {
        let follow = |migration: &str| Drive { want: Want::Follow, ..to(migration) };
        let ask = |monitor: &mut Monitor, id, vm, migration| {
            let acts = monitor.drive(follow(id));
            let (asked, said) = talk(monitor, acts, status(vm, migration));
            assert!(!asked.contains(&"migrate".to_owned()), "{asked:?}");
            let [What::Migration(m)] = &said[..] else { panic!("{said:?}") };
            (m.migration.clone(), m.status.clone())
        };
        let is = |id: &str, status: &str| (id.to_owned(), status.to_owned());
        let (mut monitor, _) = begun("running", "");
        assert_eq!(ask(&mut monitor, "a", "running", ""), is("a", "idle"));
        // What an earlier one came to is nothing of this one.
        assert_eq!(ask(&mut monitor, "a", "running", "failed"), is("a", "idle"));
        assert_eq!(ask(&mut monitor, "a", "running", "active"), is("a", "active"));
        let (mut monitor, _) = begun("running", "");
        let acts = monitor.drive(to("a"));
        let _ = talk(&mut monitor, acts, status("running", ""));
        assert_eq!(
            ask(&mut monitor, "b", "running", "active"),
            is("b", "gone"),
            "the one that runs is another"
        );
        assert_eq!(ask(&mut monitor, "a", "running", "failed"), is("a", "failed"));
        // An agent that was started again has all of it from QEMU.
        let (mut monitor, _) = begun("postmigrate", "completed");
        assert_eq!(ask(&mut monitor, "a", "postmigrate", "completed"), is("a", "completed"));
    }

    #[test]
    fn a_vm_that_has_left_is_not_given_up() {
        let (mut monitor, _) = begun("postmigrate", "completed");
        let acts = monitor.drive(no("a"));
        let (_, said) = talk(&mut monitor, acts, status("postmigrate", "completed"));
        assert!(matches!(&said[..], [What::Migration(m)] if m.status == "completed"), "{said:?}");
        // One that came by a migration has not left.
        let (mut monitor, _) = begun("running", "completed");
        let acts = monitor.drive(no("a"));
        let (_, said) = talk(&mut monitor, acts, status("running", "completed"));
        assert!(matches!(&said[..], [What::Migration(m)] if m.status == "cancelled"), "{said:?}");
    }

    #[test]
    fn the_end_of_qemu_ends_what_was_under_way() {
        let (mut monitor, _) = begun("running", "");
        assert_eq!(monitor.closed("QEMU ended"), []);
        let acts = monitor.drive(to("a"));
        let _ = talk(&mut monitor, acts, status("running", ""));
        assert_eq!(monitor.closed("QEMU ended"), [failed("a", "QEMU ended")]);
        // All of it was moved: only the figures are lost.
        let (mut monitor, _) = begun("running", "active");
        let _ = monitor.take(&event("MIGRATION", Some("completed")));
        assert_eq!(monitor.closed("QEMU ended"), [ended(Migrate::word("", "completed"))]);
        let (mut monitor, _) = begun("running", "active");
        assert_eq!(monitor.closed("QEMU ended"), [failed("", "QEMU ended")]);
        let mut monitor = Monitor::default();
        let _ = monitor.drive(to("a"));
        assert_eq!(monitor.give_up("taken"), [failed("a", "taken")]);
        assert_eq!(monitor.give_up("taken"), []);
    }
}
