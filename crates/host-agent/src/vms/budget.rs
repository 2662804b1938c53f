//! How much one VM may have told of it. Its QEMU is the guest's next victim: what it says may be made up, and a flood
//! of it must not cost the host its session with the controller.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tenet_model::VmRef;

/// Words at once; a migration has a dozen, beside its progress.
const BURST: u32 = 48;
/// Of these, progress leaves so many for what matters.
const KEPT: u32 = 24;
/// Time that brings one more.
const REFILL: Duration = Duration::from_millis(100);
/// VMs that are remembered; those that have been quiet make room.
const MOST: usize = 4096;

/// What each VM has left.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    left: BTreeMap<VmRef, Left>,
}

#[derive(Debug)]
struct Left {
    words: u32,
    since: Instant,
    /// Whether it was told that there are too many.
    told: bool,
}

/// What becomes of a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It is taken.
    Take,
    /// It is dropped.
    Drop,
    /// It is dropped, and is the first.
    DropAndTell,
}

impl Budget {
    /// Whether a word of this VM is taken; `progress`: one that the next one makes up for.
    pub(crate) fn spend(&mut self, now: Instant, vm: &VmRef, progress: bool) -> Verdict {
        if self.left.len() >= MOST && !self.left.contains_key(vm) {
            self.left.retain(|_, left| now.saturating_duration_since(left.since) < REFILL * BURST);
        }
        let fresh = Left { words: BURST, since: now, told: false };
        let left = self.left.entry(vm.clone()).or_insert(fresh);
        let passed = now.saturating_duration_since(left.since).as_millis() / REFILL.as_millis();
        let more = u32::try_from(passed).unwrap_or(u32::MAX).min(BURST);
        if left.words.saturating_add(more) >= BURST {
            (left.words, left.since, left.told) = (BURST, now, false);
        } else {
            left.words += more;
            left.since += REFILL * more;
        }
        let floor = if progress { KEPT } else { 0 };
        if left.words > floor {
            left.words -= 1;
            return Verdict::Take;
        }
        if progress || std::mem::replace(&mut left.told, true) { Verdict::Drop } else { Verdict::DropAndTell }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_vm_is_cut_and_costs_no_other_anything() {
        let (rogue, other): (VmRef, VmRef) = ("a/rogue".parse().unwrap(), "a/other".parse().unwrap());
        let mut budget = Budget::default();
        let start = Instant::now();
        let mut taken = 0;
        let mut told = 0;
        for n in 0..100_000_u32 {
            let now = start + Duration::from_micros(100) * n;
            match budget.spend(now, &rogue, false) {
                Verdict::Take => taken += 1,
                Verdict::DropAndTell => told += 1,
                Verdict::Drop => {}
            }
        }
        // Ten seconds.
        assert!((BURST..=BURST + 101).contains(&taken), "{taken}");
        assert_eq!(told, 1);
        let now = start + Duration::from_secs(10);
        assert_eq!(budget.spend(now, &other, false), Verdict::Take);
        // Once it has been quiet, it is heard like any other, and told of again.
        let later = now + REFILL * (BURST + 1);
        let words = (0..=BURST).map(|_| budget.spend(later, &rogue, false)).collect::<Vec<_>>();
        assert_eq!(words.iter().filter(|w| **w == Verdict::Take).count(), BURST as usize);
        assert_eq!(words.last(), Some(&Verdict::DropAndTell));
    }

    #[test]
    fn progress_leaves_room_for_what_matters_and_a_usual_migration_loses_nothing() {
        let vm: VmRef = "a/b".parse().unwrap();
        let start = Instant::now();
        let mut budget = Budget::default();
        let progress = (0..1000).filter(|_| budget.spend(start, &vm, true) == Verdict::Take).count();
        assert_eq!(progress, (BURST - KEPT) as usize);
        assert_eq!(budget.spend(start, &vm, false), Verdict::Take, "STOP is heard all the same");
        // Progress five times a second, for a minute, then the end.
        let mut budget = Budget::default();
        for n in 0..300 {
            let now = start + Duration::from_millis(200) * n;
            assert_eq!(budget.spend(now, &vm, true), Verdict::Take, "{n}");
        }
    }
}
