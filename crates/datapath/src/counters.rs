//! Counters: kept by the programs on each CPU, summed here.

use crate::{Datapath, Result};
use std::collections::BTreeMap;
use tenet_tables::{Counters, DropReason};

impl Datapath {
    /// Counters of every device that has any.
    pub fn counters(&self) -> Result<BTreeMap<u32, Counters>> {
        let all = self.tables.counters.all_per_cpu()?;
        Ok(all
            .into_iter()
            .map(|(ifindex, cpus)| (ifindex, cpus.into_iter().fold(Counters::default(), add)))
            .collect())
    }

    /// Counters of one device; zero if it has none.
    pub fn counters_of(&self, ifindex: u32) -> Result<Counters> {
        Ok(self.tables.counters.get_per_cpu(&ifindex)?.into_iter().fold(Counters::default(), add))
    }

    /// Dropped frames by the device that they came from and the reason.
    pub fn drops(&self) -> Result<BTreeMap<(u32, DropReason), u64>> {
        let mut drops = BTreeMap::new();
        for (key, cpus) in self.tables.drops.all_per_cpu()? {
            // A number without a name was counted by a newer program, before this version replaced it.
            let Some(reason) = DropReason::from_number(key.reason) else { continue };
            drops.insert((key.ifindex, reason), cpus.into_iter().fold(0, u64::wrapping_add));
        }
        Ok(drops)
    }

    /// Forgets counters, drops and rate limits of a device that is no port any more, so that its successor with
    /// the same number starts at zero.
    pub fn clear_counters(&self, ifindex: u32) -> Result<()> {
        self.tables.counters.delete(&ifindex)?;
        self.tables.buckets.delete(&ifindex)?;
        for (key, _) in self.tables.drops.all_per_cpu()? {
            if key.ifindex == ifindex {
                self.tables.drops.delete(&key)?;
            }
        }
        Ok(())
    }
}

fn add(a: Counters, b: Counters) -> Counters {
    Counters {
        tx_frames: a.tx_frames.wrapping_add(b.tx_frames),
        tx_bytes: a.tx_bytes.wrapping_add(b.tx_bytes),
        rx_frames: a.rx_frames.wrapping_add(b.rx_frames),
        rx_bytes: a.rx_bytes.wrapping_add(b.rx_bytes),
        redirected: a.redirected.wrapping_add(b.redirected),
        answered: a.answered.wrapping_add(b.answered),
        icmp_errors: a.icmp_errors.wrapping_add(b.icmp_errors),
        flooded: a.flooded.wrapping_add(b.flooded),
        slow: a.slow.wrapping_add(b.slow),
        clamped: a.clamped.wrapping_add(b.clamped),
    }
}
