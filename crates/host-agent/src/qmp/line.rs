//! QMP's lines: JSON objects, one a line, both ways. No I/O.

use serde_json::{Value, json};

/// What QEMU says in one line.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Line {
    /// It greets whoever connects.
    Greeting,
    /// Answer to the command with this number.
    Return(u64, Value),
    /// The command with this number failed.
    Error(u64, String),
    /// Something happened in it.
    Event {
        /// What.
        name: String,
        /// Its values.
        data: Value,
        /// When by the host's clock, in microseconds since 1970; 0 if it does not say.
        time_us: u64,
    },
}

/// Reads a line; none for what is not QMP, or of a kind that nobody here waits for.
pub(crate) fn parse(line: &str) -> Option<Line> {
    let Value::Object(mut object) = serde_json::from_str(line.trim()).ok()? else { return None };
    if object.contains_key("QMP") {
        return Some(Line::Greeting);
    }
    if let Some(Value::String(name)) = object.remove("event") {
        let part = |unit: &str| object.get("timestamp").and_then(|t| t.get(unit)).and_then(Value::as_u64);
        let time_us = match (part("seconds"), part("microseconds")) {
            (Some(s), Some(us)) => s.saturating_mul(1_000_000).saturating_add(us),
            _ => 0,
        };
        return Some(Line::Event { name, data: object.remove("data").unwrap_or_default(), time_us });
    }
    let id = object.get("id").and_then(Value::as_u64)?;
    if let Some(value) = object.remove("return") {
        return Some(Line::Return(id, value));
    }
    let error = object.get("error")?;
    let text = error.get("desc").and_then(Value::as_str).unwrap_or("it does not say why");
    Some(Line::Error(id, text.to_owned()))
}

/// A command as a line.
pub(crate) fn command(id: u64, name: &str, arguments: Option<Value>) -> String {
    let mut object = json!({ "execute": name, "id": id });
    if let (Some(arguments), Some(object)) = (arguments, object.as_object_mut()) {
        object.insert("arguments".to_owned(), arguments);
    }
    format!("{object}\n")
}

/// Asks for MIGRATION events.
pub(crate) fn events() -> Value {
    json!({ "capabilities": [{ "capability": "events", "state": true }] })
}

/// Turns post-copy on or off for the next migration. What it was left at by an earlier one counts otherwise: a QEMU that
/// took a VM in by post-copy would announce it to the next destination, which ends if it does not know of it.
pub(crate) fn post_copy(on: bool) -> Value {
    json!({ "capabilities": [{ "capability": "postcopy-ram", "state": on }] })
}

/// How often `query-migrate` says that QEMU has begun to go over the memory.
pub(crate) fn passes(value: &Value) -> u64 {
    value.pointer("/ram/dirty-sync-count").and_then(Value::as_u64).unwrap_or(0)
}

/// What `query-migrate` says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Migrate {
    /// The controller's migration that this is said of; empty: one that this agent was not told of.
    pub(crate) migration: String,
    pub(crate) status: String,
    pub(crate) transferred: u64,
    pub(crate) total: u64,
    pub(crate) downtime_ms: Option<u64>,
    pub(crate) error: String,
}

impl Migrate {
    /// A word without figures.
    pub(crate) fn word(migration: &str, status: &str) -> Self {
        Self { migration: migration.to_owned(), status: status.to_owned(), ..Self::default() }
    }

    /// That a migration does not take place, and why.
    pub(crate) fn failed(migration: &str, error: impl Into<String>) -> Self {
        Self { error: error.into(), ..Self::word(migration, "failed") }
    }

    /// From the answer; an old migration's is the same as a new one's.
    pub(crate) fn new(value: &Value) -> Self {
        let number = |v: Option<&Value>| v.and_then(Value::as_u64);
        let ram = value.get("ram");
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (total, remaining) =
            (number(ram.and_then(|r| r.get("total"))), number(ram.and_then(|r| r.get("remaining"))));
        // What is moved twice counts twice in `transferred`, and zero pages hardly at all.
        let total = total.unwrap_or(0);
        Self {
            migration: String::new(),
            status: text("status"),
            transferred: remaining.map_or(0, |left| total.saturating_sub(left)),
            total,
            downtime_ms: number(value.get("downtime")),
            error: text("error-desc"),
        }
    }
}

/// Nothing moves the VM, which runs here: an answer to a question, no word of QEMU's.
pub(crate) const IDLE: &str = "idle";
/// Nothing is known of the VM here: likewise.
pub(crate) const GONE: &str = "gone";

/// Nobody listens at the destination yet: no word of QEMU's either. From the destination: no QEMU waits here yet.
pub(crate) const WAITING: &str = "waiting";
/// The QEMU that waits here for a VM is ready for post-copy.
pub(crate) const READY: &str = "ready";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_real_qemu_are_understood() {
        let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"}, "capabilities": ["oob"]}}"#;
        assert_eq!(parse(greeting), Some(Line::Greeting));
        assert_eq!(parse("{\"return\": {}, \"id\": 3}\r\n"), Some(Line::Return(3, json!({}))));
        let error = r#"{"id": 4, "error": {"class": "GenericError", "desc": "There's a migration process in progress"}}"#;
        assert_eq!(parse(error), Some(Line::Error(4, "There's a migration process in progress".into())));
        let stop = r#"{"timestamp": {"seconds": 1700000000, "microseconds": 25}, "event": "STOP"}"#;
        let event = Line::Event { name: "STOP".into(), data: Value::Null, time_us: 1_700_000_000_000_025 };
        assert_eq!(parse(stop), Some(event));
        let moving = r#"{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "MIGRATION", "data": {"status": "active"}}"#;
        let Some(Line::Event { data, time_us: 0, .. }) = parse(moving) else { panic!("no event") };
        assert_eq!(data["status"], "active");
    }

    #[test]
    fn what_is_not_qmp_is_nothing() {
        for line in ["", "{", "[]", "7", r#"{"return": {}}"#, r#"{"id": 1}"#, r#"{"event": 5}"#, "\u{0}"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn commands_are_one_line_each() {
        assert_eq!(command(1, "query-status", None), "{\"execute\":\"query-status\",\"id\":1}\n");
        let text = command(2, "migrate", Some(json!({ "uri": "tcp:a\n:1" })));
        assert_eq!(text.matches('\n').count(), 1, "{text}");
    }

    #[test]
    fn progress_is_what_needs_no_more_moving() {
        let value =
            json!({ "status": "active", "ram": { "total": 1000, "remaining": 400, "transferred": 90 } });
        let m = Migrate::new(&value);
        assert_eq!((m.status.as_str(), m.transferred, m.total, m.downtime_ms), ("active", 600, 1000, None));
        assert_eq!(Migrate::new(&json!({})), Migrate::default());
        let done = Migrate::new(&json!({ "status": "completed", "downtime": 12 }));
        assert_eq!(done.downtime_ms, Some(12));
    }
}
