//! One QEMU's monitor: which line follows which, and what it means for the VM. No I/O, no clock.

mod asked;
mod post_copy;
#[cfg(test)]
mod tests;

use super::line::{self, Line, Migrate};
use super::{Drive, IDLE, READY, WAITING, Want};
use crate::vms::{Driven, What};
use asked::Asked;
use post_copy::{PostCopy, no_post_copy, unready};
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
/// Ticks that QEMU has for an answer that a move waits for; with ticks of 200 ms, ten seconds of them.
const ANSWER: u64 = 50;
/// What is said of a move while another one holds it up.
const NOT_ENDED: &str = "QEMU has not ended an earlier migration of the VM yet: try again in a moment";

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Act {
    /// Write this.
    Send(String),
    /// Tell this, which happened then (0: now).
    Say(What, u64),
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
    /// By number, with the tick at which it was asked.
    asked: BTreeMap<u64, (u64, Asked)>,
    ticks: u64,
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
            // It greets once: all else is asked after that.
            Some(Line::Greeting) if self.next > 0 => Vec::new(),
            Some(Line::Greeting) => vec![self.ask(Asked::Capabilities, "qmp_capabilities", None)],
            Some(Line::Return(id, value)) => match self.asked.remove(&id) {
                Some((_, asked)) => self.answered(asked, &value),
                None => Vec::new(),
            },
            Some(Line::Error(id, why)) => match self.asked.remove(&id) {
                Some((_, asked)) => self.refused(asked, why),
                None => Vec::new(),
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
        self.ticks += 1;
        let mut acts = self.overdue();
        if let Some(Attempt { drive, pause: pause @ Some(_), .. }) = &mut self.attempt {
            *pause = pause.and_then(|ticks| ticks.checked_sub(1));
            if pause.is_none() {
                let drive = drive.clone();
                acts.push(self.ask(Asked::StatusToMove(drive), "query-status", None));
            }
        } else {
            acts.extend(self.ask_progress());
        }
        acts
    }

    /// Moves that QEMU has not let begin for too long do not begin any more, and ends are told without their figures.
    fn overdue(&mut self) -> Vec<Act> {
        let late = |(asked_at, asked): &(u64, Asked)| {
            self.ticks.saturating_sub(*asked_at) > ANSWER
                && (asked.leads_to().is_some() || matches!(asked, Asked::End { .. }))
        };
        let late: Vec<u64> = self.asked.iter().filter(|(_, a)| late(a)).map(|(id, _)| *id).collect();
        let mut acts = Vec::new();
        for (_, asked) in late.iter().filter_map(|id| self.asked.remove(id)) {
            if matches!(asked, Asked::PostCopyToMove(_)) {
                let _ = self.driven.of("failed");
            }
            acts.extend(asked.unanswered(&deaf()));
        }
        acts
    }

    /// Asks how far a migration is that is under way, unless that is asked already.
    fn ask_progress(&mut self) -> Option<Act> {
        let asked = self.asked.values().any(|(_, a)| *a == Asked::Progress);
        (self.migrating && !asked).then(|| self.ask(Asked::Progress, "query-migrate", None))
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
                Want::Move => self.attempt = None,
                Want::Cancel | Want::Follow | Want::Receive => {}
            }
        }
        match drive.want {
            Want::Move => match self.about_to_begin() {
                // Said twice: what was asked for the first time leads to it.
                Some(migration) if migration == drive.migration => return Vec::new(),
                Some(_) => return vec![failed(&drive.migration, NOT_ENDED)],
                None => {}
            },
            Want::Cancel => self.withdraw(&drive.migration),
            Want::Follow | Want::Receive => {}
        }
        vec![match drive.want {
            Want::Cancel => self.ask(Asked::ProgressToCancel(drive.migration), "query-migrate", None),
            Want::Move => self.ask(Asked::StatusToMove(drive), "query-status", None),
            Want::Follow => self.ask(Asked::StatusToFollow(drive), "query-status", None),
            Want::Receive => self.ask(Asked::StatusToReceive(drive), "query-status", None),
        }]
    }

    /// The migration that is about to begin: QEMU's answers lead to it, or it was told to.
    fn about_to_begin(&self) -> Option<&str> {
        self.asked.values().find_map(|(_, asked)| match asked {
            Asked::Move(migration) => Some(migration.as_str()),
            other => other.leads_to(),
        })
    }

    /// A move that is given up: what was asked before it began does not lead to it any more, and it is not begun again.
    fn withdraw(&mut self, migration: &str) {
        self.attempt.take_if(|attempt| attempt.drive.migration == migration);
        let before: Vec<Asked> = self
            .asked
            .extract_if(.., |_, (_, asked)| asked.leads_to() == Some(migration))
            .map(|(_, (_, asked))| asked)
            .collect();
        if before.iter().any(|asked| matches!(asked, Asked::PostCopyToMove(_))) {
            let _ = self.driven.of("cancelled");
        }
        if self.driven.id() == migration && self.post_copy == PostCopy::Later {
            self.post_copy = PostCopy::No;
        }
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
        for (_, asked) in std::mem::take(&mut self.asked).into_values() {
            told |= matches!(asked, Asked::End { .. });
            acts.extend(asked.unanswered(why));
        }
        if !told && (self.migrating || self.driven.lives()) {
            acts.push(failed(self.driven.id(), why));
        }
        acts
    }

    fn ask(&mut self, asked: Asked, name: &str, arguments: Option<Value>) -> Act {
        self.next += 1;
        self.asked.insert(self.next, (self.ticks, asked));
        Act::Send(line::command(self.next, name, arguments))
    }

    fn ask_end(&mut self, migration: String, status: &str, tries: u32) -> Act {
        self.ask(Asked::End { migration, status: status.to_owned(), tries }, "query-migrate", None)
    }

    /// Whether the end of this migration is asked for already.
    fn asks_end(&self, migration: &str, status: &str) -> bool {
        self.asked.values().any(
            |(_, a)| matches!(a, Asked::End { migration: m, status: s, .. } if m == migration && s == status),
        )
    }

    /// QEMU does not do what it was asked for.
    fn refused(&mut self, asked: Asked, why: String) -> Vec<Act> {
        match asked {
            Asked::Move(migration) => {
                let _ = self.driven.of("failed");
                self.post_copy = PostCopy::No;
                if self.begins_again(&migration, &Migrate::failed(&migration, why.as_str())) {
                    return vec![waits(&migration)];
                }
                vec![failed(&migration, why)]
            }
            Asked::StatusToMove(drive)
            | Asked::ProgressToMove(drive)
            | Asked::StatusToFollow(drive)
            | Asked::ProgressToFollow(drive) => vec![ended(drive.hopeless(why))],
            Asked::PostCopyToMove(drive) => {
                let _ = self.driven.of("failed");
                vec![failed(&drive.migration, no_post_copy("moves the VM away from here", &why))]
            }
            Asked::StatusToReceive(drive) | Asked::PostCopyToReceive(drive) => {
                vec![failed(&drive.migration, no_post_copy("waits for the VM here", &why))]
            }
            Asked::PostCopy => {
                tracing::warn!(why, "QEMU does not go on in post-copy");
                self.post_copy = PostCopy::No;
                Vec::new()
            }
            Asked::End { migration, status, .. } => vec![ended(Migrate::word(&migration, &status))],
            Asked::Capabilities
            | Asked::Nothing
            | Asked::Status
            | Asked::Progress
            | Asked::ProgressToCancel(_)
            | Asked::StatusToCancel(_) => Vec::new(),
        }
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
                        return vec![failed(&drive.migration, NOT_ENDED)];
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
                    "completed" | "failed" if self.asks_end(&migration, status) => Vec::new(),
                    "completed" | "failed" => vec![self.ask_end(migration, status, 0)],
                    _ => {
                        let mut acts =
                            vec![Act::Say(What::Migration(Migrate::word(&migration, status)), time_us)];
                        acts.extend(self.ask_progress());
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

/// What is said of a QEMU that does not answer.
fn deaf() -> String {
    format!(
        "QEMU has not answered its monitor for 10 s{NEXT}look what its process waits for (`ps -o stat,wchan`, a disk that \
         does not answer, say), and move the VM again"
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
