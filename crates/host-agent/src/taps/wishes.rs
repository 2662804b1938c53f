//! What the agent's loop does about the taps that ports ask for.

use super::TapWish;
use crate::agent::Agent;
use std::collections::BTreeSet;
use tenet_compile::Row;
use tenet_host::Input;

impl Agent {
    /// Makes taps before anybody is told of their ports.
    pub(crate) fn make_taps(&mut self, wishes: &[TapWish]) {
        if wishes.is_empty() {
            return;
        }
        let made = self.kernel.make_taps(wishes);
        let mut either = self.taps.clone();
        for wish in wishes {
            let trouble = made.troubles.get(&wish.device);
            if let Some(trouble) = trouble.filter(|t| self.taps.get(&wish.device) != Some(t)) {
                tracing::error!(port = wish.port, trouble, "the port has no tap");
            }
            match made.notes.get(&wish.port) {
                Some(note) => self.tap_notes.insert(wish.port.clone(), note.clone()),
                None => self.tap_notes.remove(&wish.port),
            };
            match trouble {
                Some(trouble) => self.taps.insert(wish.device.clone(), trouble.clone()),
                None => self.taps.remove(&wish.device),
            };
        }
        // A strange device is never taken for a port: it is told of before it is seen, and forgotten once it is gone.
        either.extend(self.taps.clone());
        self.feed(Input::Taps(either));
        if made.changed {
            self.look_at_devices();
        }
        self.feed(Input::Taps(self.taps.clone()));
        if !made.again.is_empty() {
            self.feed(Input::Restored(made.again));
        }
    }

    /// Taps that were removed are made again; those of ports that left this host go.
    pub(crate) fn keep_taps(&mut self) {
        let wishes: Vec<TapWish> = self.core.taps().map(TapWish::from).collect();
        self.make_taps(&wishes);
        self.drop_taps();
    }

    pub(crate) fn drop_taps(&mut self) {
        // Without rows nothing is known of what is wanted.
        if self.core.rows().is_none() {
            return;
        }
        let wanted: BTreeSet<&str> = self.core.taps().map(|p| p.device.as_str()).collect();
        self.taps.retain(|name, _| wanted.contains(name.as_str()));
        if let Err(cause) = self.kernel.drop_taps(&wanted) {
            tracing::warn!(%cause, "a tap that no port has any more stays");
        }
    }
}

/// The taps that these rows ask for.
pub(crate) fn wishes<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<TapWish> {
    let ports = rows.filter_map(|row| if let Row::Port(p) = row { Some(p) } else { None });
    ports.filter(|p| p.tap).map(TapWish::from).collect()
}
