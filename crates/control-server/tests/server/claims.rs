//! What hosts claim, by the connection of a pretend agent.

use crate::{
    attach, kinds,
    support::{Controller, DEADLINE, held},
};
use std::time::Duration;
use tenet_api::{
    agent::{
        ClaimPort, ClaimReply, ClaimRequest, VmEvent, agent_message::Message, claim_request::Purpose,
        vm_event::Kind,
    },
    rest::{Migrate, SettingsSpec, Wait},
};
use tenet_control_server::pretend::{Credentials, PretendAgent};
use tenet_model::VmRef;

fn sql() -> VmRef {
    "contoso/sql".parse().unwrap()
}

/// `contoso/sql` on h1; h1 and h2 have sessions.
async fn site(c: &Controller) -> (PretendAgent, PretendAgent, Credentials) {
    c.small_site().await;
    let (k1, k2) = (c.join("h1", "192.168.1.10").await, c.join("h2", "192.168.2.20").await);
    let (h1, h2) = (c.agent(&k1).await, c.agent(&k2).await);
    c.client.attach(&sql(), &attach("h1", "sql0")).await.unwrap();
    held(&h2, |h| h.fulls == 1).await;
    (h1, h2, k2)
}

async fn incoming(c: &Controller, host: &Credentials) -> ClaimReply {
    let mut client = host.connect(c.ready.grpc).await.unwrap();
    let request =
        ClaimRequest { vm: sql().to_string(), purpose: Purpose::Incoming.into(), ..ClaimRequest::default() };
    client.claim(request).await.unwrap().into_inner()
}

async fn until_migrations(c: &Controller, number: usize, longest: Duration) {
    let wait = async {
        while c.client.migrations().await.unwrap().len() != number {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(longest, wait).await.unwrap_or_else(|_| panic!("never {number} migrations"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_takes_another_hosts_vm_only_as_the_site_allows() {
    let c = Controller::memory().await;
    let (_h1, _h2, k2) = site(&c).await;
    let forbidden = SettingsSpec { hosts_begin_migrations: Some(false), ..SettingsSpec::default() };
    c.client.set_settings(&forbidden).await.unwrap();
    let refusal = incoming(&c, &k2).await.refusal.unwrap();
    assert_eq!(refusal.status, 409);
    assert!(refusal.hint.contains("tenet vm migrate contoso/sql --to h2 --switch-only"), "{refusal:?}");
    assert!(c.client.migrations().await.unwrap().is_empty());
    // Asked for, it is joined.
    let to = "h2".parse().unwrap();
    let request = Migrate::to(to);
    c.client.clone().with_wait(Wait::Stored, None).migrate(&sql(), &request).await.unwrap();
    let reply = incoming(&c, &k2).await;
    assert!(reply.refusal.is_none() && !reply.migration.is_empty() && !reply.began, "{reply:?}");
    c.client.migrate_cancel(&sql()).await.unwrap();
    // And as it is from the start, the claim alone does.
    let allowed = SettingsSpec { hosts_begin_migrations: Some(true), ..SettingsSpec::default() };
    c.client.set_settings(&allowed).await.unwrap();
    assert!(incoming(&c, &k2).await.began);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_says_how_many_queues_the_vm_opens() {
    let c = Controller::memory().await;
    c.small_site().await;
    let k1 = c.join("h1", "192.168.1.10").await;
    let _h1 = c.agent(&k1).await;
    let mac = c.client.vm(&sql()).await.unwrap().ports[0].mac;
    let claimed = async |port: ClaimPort| {
        let mut client = k1.connect(c.ready.grpc).await.unwrap();
        let request = ClaimRequest { vm: sql().to_string(), ports: vec![port], ..ClaimRequest::default() };
        let refusal = client.claim(request).await.unwrap().into_inner().refusal;
        (refusal, c.client.vm(&sql()).await.unwrap().ports[0].queues)
    };
    let named = ClaimPort { port: "eth0".into(), ..ClaimPort::default() };
    assert_eq!(claimed(named.clone()).await, (None, 1));
    assert_eq!(claimed(ClaimPort { queues: 4, ..named.clone() }).await, (None, 4));
    assert_eq!(claimed(named.clone()).await, (None, 4), "it says nothing of them");
    let by_mac = ClaimPort { mac: mac.to_string(), queues: 2, ..ClaimPort::default() };
    assert_eq!(claimed(by_mac).await, (None, 2));
    let (refusal, queues) = claimed(ClaimPort { queues: 100_000, ..named }).await;
    assert!(refusal.is_some() && queues == 2, "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_goes_with_the_claim_that_began_it() {
    let c = Controller::memory().await;
    let (_h1, h2, k2) = site(&c).await;
    // It prepares nothing: the claim has to wait.
    h2.mute(true);
    let broken = async {
        tokio::select! {
            reply = incoming(&c, &k2) => panic!("{reply:?}"),
            () = until_migrations(&c, 1, DEADLINE) => {}
        }
    };
    broken.await;
    // Sooner than a destination is given up that does not answer.
    until_migrations(&c, 0, Duration::from_secs(6)).await;
    let receipts = c.client.receipts().await.unwrap();
    let [receipt] = receipts.as_slice() else { panic!("{receipts:?}") };
    let reason = receipt.reason.clone().unwrap_or_default();
    assert!(!receipt.moved && reason.contains("waits no longer"), "{reason}");
}

/// As by one `virsh migrate` straight after another.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_has_just_moved_is_claimed_back_as_soon_as_its_move_is_over() {
    let c = Controller::memory().await;
    c.small_site().await;
    let (k1, k2) = (c.join("h1", "192.168.1.10").await, c.join("h2", "192.168.2.20").await);
    let (_h1, h2) = (c.agent(&k1).await, c.agent(&k2).await);
    c.client.attach(&sql(), &attach("h1", "sql0")).await.unwrap();
    let there = incoming(&c, &k2).await;
    assert!(there.began, "{there:?}");
    let event = VmEvent { vm: sql().to_string(), kind: Kind::Resumed.into(), ..VmEvent::default() };
    h2.send(Message::VmEvent(event)).await;
    let switched = async {
        while c.client.migrations().await.unwrap().first().is_none_or(|m| m.phase != "switched") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, switched).await.unwrap();
    let back = incoming(&c, &k1).await;
    assert!(back.began && back.migration != there.migration, "{back:?}");
    let receipts = c.client.receipts().await.unwrap();
    assert!(matches!(receipts.as_slice(), [r] if r.moved && r.to.as_str() == "h2"), "{receipts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_says_too_much_does_not_fill_the_events() {
    let c = Controller::memory().await;
    let (_h1, h2, k2) = site(&c).await;
    for _ in 0..600 {
        let event = VmEvent { vm: sql().to_string(), kind: Kind::Resumed.into(), ..VmEvent::default() };
        h2.send(Message::VmEvent(event)).await;
    }
    let mut client = k2.connect(c.ready.grpc).await.unwrap();
    for _ in 0..300 {
        let request = ClaimRequest { vm: sql().to_string(), ..ClaimRequest::default() };
        assert!(client.claim(request).await.unwrap().into_inner().refusal.is_some());
    }
    let kinds = kinds(&c).await;
    let number = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
    // Of the first second, and of those that it took.
    assert!(number("problem") > 0, "the first of them are told");
    assert!(number("problem") + number("refused") < 600, "{} {}", number("problem"), number("refused"));
}
