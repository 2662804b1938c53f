//! What happened lately, and who watches.

use crate::clock;
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};
use tenet_api::rest::EventLine;
use tenet_control::Happening;
use tokio::sync::broadcast;

/// Events kept for those who come later.
const KEPT: usize = 1000;
/// Events that a slow watcher may lie behind before it misses some.
const BEHIND: usize = 1024;

/// A bounded ring of events with followers.
pub(crate) struct Events {
    ring: Mutex<(u64, VecDeque<EventLine>)>,
    sender: broadcast::Sender<EventLine>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { ring: Mutex::default(), sender: broadcast::channel(BEHIND).0 }
    }

    pub(crate) fn happened(&self, happening: Happening) {
        let level_problem = matches!(happening.kind.as_str(), "problem" | "refused" | "session-replaced");
        let host = happening.host.as_ref().map_or("", |h| h.as_str());
        if level_problem {
            tracing::warn!(kind = %happening.kind, host, "{}", happening.text);
        } else if happening.kind != "change" {
            tracing::info!(kind = %happening.kind, host, "{}", happening.text);
        }
        self.push(EventLine {
            id: 0,
            time_ms: clock::ms(),
            kind: happening.kind,
            host: happening.host,
            port: happening.port.map(|p| p.to_string()),
            fields: happening.fields,
            text: happening.text,
        });
    }

    pub(crate) fn push(&self, mut line: EventLine) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.0 += 1;
        line.id = ring.0;
        ring.1.push_back(line.clone());
        if ring.1.len() > KEPT {
            ring.1.pop_front();
        }
        // Nobody may be watching.
        let _ = self.sender.send(line);
    }

    /// What is kept, and what comes after it without a gap.
    pub(crate) fn follow(&self) -> (Vec<EventLine>, broadcast::Receiver<EventLine>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        (ring.1.iter().cloned().collect(), self.sender.subscribe())
    }

    pub(crate) fn count(&self) -> u64 {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).0
    }
}
