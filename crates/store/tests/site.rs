//! The site's objects in a store.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{sync::Arc, time::Duration};
use tenet_model::{
    Change, Checked, Desired, Host, Key, Name, Object, Receipt, Tenant,
    testing::{Dice, change},
};
use tenet_store::{
    MemoryStore, RECEIPTS_KEPT, RedbOptions, RedbStore, SiteError, SiteStore, Store, StoreError, Txn, keys,
};

async fn memory() -> SiteStore {
    SiteStore::open(Arc::new(MemoryStore::new())).await.unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn host(n: u8) -> Object {
    Object::Host(Host { name: name(&format!("h{n}")), pa: [192, 168, 1, n].into(), rewrite_pool: vec![] })
}

async fn check(site: &SiteStore, object: Object) -> Checked {
    site.load().await.unwrap().check(&Change::put(object)).unwrap()
}

#[tokio::test]
async fn a_new_site_has_the_default_tenant_and_keeps_it() {
    let site = memory().await;
    let desired = site.load().await.unwrap();
    assert_eq!(desired.tenants.keys().map(Name::as_str).collect::<Vec<_>>(), ["default"]);
    let again = SiteStore::open(Arc::clone(site.store())).await.unwrap();
    assert_eq!(again.load().await.unwrap(), desired);
}

#[tokio::test]
async fn a_lost_race_says_so() {
    let site = memory().await;
    let (one, two) = (check(&site, host(1)).await, check(&site, host(2)).await);
    let revision = site.commit(&one).await.unwrap();
    let error = site.commit(&two).await.unwrap_err();
    assert!(matches!(error, SiteError::Lost { seen } if seen == two.revision()), "{error}");
    let desired = site.load().await.unwrap();
    assert_eq!((desired.revision, desired.hosts.len()), (revision, 1));
    site.commit(&check(&site, host(2)).await).await.unwrap();
}

#[tokio::test]
async fn deleting_moves_the_revision_and_nothing_does_not() {
    let site = memory().await;
    let made = site.commit(&check(&site, host(1)).await).await.unwrap();
    let same = check(&site, host(1)).await;
    assert!(same.is_empty());
    assert_eq!(site.commit(&same).await.unwrap(), made);
    let desired = site.load().await.unwrap();
    let gone = desired.check(&Change::delete(Key::Host(name("h1")))).unwrap();
    let revision = site.commit(&gone).await.unwrap();
    assert!(revision > made);
    assert_eq!(site.load().await.unwrap().revision, revision);
}

#[tokio::test]
async fn other_keys_do_not_move_the_objects_revision() {
    let site = memory().await;
    let checked = check(&site, host(1)).await;
    site.store().txn(Txn::default().put("/tenet/v1/ack/h1", "7")).await.unwrap();
    site.commit(&checked).await.unwrap();
}

fn receipt(started_ms: u64) -> Receipt {
    Receipt {
        vm: "default/sql".parse().unwrap(),
        id: uuid::Uuid::from_u128(u128::from(started_ms)),
        from: name("h1"),
        to: name("h2"),
        moved: true,
        reason: None,
        redirected: 0,
        drained: 0,
        lost: 0,
        started_ms,
        prepare_us: 0,
        exact: true,
        last_ack_us: 0,
        acks_us: Default::default(),
        behind: Default::default(),
        pause_us: None,
        downtime_us: None,
        first_frame_us: None,
        activated_by: None,
        through: Default::default(),
        post_copy: false,
        ports: Default::default(),
    }
}

#[tokio::test]
async fn a_receipt_comes_with_its_change_or_not_at_all() {
    let site = memory().await;
    let (one, late) = (check(&site, host(1)).await, check(&site, host(2)).await);
    site.commit_with_receipt(&one, &receipt(20)).await.unwrap();
    assert!(site.commit_with_receipt(&late, &receipt(15)).await.is_err());
    site.commit_with_receipt(&check(&site, host(3)).await, &receipt(3)).await.unwrap();
    let started: Vec<u64> = site.receipts().await.unwrap().iter().map(|r| r.started_ms).collect();
    assert_eq!(started, [3, 20]);
}

#[tokio::test]
async fn the_oldest_receipts_make_room_for_new_ones() {
    let site = memory().await;
    // As many as there may be, written before this controller was started.
    let mut full = Txn::default();
    for n in 0..RECEIPTS_KEPT as u64 {
        let key = format!("{}{n:016}-{}", keys::RECEIPTS, uuid::Uuid::from_u128(u128::from(n)));
        full = full.put(key, serde_json::to_vec(&receipt(n)).unwrap());
    }
    site.store().txn(full).await.unwrap();
    let site = SiteStore::open(Arc::clone(site.store())).await.unwrap();
    for n in 0..100 {
        let nothing = site.load().await.unwrap().check(&Change::default()).unwrap();
        let new = receipt(RECEIPTS_KEPT as u64 + n);
        site.commit_with_receipt(&nothing, &new).await.unwrap();
        let there = site.store().range(keys::RECEIPTS).await.unwrap().items.len();
        assert!(there <= RECEIPTS_KEPT && there > RECEIPTS_KEPT - 100, "{there} after {n}");
    }
    let kept = site.receipts().await.unwrap();
    assert_eq!(kept.last().map(|r| r.started_ms), Some(RECEIPTS_KEPT as u64 + 99));
    let oldest = kept[0].started_ms;
    assert!((100..=200).contains(&oldest), "{oldest}");
    assert!(kept.windows(2).all(|w| w[1].started_ms == w[0].started_ms + 1), "none from the middle");
}

#[tokio::test]
async fn an_unreadable_object_is_named() {
    for (key, value, expected) in [
        ("host/h1", "{", "EOF"),
        ("host/h1", r#"{"kind":"spaceship"}"#, "spaceship"),
        ("host/h1", r#"{"kind":"host","name":"h2","pa":"192.168.1.1"}"#, "describes host h2"),
        ("host/h1", r#"{"kind":"host","name":"h1","pa":"nowhere"}"#, "address"),
    ] {
        let site = memory().await;
        let full = format!("{}{key}", keys::OBJECTS);
        let mut watch = site.watch(site.load().await.unwrap().revision + 1).await.unwrap();
        site.store().txn(Txn::default().put(full.as_str(), value)).await.unwrap();
        for error in [site.load().await.unwrap_err(), watch.next().await.unwrap_err()] {
            let text = error.to_string();
            assert!(
                text.contains(&full) && text.contains(expected) && text.contains("delete this key"),
                "{text}"
            );
        }
        assert!(SiteStore::open(Arc::clone(site.store())).await.is_err());
    }
}

/// Whatever is written: a follower of the watch has what a reader of everything has, also after a reopen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_has_what_a_reader_has() {
    let directory = std::env::temp_dir().join(format!("tenet-store-site-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("site.redb");
    let open = || Arc::new(RedbStore::open(&path, RedbOptions::default()).unwrap());
    let mut dice = Dice::new(3);
    for _ in 0..3 {
        let site = SiteStore::open(open()).await.unwrap();
        let mut followed = site.load().await.unwrap();
        let mut watch = site.watch(followed.revision + 1).await.unwrap();
        let mut desired = followed.clone();
        let mut last = desired.revision;
        for _ in 0..150 {
            let Ok(checked) = desired.check(&change(&desired, &mut dice)) else { continue };
            last = site.commit(&checked).await.unwrap();
            desired.apply(checked.operations(), last);
        }
        assert_eq!(site.load().await.unwrap(), desired);
        while followed.revision < last {
            let event = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.unwrap().unwrap();
            followed.apply(&event.operations, event.revision);
        }
        assert_eq!(followed, desired);
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_openers_make_one_default_tenant() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(SiteStore::open(Arc::clone(&store)))).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let default = store.get(&format!("{}tenant/default", keys::OBJECTS)).await.unwrap().unwrap();
    assert_eq!(default.version, 1);
    assert_eq!(
        Desired::default()
            .check(&Change::put(Object::Tenant(Tenant { name: name("default") })))
            .unwrap()
            .revision(),
        0
    );
}

#[tokio::test]
async fn a_follower_that_is_too_late_is_told() {
    let site = memory().await;
    for n in 1..10 {
        site.commit(&check(&site, host(n)).await).await.unwrap();
    }
    site.store().compact(8).await.unwrap();
    assert!(matches!(site.watch(3).await, Err(SiteError::Store(StoreError::Compacted { .. }))));
}
