//! The fuzz targets of texts and messages on stable Rust: every file of their corpora, and many mutations of them.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop at the first surprise")]

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use prost::Message as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::path::Path;
use tenet_api::agent;

const MUTATIONS: usize = 20_000;

fn check(target: &str, more: Vec<Vec<u8>>, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut inputs = more;
    if let Ok(files) = std::fs::read_dir(&folder) {
        let mut files: Vec<_> = files.map(|f| f.unwrap().path()).collect();
        files.sort();
        inputs.extend(files.iter().map(|f| std::fs::read(f).unwrap()));
    }
    assert!(!inputs.is_empty(), "there is no corpus in {}", folder.display());
    inputs.iter().for_each(|input| run(input));
    let seed = std::env::var("TENET_FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let mut dice = StdRng::seed_from_u64(seed);
    for _ in 0..MUTATIONS {
        let mut input = inputs[dice.random_range(0..inputs.len())].clone();
        for _ in 0..dice.random_range(1..6) {
            let at = dice.random_range(0..=input.len());
            match dice.random_range(0..5) {
                0 => input.insert(at, dice.random()),
                1 => input.truncate(at),
                2 => {
                    if let Some(byte) = input.get_mut(at) {
                        *byte ^= 1 << dice.random_range(0..8);
                    }
                }
                3 => {
                    let piece = input[at..].to_vec();
                    input.extend(piece.iter().take(40));
                }
                _ => drop(input.drain(at..input.len().min(at + 4))),
            }
        }
        let kept = input.clone();
        if std::panic::catch_unwind(|| run(&input)).is_err() {
            panic!("seed {seed}, target {target}, input {kept:?}");
        }
    }
}

#[test]
fn site_files_survive_their_corpus() {
    check("site_file", Vec::new(), targets::site_file);
}

#[test]
fn request_bodies_survive_their_corpus() {
    check("rest_body", Vec::new(), targets::rest_body);
}

#[test]
fn names_survive_their_corpus() {
    check("names", Vec::new(), targets::names);
}

#[test]
fn messages_survive_mutation() {
    let row = |row| agent::Row { generation: 7, row: Some(row) };
    let record = agent::RecordRow {
        net: 1,
        ca: "10.1.1.11".to_owned(),
        mac: "02:00:00:00:00:01".to_owned(),
        vsid: 5001,
        pa: "192.168.1.10".to_owned(),
        alt_pa: "192.168.2.20".to_owned(),
        method: "nvgre".to_owned(),
        port: "contoso/sql/eth0".to_owned(),
        rewrite_pa: "192.168.1.130".to_owned(),
        other_rewrite_pa: "192.168.2.130".to_owned(),
    };
    let route = agent::RouteRow { net: 1, prefix: "10.1.1.0/24".to_owned(), ..Default::default() };
    let delta = agent::Delta {
        base: 6,
        generation: 7,
        upserts: vec![row(agent::row::Row::Record(record.clone())), row(agent::row::Row::Route(route))],
        deletes: vec![agent::RowKey { key: Some(agent::row_key::Key::Peer("192.168.2.20".to_owned())) }],
    };
    let full = agent::Full { generation: 7, rows: vec![row(agent::row::Row::Record(record))] };
    let hello = agent::Hello { version: "0.1.0".to_owned(), layout: 1, ..Default::default() };
    let controller = |m| agent::ControllerMessage { message: Some(m) }.encode_to_vec();
    let inputs = vec![
        controller(agent::controller_message::Message::Delta(delta)),
        controller(agent::controller_message::Message::Full(full)),
        agent::AgentMessage { message: Some(agent::agent_message::Message::Hello(hello)) }.encode_to_vec(),
    ];
    check("agent_protocol", inputs, targets::agent_protocol);
}
