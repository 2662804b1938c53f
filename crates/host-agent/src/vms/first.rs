//! A VM's first frame on its new host, looked for with short looks at a counter.

use super::now_us;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tenet_model::{PortRef, VmRef};

/// Between two looks at the least; and at the least a quarter of the time waited so far: each look takes time from the
/// VM that begins to run.
const LOOK: Duration = Duration::from_millis(1);
/// After that, a VM is one that says nothing.
const LONGEST: Duration = Duration::from_secs(1);

/// Ports whose first frame is waited for.
#[derive(Debug, Default)]
pub(crate) struct First {
    /// Frames that prepared ports' devices had sent before.
    before: BTreeMap<PortRef, (u32, u64)>,
    waiting: BTreeMap<VmRef, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    resumed_us: u64,
    since: Instant,
    next: Instant,
    ports: Vec<(u32, u64)>,
}

impl First {
    /// A port is prepared at an interface that has sent so many frames so far.
    pub(crate) fn prepared(&mut self, port: &PortRef, ifindex: u32, frames: u64) {
        let entry = self.before.entry(port.clone()).or_insert((ifindex, frames));
        if entry.0 != ifindex {
            *entry = (ifindex, frames);
        }
    }

    /// Whether any port is prepared.
    pub(crate) fn expects(&self) -> bool {
        !self.before.is_empty()
    }

    /// Forgets ports that are not prepared any more: what one had sent then says nothing of the next time that it is.
    pub(crate) fn keep(&mut self, prepared: impl Fn(&PortRef) -> bool) {
        self.before.retain(|port, _| prepared(port));
    }

    /// A VM runs since then; it is waited for if it came here.
    pub(crate) fn resumed(&mut self, vm: &VmRef, resumed_us: u64) {
        let ports: Vec<_> =
            self.before.iter().filter(|(p, _)| p.vm_ref() == *vm).map(|(_, before)| *before).collect();
        self.before.retain(|p, _| p.vm_ref() != *vm);
        if !ports.is_empty() {
            let since = Instant::now();
            self.waiting.insert(vm.clone(), Waiting { resumed_us, since, next: since + LOOK, ports });
        }
    }

    /// When the next look is due, if anything is waited for.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.next).min()
    }

    /// Looks; VMs that have sent something, with microseconds after their resume.
    pub(crate) fn look(&mut self, mut frames: impl FnMut(u32) -> Option<u64>) -> Vec<(VmRef, u64)> {
        let mut found = Vec::new();
        self.waiting.retain(|vm, waiting| {
            if waiting.ports.iter().any(|(ifindex, before)| frames(*ifindex).is_some_and(|now| now > *before))
            {
                found.push((vm.clone(), now_us().saturating_sub(waiting.resumed_us)));
                return false;
            }
            let waited = waiting.since.elapsed();
            waiting.next = Instant::now() + LOOK.max(waited / 4);
            waited < LONGEST
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_frame_after_the_resume_is_found_once() {
        let mut first = First::default();
        let port: PortRef = "contoso/sql/eth0".parse().unwrap();
        let vm = port.vm_ref();
        // A VM that always was here is not waited for.
        first.resumed(&vm, now_us());
        assert_eq!(first.due(), None);
        first.prepared(&port, 7, 3);
        first.prepared(&port, 7, 5);
        first.resumed(&vm, now_us() - 1500);
        assert!(first.due().is_some());
        assert_eq!(first.look(|_| Some(3)), []);
        assert_eq!(first.look(|_| None), []);
        let found = first.look(|ifindex| (ifindex == 7).then_some(4));
        assert!(matches!(&found[..], [(of, us)] if *of == vm && *us >= 1500), "{found:?}");
        assert_eq!(first.due(), None);
    }

    #[test]
    fn a_port_that_was_called_off_is_counted_anew_the_next_time() {
        let mut first = First::default();
        let port: PortRef = "contoso/sql/eth0".parse().unwrap();
        first.prepared(&port, 7, 3);
        first.keep(|p| *p == port);
        first.keep(|_| false);
        // Its tap has taken frames of the first attempt.
        first.prepared(&port, 7, 9);
        first.resumed(&port.vm_ref(), now_us());
        assert_eq!(first.look(|_| Some(9)), []);
        assert_eq!(first.look(|_| Some(10)).len(), 1);
    }
}
