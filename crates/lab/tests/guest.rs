//! A real guest, from its image to its end, without a lab around it.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tenet_hostnet::{Links, Netns, TapOptions};
use tenet_lab::guest::{Guest, GuestOptions, Image, Nic, missing};
use tenet_lab::tool::{Probe, Stream, ask};

const UP: Duration = Duration::from_secs(60);

/// A namespace with a tap and a folder, which go with the test.
struct Place {
    netns: Netns,
    name: String,
    dir: PathBuf,
}

impl Place {
    fn new(what: &str) -> Self {
        let name = format!("guest-{}-{what}", std::process::id());
        let netns = Netns::create(&name).unwrap();
        let links = Links::in_netns(&netns).unwrap();
        links.set_up("lo").unwrap();
        links.add_tap("tap0", TapOptions::default()).unwrap();
        links.set_up("tap0").unwrap();
        let dir = std::env::temp_dir().join(&name);
        Self { netns, name, dir }
    }

    fn options(&self) -> GuestOptions {
        let mut nic = Nic::new("tap0", "52:54:00:00:00:21".parse().unwrap(), 1400);
        nic.link = "net0".to_owned();
        nic.addresses = vec![("10.9.0.21".parse().unwrap(), 24), ("fd09::21".parse().unwrap(), 64)];
        nic.gateways = vec!["10.9.0.1".parse().unwrap(), "fd09::1".parse().unwrap()];
        let mut options = GuestOptions::new("test/one", &self.dir);
        options.nics.push(nic);
        options
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        Netns::delete(&self.name).unwrap();
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

#[test]
fn a_guest_boots_runs_commands_answers_probes_and_moves() {
    if let Some(why) = missing() {
        return println!("SKIPPED: {why}");
    }
    let image = Image::build().unwrap();
    let here = Place::new("a");
    let begin = Instant::now();
    let guest = Guest::boot(&image, &here.netns, here.options()).unwrap();
    guest.wait_up(UP).unwrap();
    println!("up after {:?}", begin.elapsed());

    // Commands: streams, code, words as they are, no such command, one that does not end.
    let begin = Instant::now();
    let said = guest.exec(["sh", "-c", "echo \"$0 $1\"; echo err >&2; exit 7", "a b", "c\"d"]).unwrap();
    println!("a command took {:?}", begin.elapsed());
    assert_eq!((said.code, said.stdout().as_ref(), said.stderr().as_ref()), (7, "a b c\"d\n", "err\n"));
    let error = guest.exec(["no-such-thing"]).unwrap_err();
    assert!(format!("{error:?}").contains("No such file"), "{error:?}");
    let error = guest.exec_within(["sleep", "1234"], Duration::from_secs(1)).unwrap_err();
    assert!(error.to_string().contains("has not finished `sleep 1234`"), "{error}");
    let ended = Instant::now();
    while guest.exec(["pidof", "sleep"]).unwrap().code == 0 {
        assert!(ended.elapsed() < Duration::from_secs(10), "what nobody waits for goes on");
    }
    let big = guest.exec(["sh", "-c", "seq 1 50000"]).unwrap();
    assert_eq!(big.stdout().lines().count(), 50_000);
    let link = guest.exec(["ip", "addr", "show", "net0"]).unwrap();
    for part in ["mtu 1400", "52:54:00:00:00:21", "10.9.0.21/24", "fd09::21/64"] {
        assert!(link.stdout().contains(part), "{}", link.stdout());
    }
    let routes = guest.exec(["sh", "-c", "ip route; ip -6 route"]).unwrap();
    assert!(
        routes.stdout().contains("via 10.9.0.1") && routes.stdout().contains("via fd09::1"),
        "{}",
        routes.stdout()
    );

    // Its services, by both families.
    let links = Links::in_netns(&here.netns).unwrap();
    for (own, length, who) in [("10.9.0.1", 24, "10.9.0.21"), ("fd09::1", 64, "fd09::21")] {
        let (own, who): (IpAddr, IpAddr) = (own.parse().unwrap(), who.parse().unwrap());
        links.set_sysctl("ipv6/conf/tap0/accept_dad", "0").unwrap();
        links.add_addr("tap0", own, length).unwrap();
        let name = ask(&here.netns, who, UP).unwrap();
        assert_eq!(name.as_deref(), Some("test/one"), "{who}");
    }
    let sql: IpAddr = "10.9.0.21".parse().unwrap();
    let probe = Probe::start(&here.netns, sql, "test/one", 1000).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let probe = probe.stop().unwrap();
    println!("{probe:?}");
    assert!(probe.sent > 500 && probe.lost == 0 && probe.strangers == 0, "{probe:?}");
    let stream = Stream::start(&here.netns, sql, Duration::from_millis(5)).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let stream = stream.stop().unwrap();
    println!("{stream:?}");
    assert!(stream.received.in_order && stream.received.bytes == stream.sent && stream.sent > 1_000_000);

    // Another handle reaches it too, and going does it no harm.
    drop(Guest::open(guest.record().clone()));
    assert!(guest.runs());

    // A move to another namespace keeps what is in its memory.
    guest.exec(["sh", "-c", "echo remember >/tmp/memory"]).unwrap();
    let there = Place::new("b");
    let socket = there.dir.join("in.sock");
    let mut options = there.options();
    options.incoming = Some(format!("unix:{}", socket.display()));
    let moved = Guest::boot(&image, &there.netns, options).unwrap();
    let mut events = moved.qmp().unwrap();
    let cost = guest.qmp().unwrap().migrate(&format!("unix:{}", socket.display()), UP).unwrap();
    println!("{cost:?}");
    assert!(events.wait_event("RESUME", UP).unwrap().is_some());
    drop(events);
    guest.stop().unwrap();
    assert_eq!(moved.exec(["cat", "/tmp/memory"]).unwrap().stdout(), "remember\n");

    // What goes wrong is said with the console's last words.
    moved.exec(["sh", "-c", "echo last words >/dev/ttyS0; poweroff -f"]).unwrap_err();
    let begin = Instant::now();
    while moved.runs() && begin.elapsed() < UP {
        std::thread::sleep(Duration::from_millis(20));
    }
    let error = moved.exec(["true"]).unwrap_err().to_string();
    assert!(error.contains("test/one") && error.contains("last words"), "{error}");
}
