//! From segments to frames.

use crate::{FrameId, Outer, Segment};
use std::collections::BTreeMap;
use tenet_wire::{Ipv4, SttHeader};

/// What segments may cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of memory for frames that are not complete.
    pub memory: usize,
    /// When that is not enough, the frames that waited longest for a segment go until so many bytes are left.
    pub keep: usize,
    /// Nanoseconds without a new segment after which a frame is given up.
    pub patience: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: 4 << 20, keep: 3 << 20, patience: 30_000_000_000 }
    }
}

/// Why a segment was not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It carries nothing.
    Empty,
    /// Its bytes end behind the frame's end, or the frame is shorter than its header.
    OutOfRange,
    /// Another segment of the frame said another length.
    Length,
    /// Some of its bytes are there already.
    Overlap,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// What happened so far.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters { $($(#[doc = $doc])+ pub $name: u64,)* }
        impl Counters {
            /// Name, explanation and figure of each.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), concat!($($doc),+).trim_ascii(), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Segments taken.
    segments,
    /// Frames completed.
    frames,
    /// Segments without bytes.
    empty,
    /// Segments whose bytes end behind the frame's end.
    out_of_range,
    /// Segments that said another length than the frame's first one.
    length_mismatch,
    /// Segments with bytes that were there already.
    overlaps,
    /// Frames given up because no segment came for too long.
    expired,
    /// Frames given up for want of memory.
    evicted,
}

/// A completed frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Whole {
    /// Which one.
    pub frame: FrameId,
    /// The outer headers of its first segment; marked as congested if any segment was.
    pub outer: Outer,
    /// STT header and inner frame.
    pub bytes: Vec<u8>,
}

/// A frame that waits for segments.
struct Entry {
    outer: Outer,
    bytes: Vec<u8>,
    /// What is there, as ranges in order that do not touch.
    there: Vec<(u32, u32)>,
    marked: bool,
    /// When and in which order it was last added to.
    used: (u64, u64),
}

/// Bytes that an entry costs beside its frame.
const ENTRY: usize = size_of::<Entry>() + size_of::<FrameId>() + 128;
/// Buffers kept for the next frames.
const SPARE: usize = 8;

/// Joins segments to frames, in bounded memory.
#[derive(Default)]
pub struct Reassembly {
    limits: Limits,
    frames: BTreeMap<FrameId, Entry>,
    by_use: BTreeMap<(u64, u64), FrameId>,
    uses: u64,
    memory: usize,
    spare: Vec<Vec<u8>>,
    counters: Counters,
}

impl Reassembly {
    /// One within these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Adds a segment; the frame, if it is complete now. `now` in nanoseconds, never less than before.
    ///
    /// # Errors
    /// If the segment is not used. What is there of its frame stays.
    pub fn add(&mut self, segment: &Segment<'_>, now: u64) -> Result<Option<Whole>, Refusal> {
        self.expire(now);
        let result = self.place(segment, now);
        let count = match result {
            Ok(()) => &mut self.counters.segments,
            Err(Refusal::Empty) => &mut self.counters.empty,
            Err(Refusal::OutOfRange) => &mut self.counters.out_of_range,
            Err(Refusal::Length) => &mut self.counters.length_mismatch,
            Err(Refusal::Overlap) => &mut self.counters.overlaps,
        };
        *count += 1;
        result?;
        let whole = self.take_if_whole(&segment.frame);
        if whole.is_none() && self.memory > self.limits.memory {
            self.evict();
        }
        Ok(whole)
    }

    fn place(&mut self, segment: &Segment<'_>, now: u64) -> Result<(), Refusal> {
        if segment.bytes.is_empty() {
            return Err(Refusal::Empty);
        }
        let begin = u32::from(segment.offset);
        let end = u32::try_from(segment.bytes.len()).ok().and_then(|l| begin.checked_add(l));
        let total = u32::from(segment.total);
        let Some(end) = end.filter(|e| *e <= total && total > SttHeader::LEN) else {
            return Err(Refusal::OutOfRange);
        };
        self.uses += 1;
        let used = (now, self.uses);
        let entry = match self.frames.get_mut(&segment.frame) {
            Some(entry) if entry.bytes.len() != total as usize => return Err(Refusal::Length),
            Some(entry) => entry,
            None => {
                let mut bytes = self.spare.pop().unwrap_or_default();
                bytes.clear();
                bytes.resize(total as usize, 0);
                self.memory += ENTRY + bytes.capacity();
                self.by_use.insert(used, segment.frame);
                let new = Entry { outer: segment.outer, bytes, there: Vec::new(), marked: false, used };
                self.frames.entry(segment.frame).or_insert(new)
            }
        };
        insert(&mut entry.there, begin, end)?;
        if let Some(to) = entry.bytes.get_mut(begin as usize..end as usize) {
            to.copy_from_slice(segment.bytes);
        }
        if begin == 0 {
            entry.outer = segment.outer;
        }
        entry.marked |= segment.is_marked();
        self.by_use.remove(&entry.used);
        entry.used = used;
        self.by_use.insert(used, segment.frame);
        Ok(())
    }

    fn take_if_whole(&mut self, frame: &FrameId) -> Option<Whole> {
        let entry = self.frames.get(frame)?;
        if entry.there.as_slice() != [(0, u32::try_from(entry.bytes.len()).ok()?)] {
            return None;
        }
        let entry = self.remove(frame)?;
        self.counters.frames += 1;
        let mut outer = entry.outer;
        if entry.marked {
            outer.class |= Ipv4::ECN_CE;
        }
        Some(Whole { frame: *frame, outer, bytes: entry.bytes })
    }

    fn remove(&mut self, frame: &FrameId) -> Option<Entry> {
        let entry = self.frames.remove(frame)?;
        self.by_use.remove(&entry.used);
        self.memory -= ENTRY + entry.bytes.capacity();
        Some(entry)
    }

    /// Gives up the frames that had no segment for too long.
    pub fn expire(&mut self, now: u64) {
        while let Some((&(used, _), &frame)) = self.by_use.first_key_value() {
            if now.saturating_sub(used) < self.limits.patience {
                return;
            }
            self.give_up(&frame);
            self.counters.expired += 1;
        }
    }

    fn evict(&mut self) {
        while self.memory > self.limits.keep
            && let Some((_, &frame)) = self.by_use.first_key_value()
        {
            self.give_up(&frame);
            self.counters.evicted += 1;
        }
    }

    fn give_up(&mut self, frame: &FrameId) {
        if let Some(entry) = self.remove(frame) {
            self.recycle(entry.bytes);
        }
    }

    /// Takes back the memory of a completed frame for the next one.
    pub fn recycle(&mut self, bytes: Vec<u8>) {
        if self.spare.len() < SPARE {
            self.spare.push(bytes);
        }
    }

    /// Bytes that incomplete frames take up.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Frames that wait for segments.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.frames.len()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

/// Adds a range to ranges in order, joining those that touch.
fn insert(there: &mut Vec<(u32, u32)>, begin: u32, end: u32) -> Result<(), Refusal> {
    let at = there.partition_point(|(b, _)| *b < begin);
    let before = at.checked_sub(1).and_then(|i| there.get(i).copied());
    let after = there.get(at).copied();
    if before.is_some_and(|(_, e)| e > begin) || after.is_some_and(|(b, _)| b < end) {
        return Err(Refusal::Overlap);
    }
    let joins_before = before.is_some_and(|(_, e)| e == begin);
    let joins_after = after.is_some_and(|(b, _)| b == end);
    match (joins_before, joins_after) {
        (true, true) => {
            let (_, e) = there.remove(at);
            if let Some(b) = there.get_mut(at - 1) {
                b.1 = e;
            }
        }
        (true, false) => {
            if let Some(b) = there.get_mut(at - 1) {
                b.1 = end;
            }
        }
        (false, true) => {
            if let Some(a) = there.get_mut(at) {
                a.0 = begin;
            }
        }
        (false, false) => there.insert(at, (begin, end)),
    }
    Ok(())
}
