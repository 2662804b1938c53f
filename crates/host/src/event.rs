//! Events of the data plane: names added, floods of them held back.

use crate::message::EventReport;
use std::{collections::BTreeMap, net::IpAddr, time::Duration};
use tenet_tables::{DropReason, Event, EventKind};

/// Events of one kind from one device in one go.
const BURST: u32 = 10;
/// Time after which one more is let through.
const REFILL: Duration = Duration::from_secs(1);
/// Devices and kinds remembered; beyond it all start afresh.
const REMEMBERED: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: u32,
    at: Duration,
    held_back: u64,
}

/// Lets through a burst of each kind from each device, then one a second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limiter {
    buckets: BTreeMap<(u32, u32), Bucket>,
}

impl Limiter {
    /// Whether to report an event now; then with how many like it were held back before.
    pub(crate) fn admit(&mut self, now: Duration, event: &Event) -> Option<u64> {
        if self.buckets.len() > REMEMBERED {
            self.buckets.clear();
        }
        let full = Bucket { tokens: BURST, at: now, held_back: 0 };
        let b = self.buckets.entry((event.kind, event.ifindex)).or_insert(full);
        let earned = u32::try_from(now.saturating_sub(b.at).as_secs() / REFILL.as_secs()).unwrap_or(u32::MAX);
        if earned > 0 {
            b.tokens = b.tokens.saturating_add(earned).min(BURST);
            b.at = now;
        }
        if b.tokens == 0 {
            b.held_back += 1;
            return None;
        }
        b.tokens -= 1;
        Some(std::mem::take(&mut b.held_back))
    }
}

/// The report of an event seen at `port`, or nothing for a kind that we do not know.
pub(crate) fn report(event: &Event, port: String, held_back: u64) -> Option<EventReport> {
    let kind = EventKind::from_number(event.kind)?;
    let octets = event.mac.octets();
    let mac = if octets == [0; 6] { String::new() } else { octets.map(|o| format!("{o:02x}")).join(":") };
    let ca = (!event.ca.is_unset()).then(|| IpAddr::from(event.ca));
    let pa = (!event.pa.is_unset()).then(|| IpAddr::from(event.pa));
    let at = if port.is_empty() { format!("interface {}", event.ifindex) } else { port.clone() };
    let ca_text = ca.map_or_else(|| "no address".to_owned(), |a| a.to_string());
    let pa_text = pa.map_or_else(|| "no address".to_owned(), |a| a.to_string());
    let mut text = match kind {
        EventKind::UnknownDestination => format!("{at} sends to {ca_text}, which no VM of its network has"),
        EventKind::Spoof => format!("{at} sends with MAC {mac} and {ca_text}, which are not its own"),
        EventKind::UnknownPa => {
            format!("{at} received an encapsulated frame from {pa_text}, which is no host of this site")
        }
        EventKind::MovedAddress => format!("{at} received {ca_text} from {pa_text}, but it lives elsewhere"),
        EventKind::DuplicateAddress => format!("{at} announces {ca_text}, which another port has"),
        EventKind::PortActivated => format!("{at} sent its first frame on this host"),
        EventKind::Redirected => format!("a frame for {at} was sent on to {pa_text}"),
    };
    if held_back > 0 {
        text.push_str(&format!(" ({held_back} more like it were not shown)"));
    }
    Some(EventReport { kind: kind.name(), port, vsid: event.vsid, mac, ca, pa, text })
}

/// The report of frames that were dropped at an uplink for their marks of congestion (RFC 6040 §4.2 wants an alarm).
pub(crate) fn congested(port: String, frames: u64) -> EventReport {
    let drop = DropReason::EcnMismatch.name();
    let text = format!(
        "{frames} encapsulated frames were dropped at {port} ({drop}): they were marked as congested on their way, though \
         the flows inside of them do not use ECN and were sent without it, so they could hear of it only by the loss. A \
         router of the provider network marks packets that it must not mark, or somebody sets the outer ECN field: \
         capture on {port} and look whose packets have both bits set, and at that router's queue configuration"
    );
    EventReport { kind: drop, port, vsid: 0, mac: String::new(), ca: None, pa: None, text }
}
