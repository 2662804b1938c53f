//! QEMU's monitor: commands, and events with the time at which QEMU saw them.

use super::clock::{self, Micros};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection; events are gathered all the time.
pub struct Qmp {
    socket: UnixStream,
    inbox: Arc<Inbox>,
}

/// Something that happened.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// `STOP`.
    pub name: String,
    /// What it says.
    pub data: Value,
    /// When, by QEMU.
    pub at: Micros,
}

#[derive(Default)]
struct Inbox {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    answer: Option<Value>,
    closed: bool,
}

impl Qmp {
    /// Connects to a monitor, which may take a moment to be there.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self> {
        let begin = Instant::now();
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(e) if begin.elapsed() > patience => {
                    return Err(e).with_context(|| format!("connect to {}", path.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(3)),
            }
        };
        let inbox = Arc::new(Inbox::default());
        let (lines, filled) = (BufReader::new(socket.try_clone()?), inbox.clone());
        std::thread::Builder::new().name("qmp".to_owned()).spawn(move || gather(lines, &filled))?;
        let mut new = Self { socket, inbox };
        new.command("qmp_capabilities", &json!({}))?;
        Ok(new)
    }

    /// Carries out a command; its answer.
    ///
    /// # Errors
    /// What QEMU says, or that it is gone.
    pub fn command(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": name, "arguments": arguments });
        self.inbox.lock().answer = None;
        self.socket.write_all(format!("{line}\n").as_bytes()).with_context(|| format!("tell QEMU {name}"))?;
        let answer = self.inbox.wait(PATIENCE, |state| state.answer.take());
        let answer = answer.with_context(|| format!("QEMU gave no answer to {name}"))?;
        match answer.get("error") {
            Some(error) => bail!("QEMU on {name}: {}", error["desc"].as_str().unwrap_or_default()),
            None => Ok(answer["return"].clone()),
        }
    }

    /// How many events have come so far: where to look for new ones.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.inbox.lock().events.len()
    }

    /// Waits for an event after a mark.
    ///
    /// # Errors
    /// If it does not come, QEMU ends, or an event that means failure comes first.
    pub fn wait(&self, mark: usize, patience: Duration, name: &str, status: Option<&str>) -> Result<Event> {
        let matches = |e: &&Event| e.name == name && status.is_none_or(|s| e.data["status"] == s);
        let failed = |e: &&Event| {
            e.name == "MIGRATION" && (e.data["status"] == "failed" || e.data["status"] == "cancelled")
        };
        let found = self.inbox.wait(patience, |state| {
            let news = state.events.get(mark..).unwrap_or_default();
            news.iter().find(matches).or_else(|| news.iter().find(failed)).cloned()
        });
        let what = status.map_or_else(String::new, |s| format!(" {s}"));
        match found {
            Some(event) if matches(&&event) => Ok(event),
            Some(event) => bail!("QEMU's migration {}", event.data["status"].as_str().unwrap_or("failed")),
            None => bail!("no {name}{what} from QEMU in {} s", patience.as_secs()),
        }
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<T>(&self, patience: Duration, mut look: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let end = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                return Some(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closed {
                return None;
            }
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn gather(lines: BufReader<UnixStream>, inbox: &Inbox) {
    for line in lines.lines() {
        let Ok(value) = line.map_err(drop).and_then(|l| serde_json::from_str(&l).map_err(drop)) else {
            break;
        };
        sort_in(&mut inbox.lock(), value);
        inbox.news.notify_all();
    }
    inbox.lock().closed = true;
    inbox.news.notify_all();
}

fn sort_in(state: &mut State, mut value: Value) {
    if let Some(name) = value["event"].as_str() {
        let stamp = &value["timestamp"];
        let at = match (stamp["seconds"].as_i64(), stamp["microseconds"].as_i64()) {
            (Some(s), Some(us)) if s >= 0 => s * 1_000_000 + us,
            _ => clock::now(),
        };
        let name = name.to_owned();
        state.events.push(Event { name, data: value["data"].take(), at });
    } else if value.get("return").is_some() || value.get("error").is_some() {
        state.answer = Some(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn events_are_found_after_a_mark_and_failure_is_not_waited_out() {
        let path = std::env::temp_dir().join(format!("tenet-qmp-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(socket.try_clone().unwrap());
            let event = |name: &str, status: &str| {
                let stamp = json!({ "seconds": 7, "microseconds": 9 });
                json!({ "event": name, "data": { "status": status }, "timestamp": stamp }).to_string()
            };
            let mut line = String::new();
            for reply in [
                vec![json!({ "return": {} }).to_string(), event("STOP", "")],
                vec![event("STOP", ""), json!({ "error": { "desc": "no" } }).to_string()],
                vec![json!({ "return": 3 }).to_string(), event("MIGRATION", "failed")],
            ] {
                line.clear();
                lines.read_line(&mut line).unwrap();
                for text in reply {
                    writeln!(socket, "{text}").unwrap();
                }
            }
            line.clear();
            _ = lines.read_line(&mut line);
        });
        let mut qmp = Qmp::connect(&path, Duration::from_secs(5)).unwrap();
        let second = Duration::from_secs(5);
        assert_eq!(qmp.wait(0, second, "STOP", None).unwrap().at, 7_000_009);
        let mark = qmp.mark();
        assert!(qmp.command("cont", &json!({})).unwrap_err().to_string().contains("no"));
        qmp.wait(mark, second, "STOP", None).unwrap();
        assert_eq!(qmp.command("cont", &json!({})).unwrap(), 3);
        let error = qmp.wait(mark, Duration::from_secs(60), "MIGRATION", Some("completed")).unwrap_err();
        assert!(error.to_string().contains("failed"), "{error}");
        drop(qmp);
        server.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
