//! What is written to the kernel's maps is what is read back.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use common::{Host, Pins, root};
use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestRunner};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tenet_datapath::{Error, Hook, Image, Operation, Role};
use tenet_hostnet::Netns;
use tenet_tables::image::Prefix;
use tenet_tables::{Addr, Config, LAYOUT_VERSION, PoolKey, Port, Record, RecordKey, Route, Subnet};
use zerocopy::FromBytes;

/// Any value of a type that all bytes are legal for.
fn any_of<T: FromBytes + std::fmt::Debug>() -> impl Strategy<Value = T> {
    proptest::collection::vec(any::<u8>(), size_of::<T>()).prop_map(|b| T::read_from_bytes(&b).unwrap())
}

fn some<K: FromBytes + Ord + std::fmt::Debug, V: FromBytes + std::fmt::Debug>()
-> impl Strategy<Value = BTreeMap<K, V>> {
    proptest::collection::btree_map(any_of::<K>(), any_of::<V>(), 0..20)
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (0u32..4, any::<u128>(), 0u32..=128).prop_map(|(net, bits, len)| {
        let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
        Prefix { net, ca: Addr::v6((bits & mask).to_be_bytes()), len }
    })
}

fn image() -> impl Strategy<Value = Image> {
    let routes = proptest::collection::btree_map(prefix(), any_of::<Route>(), 0..20);
    let pool = prefix().prop_map(|p| (PoolKey { pa: p.ca }, p.len));
    let pools = proptest::collection::btree_map(pool, any_of(), 0..20);
    let rewriting = (pools, some());
    (any_of::<Config>(), some(), some(), rewriting, some(), some(), some(), routes, some()).prop_map(
        |(config, peers, subnets, (pools, rewrites), records, macs, flood, routes, ports)| Image {
            config: Some(Config { layout: LAYOUT_VERSION, ..config }),
            peers,
            subnets,
            pools,
            rewrites,
            records,
            macs,
            flood,
            routes,
            ports,
        },
    )
}

#[test]
fn any_image_is_read_back_as_written() {
    if !root() {
        return;
    }
    let netns = Netns::anonymous().unwrap();
    let pins = Pins::new(&netns, Hook::Auto);
    let datapath = pins.open();
    assert_eq!(datapath.read().unwrap(), Image::default());
    let mut runner = TestRunner::new(Runs { cases: 64, failure_persistence: None, ..Runs::default() });
    runner
        .run(&image(), |wanted| {
            let operations = datapath.read().unwrap().operations_to(&wanted);
            datapath.apply(&operations).unwrap();
            prop_assert_eq!(datapath.read().unwrap(), wanted);
            datapath.apply(&operations).unwrap();
            Ok(())
        })
        .unwrap();
    let before = datapath.read().unwrap();
    drop(datapath);
    assert_eq!(pins.open().read().unwrap(), before, "the maps outlive the agent");
}

#[test]
fn many_records_are_read_fast_and_whole() {
    if !root() {
        return;
    }
    let netns = Netns::anonymous().unwrap();
    let pins = Pins::new(&netns, Hook::Auto);
    let datapath = pins.open();
    let mut wanted =
        Image { config: Some(Config { layout: LAYOUT_VERSION, ..Config::default() }), ..Image::default() };
    for n in 0..50_000u32 {
        let ca = Addr::v4(n.to_be_bytes());
        wanted.records.insert(RecordKey { net: 1, ca }, Record { vsid: n, ..Record::default() });
        wanted.routes.insert(Prefix { net: 1, ca, len: 128 }, Route { metric: n, ..Route::default() });
    }
    let started = Instant::now();
    let operations = Image::default().operations_to(&wanted);
    if let Err(Error::MapFull { map, capacity, .. }) = datapath.apply(&operations) {
        eprintln!("SKIPPED in part: map {map} holds only {capacity}");
        return;
    }
    let written = started.elapsed();
    let started = Instant::now();
    let read = datapath.read().unwrap();
    eprintln!("{} writes in {written:?}, read back in {:?}", operations.len(), started.elapsed());
    assert!(read == wanted);
}

#[test]
fn a_full_map_says_which_and_how_full() {
    if !root() {
        return;
    }
    let netns = Netns::anonymous().unwrap();
    let pins = Pins::new(&netns, Hook::Auto);
    let datapath = pins.open();
    let error = (0..1 << 22)
        .find_map(|vsid| datapath.apply(&[Operation::Subnet(vsid, Some(Subnet::default()))]).err());
    let Some(Error::MapFull { map: "SUBNETS", capacity, key }) = error else { panic!("{error:?}") };
    assert_eq!(key, capacity.to_string());
}

#[test]
fn a_foreign_layout_is_refused_and_left_alone() {
    if !root() {
        return;
    }
    let netns = Netns::anonymous().unwrap();
    let pins = Pins::new(&netns, Hook::Auto);
    let datapath = pins.open();
    let foreign = Config { layout: LAYOUT_VERSION + 1, uplink: 7, ..Config::default() };
    datapath.apply(&[Operation::Configure(foreign)]).unwrap();
    drop(datapath);
    let error = pins.try_open().unwrap_err();
    assert!(matches!(error, Error::ForeignLayout { found, .. } if found == LAYOUT_VERSION + 1), "{error}");
    assert!(error.to_string().contains("tenet agent --detach"), "{error}");
    let done = tenet_datapath::detach_all(&pins.options).unwrap();
    assert!(done.errors.is_empty(), "{:?}", done.errors);
    assert_eq!(pins.open().read().unwrap(), Image::default());
}

#[test]
fn a_map_of_another_shape_is_refused() {
    if !root() {
        return;
    }
    let netns = Netns::anonymous().unwrap();
    let pins = Pins::new(&netns, Hook::Auto);
    drop(pins.open());
    let maps = pins.options.bpffs.join("maps");
    std::fs::rename(maps.join("PORTS"), maps.join("OTHER")).unwrap();
    std::fs::rename(maps.join("MACS"), maps.join("PORTS")).unwrap();
    let error = pins.try_open().unwrap_err();
    assert!(matches!(error, Error::ForeignMap { map: "PORTS", .. }), "{error}");
}

#[test]
fn the_port_state_is_that_of_the_kernel() {
    if !root() {
        return;
    }
    let netns = Netns::anonymous().unwrap();
    let pins = Pins::new(&netns, Hook::Auto);
    let datapath = pins.open();
    assert_eq!(datapath.port_state(9).unwrap(), None);
    datapath.apply(&[Operation::Port(9, Some(Port { state: 2, ..Port::default() }))]).unwrap();
    assert_eq!(datapath.port_state(9).unwrap(), Some(2));
}

#[test]
fn programs_have_figures_and_events_can_be_waited_for() {
    if !root() {
        return;
    }
    let host = Host::new();
    let pins = Pins::new(&host.netns, Hook::Auto);
    let datapath = pins.open();
    let facts = datapath.programs().unwrap();
    assert_eq!(facts.iter().map(|f| f.role).collect::<Vec<_>>(), Role::ALL);
    eprintln!("{facts:?}");
    assert!(facts.iter().all(|f| f.translated_size > 0 && f.tag.len() == 16));
    let mut events = datapath.events().unwrap();
    assert!(events.wait(Duration::from_millis(1)).unwrap().is_none());
}
