//! What of a run of tests was `SKIPPED`, read from what `cargo test -- --show-output` prints.

use std::collections::BTreeMap;

/// What a test says that does not run here, or in part only, before the reason.
const WORDS: [(&str, &str); 2] = [("SKIPPED: ", ""), ("SKIPPED in part: ", "in part: ")];

/// Reads a run line by line.
#[derive(Default)]
pub struct Skips {
    /// The file of tests that runs.
    suite: String,
    /// The test whose output is shown.
    test: Option<String>,
    /// Whether what is shown was printed by tests that passed.
    passed: bool,
    /// What was skipped and why, with how often.
    all: BTreeMap<String, usize>,
}

impl Skips {
    /// Takes a line; whether it is for the reader: what tests that passed have printed is not.
    pub fn hear(&mut self, line: &str) -> bool {
        if let Some(suite) = suite(line) {
            (self.suite, self.test, self.passed) = (suite, None, false);
        }
        if line == "successes:" {
            self.passed = true;
        } else if self.passed && (line == "failures:" || line.starts_with("test result: ")) {
            (self.test, self.passed) = (None, false);
        } else if let Some(test) = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" stdout ----")) {
            self.test = Some(test.to_owned());
        } else if let Some(why) = skipped(line) {
            let test = self.test.as_ref().map_or_else(String::new, |t| format!("{t}: "));
            *self.all.entry(format!("{}: {test}{why}", self.suite)).or_default() += 1;
        }
        !self.passed
    }

    /// The list for the end of a run; `known` are parts of reasons that are expected here.
    pub fn list(&self, known: &[String]) -> String {
        if self.all.is_empty() {
            return "nothing was SKIPPED\n".to_owned();
        }
        let mut text = "SKIPPED:\n".to_owned();
        for (what, times) in &self.all {
            let often = if *times > 1 { format!(" ({times} times)") } else { String::new() };
            let word = if is_known(what, known) { " (known)" } else { "" };
            text.push_str(&format!("  {what}{often}{word}\n"));
        }
        text
    }

    /// How many there are that are not expected.
    pub fn unknown(&self, known: &[String]) -> usize {
        self.all.keys().filter(|what| !is_known(what, known)).count()
    }
}

fn is_known(what: &str, known: &[String]) -> bool {
    known.iter().any(|k| what.contains(k.as_str()))
}

/// The file of tests that cargo says it runs: `taps` of `Running tests/taps.rs (target/debug/deps/taps-1a2b)`.
fn suite(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} (documentation)"));
    }
    let (_, path) = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once(" (")?;
    let file = path.rsplit('/').next()?;
    Some(file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned())
}

/// The reason, if a line says that something is skipped: by itself, or after what the runner has begun to say of a test.
fn skipped(line: &str) -> Option<String> {
    WORDS.iter().find_map(|(word, part)| {
        let (before, why) = line.split_once(word)?;
        (before.is_empty() || before.ends_with(" ... ")).then(|| format!("{part}{why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cargo and the tests of these files say it, of tests that are captured and of one that is not.
    const RUN: &str = "   Compiling tenet-stt v0.1.0
     Running tests/captures.rs (target/debug/deps/captures-00ff)

running 2 tests
test whole ... ok
test torn ... ok

successes:

---- torn stdout ----
SKIPPED: no a.pcap in ../shared

---- whole stdout ----
a line with SKIPPED: in it
SKIPPED: no a.pcap in ../shared
SKIPPED: no a.pcap in ../shared

successes:
    torn
    whole

test result: ok. 2 passed; 0 failed
     Running unittests src/lib.rs (target/debug/deps/tenet_hostnet-12)
SKIPPED: uplink_of_a_bond: no bond here
test one_thread ... SKIPPED in part: no VLAN

successes:
failures:

---- other stdout ----
thread panicked

test result: FAILED. 1 passed; 1 failed
   Doc-tests tenet_lab
";

    fn heard() -> (Skips, Vec<&'static str>) {
        let mut skips = Skips::default();
        let shown = RUN.lines().filter(|l| skips.hear(l)).collect();
        (skips, shown)
    }

    #[test]
    fn every_skip_is_listed_with_its_test_and_reason() {
        let (skips, _) = heard();
        let known = ["../shared".to_owned()];
        let list = skips.list(&known);
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(
            lines,
            [
                "SKIPPED:",
                "  captures: torn: no a.pcap in ../shared (known)",
                "  captures: whole: no a.pcap in ../shared (2 times) (known)",
                "  tenet_hostnet: in part: no VLAN",
                "  tenet_hostnet: uplink_of_a_bond: no bond here",
            ]
        );
        assert_eq!((skips.unknown(&known), skips.unknown(&["no ".to_owned()])), (2, 0));
        assert_eq!(Skips::default().list(&[]), "nothing was SKIPPED\n");
    }

    #[test]
    fn what_passing_tests_print_is_not_shown_and_what_failing_ones_print_is() {
        let (_, shown) = heard();
        for line in [
            "test torn ... ok",
            "---- other stdout ----",
            "thread panicked",
            "test result: ok. 2 passed; 0 failed",
        ] {
            assert!(shown.contains(&line), "{line}");
        }
        assert!(!shown.iter().any(|l| l.contains("a.pcap") || l.contains("    torn")), "{shown:?}");
    }
}
