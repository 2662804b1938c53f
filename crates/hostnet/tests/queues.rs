//! Frames that wait in a tap that somebody else has open, of a real kernel.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};
use tenet_hostnet::{FrameSocket, Holder, Holders, Links, Netns, Queue, TapOptions, wait};

const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// A tap's name that no other test has, nor another run of this one: each looks at what all processes have open.
fn own_name(test: &str) -> String {
    format!("{test}{}", std::process::id())
}

/// A namespace with a tap of that name, which nobody reads; `None` (said aloud) without root.
fn host(name: &str) -> Option<(Links, Vec<OwnedFd>)> {
    let links = match Netns::anonymous().and_then(|n| Links::in_netns(&n)) {
        Ok(links) => links,
        Err(e) => {
            eprintln!("SKIPPED: needs root to create network namespaces: {e}");
            return None;
        }
    };
    let options = TapOptions { vnet_hdr: true, multi_queue: true };
    let queues: Vec<_> = (0..2).map(|_| links.open_tap(name, options).unwrap()).collect();
    // As QEMU has it.
    let length: libc::c_int = 12;
    // SAFETY: the request reads one number, which is live.
    assert_eq!(unsafe { libc::ioctl(queues[0].as_raw_fd(), TUNSETVNETHDRSZ, &raw const length) }, 0);
    links.set_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1").unwrap();
    links.add_addr(name, [10, 9, 0, 1].into(), 24).unwrap();
    links.set_up(name).unwrap();
    Some((links, queues))
}

/// Sends broadcasts of so many flows.
fn send(links: &Links, flows: u16, text: &str) {
    let send = || {
        for port in 0..flows {
            let socket = UdpSocket::bind(("10.9.0.1", 4000 + port)).unwrap();
            socket.set_broadcast(true).unwrap();
            socket.send_to(text.as_bytes(), "10.9.0.255:9").unwrap();
        }
    };
    links.netns().run(send).unwrap();
}

/// Waits for what comes soon. The other tests of this process read what its descriptors are, which keeps each file for
/// a moment: one that is closed just then ends that much later.
fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        std::thread::yield_now();
    }
}

fn queues(links: &Links, name: &str, holders: &Holders) -> Vec<Queue> {
    let found = holders.by_tap.get(name).into_iter().flatten();
    found.filter_map(|holder| Queue::of(*holder, name, links.netns()).unwrap()).collect()
}

#[test]
fn all_that_waits_in_every_queue_is_taken_and_nothing_of_a_namesake() {
    let name = &own_name("waits");
    let (Some((links, own)), Some((other, namesake))) = (host(name), host(name)) else { return };
    send(&links, 40, "wanted");
    send(&other, 40, "another's");
    let taps = BTreeSet::from([name.clone()]);
    let pids = BTreeSet::from([std::process::id()]);
    let holders = Holders::find(&taps, Some(&pids));
    assert_eq!(holders.by_tap[name].len(), 4, "{holders:?}");
    let mut queues = queues(&links, name, &holders);
    assert_eq!(queues.len(), 2);
    assert!(wait(&queues, Duration::ZERO).unwrap());
    let mut counts = Vec::new();
    for queue in &mut queues {
        let mut count = 0;
        while let Some(waiting) = queue.take().unwrap() {
            assert!(waiting.frame.ends_with(b"wanted"), "{waiting:?}");
            assert_eq!(waiting.frame[..6], [0xff; 6], "the header is told from the frame");
            count += 1;
        }
        counts.push(count);
    }
    // Both are used, and a blocking descriptor (as these are) does not block.
    assert!(counts.iter().sum::<usize>() == 40 && counts.iter().all(|c| *c > 0), "{counts:?}");
    assert!(!wait(&queues, Duration::from_millis(5)).unwrap());

    // The copy is the queue: it keeps the carrier, which goes with it.
    drop(own);
    assert!(links.find(name).unwrap().is_some());
    drop(queues);
    until("the tap ends with its last queue", || links.find(name).unwrap().is_none().then_some(()));
    drop(namesake);
}

#[test]
fn a_frame_that_is_sent_out_of_a_tap_waits_for_its_reader() {
    let name = &own_name("given");
    let Some((links, own)) = host(name) else { return };
    let index = links.index(name).unwrap();
    let frame = [&[2; 12][..], &[0x88, 0xb5], &[7; 46]].concat();
    let socket = FrameSocket::in_netns(links.netns()).unwrap();
    socket.send(index, &frame).unwrap();
    let taps = BTreeSet::from([name.clone()]);
    let holders = Holders::find(&taps, Some(&BTreeSet::from([std::process::id()])));
    let mut queues = queues(&links, name, &holders);
    let taken: Vec<_> = queues.iter_mut().filter_map(|queue| queue.take().unwrap()).collect();
    assert_eq!(taken.iter().map(|w| &w.frame[..]).collect::<Vec<_>>(), [&frame[..]]);
    drop((queues, own));
    let gone =
        until("nothing is sent to a tap that is gone", || socket.send(index, &frame).err()).to_string();
    assert!(gone.contains(&format!("device {index}")), "{gone}");
}

#[test]
fn a_descriptor_that_is_something_else_now_is_refused() {
    let name = &own_name("other");
    let Some((links, own)) = host(name) else { return };
    let taps = BTreeSet::from([name.clone(), "other".to_owned()]);
    let holders = Holders::find(&taps, None);
    assert_eq!(queues(&links, name, &holders).len(), 2);
    let [holder, _] = holders.by_tap[name][..] else { panic!("{holders:?}") };
    assert!(Queue::of(holder, "other", links.netns()).unwrap().is_none());
    let file = std::fs::File::open("/dev/null").unwrap();
    let null = Holder { fd: file.as_raw_fd(), ..holder };
    assert!(Queue::of(null, name, links.netns()).unwrap().is_none());
    let closed = Holder { fd: 9999, ..holder };
    assert!(Queue::of(closed, name, links.netns()).unwrap().is_none());
    drop(own);
    // A device that is gone, with a copy still open.
    let holders = Holders::find(&taps, None);
    assert!(holders.by_tap.is_empty(), "{holders:?}");
}
