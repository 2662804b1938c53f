//! Every method × family inside × family outside × same or other subnet × kind of traffic, with offloads and without.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use tenet_lab::tool::{Stream, ask};
use tenet_model::{Family, Method};
use tenet_tests::outer::outer;
use tenet_tests::{DUAL, Fixture, Setup, Watch, World};

static OVER_V4: Fixture = Fixture::set_up("mx4", DUAL, Setup::ANY_METHOD);
static OVER_V6: Fixture =
    Fixture::set_up("mx6", DUAL, Setup { underlay: Some(Family::V6), ..Setup::ANY_METHOD });

const NETWORK: &str = "contoso/prod";
const FROM: &str = "contoso/sql";
/// In the same subnet and in another, on the other host.
const TO: [(&str, &str); 2] = [("contoso/web", "same subnet"), ("contoso/app", "other subnet")];
const PATIENCE: Duration = Duration::from_secs(3);

/// One case of the matrix.
#[derive(Clone, Copy)]
struct Cell {
    method: Method,
    outside: Family,
    inside: Family,
    to: &'static str,
    subnet: &'static str,
    offloads: bool,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offloads = if self.offloads { "on" } else { "off" };
        let Self { method, outside, inside, subnet, .. } = self;
        write!(f, "{method}: {inside} in {outside}, {subnet}, offloads {offloads}")
    }
}

#[test]
fn every_method_carries_everything_over_ipv4() {
    matrix(&OVER_V4, Family::V4);
}

#[test]
fn every_method_carries_everything_over_ipv6() {
    matrix(&OVER_V6, Family::V6);
}

fn matrix(lab: &'static Fixture, outside: Family) {
    let Some(world) = lab.world() else { return };
    let begin = Instant::now();
    let (mut cells, mut wrong) = (0, Vec::new());
    for offloads in [true, false] {
        world.lab.set_uplink_offloads(offloads).unwrap();
        for method in Method::ALL {
            world.set_method(NETWORK, method);
            for inside in [Family::V4, Family::V6] {
                for (to, subnet) in TO {
                    let cell = Cell { method, outside, inside, to, subnet, offloads };
                    let found = check(&world, cell).into_iter().map(|what| format!("{cell}: {what}"));
                    for what in found {
                        println!("WRONG {what}");
                        wrong.push(what);
                    }
                    cells += 1;
                }
            }
        }
    }
    world.lab.set_uplink_offloads(true).unwrap();
    println!("{cells} cells in {:.1} s", begin.elapsed().as_secs_f64());
    assert!(wrong.is_empty(), "{} of {cells} cells fail:\n{}", wrong.len(), wrong.join("\n"));
}

/// All kinds of traffic of a cell; what does not work.
fn check(world: &World, cell: Cell) -> Vec<String> {
    let from = world.lab.vm(FROM).unwrap();
    let to = world.lab.vm(cell.to).unwrap();
    let (there, here) = (to.address_of(cell.inside).unwrap(), from.address_of(cell.inside).unwrap());
    let mut wrong = Vec::new();
    let mut say = |what: &str, result: Result<(), String>| {
        if let Err(why) = result {
            wrong.push(format!("{what}: {why}"));
        }
    };
    let first = udp(world, cell, there);
    let broken = first.is_err();
    say("UDP", first);
    if broken {
        // The rest would fail for the same reason, slowly.
        return wrong;
    }
    say("ICMP", ping(world, FROM, there, 56));
    say("fragments", ping(world, FROM, there, 3000));
    say("TCP", tcp(world, FROM, cell.to, there));
    say("TCP back", tcp(world, cell.to, FROM, here));
    wrong
}

/// The right VM answers, small and large; and what is on the wire is what the method makes.
fn udp(world: &World, cell: Cell, there: IpAddr) -> Result<(), String> {
    let vm = world.lab.vm(FROM).unwrap();
    let host = world.lab.host("h1").unwrap();
    let watch = Watch::start(&world.lab.router().unwrap(), &host.record().router_device, None);
    let answered = ask(vm.netns(), there, PATIENCE).map_err(|e| e.to_string())?;
    if answered.as_deref() != Some(cell.to) {
        return Err(format!("{answered:?} answered, not {}", cell.to));
    }
    let marker = format!("{cell}, {:016x}", rand::random::<u64>()).into_bytes();
    let large = [marker.clone(), vec![b'.'; 1200]].concat();
    let any: IpAddr = if there.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = vm.netns().run(|| UdpSocket::bind((any, 0))).unwrap().map_err(|e| e.to_string())?;
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let responder = SocketAddr::new(there, tenet_lab::tool::PORT);
    socket.send_to(&large, responder).map_err(|e| e.to_string())?;
    let mut buffer = [0; 2000];
    let length = socket.recv(&mut buffer).map_err(|e| format!("no answer to a large datagram: {e}"))?;
    if !buffer[..length].ends_with(&large) {
        return Err("the answer to a large datagram is another".to_owned());
    }
    let frames = watch.stop();
    let holds = |frame: &&Vec<u8>| frame.windows(marker.len()).any(|w| w == marker);
    let seen: Vec<_> = frames.iter().filter(holds).map(|f| outer(f)).collect();
    if seen.len() < 2 {
        return Err(format!("{} frames with it on the wire, not question and answer", seen.len()));
    }
    // Rewriting keeps a packet's family; a tunnel has the hosts'.
    let family = if cell.method == Method::Rewrite { cell.inside } else { cell.outside };
    let right = |o: &Option<tenet_tests::outer::Outer>| {
        o.is_some_and(|o| o.method == cell.method && o.family == family)
    };
    match seen.iter().find(|o| !right(o)) {
        Some(other) => Err(format!("on the wire as {other:?}")),
        None => Ok(()),
    }
}

fn ping(world: &World, from: &str, there: IpAddr, size: u32) -> Result<(), String> {
    let mut command = world.lab.vm(from).unwrap().command("ping");
    command.args(["-n", "-q", "-c3", "-i0.02", "-W2", "-s", &size.to_string(), &there.to_string()]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let summary = text.lines().find(|l| l.contains("packet loss")).unwrap_or("no summary").to_owned();
    if text.contains(" 0% packet loss") { Ok(()) } else { Err(format!("{summary} ({size} bytes)")) }
}

/// A stream as fast as it goes, checked word for word.
fn tcp(world: &World, from: &str, to: &str, there: IpAddr) -> Result<(), String> {
    let stream = Stream::start(world.lab.vm(from).unwrap().netns(), there, Duration::ZERO);
    let stream = stream.map_err(|e| e.to_string())?;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(80) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let report = stream.stop().map_err(|e| e.to_string())?;
    let received = &report.received;
    if report.peer != to {
        return Err(format!("{} answered, not {to}", report.peer));
    }
    if !received.in_order || received.bytes != report.sent || report.sent < 200_000 {
        return Err(format!("{report:?}"));
    }
    Ok(())
}
