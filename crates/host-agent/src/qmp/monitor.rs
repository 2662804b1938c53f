//! One QEMU's monitor: which line follows which, and what it means for the VM. No I/O, no clock.

use super::line::{self, Line, Migrate};
use super::{Drive, IDLE, READY, WAITING, Want};
use crate::vms::{Driven, What};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tenet_model::{NEXT, Through, check_migration_uri, in_post_copy, under_way};

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
    /// That it can go on in post-copy, before it is moved there.
    PostCopyToMove(Drive),
    /// This migration begins.
    Move(String),
    /// It goes on in post-copy.
    PostCopy,
    /// Whether this is the QEMU that waits for the VM, and that it is ready for post-copy.
    StatusToReceive(Drive),
    PostCopyToReceive(Drive),
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

/// How far a move is with post-copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum PostCopy {
    /// It is not to be in post-copy.
    #[default]
    No,
    /// It is to be once the first pass over the memory is done: most of it has been moved then, so that the VM waits for
    /// little. One that comes to its end with that pass needs no post-copy.
    Later,
    /// QEMU was told to.
    Told,
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
    /// How far the driven one is with post-copy.
    post_copy: PostCopy,
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
                    self.post_copy = PostCopy::No;
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
                Some(Asked::PostCopyToMove(drive)) => {
                    let _ = self.driven.of("failed");
                    vec![failed(&drive.migration, no_post_copy("moves the VM away from here", &why))]
                }
                Some(Asked::StatusToReceive(drive) | Asked::PostCopyToReceive(drive)) => {
                    vec![failed(&drive.migration, no_post_copy("waits for the VM here", &why))]
                }
                Some(Asked::PostCopy) => {
                    tracing::warn!(why, "QEMU does not go on in post-copy");
                    self.post_copy = PostCopy::No;
                    Vec::new()
                }
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
                Want::Follow | Want::Receive => {}
            }
        }
        if drive.want == Want::Cancel
            && self.driven.id() == drive.migration
            && self.post_copy == PostCopy::Later
        {
            self.post_copy = PostCopy::No;
        }
        vec![match drive.want {
            Want::Cancel => self.ask(Asked::ProgressToCancel(drive.migration), "query-migrate", None),
            Want::Move => self.ask(Asked::StatusToMove(drive), "query-status", None),
            Want::Follow => self.ask(Asked::StatusToFollow(drive), "query-status", None),
            Want::Receive => self.ask(Asked::StatusToReceive(drive), "query-status", None),
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
                | Asked::ProgressToFollow(drive)
                | Asked::PostCopyToMove(drive)
                | Asked::StatusToReceive(drive)
                | Asked::PostCopyToReceive(drive) => acts.push(ended(drive.hopeless_here(why))),
                Asked::Capabilities
                | Asked::Nothing
                | Asked::Status
                | Asked::Progress
                | Asked::Move(_)
                | Asked::PostCopy
                | Asked::ProgressToCancel(_)
                | Asked::StatusToCancel(_) => {}
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
            Asked::Nothing | Asked::Move(_) | Asked::PostCopy => Vec::new(),
            Asked::Status => match status() {
                "running" => vec![Act::Say(What::Resumed, 0)],
                "postmigrate" | "finish-migrate" => vec![Act::Say(What::Stopped, 0)],
                _ => Vec::new(),
            },
            Asked::Progress => {
                let now = Migrate::new(value);
                self.migrating = under_way(&now.status);
                if !self.migrating {
                    return Vec::new();
                }
                let mut acts = vec![self.progress(now)];
                acts.extend(self.passed(line::passes(value)));
                acts
            }
            Asked::End { migration, status, tries } => {
                let mut now = Migrate::new(value);
                // A destination's QEMU knows no figures, and asking it again takes time from the VM that begins to run.
                let figures = now.downtime_ms.is_some() || now.total == 0;
                let whole = now.status == status && (status != "completed" || figures);
                if whole && self.begins_again(&migration, &now) {
                    return vec![waits(&migration)];
                }
                if status == "failed" && self.post_copy == PostCopy::Later && !nobody_listens(&now) {
                    now.error += &unready(self.attempt.as_ref().map_or("", |a| &a.drive.uri));
                }
                if whole || tries >= AGAIN {
                    self.post_copy = PostCopy::No;
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
                    self.post_copy.follows(drive.post_copy);
                    return vec![self.progress(now)];
                }
                self.driven.begin(&drive.migration);
                let number = self.attempt.take().filter(|a| a.drive == drive).map_or(1, |a| a.number + 1);
                self.attempt = Some(Attempt { drive: drive.clone(), number, pause: None });
                if drive.post_copy {
                    let on = Some(line::post_copy(true));
                    return vec![self.ask(Asked::PostCopyToMove(drive), "migrate-set-capabilities", on)];
                }
                self.post_copy = PostCopy::No;
                let off = Some(line::post_copy(false));
                vec![self.ask(Asked::Nothing, "migrate-set-capabilities", off), self.begin(drive)]
            }
            Asked::PostCopyToMove(drive) => {
                self.post_copy = PostCopy::Later;
                vec![self.begin(drive)]
            }
            Asked::StatusToReceive(drive) => match status() {
                "inmigrate" => {
                    let on = Some(line::post_copy(true));
                    vec![self.ask(Asked::PostCopyToReceive(drive), "migrate-set-capabilities", on)]
                }
                // The one that the VM once left, say; the new one takes its socket's place.
                _ => vec![waits(&drive.migration)],
            },
            Asked::PostCopyToReceive(drive) => vec![ended(Migrate::word(&drive.migration, READY))],
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
                    self.post_copy.follows(drive.post_copy);
                    return vec![self.progress(now)];
                }
                match now.status.as_str() {
                    // Of this one, and not of one before it.
                    "failed" | "cancelled" if ours => vec![self.progress(now)],
                    _ => vec![ended(Migrate::word(&drive.migration, IDLE))],
                }
            }
            Asked::ProgressToCancel(migration) => match Migrate::new(value).status.as_str() {
                // Older QEMUs would obey, and nobody had the whole VM any more.
                status if in_post_copy(status) => vec![ended(Migrate::word(&migration, status))],
                status if under_way(status) && self.post_copy == PostCopy::Told => {
                    vec![ended(Migrate::word(&migration, "postcopy-active"))]
                }
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

    /// The memory begins to move.
    fn begin(&mut self, drive: Drive) -> Act {
        let to = json!({ "uri": drive.uri });
        self.ask(Asked::Move(drive.migration), "migrate", Some(to))
    }

    /// QEMU has begun so many passes over the memory.
    fn passed(&mut self, passes: u64) -> Option<Act> {
        if passes < 2 || self.post_copy != PostCopy::Later || !self.driven.lives() {
            return None;
        }
        self.post_copy = PostCopy::Told;
        Some(self.ask(Asked::PostCopy, "migrate-start-postcopy", None))
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
                if status == "cancelled" {
                    self.post_copy = PostCopy::No;
                }
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
            "MIGRATION_PASS" => {
                let passes = data.get("pass").and_then(Value::as_u64).unwrap_or(0);
                self.passed(passes).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }
}

impl PostCopy {
    /// A move that is found under way is followed.
    fn follows(&mut self, wanted: bool) {
        if wanted && *self == Self::No {
            *self = Self::Later;
        }
    }
}

/// What to do about a move in post-copy that failed before it was in it: QEMU itself says only that nobody listens any
/// more (7.2: `Unable to write to socket: Bad file descriptor`), and on the other side `RAM postcopy is disabled but have
/// 16 byte advise`.
fn unready(uri: &str) -> String {
    format!(
        "{NEXT}read what the destination's QEMU said when it ended, and see that the one which listens at {uri} is the one \
         whose monitor the agent there has: only that is made ready for post-copy"
    )
}

/// QEMU has no post-copy.
fn no_post_copy(which: &str, why: &str) -> String {
    format!(
        "the QEMU that {which} takes no post-copy: {why}{NEXT}let its user have userfaultfd (`sysctl \
         vm.unprivileged_userfaultfd=1`) and lock none of its memory, or move the VM without --post-copy"
    )
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
        Drive { migration: migration.into(), uri: "tcp:x:1".into(), want: Want::Move, post_copy: false }
    }

    fn no(migration: &str) -> Drive {
        Drive { migration: migration.into(), uri: String::new(), want: Want::Cancel, post_copy: false }
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
        assert_eq!(asked, ["query-status", "query-migrate", "migrate-set-capabilities", "migrate"]);
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
        assert_eq!(asked[3], "migrate");
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

    fn pass(number: u64) -> String {
        json!({ "event": "MIGRATION_PASS", "data": { "pass": number } }).to_string()
    }

    #[test]
    fn a_move_goes_on_in_post_copy_after_its_first_pass_and_is_not_given_up_then() {
        let (mut monitor, _) = begun("running", "");
        let drive = Drive { post_copy: true, ..to("a") };
        let acts = monitor.drive(drive.clone());
        let (asked, _) = talk(&mut monitor, acts, status("running", ""));
        assert_eq!(asked, ["query-status", "query-migrate", "migrate-set-capabilities", "migrate"]);
        let _ = monitor.take(&event("MIGRATION", Some("active")));
        assert_eq!(monitor.take(&pass(1)), []);
        let acts = monitor.take(&pass(2));
        let (asked, _) = talk(&mut monitor, acts, status("running", "active"));
        assert_eq!(asked, ["migrate-start-postcopy"]);
        assert_eq!(monitor.take(&pass(3)), [], "told once");
        // QEMU may be about to do it.
        for migration in ["active", "postcopy-active", "postcopy-paused"] {
            let acts = monitor.drive(no("a"));
            let (asked, said) = talk(&mut monitor, acts, status("running", migration));
            assert_eq!(asked, ["query-migrate"], "{migration}");
            assert!(
                matches!(&said[..], [What::Migration(m)] if m.status.starts_with("postcopy-")),
                "{said:?}"
            );
        }
        // One that is given up before does not go on.
        let (mut monitor, _) = begun("running", "");
        let acts = monitor.drive(drive.clone());
        let _ = talk(&mut monitor, acts, status("running", ""));
        let acts = monitor.drive(no("a"));
        let (asked, _) = talk(&mut monitor, acts, status("running", "active"));
        assert_eq!(asked, ["query-migrate", "migrate_cancel"]);
        assert_eq!(monitor.take(&pass(2)), []);
        // Nor does one that is not to.
        let (mut monitor, _) = begun("running", "");
        let acts = monitor.drive(to("a"));
        let _ = talk(&mut monitor, acts, status("running", ""));
        assert_eq!(monitor.take(&pass(2)), []);
        // An agent that was started again finds it under way, and the pass in its figures.
        let (mut monitor, _) = begun("running", "active");
        let figures = |name: &str| match name {
            "query-migrate" => {
                json!({ "return": { "status": "active", "ram": { "dirty-sync-count": 2, "total": 9 } } })
            }
            other => status("running", "active")(other),
        };
        let mut acts = monitor.drive(drive);
        acts.extend(monitor.tick());
        let (mut asked, _) = talk(&mut monitor, acts, figures);
        let acts = monitor.tick();
        asked.extend(talk(&mut monitor, acts, figures).0);
        assert!(asked.contains(&"migrate-start-postcopy".to_owned()), "{asked:?}");
        assert!(!asked.contains(&"migrate".to_owned()), "{asked:?}");
    }

    #[test]
    fn a_qemu_without_post_copy_is_told_with_what_to_do() {
        let refuse = |name: &str| match name {
            "migrate-set-capabilities" => json!({ "error": { "desc": "Postcopy is not supported" } }),
            "query-status" => json!({ "return": { "status": "inmigrate" } }),
            _ => json!({ "return": {} }),
        };
        let reason = |said: &[What]| match said {
            [What::Migration(m)] if m.status == "failed" => m.error.clone(),
            other => panic!("{other:?}"),
        };
        let receive = Drive { want: Want::Receive, post_copy: true, ..to("a") };
        let (mut monitor, _) = begun("inmigrate", "");
        let acts = monitor.drive(receive.clone());
        let said = talk(&mut monitor, acts, refuse).1;
        assert!(reason(&said).contains("Postcopy is not supported; next: let its user"), "{said:?}");
        let (mut monitor, _) = begun("running", "");
        let acts = monitor.drive(Drive { post_copy: true, ..to("a") });
        let running = |name: &str| match name {
            "query-status" => json!({ "return": { "status": "running" } }),
            other => refuse(other),
        };
        let said = talk(&mut monitor, acts, running).1;
        assert!(reason(&said).contains("moves the VM away from here"), "{said:?}");
        // Only the one that waits is made ready.
        let (mut monitor, _) = begun("inmigrate", "");
        let acts = monitor.drive(receive.clone());
        let (asked, said) = talk(&mut monitor, acts, status("inmigrate", ""));
        assert_eq!(asked, ["query-status", "migrate-set-capabilities"]);
        assert!(matches!(&said[..], [What::Migration(m)] if m.status == READY), "{said:?}");
        let (mut monitor, _) = begun("postmigrate", "completed");
        let acts = monitor.drive(receive);
        let (asked, said) = talk(&mut monitor, acts, status("postmigrate", ""));
        assert_eq!(asked, ["query-status"]);
        assert!(matches!(&said[..], [What::Migration(m)] if m.status == WAITING), "{said:?}");
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
