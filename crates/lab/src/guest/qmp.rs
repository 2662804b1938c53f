//! QEMU's monitor: one command at a time, and the events that come in between.

use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What QEMU says about a migration that succeeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Migrated {
    /// From the order to the end, in milliseconds.
    pub total_ms: u64,
    /// How long the guest stood still, by QEMU's own count, in milliseconds.
    pub downtime_ms: u64,
    /// Bytes of memory sent.
    pub transferred: u64,
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    path: PathBuf,
    bytes: Vec<u8>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects and agrees on the protocol.
    ///
    /// # Errors
    /// [`Error::Io`] if nobody is there or somebody else holds the monitor.
    pub fn connect(path: &Path) -> Result<Self> {
        let about = || format!("reach QEMU at {}", path.display());
        let stream = UnixStream::connect(path).map_err(Error::io(about()))?;
        let mut qmp = Self { stream, path: path.to_owned(), bytes: Vec::new(), events: VecDeque::new() };
        let greeting = qmp.message(Instant::now() + PATIENCE)?;
        if greeting.as_ref().is_none_or(|g| g.get("QMP").is_none()) {
            let why = "it does not greet us; is another program connected to it?";
            return Err(Error::io(about())(io::Error::other(why)));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it answers.
    ///
    /// # Errors
    /// [`Error::Io`] with QEMU's reason, if it refuses.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let action = format!("have QEMU do {command} at {}", self.path.display());
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).map_err(Error::io(action.clone()))?;
        let deadline = Instant::now() + PATIENCE;
        while let Some(mut message) = self.message(deadline)? {
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(refused) = message.get("error") {
                let why = refused.get("desc").and_then(Value::as_str).unwrap_or("it does not say why");
                return Err(Error::io(action)(io::Error::other(why.to_owned())));
            }
            if message.get("event").is_some() {
                self.events.push_back(message);
            }
        }
        Err(Error::io(action)(ErrorKind::TimedOut.into()))
    }

    /// The next event of a name, such as `RESUME`; those before it are forgotten. None, if it does not come in time.
    pub fn wait_event(&mut self, name: &str, patience: Duration) -> Result<Option<Value>> {
        let deadline = Instant::now() + patience;
        loop {
            let next = match self.events.pop_front() {
                Some(event) => event,
                None => match self.message(deadline)? {
                    Some(message) => message,
                    None => return Ok(None),
                },
            };
            if next.get("event").and_then(Value::as_str) == Some(name) {
                return Ok(Some(next));
            }
        }
    }

    /// Moves the guest to where one waits for it ([`crate::guest::GuestOptions::incoming`]) and waits for the end.
    ///
    /// # Errors
    /// [`Error::Io`] with QEMU's reason if it failed: the guest then runs on here; after `patience` it is cancelled.
    pub fn migrate(&mut self, uri: &str, patience: Duration) -> Result<Migrated> {
        self.migration_events()?;
        self.execute("migrate", json!({ "uri": uri }))?;
        self.wait_migrated(patience)
    }

    /// Asks for an event at each step of a migration.
    pub fn migration_events(&mut self) -> Result<()> {
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        self.execute("migrate-set-capabilities", events).map(drop)
    }

    /// Waits for the end of a migration that somebody began or will begin.
    ///
    /// # Errors
    /// As [`Qmp::migrate`].
    pub fn wait_migrated(&mut self, patience: Duration) -> Result<Migrated> {
        let action = format!("move the guest at {}", self.path.display());
        let begin = Instant::now();
        loop {
            let state = self.execute("query-migrate", json!({}))?;
            let number = |path: &str| state.pointer(path).and_then(Value::as_u64).unwrap_or_default();
            match state.get("status").and_then(Value::as_str) {
                // The moment that it is completed, QEMU may not have counted its time yet.
                Some("completed") if number("/total-time") > 0 || begin.elapsed() > patience => {
                    return Ok(Migrated {
                        total_ms: number("/total-time"),
                        downtime_ms: number("/downtime"),
                        transferred: number("/ram/transferred"),
                    });
                }
                Some(status @ ("failed" | "cancelled")) => {
                    let why = state.get("error-desc").and_then(Value::as_str).unwrap_or(status).to_owned();
                    return Err(Error::io(action)(io::Error::other(why)));
                }
                _ if begin.elapsed() > patience => {
                    _ = self.execute("migrate_cancel", json!({}));
                    return Err(Error::io(action)(ErrorKind::TimedOut.into()));
                }
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// When an event took place, by the clock of the machine that QEMU runs on, since 1970.
    #[must_use]
    pub fn time_of(event: &Value) -> Duration {
        let part = |name: &str| event.pointer(name).and_then(Value::as_u64).unwrap_or_default();
        Duration::from_secs(part("/timestamp/seconds"))
            + Duration::from_micros(part("/timestamp/microseconds"))
    }

    /// The next message; none, if it does not come in time.
    fn message(&mut self, deadline: Instant) -> Result<Option<Value>> {
        let action = || format!("hear QEMU at {}", self.path.display());
        loop {
            if let Some(end) = self.bytes.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|e| Error::io(action())(e.into()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left)).map_err(Error::io(action()))?;
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Error::io(action())(ErrorKind::UnexpectedEof.into())),
                Ok(got) => self.bytes.extend_from_slice(buffer.get(..got).unwrap_or_default()),
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(e) => return Err(Error::io(action())(e)),
            }
        }
    }
}
