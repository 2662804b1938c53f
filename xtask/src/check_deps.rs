//! `cargo xtask check-deps`: the pure crates stay pure.
//!
//! Two checks. From cargo's own resolved graph: no pure crate reaches (by normal dependencies, however far) a crate
//! that does I/O. From the sources: no pure crate names a clock, a socket, a file, a thread or a source of randomness.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

/// A pure crate and the workspace crates that it may use.
const PURE: &[(&str, &[&str])] = &[
    ("tenet-wire", &[]),
    ("tenet-tables", &["tenet-wire"]),
    ("tenet-forward", &["tenet-wire", "tenet-tables"]),
    ("tenet-stt", &["tenet-wire"]),
    ("tenet-model", &["tenet-wire"]),
    ("tenet-compile", &["tenet-wire", "tenet-model", "tenet-tables"]),
    ("tenet-control", &["tenet-wire", "tenet-model", "tenet-tables", "tenet-compile"]),
    ("tenet-host", &["tenet-wire", "tenet-model", "tenet-tables", "tenet-compile"]),
    ("tenet-libvirt", &["tenet-wire", "tenet-model"]),
];

/// Crates that do I/O, whatever they are used for.
const IMPURE: &[&str] = &[
    "tokio",
    "aya",
    "aya-obj",
    "mio",
    "socket2",
    "rtnetlink",
    "netlink-sys",
    "netlink-proto",
    "hyper",
    "tonic",
    "axum",
    "reqwest",
    "rustls",
    "redb",
    "rand",
    "getrandom",
    "chrono",
    "time",
    "tracing",
    "log",
    "nix",
    "rustix",
];

/// Crates that a pure crate must not use itself; a library under it may (`cpufeatures` asks libc for the CPU's kind).
const IMPURE_DIRECT: &[&str] = &["libc"];

/// What a pure crate's source must not name (tests may).
const FORBIDDEN: &[&str] = &[
    "std::time::Instant",
    "SystemTime",
    "Instant::now",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "TcpStream",
    "UdpSocket",
    "std::thread",
    "std::process",
    "std::env",
    "thread_rng",
    "Uuid::new_v4",
    "println!",
    "eprintln!",
];

/// Runs both checks on the workspace at `root`; prints what it looked at.
///
/// # Errors
/// The list of wrong edges and forbidden names, if there are any.
pub fn run(root: &Path) -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked"])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let mut wrong = wrong_edges(&Graph::new(&metadata));
    let mut files = 0;
    for (name, _) in PURE {
        let folder = root.join("crates").join(name.trim_start_matches("tenet-")).join("src");
        files += forbidden_names(&folder, &mut wrong)?;
    }
    if !wrong.is_empty() {
        bail!("pure crates must stay pure:\n  {}", wrong.join("\n  "));
    }
    println!(
        "check-deps: {} pure crates, {files} source files: no wrong edge, no forbidden name",
        PURE.len()
    );
    Ok(())
}

/// Normal dependencies of every package in cargo's resolved graph, by package name.
struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    fn new(metadata: &Value) -> Self {
        let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let names: BTreeMap<String, String> =
            list(&metadata["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let to = list(&node["deps"])
                .iter()
                .filter(|d| list(&d["dep_kinds"]).iter().any(|k| k["kind"].is_null()))
                .filter_map(|d| names.get(&text(&d["pkg"])).cloned())
                .collect::<Vec<_>>();
            if let Some(name) = names.get(&text(&node["id"])) {
                edges.entry(name.clone()).or_default().extend(to);
            }
        }
        Self(edges)
    }

    fn reachable(&self, from: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![from.to_owned()];
        while let Some(name) = todo.pop() {
            for next in self.0.get(&name).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    todo.push(next.clone());
                }
            }
        }
        seen
    }
}

fn wrong_edges(graph: &Graph) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, allowed) in PURE {
        if !graph.0.contains_key(*name) {
            wrong.push(format!("{name} is not in the workspace: mend the list in xtask/src/check_deps.rs"));
        }
        for dependency in
            graph.0.get(*name).into_iter().flatten().filter(|d| IMPURE_DIRECT.contains(&d.as_str()))
        {
            wrong.push(format!("{name} uses {dependency}, which does I/O"));
        }
        for dependency in graph.reachable(name) {
            if IMPURE.contains(&dependency.as_str()) {
                wrong.push(format!("{name} reaches {dependency}, which does I/O"));
            }
            if dependency.starts_with("tenet-") && !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name} uses {dependency}; allowed: {}", allowed.join(", ")));
            }
        }
    }
    wrong
}

/// Adds `file:line: name` for each forbidden name outside tests; how many files were read.
fn forbidden_names(folder: &Path, wrong: &mut Vec<String>) -> Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files += forbidden_names(&path, wrong)?;
            continue;
        }
        if path.extension().is_none_or(|e| e != "rs") || path.file_stem().is_some_and(|s| s == "tests") {
            continue;
        }
        files += 1;
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        // By convention the tests are the last module of a file.
        let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for (n, line) in product.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for name in FORBIDDEN.iter().filter(|f| code.contains(*f)) {
                wrong.push(format!("{}:{}: names {name}", path.display(), n + 1));
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn graph(edges: &[(&str, &str, Option<&str>)]) -> Graph {
        let mut names: BTreeSet<&str> = edges.iter().flat_map(|(a, b, _)| [*a, *b]).collect();
        names.extend(PURE.iter().map(|(n, _)| *n));
        let packages: Vec<Value> = names.iter().map(|n| json!({"id": n, "name": n})).collect();
        let nodes: Vec<Value> = names
            .iter()
            .map(|n| {
                let deps: Vec<Value> = edges
                    .iter()
                    .filter(|(a, _, _)| a == n)
                    .map(|(_, b, kind)| json!({"pkg": b, "dep_kinds": [{"kind": kind}]}))
                    .collect();
                json!({"id": n, "deps": deps})
            })
            .collect();
        Graph::new(&json!({"packages": packages, "resolve": {"nodes": nodes}}))
    }

    #[test]
    fn finds_io_behind_an_innocent_crate_and_forgives_dev_dependencies() {
        assert!(wrong_edges(&graph(&[("tenet-model", "serde", None)])).is_empty());
        assert!(wrong_edges(&graph(&[("tenet-model", "tokio", Some("dev"))])).is_empty());
        assert!(wrong_edges(&graph(&[("tenet-model", "cpu", None), ("cpu", "libc", None)])).is_empty());
        assert_eq!(wrong_edges(&graph(&[("tenet-model", "libc", None)])).len(), 1);
        let wrong = wrong_edges(&graph(&[("tenet-model", "nice", None), ("nice", "tokio", None)]));
        assert_eq!(wrong, ["tenet-model reaches tokio, which does I/O"]);
    }

    #[test]
    fn finds_an_edge_against_the_grain() {
        let wrong = wrong_edges(&graph(&[("tenet-forward", "tenet-model", None)]));
        assert_eq!(wrong.len(), 1, "{wrong:?}");
    }
}
