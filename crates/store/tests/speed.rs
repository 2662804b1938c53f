//! Prints what a durable transaction takes (`cargo test --release -- --nocapture`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tenet_store::{RedbOptions, RedbStore, Store as _, Txn};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_transaction() {
    let path = std::env::temp_dir().join(format!("tenet-store-speed-{}", std::process::id()));
    let store = Arc::new(RedbStore::open(&path, RedbOptions::default()).unwrap());
    let many = (0..5000).fold(Txn::default(), |txn, n| txn.put(format!("k/{n}"), vec![b'x'; 250]));
    let start = Instant::now();
    store.txn(many).await.unwrap();
    println!("5,000 keys in one transaction: {:?}", start.elapsed());
    let mut times: Vec<Duration> = Vec::new();
    for n in 0..100 {
        let start = Instant::now();
        store.txn(Txn::default().put(format!("k/{n}"), "x")).await.unwrap();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!("one transaction: median {:?}, worst {:?}", times[50], times[99]);
    let start = Instant::now();
    let tasks: Vec<_> = (0..500)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.txn(Txn::default().put(format!("k/{n}"), "y")).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    println!("500 at once: {:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(store.range("k/").await.unwrap().items.len(), 5000);
    println!("all 5,000 read: {:?}", start.elapsed());
    drop(store);
    std::fs::remove_file(&path).unwrap();
}
