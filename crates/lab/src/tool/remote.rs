//! A measurement that runs inside of a guest, until it is told to stop.

use crate::guest::{Guest, Running};
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::io;

/// It measures until the input that it reads ends; then it says in JSON what it found.
#[derive(Debug)]
pub struct Remote {
    running: Running,
    about: String,
}

impl Remote {
    pub fn start(guest: &Guest, words: &[&str]) -> Result<Self> {
        let about = format!("measure from guest {}", guest.name());
        Ok(Self { running: guest.spawn(words.iter().copied())?, about })
    }

    pub fn stop<T: DeserializeOwned>(self) -> Result<T> {
        let output = self.running.finish()?;
        if output.code != 0 {
            return Err(Error::io(self.about)(io::Error::other(output.stderr().trim().to_owned())));
        }
        serde_json::from_slice(&output.out).map_err(|e| Error::io(self.about)(e.into()))
    }
}
