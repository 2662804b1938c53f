//! The agent against a controller of the test's own, over real mTLS on loopback, tables in memory.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends there")]

mod common;

use common::*;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tenet_api::agent::{self, agent_message::Message as M, controller_message::Message as C, question::What};
use tenet_compile::digests;
use tenet_host_agent::{AgentError, Kernel as _, KernelPart, Options};
use tenet_model::NetId;
use tenet_tables::image::Operation;

fn ack(m: M) -> Option<agent::Ack> {
    if let M::Ack(a) = m { Some(a) } else { None }
}
fn hello(m: M) -> Option<agent::Hello> {
    if let M::Hello(h) = m { Some(h) } else { None }
}
fn proof(m: M) -> Option<agent::Proof> {
    if let M::Proof(p) = m { Some(p) } else { None }
}
fn answer(m: M) -> Option<agent::Answer> {
    if let M::Answer(a) = m { Some(a) } else { None }
}
fn full(generation: u64, rows: &tenet_compile::Rows) -> C {
    C::Full(agent::Full::new(generation, rows))
}
fn delta(from: &tenet_compile::Rows, base: u64, to: &tenet_compile::Rows, generation: u64) -> C {
    C::Delta(agent::Delta::from(&from.delta_to(base, to, generation)))
}

#[tokio::test]
async fn joins_applies_and_proves() {
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    let (ready, called) = ready();
    let running = Running::start(Options { ready, ..options(&dir.0, &controller) });
    let mut session = controller.session().await;
    let h = session.hear(hello).await;
    assert_eq!(
        (h.generation, h.uplink_mtu, h.hook.as_str(), h.uplinks),
        (0, 1500, "none", vec!["eth0".to_owned()])
    );
    assert_eq!(h.qmp_dir, "", "it looks nowhere");
    tokio::time::timeout(PATIENCE, called).await.unwrap().unwrap();
    let first = site(7);
    session.say(full(7, &first)).await;
    let a = session.hear(ack).await;
    assert_eq!((a.generation, a.error.as_str()), (7, ""));
    assert_eq!(a.networks[0].digest, digests(&first)[&NetId(1)]);
    assert_eq!(
        (a.ports[0].port.as_str(), a.ports[0].state.as_str(), a.ports[0].mtu),
        ("contoso/sql/eth0", "active", 1458)
    );
    let next = more(&first, 8);
    session.say(delta(&first, 7, &next, 8)).await;
    let a = session.hear(ack).await;
    assert_eq!((a.generation, a.networks[0].digest), (8, digests(&next)[&NetId(1)]));
    let p = session.hear(proof).await;
    assert!(p.generation >= 7 && p.problems.is_empty() && p.repaired.is_empty(), "{p:?}");
    let mode = std::fs::metadata(dir.0.join("identity.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    session.say(C::Question(agent::Question { id: 5, what: What::Table.into() })).await;
    let a = session.hear(answer).await;
    let rows = tenet_api::to_rows(a.rows).unwrap();
    assert_eq!((a.id, digests(&rows)), (5, digests(&next)));
    running.stop().await;
}

#[tokio::test]
async fn unknown_base_asks_for_all_and_garbage_is_refused_aloud() {
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    let _running = Running::start(options(&dir.0, &controller));
    let mut session = controller.session().await;
    let first = site(7);
    session.say(delta(&first, 3, &more(&first, 4), 4)).await;
    let reason = session.hear(|m| if let M::Resync(r) = m { Some(r.reason) } else { None }).await;
    assert!(reason.contains("before the full state"), "{reason}");
    let bad = agent::Row {
        generation: 1,
        row: Some(agent::row::Row::Record(agent::RecordRow { net: 1, ca: "x".into(), ..Default::default() })),
    };
    session.say(C::Full(agent::Full { generation: 9, rows: vec![bad] })).await;
    let a = session.hear(ack).await;
    assert!(a.generation == 9 && a.error.contains("not understood"), "{a:?}");
    session.say(full(10, &first)).await;
    assert_eq!(session.hear(ack).await.error, "");
}

#[tokio::test]
async fn restart_without_controller_knows_the_wanted_state_and_repairs() {
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    let kernel = Shared::new();
    let with = |kernel: &Shared, controller: &Controller| Options {
        kernel: KernelPart::Other(Box::new(kernel.clone())),
        ..options(&dir.0, controller)
    };
    let running = Running::start(with(&kernel, &controller));
    let mut session = controller.session().await;
    let first = site(7);
    session.say(full(7, &first)).await;
    let mut rows = first.clone();
    for generation in 8..40 {
        let next = more(&rows, generation);
        session.say(delta(&rows, generation - 1, &next, generation)).await;
        session.hear(|m| ack(m).filter(|a| a.generation == generation)).await;
        rows = next;
    }
    running.stop().await;
    let (ca, rest, grpc) = (Arc::clone(&controller.ca), controller.rest(), controller.grpc);
    let good = kernel.image();
    // While nobody looks, an entry goes away.
    let (key, _) = good.records.first_key_value().map(|(k, v)| (*k, *v)).unwrap();
    kernel.memory().apply(&[Operation::Record(key, None)]);
    let again = with(&kernel, &controller);
    drop(controller);
    let (ready, called) = ready();
    let running = Running::start(Options { ready, ..again });
    tokio::time::timeout(PATIENCE, called).await.unwrap().unwrap();
    wait_for(|| kernel.image() == good).await;
    // The controller comes back, and hears the generation and of the repair.
    let mut controller = Controller::start_at(ca, rest, grpc).await;
    let mut session = controller.session().await;
    assert_eq!(session.hear(hello).await.generation, 39);
    let next = more(&rows, 40);
    session.say(delta(&rows, 39, &next, 40)).await;
    assert_eq!(session.hear(ack).await.networks[0].digest, digests(&next)[&NetId(1)]);
    drop(running);
}

#[tokio::test]
async fn drift_is_repaired_and_reported() {
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    let kernel = Shared::new();
    let kernel_part = KernelPart::Other(Box::new(kernel.clone()));
    let _running = Running::start(Options { kernel: kernel_part, ..options(&dir.0, &controller) });
    let mut session = controller.session().await;
    session.say(full(7, &site(7))).await;
    session.hear(ack).await;
    let good = kernel.image();
    let subnet = good.subnets.keys().next().copied().unwrap();
    kernel.memory().apply(&[Operation::Subnet(subnet, None)]);
    let told = session.hear(|m| proof(m).filter(|p| !p.repaired.is_empty())).await;
    assert_eq!(told.repaired, ["virtual subnet 5001 was missing: written again"]);
    assert_eq!(kernel.image(), good);
}

#[tokio::test]
async fn lost_session_comes_back_with_the_generation() {
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    let _running = Running::start(options(&dir.0, &controller));
    let mut session = controller.session().await;
    session.say(full(7, &site(7))).await;
    session.hear(ack).await;
    drop(session);
    let mut session = controller.session().await;
    assert_eq!(session.hear(hello).await.generation, 7);
}

#[tokio::test]
async fn certificate_is_renewed_in_time() {
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    controller.ca.lifetime.store(3, Ordering::SeqCst);
    let _running = Running::start(options(&dir.0, &controller));
    let _session = controller.session().await;
    let before = std::fs::read_to_string(dir.0.join("identity.json")).unwrap();
    controller.ca.lifetime.store(86_400, Ordering::SeqCst);
    wait_for(|| std::fs::read_to_string(dir.0.join("identity.json")).unwrap() != before).await;
    assert_eq!(controller.ca.signed.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn refused_token_and_foreign_controller_end_the_start() {
    let (dir, controller) = (Dir::new(), Controller::start().await);
    let wrong = controller.ca.token() + "x";
    let error = run(Options { token: Some(wrong), ..options(&dir.0, &controller) }).await;
    assert!(matches!(error, AgentError::Identity(_)), "{error:?}");
    let error = run(Options { token: None, ..options(&dir.0, &controller) }).await;
    assert!(error.to_string().contains("no member"), "{error:?}");
    let error = run(Options { uplinks: vec![], ..options(&dir.0, &controller) }).await;
    assert!(matches!(error, AgentError::NoUplink), "{error:?}");
}

#[tokio::test]
async fn second_agent_on_the_same_state_is_refused() {
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    let _running = Running::start(options(&dir.0, &controller));
    let _session = controller.session().await;
    let error = run(options(&dir.0, &controller)).await;
    assert!(matches!(error, AgentError::Busy(_)), "{error:?}");
}

#[tokio::test]
async fn removed_host_stops_asking_and_keeps_its_tables() {
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    let kernel = Shared::new();
    let kernel_part = KernelPart::Other(Box::new(kernel.clone()));
    let running = Running::start(Options { kernel: kernel_part, ..options(&dir.0, &controller) });
    let mut session = controller.session().await;
    session.say(full(7, &site(7))).await;
    session.hear(ack).await;
    let good = kernel.image();
    session.say(C::Farewell(agent::Farewell::default())).await;
    tokio::time::timeout(PATIENCE, async {
        while session.from.message().await.is_ok_and(|m| m.is_some()) {}
    })
    .await
    .unwrap();
    assert_eq!(kernel.image(), good);
    running.stop().await;
}

#[tokio::test]
async fn metrics_name_ports_and_drop_reasons() {
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let kernel_part = KernelPart::Other(Box::new(Shared::new()));
    let _running =
        Running::start(Options { kernel: kernel_part, metrics: Some(free), ..options(&dir.0, &controller) });
    let mut session = controller.session().await;
    session.say(full(7, &site(7))).await;
    session.hear(ack).await;
    let text = get(free, "/metrics").await;
    for line in [
        "tenet_agent_generation 7",
        "tenet_agent_session 1",
        "tenet_port_tx_frames_total{port=\"contoso/sql/eth0\"} 0",
        "tenet_drops_total{port=\"contoso/sql/eth0\",reason=\"spoofed_ca\"} 5",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(get(free, "/").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn cut_journal_gives_the_state_before_the_cut() {
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    let running = Running::start(options(&dir.0, &controller));
    let mut session = controller.session().await;
    let first = site(7);
    session.say(full(7, &first)).await;
    session.say(delta(&first, 7, &more(&first, 8), 8)).await;
    session.hear(|m| ack(m).filter(|a| a.generation == 8)).await;
    running.stop().await;
    drop(session);
    let path = dir.0.join("rows");
    let bytes = std::fs::read(&path).unwrap();
    for (cut, generation) in [(1, 7), (bytes.len() - 5, 0), (bytes.len(), 0)] {
        std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
        let running = Running::start(options(&dir.0, &controller));
        let mut session = controller.session().await;
        assert_eq!(session.hear(hello).await.generation, generation, "cut by {cut}");
        running.stop().await;
    }
}

async fn run(options: Options) -> AgentError {
    let result = tokio::time::timeout(PATIENCE, tenet_host_agent::run(options, std::future::pending())).await;
    result.expect("it runs on").unwrap_err()
}

async fn wait_for(condition: impl Fn() -> bool) {
    tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the condition did not come true");
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut text = String::new();
    let mut stream = tokio::time::timeout(PATIENCE, async {
        loop {
            match tokio::net::TcpStream::connect(address).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await
    .unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// What was counted before the agent began is history: neither hint nor alarm.
#[tokio::test]
async fn only_new_fragments_and_marks_of_congestion_are_told() {
    use tenet_tables::DropReason::{EcnMismatch, OuterFragment};
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    let kernel = Shared::new();
    kernel.drop_at_uplink(OuterFragment, 7);
    kernel.drop_at_uplink(EcnMismatch, 70);
    let options =
        Options { kernel: KernelPart::Other(Box::new(kernel.clone())), ..options(&dir.0, &controller) };
    let _running = Running::start(options);
    let mut session = controller.session().await;
    let first = site(7);
    session.say(full(7, &first)).await;
    session.hear(ack).await;
    let uplink = |m: M| if let M::Measured(m) = m { m.uplinks.into_iter().next() } else { None };
    let old = session.hear(|m| uplink(m).filter(|u| u.outer_fragments == 7)).await;
    assert_eq!(old.hints, Vec::<String>::new());
    kernel.drop_at_uplink(OuterFragment, 9);
    kernel.drop_at_uplink(EcnMismatch, 73);
    let event = session.hear(|m| if let M::Event(e) = m { Some(e) } else { None }).await;
    assert_eq!((event.kind.as_str(), event.port.as_str()), ("ecn_mismatch", "uplink:eth0"));
    assert!(event.text.starts_with("3 encapsulated frames were dropped at uplink:eth0"), "{event:?}");
    let new = session.hear(|m| uplink(m).filter(|u| u.outer_fragments == 9)).await;
    assert!(
        matches!(new.hints.as_slice(), [hint] if hint.starts_with("2 pieces of frames arrived on eth0")),
        "{new:?}"
    );
}

/// The ring tells once that something is in it: what is not taken then would wait for the next compare.
#[tokio::test]
async fn all_events_are_taken_however_many_there_are() {
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    let kernel = Shared::new();
    let _running = Running::start(Options {
        kernel: KernelPart::Other(Box::new(kernel.clone())),
        compare_every: 10 * PATIENCE,
        ..options(&dir.0, &controller)
    });
    let mut session = controller.session().await;
    session.say(full(7, &site(7))).await;
    session.hear(ack).await;
    let spoof = |ifindex| tenet_tables::Event {
        kind: tenet_tables::EventKind::Spoof as u32,
        ifindex,
        ..Default::default()
    };
    kernel.raise((100..109).map(spoof));
    for ifindex in 100..109 {
        let event = session.hear(|m| if let M::Event(e) = m { Some(e) } else { None }).await;
        assert!(event.text.starts_with(&format!("interface {ifindex} ")), "{event:?}");
    }
}

#[tokio::test]
async fn a_tap_s_reader_is_given_one_frame_and_none_by_a_restarted_agent() {
    let (dir, mut controller) = (Dir::new(), Controller::start().await);
    let kernel = Shared::new();
    kernel.open_taps();
    let with = |controller: &Controller| Options {
        kernel: KernelPart::Other(Box::new(kernel.clone())),
        ..options(&dir.0, controller)
    };
    let running = Running::start(with(&controller));
    let mut session = controller.session().await;
    session.say(full(7, &site(7))).await;
    session.hear(ack).await;
    let mut rows = site(8);
    for (row, _) in rows.0.values_mut() {
        if let tenet_compile::Row::Port(port) = row {
            port.state = tenet_compile::PortState::Prepared;
            port.peer_pa = Some("192.168.2.20".parse().unwrap());
        }
    }
    // Twice: that it is given is remembered. What is asked after it is answered once all of it is done.
    for generation in [8, 9] {
        session.say(full(generation, &rows)).await;
        session.say(C::Question(agent::Question { id: generation, what: What::Table.into() })).await;
        session.hear(|m| answer(m).filter(|a| a.id == generation)).await;
    }
    assert_eq!(kernel.given().len(), 1);
    running.stop().await;
    drop(session);
    // Whose QEMU has read its frame would give the VM a second one.
    let running = Running::start(with(&controller));
    let mut session = controller.session().await;
    session.say(full(10, &rows)).await;
    session.say(C::Question(agent::Question { id: 10, what: What::Table.into() })).await;
    session.hear(|m| answer(m).filter(|a| a.id == 10)).await;
    assert_eq!(kernel.given().len(), 1);
    running.stop().await;
}
