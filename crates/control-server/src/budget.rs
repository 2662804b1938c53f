//! How much a host may have told of itself: what it says is kept in one ring with all that happens in the site.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};
use tenet_model::HostName;

/// Lines that a host may cause per second; more are not kept.
const PER_SECOND: u32 = 50;

/// The hosts' budgets. They are the hosts', not their sessions': a new session brings no new one.
#[derive(Default)]
pub(crate) struct Budgets(Mutex<(u64, BTreeMap<HostName, u32>)>);

impl Budgets {
    /// Whether one more line of the host is kept.
    pub(crate) fn spend(&self, host: &HostName) -> bool {
        self.spend_at(crate::clock::ms() / 1000, host)
    }

    fn spend_at(&self, second: u64, host: &HostName) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.0 != second {
            *all = (second, BTreeMap::new());
        }
        let spent = all.1.entry(host.clone()).or_default();
        *spent = spent.saturating_add(1);
        *spent <= PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_its_own_budget_each_second() {
        let budgets = Budgets::default();
        let (h1, h2): (HostName, HostName) = ("h1".parse().unwrap(), "h2".parse().unwrap());
        let kept = |second, host| (0..200).filter(|_| budgets.spend_at(second, host)).count();
        assert_eq!([kept(5, &h1), kept(5, &h1), kept(5, &h2), kept(6, &h1)], [50, 0, 50, 50]);
    }
}
