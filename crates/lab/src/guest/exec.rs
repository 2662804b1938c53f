//! Runs commands inside of a guest, from outside.

use crate::guest::arguments::{CHANNELS, channel};
use crate::guest::frame::{Decoder, Frame, Kind, MOST, send};
use crate::guest::machine::GuestRecord;
use crate::{Error, Result};
use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long an answer may take before we ask again.
const AGAIN: Duration = Duration::from_millis(300);
/// How often the guest's process is looked at while we wait.
const LOOK: Duration = Duration::from_millis(200);

/// What a command in a guest said and how it ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Output {
    /// Its exit code; 128 and the signal's number, if a signal ended it.
    pub code: i32,
    /// What it wrote to its standard output.
    pub out: Vec<u8>,
    /// What it wrote to its standard error.
    pub err: Vec<u8>,
}

impl Output {
    /// Its standard output as text.
    #[must_use]
    pub fn stdout(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.out)
    }

    /// Its standard error as text.
    #[must_use]
    pub fn stderr(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.err)
    }
}

/// What a command writes.
pub enum Said<'a> {
    /// To its standard output.
    Output(&'a [u8]),
    /// To its standard error.
    Error(&'a [u8]),
}

/// A free channel into a guest whose program answers. Ours until it is dropped.
pub struct Channel {
    stream: UnixStream,
    decoder: Decoder,
    _lock: File,
}

impl Channel {
    /// Opens a channel; waits for the guest to be up and for a channel to be free.
    pub fn open(guest: &GuestRecord, patience: Duration) -> Result<Self> {
        let deadline = Instant::now() + patience;
        let (path, lock) = loop {
            if let Some(free) = free(guest)? {
                break free;
            }
            if Instant::now() > deadline {
                return Err(guest.fault(format!(
                    "runs {CHANNELS} commands already, which is the most; none ended within {} s",
                    patience.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let action = format!("reach guest {} at {}", guest.name, path.display());
        let stream = UnixStream::connect(&path).map_err(|e| match guest.process.runs() {
            true => Error::io(action.clone())(e),
            false => guest.fault("has ended".to_owned()),
        })?;
        let mut channel = Self { stream, decoder: Decoder::default(), _lock: lock };
        let id = rand::random();
        loop {
            channel.send(Kind::Hello, id, &[]).map_err(Error::io(action.clone()))?;
            let again = (Instant::now() + AGAIN).min(deadline);
            // Whatever an earlier command left in the channel comes first.
            while let Some(frame) = channel.receive(guest, Some(again))? {
                if (frame.kind, frame.id) == (Kind::Hello, id) {
                    return Ok(channel);
                }
            }
            if Instant::now() >= deadline {
                return Err(guest.fault(format!("does not answer within {} s", patience.as_secs())));
            }
        }
    }

    /// Runs a command. `input` is what it reads; `None`: nothing. Ends it if it takes longer than `patience`.
    pub fn run(
        &mut self,
        guest: &GuestRecord,
        words: &[String],
        input: Option<Box<dyn Read + Send>>,
        patience: Option<Duration>,
        mut said: impl FnMut(Said<'_>) -> io::Result<()>,
    ) -> Result<i32> {
        let about = words.first().map_or("nothing", String::as_str);
        let action = format!("run {about} in guest {}", guest.name);
        let failed =
            |why: &str| Error::io(action.clone())(io::Error::new(ErrorKind::InvalidInput, why.to_owned()));
        let line = words.join("\0");
        if words.is_empty() || words.iter().any(|w| w.contains('\0')) || line.len() > MOST {
            return Err(failed("a command has one word or more, without NUL, and at most 16 KB in all"));
        }
        let id = rand::random();
        self.send(Kind::Run, id, line.as_bytes()).map_err(Error::io(action.clone()))?;
        match input {
            None => self.send(Kind::Input, id, &[]).map_err(Error::io(action.clone()))?,
            Some(input) => feed(self.stream.try_clone().map_err(Error::io(action.clone()))?, id, input)?,
        }
        let deadline = patience.map(|p| Instant::now() + p);
        while let Some(frame) = self.receive(guest, deadline)? {
            if frame.id != id {
                continue;
            }
            match frame.kind {
                Kind::Output => said(Said::Output(&frame.payload)).map_err(Error::io("pass on output"))?,
                Kind::Error => said(Said::Error(&frame.payload)).map_err(Error::io("pass on output"))?,
                Kind::Exit => {
                    let code = frame.payload.try_into().map_or(255, i32::from_be_bytes);
                    return Ok(code);
                }
                Kind::Refused => return Err(failed(&String::from_utf8_lossy(&frame.payload))),
                Kind::Hello | Kind::Run | Kind::Input => {}
            }
        }
        // Dropping the channel ends the command.
        let seconds = patience.unwrap_or_default().as_secs();
        Err(guest.fault(format!("has not finished `{}` within {seconds} s", words.join(" "))))
    }

    fn send(&mut self, kind: Kind, id: u32, payload: &[u8]) -> io::Result<()> {
        send(&mut self.stream, kind, id, payload)
    }

    /// The next message; none, if the deadline passes.
    fn receive(&mut self, guest: &GuestRecord, deadline: Option<Instant>) -> Result<Option<Frame>> {
        let action = || format!("hear guest {}", guest.name);
        loop {
            if let Some(frame) = self.decoder.next() {
                return Ok(Some(frame));
            }
            let left = deadline.map_or(LOOK, |d| d.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left.min(LOOK))).map_err(Error::io(action()))?;
            match self.decoder.read(&mut self.stream) {
                Ok(true) => {}
                Ok(false) => return Err(guest.fault("ended".to_owned())),
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    if !guest.process.runs() {
                        return Err(guest.fault("ended".to_owned()));
                    }
                }
                Err(e) => return Err(Error::io(action())(e)),
            }
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // Also for the thread that feeds a command; the guest sees it and ends what runs.
        _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Sends what is read to the command, on a thread of its own, which may wait for ever for a terminal.
fn feed(mut to: UnixStream, id: u32, mut from: Box<dyn Read + Send>) -> Result<()> {
    let work = move || {
        let mut buffer = [0; 4096];
        loop {
            let got = match from.read(&mut buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                other => other.unwrap_or_default(),
            };
            if send(&mut to, Kind::Input, id, buffer.get(..got).unwrap_or_default()).is_err() || got == 0 {
                break;
            }
        }
    };
    let thread = std::thread::Builder::new().name("guest-input".to_owned());
    thread.spawn(work).map(drop).map_err(Error::io("start a thread"))
}

/// The first channel that nobody uses, locked.
fn free(guest: &GuestRecord) -> Result<Option<(std::path::PathBuf, File)>> {
    for at in 0..CHANNELS {
        let path = channel(&guest.dir, at);
        let lock = path.with_extension("lock");
        let open = OpenOptions::new().write(true).create(true).truncate(false).open(&lock);
        let file = open.map_err(Error::io(format!("open {}", lock.display())))?;
        if file.try_lock().is_ok() {
            return Ok(Some((path, file)));
        }
    }
    Ok(None)
}
