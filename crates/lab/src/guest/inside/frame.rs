//! How the lab talks with a guest over a virtio-serial port: framed messages that find each other again after a
//! connection broke in the middle of one. The same source is compiled into the guest's program and into the lab.

use std::io::{self, Read, Write};

/// Begins every frame. Whoever is out of step skips bytes until it sees this.
const MAGIC: [u8; 3] = [0xf5, b'T', b'G'];
const HEADER: usize = 12;
/// Largest payload; with it a frame still fits into one write of the guest's driver.
pub const MOST: usize = 16 << 10;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// To the guest: are you there? From the guest: yes. The id is the same.
    Hello = 1,
    /// To the guest: run a command; its words are separated by NUL.
    Run,
    /// To the guest: what the command reads; an empty one ends it.
    Input,
    /// From the guest: what the command wrote to its standard output.
    Output,
    /// From the guest: what the command wrote to its standard error.
    Error,
    /// From the guest: the command ended; four bytes of exit code.
    Exit,
    /// From the guest: the command could not be started, and why.
    Refused,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Hello, Self::Run, Self::Input, Self::Output, Self::Error, Self::Exit, Self::Refused]
            .into_iter()
            .find(|k| *k as u8 == byte)
    }
}

/// A message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The exchange that it belongs to.
    pub id: u32,
    /// Its content.
    pub payload: Vec<u8>,
}

/// Sends a frame by one write.
pub fn send(to: &mut impl Write, kind: Kind, id: u32, payload: &[u8]) -> io::Result<()> {
    let payload = payload.get(..payload.len().min(MOST)).unwrap_or_default();
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend_from_slice(&MAGIC);
    frame.push(kind as u8);
    frame.extend_from_slice(&id.to_be_bytes());
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    frame.extend_from_slice(payload);
    to.write_all(&frame)
}

/// Puts frames together from what arrives.
#[derive(Default, Debug)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Reads once; false: the other side is gone.
    pub fn read(&mut self, from: &mut impl Read) -> io::Result<bool> {
        let mut buffer = [0; MOST];
        let got = from.read(&mut buffer)?;
        self.bytes.extend_from_slice(buffer.get(..got).unwrap_or_default());
        Ok(got > 0)
    }

    /// The next whole frame.
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            let start = self.bytes.windows(MAGIC.len()).position(|w| w == MAGIC);
            // The last bytes may be the beginning of a frame.
            let skip = start.unwrap_or(self.bytes.len().saturating_sub(MAGIC.len() - 1));
            self.bytes.drain(..skip);
            let header: [u8; HEADER] = self.bytes.get(..HEADER)?.try_into().ok()?;
            let [_, _, _, kind, i0, i1, i2, i3, l0, l1, l2, l3] = header;
            let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
            match Kind::of(kind) {
                Some(kind) if length <= MOST => {
                    let payload = self.bytes.get(HEADER..HEADER + length)?.to_vec();
                    self.bytes.drain(..HEADER + length);
                    return Some(Frame { kind, id: u32::from_be_bytes([i0, i1, i2, i3]), payload });
                }
                // Not the beginning of a frame after all.
                _ => self.bytes.drain(..1),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_whole_and_in_order_through_torn_ones() {
        let mut wire = Vec::new();
        send(&mut wire, Kind::Output, 7, b"torn away").unwrap();
        wire.truncate(5);
        wire.extend_from_slice(b"noise\xf5T\xf5TG\xff\0\0");
        send(&mut wire, Kind::Hello, 1, &[]).unwrap();
        send(&mut wire, Kind::Exit, 2, &[0, 0, 0, 9]).unwrap();
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        for byte in wire {
            assert!(decoder.read(&mut [byte].as_slice()).unwrap());
            found.extend(std::iter::from_fn(|| decoder.next()));
        }
        assert!(!decoder.read(&mut [].as_slice()).unwrap());
        let exit = Frame { kind: Kind::Exit, id: 2, payload: vec![0, 0, 0, 9] };
        assert_eq!(found.last(), Some(&exit), "{found:?}");
    }
}
