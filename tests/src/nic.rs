//! A NIC, to send and see single frames.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tenet_hostnet::Netns;
use tenet_lab::packet::PacketSocket;
use tenet_wire::parse::{self, Payload};
use tenet_wire::{Arp, Icmp, Mac, ProtocolNumber};

use crate::frame::{self, Packet};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A NIC of a VM.
#[derive(Debug)]
pub struct Nic {
    netns: Netns,
    link: String,
    tx: PacketSocket,
    /// The VM's name.
    pub name: String,
    /// Its MAC.
    pub mac: Mac,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its gateway.
    pub gateway: Ipv4Addr,
}

/// An ICMP error as a VM sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IcmpError {
    /// Who says so.
    pub from: Ipv4Addr,
    /// Type.
    pub ty: u8,
    /// Code.
    pub code: u8,
    /// Next-hop MTU, if it is about that.
    pub mtu: u16,
}

impl Nic {
    /// Opens a NIC.
    #[must_use]
    pub fn open(netns: &Netns, name: &str, link: &str, mac: Mac, ip: Ipv4Addr, gateway: Ipv4Addr) -> Self {
        let tx = PacketSocket::sender(netns, link).unwrap();
        Self { netns: netns.clone(), link: link.to_owned(), tx, name: name.to_owned(), mac, ip, gateway }
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) {
        self.tx.send(frame).unwrap();
    }

    /// Begins to watch what comes in.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch::start(&self.netns, &self.link, Some(self.mac))
    }

    /// Sends a frame and waits for a frame in which `find` finds something.
    pub fn ask<T>(&self, frame: &[u8], find: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        self.ask_within(PATIENCE, frame, find)
    }

    /// The same with another patience.
    pub fn ask_within<T>(
        &self,
        patience: Duration,
        frame: &[u8],
        mut find: impl FnMut(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let rx = PacketSocket::receiver(&self.netns, &self.link).unwrap();
        self.send(frame);
        let until = Instant::now() + patience;
        let mut buffer = vec![0; 70_000];
        loop {
            let left = until.checked_duration_since(Instant::now())?;
            if let Some(bytes) = rx.receive(&mut buffer, left).unwrap()
                && !is_from(bytes, self.mac)
                && let Some(found) = find(bytes)
            {
                return Some(found);
            }
        }
    }

    /// The MAC that answers for an address, by a broadcast request or (with `to`) a unicast one.
    pub fn who_has(&self, target: Ipv4Addr, to: Option<Mac>, patience: Duration) -> Option<Mac> {
        let dst = to.unwrap_or(Mac::BROADCAST);
        let request = frame::arp(dst, self.mac, true, (self.mac, self.ip), (Mac::default(), target));
        self.ask_within(patience, &request, |bytes| answer_for(bytes, target))
    }

    /// A DAD probe (RFC 5227 §2.1.1): the MAC that already has the address.
    pub fn dad(&self, target: Ipv4Addr, patience: Duration) -> Option<Mac> {
        let probe = frame::arp(
            Mac::BROADCAST,
            self.mac,
            true,
            (self.mac, Ipv4Addr::UNSPECIFIED),
            (Mac::default(), target),
        );
        self.ask_within(patience, &probe, |bytes| answer_for(bytes, target))
    }

    /// Pings an address behind a MAC; whether it answered.
    pub fn ping(&self, dst: Mac, to: Ipv4Addr) -> bool {
        self.ping_within(PATIENCE, dst, to)
    }

    /// The same with another patience.
    pub fn ping_within(&self, patience: Duration, dst: Mac, to: Ipv4Addr) -> bool {
        let id = std::process::id() as u16 ^ to.octets()[3] as u16;
        let ping = Packet::echo(self.ip, to, id, b"0123456789").frame(dst, self.mac);
        let own = self.ip;
        let answered = self.ask_within(patience, &ping, |bytes| {
            let (header, payload) = ipv4(bytes)?;
            let good = header.protocol == ProtocolNumber::ICMP
                && frame::ip(header.src) == to
                && frame::ip(header.dst) == own
                && payload.first() == Some(&Icmp::ECHO_REPLY)
                && payload.get(4..6) == Some(&id.to_be_bytes()[..])
                && payload.get(8..) == Some(&b"0123456789"[..]);
            good.then_some(())
        });
        answered.is_some()
    }

    /// Sends a frame and waits for the ICMP error that it causes.
    pub fn error(&self, frame: &[u8]) -> Option<IcmpError> {
        let own = self.ip;
        self.ask(frame, |bytes| {
            let error = icmp_error(bytes)?;
            (frame::ip(ipv4(bytes)?.0.dst) == own).then_some(error)
        })
    }
}

fn is_from(bytes: &[u8], mac: Mac) -> bool {
    bytes.get(6..12) == Some(&mac.octets()[..])
}

/// An IPv4 frame's header and payload.
#[must_use]
pub fn ipv4(bytes: &[u8]) -> Option<(tenet_wire::Ipv4, &[u8])> {
    match parse::frame(bytes).ok()?.payload {
        Payload::Ipv4(header, payload) => Some((header, payload)),
        Payload::Arp(_) | Payload::Ipv6(..) | Payload::Other(_) => None,
    }
}

/// The MAC in an ARP answer for this address.
fn answer_for(bytes: &[u8], target: Ipv4Addr) -> Option<Mac> {
    match parse::frame(bytes).ok()?.payload {
        Payload::Arp(arp) if arp.operation == Arp::REPLY && frame::ip(arp.sender) == target => {
            Some(arp.sender_mac)
        }
        Payload::Arp(_) | Payload::Ipv4(..) | Payload::Ipv6(..) | Payload::Other(_) => None,
    }
}

fn icmp_error(bytes: &[u8]) -> Option<IcmpError> {
    let (header, payload) = ipv4(bytes)?;
    let ty = *payload.first()?;
    if header.protocol != ProtocolNumber::ICMP || !Icmp::is_error(ty) {
        return None;
    }
    let mtu = u16::from_be_bytes([*payload.get(6)?, *payload.get(7)?]);
    Some(IcmpError { from: frame::ip(header.src), ty, code: *payload.get(1)?, mtu })
}

/// Keeps what comes in at a device until it is stopped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Vec<u8>>>>,
}

impl Watch {
    /// Begins; frames from the MAC `except` are not kept.
    #[must_use]
    pub fn start(netns: &Netns, device: &str, except: Option<Mac>) -> Self {
        let rx = PacketSocket::receiver(netns, device).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let watch = move || {
            let (mut frames, mut buffer) = (Vec::new(), vec![0; 70_000]);
            loop {
                let got = rx.receive(&mut buffer, Duration::from_millis(20)).unwrap();
                match got {
                    Some(bytes) if except.is_none_or(|mac| !is_from(bytes, mac)) => {
                        frames.push(bytes.to_vec())
                    }
                    Some(_) => {}
                    // Only after a silence, so that nothing queued is missed.
                    None if stopped.load(Ordering::Relaxed) => return frames,
                    None => {}
                }
            }
        };
        Self { stop, thread: Some(std::thread::spawn(watch)) }
    }

    /// Ends when the device has been silent for a moment; what came in.
    #[must_use]
    pub fn stop(mut self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
