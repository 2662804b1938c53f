//! Taps that the agent makes for ports: marked as its own, adopted after a restart, removed with the port.

mod wishes;

pub(crate) use wishes::wishes;

use std::collections::{BTreeMap, BTreeSet};
use tenet_compile::PortRow;
use tenet_hostnet::{Error, Kind, Link, Links, TapOptions};
use tenet_model::{PortRef, tap_name};
use tenet_tables::{DEVICE_TAP, Port};

/// Frames that may wait for a VM: what comes while it is switched to this host waits here, not on the sender.
const QUEUE_LEN: u32 = 10_000;

/// Before the port's full name in a tap's note (`ip link` shows it as `alias`).
const MARK: &str = "tenet:";

/// A tap that a port needs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TapWish {
    /// Its name.
    pub device: String,
    /// The port's full name.
    pub port: String,
    /// Whether a VM may open several queues of it (and must ask for several, then).
    pub multi_queue: bool,
}

impl From<&PortRow> for TapWish {
    fn from(row: &PortRow) -> Self {
        Self { device: row.device.clone(), port: row.name.to_string(), multi_queue: row.queues > 1 }
    }
}

/// What became of some wishes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Made {
    /// Whether a device is new.
    pub changed: bool,
    /// Taps that cannot be had, and why.
    pub troubles: BTreeMap<String, String>,
    /// Taps that were there before and had to be made again, in plain words.
    pub again: Vec<String>,
    /// What is to be known of taps that are there, by the port's name.
    pub notes: BTreeMap<String, String>,
}

/// The taps of one agent's run.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    /// Made or taken over, or left behind by a port while a VM has it open.
    known: BTreeSet<String>,
    /// Whether what an earlier run left behind is among them.
    looked: bool,
}

impl Taps {
    pub(crate) fn make(&mut self, links: &Links, wishes: &[TapWish]) -> Made {
        let mut made = Made::default();
        let there: BTreeMap<String, Link> = match links.list() {
            Ok(list) => list.into_iter().map(|l| (l.name.clone(), l)).collect(),
            Err(e) => {
                let why = format!("the devices of this host cannot be listed: {}", crate::session::chain(&e));
                made.troubles.extend(wishes.iter().map(|w| (w.device.clone(), why.clone())));
                return made;
            }
        };
        for wish in wishes {
            if let Some(link) = there.get(&wish.device).filter(|l| is_ours(l) && l.connected)
                && link.multi_queue != wish.multi_queue
            {
                made.notes.insert(wish.port.clone(), other_queues(wish));
            }
            match self.one(links, there.get(&wish.device), wish) {
                Ok(None) => {}
                Ok(Some(line)) => {
                    made.changed = true;
                    made.again.extend((!line.is_empty()).then_some(line));
                }
                Err(trouble) => drop(made.troubles.insert(wish.device.clone(), trouble)),
            }
        }
        made
    }

    /// Makes one if need be: nothing, or what to tell of it (empty: that it is new is no news).
    fn one(&mut self, links: &Links, link: Option<&Link>, wish: &TapWish) -> Result<Option<String>, String> {
        let name = &wish.device;
        let mut news = String::new();
        if let Some(link) = link {
            if !is_ours(link) || link.alias != Some(format!("{MARK}{}", wish.port)) {
                return Err(format!(
                    "device {name} of this host is not the tap that the agent makes for {}: remove or rename it, \
                     or attach the port to it with --device {name}",
                    wish.port
                ));
            }
            // The kernel lets nobody turn one into the other; whoever has it open keeps it until he lets go.
            if link.multi_queue == wish.multi_queue || link.connected {
                self.known.insert(name.clone());
                return Ok(None);
            }
            delete(links, name).map_err(|e| crate::session::chain(&e))?;
        } else if self.known.contains(name) {
            news = format!("tap {name} of {} was gone: made again", wish.port);
        }
        let options = TapOptions { vnet_hdr: true, multi_queue: wish.multi_queue };
        let failed = |e: Error| {
            format!("tap {name} cannot be made: {} (is the module tun loaded?)", crate::session::chain(&e))
        };
        links.make_tap(name, options, &format!("{MARK}{}", wish.port), QUEUE_LEN).map_err(failed)?;
        tracing::info!(tap = name, port = wish.port, "tap made");
        self.known.insert(name.clone());
        Ok(Some(news))
    }

    /// Removes the own taps that nobody wants. One that a VM still has open stays until it lets go, as the source's
    /// does after a migration: its port is in no table, so that nothing passes, and an attached port finds it again.
    pub(crate) fn drop_unwanted(&mut self, links: &Links, wanted: &BTreeSet<&str>) -> Result<(), Error> {
        if self.looked && self.known.iter().all(|name| wanted.contains(name.as_str())) {
            return Ok(());
        }
        let list = links.list()?;
        let mut left = BTreeSet::new();
        for link in list.iter().filter(|l| is_ours(l) && !wanted.contains(l.name.as_str())) {
            if link.connected {
                left.insert(link.name.clone());
                continue;
            }
            delete(links, &link.name)?;
            tracing::info!(tap = link.name, port = link.alias, "tap removed");
        }
        self.known.retain(|name| wanted.contains(name.as_str()));
        self.known.extend(left);
        self.looked = true;
        Ok(())
    }
}

/// A VM has the tap open as it was made before the port's queues were changed.
fn other_queues(wish: &TapWish) -> String {
    let (has, wants) = if wish.multi_queue { ("one queue", "several") } else { ("several queues", "one") };
    format!(
        "a VM has tap {} open with {has}, and its port has {wants} now: stop the VM and start it with the port's queues \
         (`tenet vm run-args`, or <driver queues='N'/> in libvirt); once it lets go, the agent makes the tap anew",
        wish.device
    )
}

/// Gives a tap of our own the MTU that its port has.
pub(crate) fn set_mtu(links: &Links, ifindex: u32, port: &Port) -> Result<(), Error> {
    let mtu = u32::from(port.mtu);
    if port.device != DEVICE_TAP || mtu == 0 {
        return Ok(());
    }
    match links.by_index(ifindex)? {
        Some(link) if is_ours(&link) && link.mtu != mtu => links.set_mtu(&link.name, mtu),
        _ => Ok(()),
    }
}

/// Removes all taps that an agent made in this namespace; how many, and of which ports VMs had them open: a VM does
/// not get its tap back, so those must be started again.
pub(crate) fn remove_all(links: &Links) -> Result<(usize, Vec<String>), Error> {
    let (mut removed, mut open) = (0, Vec::new());
    for link in links.list()?.iter().filter(|l| is_ours(l)) {
        delete(links, &link.name)?;
        removed += 1;
        if link.connected {
            let port = link.alias.as_deref().and_then(|a| a.strip_prefix(MARK));
            open.push(port.unwrap_or_default().to_owned());
        }
    }
    Ok((removed, open))
}

/// Whether an agent made this device: it is a tap, has our mark, and the name that belongs to the mark.
fn is_ours(link: &Link) -> bool {
    let port = link.alias.as_ref().and_then(|a| a.strip_prefix(MARK)).and_then(|p| p.parse::<PortRef>().ok());
    link.kind == Kind::Tap && port.is_some_and(|p| tap_name(&p) == link.name)
}

/// Gone is gone, whoever was faster.
fn delete(links: &Links, name: &str) -> Result<(), Error> {
    match links.delete_link(name) {
        Err(e) if e.is_missing() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenet_hostnet::Netns;

    /// A namespace of its own; `None` (said aloud) without root.
    fn host() -> Option<Links> {
        match Netns::anonymous().and_then(|n| Links::in_netns(&n)) {
            Ok(links) => Some(links),
            Err(e) => {
                eprintln!("SKIPPED: needs root to create network namespaces: {e}");
                None
            }
        }
    }

    fn wish(port: &str, multi_queue: bool) -> TapWish {
        TapWish { device: tap_name(&port.parse().unwrap()), port: port.into(), multi_queue }
    }

    fn open(links: &Links, wish: &TapWish) -> std::os::fd::OwnedFd {
        links.set_up(&wish.device).unwrap();
        let options = TapOptions { vnet_hdr: true, multi_queue: wish.multi_queue };
        links.open_tap(&wish.device, options).unwrap()
    }

    #[test]
    fn taps_are_made_marked_adopted_and_removed() {
        let Some(links) = host() else { return };
        let (sql, web) = (wish("contoso/sql/eth0", false), wish("contoso/web/eth0", true));
        let mut taps = Taps::default();
        let made = taps.make(&links, &[sql.clone(), web.clone()]);
        assert_eq!(made, Made { changed: true, ..Made::default() });
        let link = links.get(&sql.device).unwrap();
        assert_eq!((link.alias.as_deref(), link.queue_len), (Some("tenet:contoso/sql/eth0"), QUEUE_LEN));
        assert!(!link.up, "it is set up once it carries the program");
        assert!(links.get(&web.device).unwrap().multi_queue);

        // A restarted agent finds the same device; one that was removed is made again, and said.
        let mut taps = Taps::default();
        assert_eq!(taps.make(&links, std::slice::from_ref(&sql)), Made::default());
        assert_eq!(links.get(&sql.device).unwrap().index, link.index);
        links.delete_link(&sql.device).unwrap();
        let made = taps.make(&links, std::slice::from_ref(&sql));
        assert!(made.changed && made.again[0].contains("made again"), "{made:?}");

        // What a VM has open stays until it lets go.
        let held = open(&links, &web);
        taps.drop_unwanted(&links, &BTreeSet::from([sql.device.as_str()])).unwrap();
        assert!(links.find(&web.device).unwrap().is_some());
        drop(held);
        taps.drop_unwanted(&links, &BTreeSet::from([sql.device.as_str()])).unwrap();
        assert!(links.find(&web.device).unwrap().is_none());
        assert!(links.find(&sql.device).unwrap().is_some());
        assert_eq!(remove_all(&links).unwrap(), (1, Vec::new()));
        assert!(links.find(&sql.device).unwrap().is_none());
    }

    #[test]
    fn a_strange_device_of_the_name_is_left_alone() {
        let Some(links) = host() else { return };
        let sql = wish("contoso/sql/eth0", false);
        let mut taps = Taps::default();
        for alias in ["", "tenet:contoso/web/eth0", "somebody's"] {
            links.add_tap(&sql.device, TapOptions::default()).unwrap();
            links.set_alias(&sql.device, alias).unwrap();
            let index = links.index(&sql.device).unwrap();
            let made = taps.make(&links, std::slice::from_ref(&sql));
            assert!(made.troubles[&sql.device].contains("not the tap"), "{made:?}");
            taps.drop_unwanted(&links, &BTreeSet::new()).unwrap();
            assert_eq!(remove_all(&links).unwrap().0, 0);
            assert_eq!(links.index(&sql.device).unwrap(), index, "{alias}");
            links.delete_link(&sql.device).unwrap();
        }
        // Not even a bridge with our mark.
        links.add_bridge(&sql.device).unwrap();
        links.set_alias(&sql.device, "tenet:contoso/sql/eth0").unwrap();
        assert!(taps.make(&links, std::slice::from_ref(&sql)).troubles.contains_key(&sql.device));
        assert_eq!(remove_all(&links).unwrap().0, 0);
    }

    #[test]
    fn other_queues_make_another_tap_once_nobody_has_it_open() {
        let Some(links) = host() else { return };
        let (one, several) = (wish("contoso/sql/eth0", false), wish("contoso/sql/eth0", true));
        let mut taps = Taps::default();
        taps.make(&links, std::slice::from_ref(&one));
        let held = open(&links, &one);
        let made = taps.make(&links, std::slice::from_ref(&several));
        assert_eq!((made.changed, made.troubles.len()), (false, 0), "{made:?}");
        let note = &made.notes[&one.port];
        assert!(note.contains("open with one queue") && note.contains("has several now"), "{note}");
        assert!(!links.get(&one.device).unwrap().multi_queue, "a running VM keeps its own");
        drop(held);
        assert!(taps.make(&links, std::slice::from_ref(&several)).changed);
        assert!(links.get(&one.device).unwrap().multi_queue);
    }

    #[test]
    fn a_tap_that_is_open_is_kept_also_while_it_is_down() {
        let Some(links) = host() else { return };
        let (one, several) = (wish("contoso/sql/eth0", false), wish("contoso/sql/eth0", true));
        let mut taps = Taps::default();
        taps.make(&links, std::slice::from_ref(&one));
        assert!(!links.get(&one.device).unwrap().connected);
        // The program could not be attached, so it is down; the VM was started all the same.
        let options = TapOptions { vnet_hdr: true, multi_queue: false };
        let held = links.open_tap(&one.device, options).unwrap();
        let index = links.index(&one.device).unwrap();
        assert!(!links.get(&one.device).unwrap().up);
        assert!(!taps.make(&links, std::slice::from_ref(&several)).changed);
        taps.drop_unwanted(&links, &BTreeSet::new()).unwrap();
        assert_eq!(links.index(&one.device).unwrap(), index, "still the one that the VM has");
        // Whoever takes Tenet off the host is told whose network is gone for good.
        assert_eq!(remove_all(&links).unwrap(), (1, vec!["contoso/sql/eth0".to_owned()]));
        drop(held);
    }

    #[test]
    fn only_taps_of_our_own_get_the_ports_mtu() {
        let Some(links) = host() else { return };
        let sql = wish("contoso/sql/eth0", false);
        Taps::default().make(&links, std::slice::from_ref(&sql));
        links.add_tap("other", TapOptions::default()).unwrap();
        let port = Port { mtu: 1450, device: DEVICE_TAP, ..Port::default() };
        for (name, mtu) in [(sql.device.as_str(), 1450), ("other", 1500)] {
            set_mtu(&links, links.index(name).unwrap(), &port).unwrap();
            assert_eq!(links.get(name).unwrap().mtu, mtu, "{name}");
        }
        set_mtu(&links, 9999, &port).unwrap();
    }
}
