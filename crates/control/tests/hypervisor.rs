//! What hypervisors say of a VM that moves, and what the controller makes of it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;
use tenet_control::{
    AWAY, Ack, Control, DOUBT, Frames, Hello, Measured, Order, Output, PathReport, PathState, PortReport,
    Progress, RECEIVE, Refused, STALL, SessionId, Word,
};
use tenet_model::{
    ActivatedBy, Change, Desired, Host, HostName, Method, Migration, Name, NetId, Network, Object, Operation,
    Phase, Port, Receipt, Subnet, SubnetPrefix, Tenant, Through, Vm, VmRef, Vsid,
};
use uuid::Uuid;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn vm() -> VmRef {
    "t/sql".parse().unwrap()
}

/// A controller whose store takes everything and whose hosts acknowledge at once.
struct Site {
    store: Desired,
    control: Control,
    now: u64,
    sessions: BTreeMap<HostName, SessionId>,
    receipts: Vec<Receipt>,
    drives: Vec<(Order, String)>,
    told: Vec<String>,
}

impl Site {
    fn new(connected: &[&str]) -> Self {
        let mut store = Desired::default();
        let mut objects = vec![
            Object::Tenant(Tenant { name: name("t") }),
            Object::Network(Network {
                name: "t/blue".parse().unwrap(),
                rdid: Uuid::from_u128(1),
                id: NetId(1),
                method: Method::Nvgre,
                switching: None,
            }),
            Object::Subnet(Subnet {
                name: "t/blue/web".parse().unwrap(),
                vsid: Vsid::new(5000).unwrap(),
                prefixes: vec![SubnetPrefix {
                    prefix: "10.0.0.0/24".parse().unwrap(),
                    gateway: "10.0.0.1".parse().unwrap(),
                }],
            }),
            Object::Vm(Vm { name: vm() }),
        ];
        for n in 1..=3 {
            let pa = format!("192.168.1.{n}").parse().unwrap();
            objects.push(Object::Host(Host { name: name(&format!("h{n}")), pa, rewrite_pool: vec![] }));
        }
        let checked = store.check(&objects.into_iter().map(Operation::Put).collect()).unwrap();
        store.apply(checked.operations(), 2);
        let port = Port {
            name: "t/sql/eth0".parse().unwrap(),
            subnet: "t/blue/web".parse().unwrap(),
            mac: "02:00:00:00:00:11".parse().unwrap(),
            addresses: vec!["10.0.0.11".parse().unwrap()],
            host: Some(name("h1")),
            device: Some("tap0".into()),
            tap: false,
            queues: 1,
            security: true,
            rewrite: BTreeMap::new(),
        };
        let checked = store.check(&Change::put(Object::Port(port))).unwrap();
        store.apply(checked.operations(), 3);
        let control = Control::new(store.clone(), 1);
        let mut site = Self {
            store,
            control,
            now: 1_000_000,
            sessions: BTreeMap::new(),
            receipts: vec![],
            drives: vec![],
            told: vec![],
        };
        for host in connected {
            site.connect(host);
        }
        site
    }

    /// A VM of the same network on the third host.
    fn add_neighbour(&mut self) {
        let port = Port {
            name: "t/web/eth0".parse().unwrap(),
            mac: "02:00:00:00:00:12".parse().unwrap(),
            addresses: vec!["10.0.0.12".parse().unwrap()],
            host: Some(name("h3")),
            ..self.store.ports.values().next().unwrap().value.clone()
        };
        let objects = [Object::Vm(Vm { name: "t/web".parse().unwrap() }), Object::Port(port)];
        let outputs = self.commit(&objects.into_iter().map(Operation::Put).collect());
        self.carry_out(outputs);
    }

    fn connect(&mut self, host: &str) {
        let hello = Hello { uplink_mtu: 1500, ..Hello::default() };
        let (session, outputs) = self.control.opened(self.now, &name(host), hello).unwrap();
        self.sessions.insert(name(host), session);
        self.carry_out(outputs);
    }

    /// The controller is started again: it has what is in the store, and no session.
    fn restart(&mut self) {
        self.control = Control::new(self.store.clone(), self.now);
        self.sessions.clear();
        self.drives.clear();
        self.told.clear();
    }

    fn activate(&mut self, host: &str) {
        let port = "t/sql/eth0".parse().unwrap();
        let outputs = self.control.activated(self.now, self.sessions[&name(host)], &port);
        self.carry_out(outputs);
    }

    fn disconnect(&mut self, host: &str) {
        let session = self.sessions.remove(&name(host)).unwrap();
        let outputs = self.control.closed(self.now, session);
        self.carry_out(outputs);
    }

    fn carry_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            let more = match output {
                Output::Wake(session) => match self.control.next_message(self.now, session) {
                    Some(message) => {
                        let generation = match message {
                            tenet_control::Message::Full { generation, .. } => generation,
                            tenet_control::Message::Delta(d) => d.generation,
                        };
                        let port = PortReport {
                            port: "t/sql/eth0".parse().unwrap(),
                            present: true,
                            carrier: true,
                            ifindex: 1,
                            mtu: 1458,
                            state: "active".into(),
                            detail: String::new(),
                        };
                        let ack = Ack { generation, ports: vec![port], ..Ack::default() };
                        self.control.acked(self.now, session, ack)
                    }
                    None => vec![],
                },
                Output::Commit { operations, receipt, .. } => {
                    self.receipts.extend(receipt);
                    self.commit(&operations.into_iter().collect())
                }
                Output::Count { migration, vm, host, stage, .. } => {
                    self.control.counted(self.now, migration, &vm, &host, stage, Some(Frames::default()))
                }
                Output::Drive { uri, order, .. } => {
                    self.drives.push((order, uri));
                    vec![]
                }
                Output::Happened(h) => {
                    self.told.push(format!("{}: {}", h.kind, h.text));
                    vec![]
                }
                Output::Switch { .. } | Output::Ports | Output::Close { .. } => vec![],
            };
            self.carry_out(more);
        }
    }

    fn commit(&mut self, change: &Change) -> Vec<Output> {
        let checked = self.store.check(change).expect("a legal change");
        let revision = self.store.revision + 1;
        self.store.apply(checked.operations(), revision);
        self.control.changed(self.now, revision, checked.operations())
    }

    fn migrate(&mut self, through: Through) {
        self.migrate_as(through, false);
    }

    fn migrate_as(&mut self, through: Through, post_copy: bool) {
        let migration = Migration {
            vm: vm(),
            id: Uuid::from_u128(9),
            from: name("h1"),
            to: name("h2"),
            devices: [(name("eth0"), "tap0".to_owned())].into(),
            rewrite: BTreeMap::new(),
            phase: Phase::Preparing,
            started_ms: self.now / 1000,
            switched_ms: None,
            through,
            uri: through.driven().then(|| "tcp:h2:1".to_owned()),
            post_copy,
        };
        let outputs = self.commit(&Change::put(Object::Migration(migration)));
        self.carry_out(outputs);
    }

    fn say(&mut self, host: &str, word: Word) {
        let outputs = self.control.hypervisor(self.now, self.sessions[&name(host)], &vm(), word);
        self.carry_out(outputs);
    }

    fn status(&mut self, host: &str, status: &str) {
        let progress = Progress { transferred: 10, total: 100, status: status.into() };
        self.say(host, Word::Migration { id: None, progress, downtime_us: None, error: "no room".into() });
    }

    fn pass(&mut self, us: u64) {
        let end = self.now + us;
        while self.now < end {
            self.now += 100_000.min(end - self.now);
            let outputs = self.control.tick(self.now);
            self.carry_out(outputs);
        }
    }

    fn phase(&self) -> Option<Phase> {
        self.store.migrations.get(&vm()).map(|m| m.value.phase)
    }

    fn home(&self) -> String {
        self.store.ports.values().next().unwrap().value.host.as_ref().unwrap().to_string()
    }
}

#[test]
fn a_driven_migration_has_all_figures_in_its_receipt() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    assert_eq!(site.phase(), Some(Phase::Prepared));
    assert_eq!(site.drives, [(Order::Move, "tcp:h2:1".to_owned())], "told once");
    site.status("h1", "active");
    assert_eq!(site.control.migration_progress(&vm()).unwrap().total, 100);
    site.now += 1000;
    site.say("h1", Word::Stopped);
    assert_eq!(site.phase(), Some(Phase::Prepared), "the stop alone is no switch");
    site.now += 70_000;
    site.say("h2", Word::Resumed);
    assert!(site.receipts.is_empty(), "the first frame is waited for");
    site.say("h2", Word::FirstFrame { after_us: 1200 });
    let progress = Progress { status: "completed".into(), ..Progress::default() };
    site.say("h1", Word::Migration { id: None, progress, downtime_us: Some(60_000), error: String::new() });
    site.pass(200_000);
    assert!(site.receipts.is_empty(), "late frames are still sent on");
    site.pass(300_000);
    let receipt = &site.receipts[0];
    assert!(receipt.moved && receipt.exact, "{receipt:?}");
    assert_eq!(
        (receipt.pause_us, receipt.downtime_us, receipt.first_frame_us),
        (Some(70_000), Some(60_000), Some(1200))
    );
    assert_eq!((receipt.activated_by, receipt.through), (Some(ActivatedBy::Resume), Through::Qmp));
    assert_eq!(receipt.ports, [name("eth0")].into());
    assert_eq!((site.phase(), site.home()), (None, "h2".to_owned()));
}

#[test]
fn a_receipt_does_not_wait_for_ever_for_words() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::SwitchOnly);
    site.pass(100_000);
    site.say("h2", Word::Resumed);
    site.pass(1_500_000);
    let receipt = &site.receipts[0];
    assert_eq!((receipt.moved, receipt.pause_us, receipt.first_frame_us), (true, None, None));
    assert!(site.drives.is_empty());
}

#[test]
fn a_failed_or_cancelled_move_is_rolled_back_at_once() {
    for status in ["failed", "cancelled"] {
        for through in [Through::Qmp, Through::SwitchOnly, Through::Other] {
            let mut site = Site::new(&["h1", "h2", "h3"]);
            site.migrate(through);
            site.pass(100_000);
            site.say("h1", Word::Stopped);
            site.say("h1", Word::Resumed);
            // The destination has no say in it.
            site.status("h2", status);
            assert!(site.receipts.is_empty());
            site.status("h1", status);
            let receipt = &site.receipts[0];
            assert!(!receipt.moved && receipt.pause_us.is_none(), "{receipt:?}");
            assert!(receipt.reason.as_ref().unwrap().contains("no room"), "{receipt:?}");
            assert_eq!((site.phase(), site.home()), (None, "h1".to_owned()));
        }
    }
}

#[test]
fn a_failure_after_the_switch_is_none() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    site.say("h2", Word::Resumed);
    site.status("h1", "failed");
    site.say("h1", Word::Resumed);
    assert!(site.told.iter().any(|t| t.contains("end one of the two")), "{:?}", site.told);
    site.pass(2_000_000);
    assert!(site.receipts[0].moved);
    // Later, each claim of the host that has it no more is told, and changes nothing.
    site.told.clear();
    site.say("h1", Word::Resumed);
    assert!(site.told[0].starts_with("problem: t/sql runs on h1"), "{:?}", site.told);
    assert_eq!(site.home(), "h2");
}

#[test]
fn what_another_tool_moves_is_given_up_by_its_hypervisor_first() {
    for through in [Through::SwitchOnly, Through::Other] {
        let mut site = Site::new(&["h1", "h2", "h3"]);
        site.migrate(through);
        site.pass(100_000);
        site.status("h1", "active");
        let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
        site.carry_out(outputs);
        assert!(site.drives[0].0 == Order::GiveUp && site.receipts.is_empty(), "{:?}", site.drives);
        site.status("h1", "cancelled");
        assert_eq!(site.receipts[0].reason.as_deref(), Some("it was cancelled"));

        // Nobody has begun to move it: there is nothing to stop.
        let mut site = Site::new(&["h1", "h2", "h3"]);
        site.migrate(through);
        site.pass(100_000);
        let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
        site.carry_out(outputs);
        assert!(site.drives.is_empty());
        assert_eq!(site.receipts[0].reason.as_deref(), Some("it was cancelled"));
    }
}

#[test]
fn a_move_that_gets_no_further_is_told_once() {
    let problems = |site: &Site| site.told.iter().filter(|t| t.contains("nothing more of t/sql")).count();
    let say = |site: &mut Site, transferred| {
        let progress = Progress { transferred, total: 100, status: "active".into() };
        site.say("h1", Word::Migration { id: None, progress, downtime_us: None, error: String::new() });
    };
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    for transferred in [10, 20, 30] {
        say(&mut site, transferred);
        site.pass(STALL - 1_000_000);
    }
    assert_eq!(problems(&site), 0, "{:?}", site.told);
    // Repeated, it is no progress.
    say(&mut site, 30);
    site.pass(3 * STALL);
    assert_eq!(problems(&site), 1, "{:?}", site.told);
    say(&mut site, 40);
    site.pass(2 * STALL);
    assert_eq!(problems(&site), 2, "it went on, and then no more");
    // Of a move by another tool only a beginning was told.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Other);
    site.pass(100_000);
    say(&mut site, 0);
    site.pass(3 * STALL);
    assert_eq!(problems(&site), 0, "{:?}", site.told);
}

#[test]
fn a_host_that_did_not_hear_of_a_move_is_named() {
    let told = |site: &Site| {
        let problem = site.told.iter().any(|t| t.starts_with("problem") && t.contains("without h3"));
        assert!(problem, "{:?}", site.told);
    };
    let switched_without_h3 = || {
        let mut site = Site::new(&["h1", "h2", "h3"]);
        site.add_neighbour();
        site.migrate(Through::SwitchOnly);
        site.pass(100_000);
        site.disconnect("h3");
        site.say("h2", Word::Resumed);
        site
    };
    // Its agent dies when the VM may move, and does not come back.
    let mut site = switched_without_h3();
    site.pass(AWAY - 1_000_000);
    assert_eq!(site.phase(), Some(Phase::Switched), "the source sends on what comes from there");
    site.pass(3_000_000);
    let receipt = &site.receipts[0];
    assert_eq!((receipt.moved, &receipt.behind), (true, &[name("h3")].into()));
    told(&site);
    assert!(site.told.last().unwrap().ends_with("not heard of it have: h3"), "{:?}", site.told);

    // It is back in time.
    let mut site = switched_without_h3();
    site.pass(20_000_000);
    site.connect("h3");
    site.pass(2_000_000);
    assert!(site.receipts[0].behind.is_empty() && site.receipts[0].acks_us.contains_key(&name("h3")));

    // It has been away for long: nobody waits, and it is told before the VM moves.
    let mut site = Site::new(&["h1", "h2"]);
    site.add_neighbour();
    site.pass(2 * AWAY);
    site.migrate(Through::SwitchOnly);
    site.pass(200_000);
    assert_eq!(site.phase(), Some(Phase::Prepared));
    told(&site);
    site.say("h2", Word::Resumed);
    site.pass(2_000_000);
    assert_eq!(site.receipts[0].behind, [name("h3")].into());
}

#[test]
fn giving_up_stops_the_hypervisor_before_the_network_lets_go() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    assert!(site.drives[1].0 == Order::GiveUp && site.receipts.is_empty());
    site.status("h1", "cancelled");
    assert_eq!(site.receipts[0].reason.as_deref(), Some("it was cancelled"));

    // The move was quicker.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    site.say("h2", Word::Resumed);
    site.pass(8_000_000);
    assert!(site.receipts[0].moved);

    // Nobody confirms it.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    site.pass(6_000_000);
    assert!(site.receipts[0].reason.as_ref().unwrap().contains("did not confirm"));
}

#[test]
fn a_source_that_comes_back_is_told_again_and_one_that_does_not_ends_it() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Libvirt);
    site.pass(100_000);
    site.disconnect("h1");
    site.pass(1_000_000);
    site.connect("h1");
    site.pass(100_000);
    assert_eq!(site.drives.len(), 2);

    let mut site = Site::new(&["h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(12_000_000);
    assert!(site.drives.is_empty());
    assert!(site.receipts[0].reason.as_ref().unwrap().contains("host h1"), "{:?}", site.receipts);
}

#[test]
fn a_paused_vm_that_was_moved_is_on_its_new_host() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    site.status("h1", "completed");
    site.pass(4_000_000);
    assert_eq!((site.receipts[0].moved, site.home().as_str()), (true, "h2"));
}

#[test]
fn a_host_that_cannot_take_the_vm_is_refused_with_the_reason() {
    let mut site = Site::new(&["h1", "h3"]);
    let why = site.control.ready_for(&vm(), &name("h2")).unwrap_err();
    assert!(why.text.contains("h2 is not connected"), "{why:?}");
    site.connect("h2");
    assert_eq!(site.control.ready_for(&vm(), &name("h2")), Ok(()));
    // A path that is too narrow counts if it leads to a host of the network.
    let path = |peer: &str, pa: &str, mtu| PathReport {
        peer: name(peer),
        pa: pa.parse().unwrap(),
        mtu: Some(mtu),
        state: PathState::Measured,
        rtt_us: 1,
        age_ms: 0,
        method: "nvgre".into(),
        limited_by: None,
        detail: String::new(),
    };
    let session = site.sessions[&name("h2")];
    let mut measured = |paths| {
        let outputs = site.control.measured(site.now, session, Measured { paths, uplinks: vec![] });
        drop(outputs);
        site.control.ready_for(&vm(), &name("h2"))
    };
    assert_eq!(measured(vec![path("h3", "192.168.1.3", 1300)]), Ok(()), "h3 has no port of the network");
    let why = measured(vec![path("h1", "192.168.1.1", 1400)]).unwrap_err();
    assert!(
        why.text.contains("1358") && why.text.contains("1458") && why.text.contains("path to host h1"),
        "{why:?}"
    );
    assert_eq!(measured(vec![path("h1", "192.168.1.1", 1500)]), Ok(()));
    let (_, outputs) =
        site.control.opened(site.now, &name("h2"), Hello { uplink_mtu: 1450, ..Hello::default() }).unwrap();
    drop(outputs);
    let why = site.control.ready_for(&vm(), &name("h2")).unwrap_err();
    assert!(why.text.contains("uplink's MTU is 1450"), "{why:?}");
}

#[test]
fn a_vm_that_has_left_is_not_rolled_back() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    // The move was quicker, and nobody hears the destination.
    site.status("h1", "completed");
    assert_eq!(site.control.cancel(site.now, &vm(), "again"), Err(Refused::Left));
    site.status("h1", "cancelled");
    site.status("h1", "failed");
    site.pass(8_000_000);
    assert_eq!((site.receipts[0].moved, site.home().as_str()), (true, "h2"), "{:?}", site.receipts);

    // libvirt takes it back, and says so: then it is where it was.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Libvirt);
    site.pass(100_000);
    site.say("h1", Word::Stopped);
    site.status("h1", "completed");
    site.say("h1", Word::Resumed);
    site.status("h1", "failed");
    site.pass(8_000_000);
    assert_eq!((site.receipts[0].moved, site.home().as_str()), (false, "h1"), "{:?}", site.receipts);
}

#[test]
fn a_word_of_another_migration_ends_nothing() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(Through::Qmp);
    site.pass(100_000);
    let mut say = |id, status: &str| {
        let progress = Progress { status: status.into(), ..Progress::default() };
        let id = Some(Uuid::from_u128(id));
        site.say("h1", Word::Migration { id, progress, downtime_us: None, error: String::new() });
        site.receipts.len()
    };
    assert_eq!((say(8, "failed"), say(8, "cancelled"), say(8, "completed")), (0, 0, 0));
    assert_eq!(say(9, "failed"), 1);
    assert!(!site.receipts[0].moved);
}

/// A controller that was started again in the middle of a move that it has driven.
fn taken_over(through: Through) -> Site {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate(through);
    site.pass(100_000);
    assert_eq!((site.phase(), site.drives.len()), (Some(Phase::Prepared), 1));
    site.restart();
    site
}

#[test]
fn a_move_found_in_the_store_is_not_driven_again_nor_given_up_while_its_destination_is_awaited() {
    for through in [Through::Qmp, Through::Libvirt] {
        // The source is back first, and its QEMU has ended: the VM runs on h2.
        let mut site = taken_over(through);
        site.connect("h3");
        site.connect("h1");
        site.pass(100_000);
        assert_eq!(site.drives, [(Order::Follow, "tcp:h2:1".to_owned())], "asked, once");
        site.status("h1", "gone");
        site.pass(DOUBT + 10_000_000);
        assert_eq!((site.phase(), site.receipts.len()), (Some(Phase::Prepared), 0));
        let doubts: Vec<_> = site.told.iter().filter(|t| t.starts_with("problem: since")).collect();
        assert_eq!(doubts.len(), 1, "{:?}", site.told);
        assert!(doubts[0].contains("tenet vm switch t/sql") && doubts[0].contains("no room"), "{doubts:?}");
        site.connect("h2");
        site.activate("h2");
        site.pass(3_000_000);
        assert_eq!((site.receipts[0].moved, site.home().as_str(), site.drives.len()), (true, "h2", 1));

        // The destination is back first.
        let mut site = taken_over(through);
        site.connect("h2");
        site.activate("h2");
        site.connect("h1");
        site.connect("h3");
        site.pass(3_000_000);
        assert_eq!((site.receipts[0].moved, site.receipts[0].exact), (true, false));
        assert_eq!((site.home().as_str(), &site.drives[..]), ("h2", &[][..]));

        // The source does not come back for long: that is no reason to call off what it may have done.
        let mut site = taken_over(through);
        site.connect("h2");
        site.pass(DOUBT + 10_000_000);
        assert_eq!(site.phase(), Some(Phase::Prepared));
        assert!(site.told.iter().any(|t| t.contains("the agent of host h1 is not connected")));
    }
}

#[test]
fn a_move_found_in_the_store_goes_on_by_what_its_hypervisor_says() {
    // All of it was moved meanwhile, and nobody is there to say so on the destination.
    let mut site = taken_over(Through::Qmp);
    site.connect("h1");
    site.status("h1", "completed");
    site.pass(20_000_000);
    assert_eq!((site.receipts[0].moved, site.home().as_str()), (true, "h2"));
    assert!(site.drives.iter().all(|(order, _)| *order == Order::Follow), "{:?}", site.drives);

    // It goes on, and ends as any other does.
    let mut site = taken_over(Through::Qmp);
    site.connect("h1");
    site.status("h1", "active");
    site.connect("h2");
    site.pass(DOUBT + 10_000_000);
    assert_eq!((site.phase(), site.drives.len()), (Some(Phase::Prepared), 1));
    assert!(site.told.iter().all(|t| !t.contains("it is not known")), "{:?}", site.told);
    site.say("h2", Word::Resumed);
    site.pass(3_000_000);
    assert!(site.receipts[0].moved);

    // It failed meanwhile.
    let mut site = taken_over(Through::Qmp);
    site.connect("h1");
    site.status("h1", "failed");
    assert!(!site.receipts[0].moved);

    // It had not been told to anybody: it is now, once the destination knows of it.
    let mut site = taken_over(Through::Qmp);
    site.connect("h1");
    site.status("h1", "idle");
    site.pass(1_000_000);
    assert_eq!(site.drives.len(), 1);
    site.connect("h2");
    site.pass(1_000_000);
    let orders: Vec<_> = site.drives.iter().map(|(order, _)| *order).collect();
    assert_eq!(orders, [Order::Follow, Order::Move]);
    // Such an answer that comes late, or unasked, says nothing.
    site.status("h1", "gone");
    site.pass(DOUBT + 10_000_000);
    assert_eq!((site.phase(), site.drives.len()), (Some(Phase::Prepared), 2));

    // An operator knows better.
    let mut site = taken_over(Through::Qmp);
    site.connect("h1");
    site.status("h1", "gone");
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    assert_eq!(site.drives[1].0, Order::GiveUp);
    site.status("h1", "failed");
    assert_eq!(site.receipts[0].reason.as_deref(), Some("it was cancelled"));
}

#[test]
fn a_move_that_nobody_was_asked_to_prepare_is_told_with_what_it_cost_and_what_to_do() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.status("h1", "active");
    site.say("h1", Word::Stopped);
    site.now += 40_000;
    site.status("h1", "completed");
    site.status("h2", "completed");
    assert!(site.told.iter().all(|t| !t.starts_with("problem")), "it may have been saved: {:?}", site.told);
    site.now += 60_000;
    site.say("h2", Word::Resumed);
    let told = site.told.pop().unwrap();
    assert!(told.starts_with("problem: t/sql was moved from h1 to h2 by another tool"), "{told}");
    assert!(told.contains("for 100 ms") && told.contains("migrate t/sql --to h2 --switch-only"), "{told}");
    assert_eq!((site.home().as_str(), site.receipts.len()), ("h1", 0), "forwarding stays with the site");
    // Said once, and again once the site follows.
    site.status("h1", "completed");
    assert!(site.told.iter().all(|t| !t.starts_with("problem")), "{:?}", site.told);
    site.now += 20_000_000;
    site.migrate(Through::SwitchOnly);
    site.pass(100_000);
    site.activate("h2");
    site.pass(3_000_000);
    assert_eq!((site.receipts[0].moved, site.home().as_str()), (true, "h2"));
    let told: Vec<_> = site.told.iter().filter(|t| t.starts_with("problem")).collect();
    assert!(told.len() == 1 && told[0].contains("for 20 s they named h1"), "{told:?}");

    // The new host may be heard first.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.say("h2", Word::Resumed);
    assert!(site.told.pop().unwrap().contains("end the one that should not run"));
    site.say("h1", Word::Stopped);
    assert!(site.told.pop().unwrap().contains("by another tool"));

    // One that goes on where it was, or is moved as it should be, is none.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.say("h1", Word::Stopped);
    site.status("h1", "failed");
    site.say("h1", Word::Stopped);
    site.say("h1", Word::Resumed);
    site.migrate(Through::SwitchOnly);
    site.pass(100_000);
    site.say("h2", Word::Resumed);
    site.pass(3_000_000);
    assert!(site.receipts[0].moved && site.told.iter().all(|t| !t.starts_with("problem")), "{:?}", site.told);
}

/// Of the one migration that there is.
fn told_by(site: &mut Site, host: &str, status: &str, error: &str) {
    let progress = Progress { transferred: 0, total: 0, status: status.into() };
    let id = Some(Uuid::from_u128(9));
    site.say(host, Word::Migration { id, progress, downtime_us: None, error: error.into() });
}

fn orders(site: &Site) -> Vec<Order> {
    site.drives.iter().map(|(order, _)| *order).collect()
}

/// A move by QMP that is in post-copy; the VM runs on h2.
fn in_post_copy() -> Site {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate_as(Through::Qmp, true);
    site.pass(100_000);
    told_by(&mut site, "h2", "ready", "");
    site.status("h1", "active");
    site.status("h1", "postcopy-active");
    site.say("h1", Word::Stopped);
    site.now += 20_000;
    site.say("h2", Word::Resumed);
    site.say("h2", Word::FirstFrame { after_us: 5 });
    site
}

#[test]
fn a_move_in_post_copy_begins_when_both_sides_are_ready_and_lasts_until_all_memory_has_come() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate_as(Through::Qmp, true);
    site.pass(1_000_000);
    assert_eq!(orders(&site), [Order::Receive], "the destination's agent is told first");
    told_by(&mut site, "h2", "waiting", "");
    assert_eq!(site.control.migration_progress(&vm()).unwrap().status, "waiting");
    // The source's word is not the destination's.
    told_by(&mut site, "h1", "ready", "");
    site.pass(1_000_000);
    assert_eq!(orders(&site), [Order::Receive]);
    told_by(&mut site, "h2", "ready", "");
    assert_eq!(orders(&site), [Order::Receive, Order::Move]);
    site.status("h1", "active");
    assert!(!site.control.is_in_post_copy(&vm()));
    site.status("h1", "postcopy-active");
    assert_eq!(site.control.cancel(site.now, &vm(), "no"), Err(Refused::PostCopy(name("h2"))));
    site.say("h2", Word::Resumed);
    assert_eq!(site.phase(), Some(Phase::Switched));
    for transferred in 1..40 {
        site.pass(1_000_000);
        let progress = Progress { transferred, total: 100, status: "postcopy-active".into() };
        site.say("h1", Word::Migration { id: None, progress, downtime_us: None, error: String::new() });
    }
    assert!(site.receipts.is_empty(), "{:?}", site.receipts);
    assert!(site.told.iter().all(|t| !t.starts_with("problem")), "{:?}", site.told);
    assert_eq!(site.control.cancel(site.now, &vm(), "no"), Err(Refused::PostCopy(name("h2"))));
    site.status("h1", "completed");
    assert!(!site.control.is_in_post_copy(&vm()));
    site.pass(1_000_000);
    assert!(site.receipts[0].moved && site.receipts[0].post_copy, "{:?}", site.receipts);

    // libvirt makes both sides ready by itself; a move that came to its end before is none in post-copy.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate_as(Through::Libvirt, true);
    site.pass(100_000);
    assert_eq!(orders(&site), [Order::Move]);
    site.status("h1", "active");
    site.say("h2", Word::Resumed);
    site.status("h1", "completed");
    site.pass(3_000_000);
    assert!(site.receipts[0].moved && !site.receipts[0].post_copy, "{:?}", site.receipts);
}

#[test]
fn a_destination_that_is_not_made_ready_for_post_copy_ends_the_move_before_it_begins() {
    let reason = |site: &Site| site.receipts[0].reason.clone().unwrap();
    let begin = || {
        let mut site = Site::new(&["h1", "h2", "h3"]);
        site.migrate_as(Through::Qmp, true);
        site.pass(100_000);
        site
    };
    let mut site = begin();
    told_by(&mut site, "h2", "failed", "its QEMU takes none");
    assert_eq!(reason(&site), "host h2 is not ready for post-copy: its QEMU takes none");
    assert_eq!((orders(&site), site.home()), (vec![Order::Receive], "h1".to_owned()));

    let mut site = begin();
    told_by(&mut site, "h2", "waiting", "its monitor does not answer");
    site.pass(RECEIVE - 1_000_000);
    assert!(site.receipts.is_empty());
    site.pass(2_000_000);
    assert!(reason(&site).contains("its monitor does not answer; next: start it"), "{}", reason(&site));

    // An agent that comes back is told again; one that does not ends it.
    let mut site = begin();
    site.disconnect("h2");
    site.connect("h2");
    site.pass(100_000);
    assert_eq!(orders(&site), [Order::Receive, Order::Receive]);
    site.disconnect("h2");
    site.pass(6_000_000);
    assert!(reason(&site).contains("the agent of host h2, which"), "{}", reason(&site));
}

#[test]
fn who_is_quicker_in_post_copy_than_the_cancelling_is_not_rolled_back() {
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate_as(Through::Libvirt, true);
    site.pass(100_000);
    site.status("h1", "active");
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    site.status("h1", "postcopy-active");
    site.pass(20_000_000);
    assert!(site.receipts.is_empty(), "{:?}", site.receipts);
    site.say("h2", Word::Resumed);
    site.status("h1", "completed");
    site.pass(2_000_000);
    assert!(site.receipts[0].moved, "{:?}", site.receipts);
}

#[test]
fn a_post_copy_that_is_interrupted_is_told_and_not_rolled_back() {
    let problems = |site: &Site| -> Vec<String> {
        site.told.iter().filter(|t| t.starts_with("problem")).cloned().collect()
    };
    let mut site = in_post_copy();
    site.status("h1", "postcopy-paused");
    site.pass(60_000_000);
    let told = problems(&site);
    assert!(told.len() == 1 && told[0].contains("is interrupted in post-copy: it lives on h2"), "{told:?}");
    assert!(told[0].contains("do not end its QEMU") && told[0].contains("migrate-recover"), "{told:?}");
    assert_eq!((site.phase(), site.receipts.len()), (Some(Phase::Switched), 0));
    site.status("h1", "postcopy-recover");
    site.status("h1", "postcopy-active");
    site.status("h1", "completed");
    site.pass(1_000_000);
    assert!(site.receipts[0].moved && site.receipts[0].post_copy);

    // QEMU itself may not notice for long, nor virsh, which goes on saying the same.
    let mut site = in_post_copy();
    for _ in 0..12 {
        site.pass(1_000_000);
        site.status("h1", "active");
    }
    assert_eq!(site.control.migration_progress(&vm()).unwrap().status, "postcopy-active");
    site.pass(2 * STALL);
    let told = problems(&site);
    assert!(told.len() == 1 && told[0].contains("gets no further in post-copy"), "{told:?}");
}

#[test]
fn a_post_copy_that_fails_leaves_the_vm_where_it_is() {
    // The old QEMU ends.
    let mut site = in_post_copy();
    site.status("h1", "failed");
    site.pass(4_000_000);
    assert!(site.told.iter().any(|t| t.contains("failed in post-copy (no room)")), "{:?}", site.told);
    assert!(site.receipts[0].moved && site.receipts[0].post_copy, "{:?}", site.receipts);
    assert_eq!(site.home(), "h2");

    // QEMU had not let go of it: it runs on at the source, says its hypervisor.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate_as(Through::Libvirt, true);
    site.pass(100_000);
    site.status("h1", "postcopy-active");
    site.status("h1", "failed");
    assert!(site.receipts.is_empty(), "nobody knows yet where it is");
    site.say("h1", Word::Resumed);
    site.pass(100_000);
    assert!(!site.receipts[0].moved && site.home() == "h1", "{:?}", site.receipts);

    // Nobody says that it runs.
    let mut site = Site::new(&["h1", "h2", "h3"]);
    site.migrate_as(Through::Libvirt, true);
    site.pass(100_000);
    site.status("h1", "postcopy-active");
    site.status("h1", "failed");
    site.pass(10_000_000);
    assert!(site.told.iter().any(|t| t.contains("runs on neither host")), "{:?}", site.told);
    assert_eq!((site.phase(), orders(&site)), (Some(Phase::Prepared), vec![Order::Move]));
    let outputs = site.control.cancel(site.now, &vm(), "it was cancelled").unwrap();
    site.carry_out(outputs);
    site.pass(6_000_000);
    assert!(!site.receipts[0].moved);
}

#[test]
fn whoever_is_started_again_in_post_copy_hears_of_its_end() {
    // The source's agent: what its hypervisor said meanwhile is asked for.
    let mut site = in_post_copy();
    site.disconnect("h1");
    site.pass(30_000_000);
    site.connect("h1");
    site.pass(100_000);
    assert_eq!(orders(&site).last(), Some(&Order::Follow));
    assert!(site.receipts.is_empty());
    site.status("h1", "completed");
    site.pass(1_000_000);
    assert!(site.receipts[0].moved && site.receipts[0].post_copy);

    // It does not come back.
    let mut site = in_post_copy();
    site.disconnect("h1");
    site.pass(AWAY + 10_000_000);
    assert!(site.told.iter().any(|t| t.contains("failed in post-copy")), "{:?}", site.told);
    assert!(site.receipts[0].moved);

    // Its old QEMU is gone, but the destination's has all of it.
    let mut site = in_post_copy();
    site.disconnect("h1");
    site.connect("h1");
    site.pass(100_000);
    told_by(&mut site, "h1", "gone", "no such QEMU");
    site.status("h2", "completed");
    site.pass(5_000_000);
    assert!(site.told.iter().all(|t| !t.starts_with("problem")), "{:?}", site.told);
    assert!(site.receipts[0].moved);

    // The controller.
    let mut site = in_post_copy();
    site.restart();
    for host in ["h1", "h2", "h3"] {
        site.connect(host);
    }
    site.pass(100_000);
    assert_eq!(orders(&site), [Order::Follow]);
    site.status("h1", "postcopy-active");
    site.pass(8_000_000);
    assert!(site.receipts.is_empty());
    site.status("h1", "completed");
    site.pass(1_000_000);
    assert!(site.receipts[0].moved && site.receipts[0].post_copy);
}
