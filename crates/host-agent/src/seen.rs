//! The host's devices as they were last seen, so that what the kernel tells of them is looked into only if it is news:
//! it tells of each change of ours, too, and of much that is none of our business.

use std::collections::BTreeMap;
use tenet_hostnet::{Link, LinkEvent};

/// The devices of a namespace, by number.
#[derive(Debug, Default)]
pub(crate) struct Seen(BTreeMap<u32, Link>);

impl Seen {
    /// All of them, as listed.
    pub(crate) fn list(&mut self, links: &[Link]) {
        self.0 = links.iter().map(|link| (link.index, without_counters(link))).collect();
    }

    /// Whether the list is another one after this.
    pub(crate) fn is_news(&mut self, event: &LinkEvent) -> bool {
        match event {
            LinkEvent::Changed(link) => {
                let now = without_counters(link);
                let same = self.0.get(&now.index) == Some(&now);
                self.0.insert(now.index, now);
                !same
            }
            LinkEvent::Gone { index, .. } => {
                self.0.remove(index);
                true
            }
            LinkEvent::Overrun => true,
            LinkEvent::Addresses { .. } => false,
        }
    }

    /// The MTU of a device that was seen.
    pub(crate) fn mtu(&self, ifindex: u32) -> Option<u32> {
        self.0.get(&ifindex).map(|link| link.mtu)
    }
}

/// What a device counts is no change of it.
fn without_counters(link: &Link) -> Link {
    Link { tx_dropped: 0, ..link.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tenet_hostnet::{Links, Netns, TapOptions};

    #[test]
    fn an_event_is_news_if_the_device_is_another_one_after_it() {
        let Ok(netns) = Netns::anonymous() else {
            println!("SKIPPED: a namespace of its own needs root");
            return;
        };
        let links = Links::in_netns(&netns).unwrap();
        let watch = links.watch().unwrap();
        links.make_tap("tap1", TapOptions::default(), "tenet:contoso/sql/eth0", 100).unwrap();
        let mut seen = Seen::default();
        let news = |seen: &mut Seen| {
            let events = watch.wait(Duration::from_secs(10)).unwrap();
            assert!(!events.is_empty(), "the kernel told of nothing");
            // All: one that is news does not hide the next.
            events.iter().filter(|event| seen.is_news(event)).count()
        };
        assert!(news(&mut seen) > 0, "a new device");
        // Whatever else was told of its making is in the list.
        while !watch.try_next().unwrap_or_default().is_empty() {}
        seen.list(&links.list().unwrap());
        let link = links.get("tap1").unwrap();
        assert_eq!(seen.mtu(link.index), Some(link.mtu));
        assert!(!seen.is_news(&LinkEvent::Changed(Link { tx_dropped: 7, ..link.clone() })));
        links.set_mtu("tap1", 1400).unwrap();
        assert!(news(&mut seen) > 0, "another MTU");
        assert_eq!(seen.mtu(link.index), Some(1400));
        // The same again is told by nobody but an event that repeats it.
        let now = links.get("tap1").unwrap();
        assert!(!seen.is_news(&LinkEvent::Changed(now.clone())));
        links.delete_link("tap1").unwrap();
        assert!(news(&mut seen) > 0, "a device that is gone");
        assert_eq!(seen.mtu(link.index), None);
        assert!(seen.is_news(&LinkEvent::Changed(now)), "it is back");
    }
}
