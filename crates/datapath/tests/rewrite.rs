//! IP Rewrite between two hosts with a router in between, through the kernel's own stacks: in the VMs, whose counters
//! of bad checksums must stay at zero, in the router, which sees nothing but ordinary packets, and in the hosts, which
//! must not see anything.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use common::rewrite::*;
use common::{has, root};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Instant;
use tenet_datapath::{Hook, Role};
use tenet_hostnet::{Links, Netns};
use tenet_tables::{Addr, DropReason, MacKey, PORT_ACTIVE, PORT_MOVED, Port, RecordKey, Rewrite, RewriteKey};
use tenet_wire::Mac;

fn can() -> bool {
    root() && has(Hook::Tcx)
}

fn everything(site: &Site) {
    for v6 in [false, true] {
        for to in [1, 2] {
            for len in [0, 56, 1400, 4000] {
                site.ping(to, v6, len);
            }
            // The last ones are fragments.
            for len in [1, 2, 500, 1400, 1472 - 20, 4000, 20_000] {
                site.echo(to, v6, len, false);
            }
            if !v6 {
                site.echo(to, v6, 333, true);
                site.echo(to, v6, 5000, true);
            }
            site.transfer(to, v6, 100);
        }
    }
}

#[test]
fn all_traffic_crosses_with_offloads() {
    if !can() {
        return;
    }
    let site = Site::new(true);
    // Neighbours are known after this, and routers have been discovered or not.
    site.ping(1, false, 56);
    site.ping(1, true, 56);
    let before = site.seen_by_stacks();
    everything(&site);
    site.check_sums();
    let seen = site.seen_by_stacks() - before;
    assert!(seen < 30, "the hosts' stacks saw {seen} packets");
}

/// Without offloads all checksums are on the wire, and a packet analyzer between the hosts judges each.
#[test]
fn all_traffic_crosses_without_offloads_and_every_checksum_on_the_wire_is_right() {
    if !can() {
        return;
    }
    let site = Site::new(false);
    let dump = std::env::temp_dir().join(format!("tenet-rewrite-{}.pcap", std::process::id()));
    let Some(capture) = Capture::start(&site.router, "r1", &dump) else {
        return everything(&site);
    };
    everything(&site);
    site.check_sums();
    capture.stop();
    let packets = |filter: &str| {
        let mut tshark = Command::new("tshark");
        tshark.arg("-r").arg(&dump).args(["-Y", filter]);
        for protocol in ["ip", "tcp", "udp"] {
            tshark.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
        }
        let out = tshark.stderr(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let count = |filter: &str| packets(filter).len();
    // The kernel writes a TCP checksum of zero that it computes itself as the other zero, which receivers accept (their
    // counters say so) and the analyzer does not like. And it takes a payload for what its port number suggests.
    let bad = "ip.checksum.status == 0 || (tcp.checksum.status == 0 && tcp.checksum != 0xffff) \
        || udp.checksum.status == 0 || icmp.checksum.status == 0 || icmpv6.checksum.status == 0 \
        || (_ws.malformed && !tcp && !udp)";
    let good = [
        count("tcp.checksum.status == 1 && ip"),
        count("tcp.checksum.status == 1 && ipv6"),
        count("udp.checksum.status == 1 && ip"),
        count("udp.checksum.status == 1 && ipv6"),
        count("icmp.checksum.status == 1"),
        count("icmpv6.checksum.status == 1"),
    ];
    let customers = packets("ip.addr == 10.1.0.0/16 || ipv6.addr == fd00::/48");
    let wrong = packets(bad);
    println!("good: {good:?}, bad: {}, with customer addresses: {}", wrong.len(), customers.len());
    drop(std::fs::remove_file(&dump));
    assert!(good.iter().all(|n| *n >= 8), "{good:?}");
    assert!(wrong.is_empty(), "wrong on the wire: {wrong:#?}");
    assert!(customers.is_empty(), "customer addresses on the wire: {customers:#?}");
}

/// A packet capture; none if there is no tshark here.
struct Capture(std::process::Child);

impl Capture {
    fn start(netns: &Netns, link: &str, file: &std::path::Path) -> Option<Self> {
        if Command::new("tshark").arg("-v").stdout(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED: checksums are judged where tshark is installed");
            return None;
        }
        let mut tshark = netns.command("tshark");
        // Whole packets: a checksum that is cut off is not judged.
        tshark.args(["-i", link, "-w"]).arg(file).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = tshark.spawn().unwrap();
        let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("Capturing") {
            line.clear();
            assert!(
                std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0,
                "tshark does not capture"
            );
        }
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        // It captures a moment after it says so.
        let deadline = Instant::now() + PATIENCE;
        while std::fs::metadata(file).map_or(0, |m| m.len()) == 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        Some(Self(child))
    }

    fn stop(mut self) {
        // SAFETY: the child is ours and not waited for yet.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGINT) };
        self.0.wait().unwrap();
    }
}

#[test]
fn routers_on_the_way_tell_vms_their_mtu() {
    if !can() {
        return;
    }
    let site = Site::new(true);
    Links::in_netns(&site.router).unwrap().set_mtu("r1", 1400).unwrap();
    for v6 in [false, true] {
        let socket = site.udp(0, v6);
        let to = SocketAddr::new(VMS[1].ca(v6), 9);
        site.vm(0).run(|| socket.connect(to)).unwrap().unwrap();
        let (level, discover, mtu) = if v6 {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_MTU)
        } else {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_MTU)
        };
        set(&socket, level, discover, libc::IP_PMTUDISC_DO);
        assert_eq!(get(&socket, level, mtu), 1500);
        let deadline = Instant::now() + PATIENCE;
        while get(&socket, level, mtu) != 1400 {
            // The error comes to whoever sends next.
            drop(socket.send(&[0; 1440]));
            assert!(Instant::now() < deadline, "the VM hears nothing of the MTU, IPv6 {v6}");
        }
        // And so does TCP, whose packets are larger than the router takes.
        site.transfer(1, v6, 20);
        site.transfer(2, v6, 20);
    }
    site.check_sums();
}

#[test]
fn only_pairs_of_the_network_get_through_and_hosts_answer_for_their_addresses() {
    if !can() {
        return;
    }
    let site = Site::new(true);
    site.ping(1, false, 56);
    site.ping(1, true, 56);
    let mac = Links::in_netns(&site.hosts[1]).unwrap().get("up").unwrap().mac.unwrap();
    let mac = mac.map(|o| format!("{o:02x}")).join(":");
    for v6 in [false, true] {
        let pa = VMS[1].pa(1, v6);
        // The router found the address at the host.
        let neighbours = site.router.command("ip").args(["neigh", "show", &pa.to_string()]).output().unwrap();
        let neighbours = String::from_utf8_lossy(&neighbours.stdout).into_owned();
        assert!(neighbours.contains(&mac), "{pa}: {neighbours}");
        // What it sends itself is no pair, for the address of a VM and for one that nobody has.
        let free = provider(1, v6, 250);
        site.router
            .command("ip")
            .args(["neigh", "replace", &free.to_string(), "lladdr", &mac, "dev", "r1"])
            .status()
            .unwrap();
        for (to, reason) in [(pa, DropReason::RewritePair), (free, DropReason::RewriteUnknown)] {
            let (before, seen) = (site.drops(1, reason), site.seen_by_stacks());
            let ping =
                site.router.command("ping").args(["-c", "1", "-W", "1", &to.to_string()]).output().unwrap();
            assert!(!ping.status.success(), "{to} answers");
            assert!(site.drops(1, reason) > before, "{to} is not dropped as {}", reason.name());
            assert!(site.seen_by_stacks() - seen < 3, "the host's stack saw what was for {to}");
        }
    }
}

/// The second VM runs on the first host already, and only that host knows: the others reach it by its old address.
#[test]
fn frames_for_a_vm_that_has_moved_follow_it() {
    if !can() {
        return;
    }
    let site = Site::new(true);
    let vm = VMS[1];
    let (links, new_home) = (Links::in_netns(&site.hosts[0]).unwrap(), Netns::anonymous().unwrap());
    add_vm(&links, "moved", vm, &new_home);
    let ports =
        [links.index("moved").unwrap(), Links::in_netns(&site.hosts[1]).unwrap().index("port12").unwrap()];
    for host in 0..2 {
        let mut wanted = site.images[host].clone();
        let port = Port {
            state: if host == 0 { PORT_ACTIVE } else { PORT_MOVED },
            peer_pa: provider(1 - host, false, 1).into(),
            ..site.images[1].ports[&ports[1]]
        };
        wanted.ports.insert(ports[host], port);
        for v6 in [false, true] {
            let record = wanted.records.get_mut(&RecordKey { net: NET, ca: vm.ca(v6).into() }).unwrap();
            record.alt_pa = provider(0, false, 1).into();
            record.ifindex = ports[host];
            let pas = [0, 1].map(|h| Addr::from(vm.pa(h, v6)));
            let old = wanted.rewrites[&RewriteKey { pa: pas[1] }];
            for h in 0..2 {
                let ifindex = if h == host { ports[h] } else { 0 };
                wanted
                    .rewrites
                    .insert(RewriteKey { pa: pas[h] }, Rewrite { other_pa: pas[1 - h], ifindex, ..old });
            }
        }
        wanted
            .macs
            .get_mut(&MacKey { vsid: vm.vsid(), mac: Mac::new(vm.mac()), reserved: 0 })
            .unwrap()
            .ifindex = ports[host];
        site.planes[host].apply(&site.images[host].operations_to(&wanted)).unwrap();
    }
    site.hosts[0].run(|| site.planes[0].attach_name("moved", Role::Port)).unwrap().unwrap();
    for v6 in [false, true] {
        let bind = |netns: &Netns, ip: IpAddr| {
            let socket = netns.run(|| UdpSocket::bind((ip, 0))).unwrap().unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
            socket
        };
        // From the old host, which knows where it went, and from a third one, which does not.
        let near = bind(site.vm(2), VMS[2].ca(v6));
        let far = bind(&site.elsewhere, ELSEWHERE.pa(2, v6));
        let senders = [(&near, vm.ca(v6), VMS[2], vm.ca(v6)), (&far, vm.pa(1, v6), ELSEWHERE, vm.pa(0, v6))];
        for (sender, to, who, answers_from) in senders {
            let receiver = bind(&new_home, vm.ca(v6));
            let port = receiver.local_addr().unwrap().port();
            let mut buffer = [0; 100];
            let (len, from) =
                delivered(sender, b"where are you?", SocketAddr::new(to, port), &receiver, &mut buffer);
            assert_eq!((&buffer[..len], from.ip()), (&b"where are you?"[..], who.ca(v6)));
            let (len, from) = delivered(&receiver, b"here", from, sender, &mut buffer);
            assert_eq!((&buffer[..len], from), (&b"here"[..], SocketAddr::new(answers_from, port)));
        }
    }
    let redirected = site.planes[1].counters().unwrap()[&ports[1]].redirected;
    assert!(redirected >= 2, "{redirected}");
    site.check_sums();
}

/// Sends a datagram until it arrives: one may be lost on a machine under load, when nobody knows the way yet.
fn delivered(
    from: &UdpSocket,
    payload: &[u8],
    to: SocketAddr,
    at: &UdpSocket,
    buffer: &mut [u8],
) -> (usize, SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        from.send_to(payload, to).unwrap();
        match at.recv_from(buffer) {
            Ok(got) => return got,
            Err(e) => assert!(Instant::now() < deadline, "nothing arrives from {to}: {e}"),
        }
    }
}
