//! Counters that only ever rise: what of that is news.

use std::collections::VecDeque;
use std::time::Duration;

/// What is older than this is no news any more.
const LATELY: Duration = Duration::from_secs(60);

/// How much a counter rose in the last minute; what it was at the first look is history.
#[derive(Clone, Debug, Default)]
pub struct Lately {
    /// When it was first seen at a value, oldest first; the first one is what it was a minute ago.
    seen: VecDeque<(Duration, u64)>,
}

impl Lately {
    /// Takes the counter's value; by how much it rose in the last minute.
    pub fn look(&mut self, now: Duration, total: u64) -> u64 {
        // The maps were made anew.
        if self.seen.back().is_some_and(|(_, last)| *last > total) {
            self.seen.clear();
        }
        if self.seen.back().is_none_or(|(_, last)| *last != total) {
            self.seen.push_back((now, total));
        }
        while self.seen.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= LATELY) {
            self.seen.pop_front();
        }
        self.seen.front().map_or(0, |(_, first)| total - first)
    }
}

/// Says that a counter rises: at once, and as long as it goes on once a minute.
#[derive(Clone, Debug, Default)]
pub struct Alarm {
    told: Option<u64>,
    at: Option<Duration>,
}

impl Alarm {
    /// Takes the counter's value; by how much it rose since that was last told, if it is to be told now.
    pub fn look(&mut self, now: Duration, total: u64) -> Option<u64> {
        let told = *self.told.get_or_insert(total);
        if total <= told {
            self.told = Some(total);
            return None;
        }
        if self.at.is_some_and(|at| now.saturating_sub(at) < LATELY) {
            return None;
        }
        (self.told, self.at) = (Some(total), Some(now));
        Some(total - told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rose_more_than_a_minute_ago_is_forgotten() {
        let mut lately = Lately::default();
        let mut look = |seconds, total| lately.look(Duration::from_secs(seconds), total);
        assert_eq!(look(0, 5), 0, "an earlier agent's");
        assert_eq!(look(10, 8), 3);
        assert_eq!(look(30, 9), 4);
        assert_eq!(look(69, 9), 4);
        assert_eq!(look(70, 9), 1, "what came at 10 s is a minute old");
        assert_eq!(look(90, 9), 0);
        assert_eq!(look(1000, 9), 0);
        assert_eq!(look(1002, 10), 1);
        assert_eq!(look(1004, 2), 0, "the maps were made anew");
        assert_eq!(look(1006, 3), 1);
    }

    #[test]
    fn a_rise_is_told_at_once_and_then_by_the_minute() {
        let mut alarm = Alarm::default();
        let mut look = |seconds, total| alarm.look(Duration::from_secs(seconds), total);
        assert_eq!(look(0, 5), None, "an earlier agent told it");
        assert_eq!(look(2, 6), Some(1));
        assert_eq!((look(4, 8), look(6, 9), look(61, 9)), (None, None, None));
        assert_eq!((look(62, 9), look(64, 9)), (Some(3), None));
        assert_eq!(look(500, 10), Some(1));
        assert_eq!((look(502, 1), look(600, 2)), (None, Some(1)), "the maps were made anew");
    }
}
