//! What libvirt's domains do, from events and from answers to questions, which come in any order. No I/O.

use super::text::Event;
use crate::vms::What;
use serde_json::Value;
use std::{collections::BTreeMap, time::Instant};
use tenet_model::under_way;

/// What is known of a domain.
#[derive(Debug, Default)]
struct Domain {
    /// It comes or goes by a migration: under way, or over and its RESUME not yet heard.
    migrating: Option<bool>,
    /// When an event last said something of it.
    heard: Option<Instant>,
    /// What was said last.
    runs: Option<bool>,
}

/// A domain's answers to `domstate` and `domjobinfo`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// It runs, stands still to be switched, or neither; and whether it is being migrated.
    Is(Option<bool>, bool),
    /// It is shut off, or no domain of this libvirt.
    Gone,
}

/// What is to be done about an event.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Heard {
    /// Tell this.
    Say(What),
    /// A migration is said to be so far.
    Migration(String),
    /// It runs, after a migration: how long it stood still can be asked for.
    Arrived,
}

/// The domains of a libvirt.
#[derive(Debug, Default)]
pub(super) struct Follow(BTreeMap<String, Domain>);

impl Follow {
    /// Something happened.
    pub(super) fn event(&mut self, now: Instant, event: &Event<'_>) -> Option<Heard> {
        let domain = self.0.entry(event.domain.to_owned()).or_default();
        match event.name {
            // Any other stop is a pause: what comes for the VM waits for it here.
            "STOP" => {
                domain.heard = Some(now);
                domain.runs = domain.migrating.unwrap_or(false).then_some(false);
                domain.runs.map(|_| Heard::Say(What::Stopped))
            }
            "RESUME" => {
                domain.heard = Some(now);
                domain.runs = Some(true);
                Some(if domain.migrating.take().is_some() {
                    Heard::Arrived
                } else {
                    Heard::Say(What::Resumed)
                })
            }
            "MIGRATION" => {
                domain.heard = Some(now);
                let status = event.data.get("status").and_then(Value::as_str).unwrap_or_default().to_owned();
                // Once completed it is still one that came or went by a migration.
                domain.migrating = Some(under_way(&status));
                Some(Heard::Migration(status))
            }
            "SHUTDOWN" => {
                *domain = Domain { heard: Some(now), ..Domain::default() };
                Some(Heard::Say(What::Silent))
            }
            _ => None,
        }
    }

    /// The answer to a question asked then; none if nothing new follows from it. What has happened since is newer.
    pub(super) fn answer(&mut self, asked: Instant, domain: &str, state: &State) -> Option<What> {
        let domain = self.0.entry(domain.to_owned()).or_default();
        if domain.heard.is_some_and(|heard| heard >= asked) {
            return None;
        }
        match *state {
            State::Is(runs, moves) => {
                if moves {
                    domain.migrating = Some(true);
                }
                let new = runs.filter(|_| domain.runs != runs)?;
                domain.runs = Some(new);
                Some(if new { What::Resumed } else { What::Stopped })
            }
            State::Gone => {
                *domain = Domain::default();
                Some(What::Silent)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn event<'a>(name: &'a str, status: &str) -> Event<'a> {
        Event { name, domain: "vm1", data: json!({ "status": status }) }
    }

    #[test]
    fn a_stop_is_heard_of_a_migration_that_began_before_anybody_listened() {
        let (now, mut follow) = (Instant::now(), Follow::default());
        assert_eq!(follow.answer(now, "vm1", &State::Is(Some(true), true)), Some(What::Resumed));
        let later = now + Duration::from_millis(5);
        assert_eq!(follow.event(later, &event("STOP", "")), Some(Heard::Say(What::Stopped)));
        // Without one it is a pause.
        let mut follow = Follow::default();
        assert_eq!(follow.answer(now, "vm1", &State::Is(Some(true), false)), Some(What::Resumed));
        assert_eq!(follow.event(later, &event("STOP", "")), None);
        assert_eq!(
            follow.event(later, &event("MIGRATION", "active")),
            Some(Heard::Migration("active".into()))
        );
        assert_eq!(follow.event(later, &event("STOP", "")), Some(Heard::Say(What::Stopped)));
        assert_eq!(follow.event(later, &event("RESUME", "")), Some(Heard::Arrived));
        assert_eq!(follow.event(later, &event("STOP", "")), None);
    }

    #[test]
    fn an_answer_older_than_an_event_is_dropped() {
        let (asked, mut follow) = (Instant::now(), Follow::default());
        let later = asked + Duration::from_millis(5);
        let _ = follow.event(later, &event("MIGRATION", "active"));
        assert_eq!(follow.event(later, &event("STOP", "")), Some(Heard::Say(What::Stopped)));
        assert_eq!(follow.answer(asked, "vm1", &State::Is(Some(true), true)), None);
        assert_eq!(follow.event(later, &event("SHUTDOWN", "")), Some(Heard::Say(What::Silent)));
        assert_eq!(follow.answer(asked, "vm1", &State::Is(Some(true), false)), None);
        // One asked after it counts, once.
        let again = later + Duration::from_millis(5);
        assert_eq!(follow.answer(again, "vm1", &State::Is(Some(true), false)), Some(What::Resumed));
        assert_eq!(follow.answer(again, "vm1", &State::Is(Some(true), false)), None);
        assert_eq!(follow.answer(again, "vm1", &State::Gone), Some(What::Silent));
        assert_eq!(follow.answer(again, "vm1", &State::Is(None, false)), None);
    }
}
