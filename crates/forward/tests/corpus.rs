//! The fuzz targets on stable Rust: every file of the corpora, and many mutations of them.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::Path;
use tenet_forward::model::packets::Shape;
use tenet_forward::model::traffic::{self, Dice};
use tenet_forward::model::{fuzz, rewrite, rewrite_fuzz, rewrite_traffic, site};

const MUTATIONS: usize = 35_000;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    if std::env::var_os("UPDATE").is_some() {
        write(target, &folder);
    }
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty; UPDATE=1 fills it", folder.display());
    files.iter().map(|f| std::fs::read(f).unwrap()).collect()
}

/// Fills a corpus with frames of an example site.
fn write(target: &str, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    match target {
        "rewrite" => return write_rewrite(folder),
        "rewrite_quote" => return write_quotes(folder),
        "wire" | "uplink_ingress" => write_tunnels(target, folder),
        _ => {}
    }
    let site = site::site(std::array::from_fn(|i| 100 + i as u32), 99);
    let mut dice = Dice::new(9);
    let mut n = [0; 2];
    while n[0] < 40 || n[1] < 40 {
        let sample = traffic::sample(&mut dice, &site);
        let v6 = sample.bytes.windows(2).take(56).any(|w| w == [0x86, 0xdd]);
        let (n, name) = (&mut n[usize::from(v6)], if v6 { "ipv6" } else { "site" });
        if *n == 40 || sample.bytes.len() > 200 || sample.from_wire != (target == "uplink_ingress") {
            continue;
        }
        let choice =
            if target == "port_ingress" { sample.meta.ifindex.wrapping_sub(100) as u8 & 0xf } else { 0 };
        let first: &[u8] = if target == "wire" { &[] } else { &[choice] };
        std::fs::write(folder.join(format!("{name}-{n:02}")), [first, &sample.bytes].concat()).unwrap();
        *n += 1;
    }
}

/// Fills a corpus with frames in all tunnels, in both families.
fn write_tunnels(target: &str, folder: &Path) {
    let mut dice = Dice::new(11);
    for (n, over_ipv6) in [false, true].into_iter().cycle().take(60).enumerate() {
        let mut site = site::site(std::array::from_fn(|i| 100 + i as u32), 99);
        if over_ipv6 {
            site.move_to_ipv6();
        }
        let sample = std::iter::repeat_with(|| traffic::sample(&mut dice, &site))
            .find(|s| s.from_wire && s.bytes.len() < 250)
            .unwrap();
        let choice: &[u8] = match target {
            "wire" => &[],
            _ if over_ipv6 => &[0x80],
            _ => &[0],
        };
        std::fs::write(folder.join(format!("tunnel-{n:02}")), [choice, &sample.bytes].concat()).unwrap();
    }
}

fn write_rewrite(folder: &Path) {
    let interfaces = std::array::from_fn(|i| rewrite::interface(i as u8));
    let mut dice = Dice::new(10);
    for n in 0..80 {
        let sample = rewrite_traffic::sample(&mut dice, &interfaces, 99);
        let choice = if sample.from_wire { 8 } else { (sample.meta.ifindex - interfaces[0]) as u8 };
        let bytes = &sample.bytes[..sample.bytes.len().min(200)];
        std::fs::write(folder.join(format!("site-{n:02}")), [&[choice], bytes].concat()).unwrap();
    }
}

fn write_quotes(folder: &Path) {
    let machines = rewrite::machines();
    let mut dice = Dice::new(11);
    for n in 0..40u8 {
        let shape = Shape::random(&mut dice);
        let packet = shape.build(machines[0].home_pa(shape.v6), machines[8].home_pa(shape.v6));
        let (ty, code) = if shape.v6 { (2, 0) } else { (3, 4) };
        let first = [u8::from(shape.v6) | 2 | (n % 3) << 2, ty, code];
        let bytes = &packet[..packet.len().min(128)];
        std::fs::write(folder.join(format!("packet-{n:02}")), [&first, bytes].concat()).unwrap();
    }
}

fn check(target: &str, run: fn(&[u8])) {
    let corpus = corpus(target);
    corpus.iter().for_each(|input| run(input));
    let seed = std::env::var("TENET_FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    for _ in 0..MUTATIONS {
        let mut input = corpus[dice.below(corpus.len())].clone();
        for _ in 0..dice.below(6) {
            let at = dice.below(input.len());
            match dice.below(5) {
                0 => input[at] = dice.roll() as u8,
                1 => input[at] ^= 1 << dice.below(8),
                2 => input.truncate(at.max(1)),
                3 => input.insert(at, dice.roll() as u8),
                _ => {
                    let more = input.len() + dice.below(40);
                    input.resize(more, 0);
                }
            }
        }
        let kept = input.clone();
        if std::panic::catch_unwind(|| run(&input)).is_err() {
            panic!("seed {seed}, input {kept:02x?}");
        }
    }
}

#[test]
fn parsers_survive_their_corpus() {
    check("wire", fuzz::wire);
}

#[test]
fn ports_survive_their_corpus() {
    check("port_ingress", fuzz::port_ingress);
}

#[test]
fn uplinks_survive_their_corpus() {
    check("uplink_ingress", fuzz::uplink_ingress);
}

#[test]
fn rewrite_addresses_survive_their_corpus() {
    check("rewrite", rewrite_fuzz::rewrite);
}

#[test]
fn quoted_packets_survive_their_corpus() {
    check("rewrite_quote", rewrite_fuzz::rewrite_quote);
}
