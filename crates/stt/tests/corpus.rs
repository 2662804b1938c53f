//! The fuzz target on stable Rust: every file of the corpus, and many mutations of them. `UPDATE=1` fills it.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use common::{payload, tcp, way};
use std::path::Path;
use tenet_stt::{cut, fuzz};

const MUTATIONS: u32 = 20_000;

fn write(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for (n, (v6, len, mss, step)) in
        [(false, 100, 1400, 1), (true, 900, 300, 1), (false, 1500, 256, 5), (true, 200, 64, 3)]
            .into_iter()
            .enumerate()
    {
        let (inner, offload) = tcp(v6, &payload(len));
        let mut whole = Vec::new();
        way(v6, 9).encapsulate(&inner, offload, 5001, &mut whole).unwrap();
        let cut = cut(&whole, mss);
        let mut file = Vec::new();
        for i in 0..cut.len() {
            let segment = &cut[i * step % cut.len()];
            file.extend((segment.len() as u16 | 0x8000).to_be_bytes());
            file.extend(segment);
        }
        std::fs::write(folder.join(format!("frame-{n}")), file).unwrap();
    }
}

#[test]
fn reassembly_survives_its_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/stt");
    if std::env::var_os("UPDATE").is_some() {
        write(&folder);
    }
    let corpus: Vec<Vec<u8>> =
        std::fs::read_dir(&folder).unwrap().map(|f| std::fs::read(f.unwrap().path()).unwrap()).collect();
    assert!(!corpus.is_empty(), "{} is empty; UPDATE=1 fills it", folder.display());
    corpus.iter().for_each(|input| fuzz::segments(input));
    let mut state = 1u64;
    let mut roll = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..MUTATIONS {
        let mut input = corpus[roll(corpus.len())].clone();
        for _ in 0..=roll(6) {
            let at = roll(input.len());
            match roll(4) {
                0 => input[at] = roll(256) as u8,
                1 => input[at] ^= 1 << roll(8),
                2 => input.truncate(at.max(1)),
                _ => input.insert(at, roll(256) as u8),
            }
        }
        let kept = input.clone();
        if std::panic::catch_unwind(|| fuzz::segments(&input)).is_err() {
            panic!("input {kept:02x?}");
        }
    }
}
