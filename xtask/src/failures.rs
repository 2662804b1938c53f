//! Which tests of a run failed, read from what `cargo test` prints, and whether trying them again can tell anything.

use std::collections::BTreeSet;

/// Reads a run line by line.
#[derive(Default)]
pub struct Failures {
    /// Names of the tests that failed, as their runner says them.
    pub failed: BTreeSet<String>,
    /// Names of those that passed.
    pub passed: BTreeSet<String>,
    /// Whether a file of tests failed without the word of a test that did: it crashed, or did not compile.
    pub crashed: bool,
    /// How many lines said that a test failed.
    lines: usize,
    /// How many failed by the sums at the files' ends.
    sum: usize,
    /// Whether the file that runs has come to its sum.
    ended: bool,
}

impl Failures {
    /// Takes a line.
    pub fn hear(&mut self, line: &str) {
        let line = line.trim_end();
        if line.trim_start().starts_with("Running ") || line.trim_start().starts_with("Doc-tests ") {
            self.ended = false;
        } else if let Some((name, end)) = line.strip_prefix("test ").and_then(|l| l.rsplit_once(" ... ")) {
            // What a test's own processes print may stand before the end of the line.
            let name = name.split(" ... ").next().unwrap_or(name).trim_end_matches(" - should panic");
            if end.ends_with("FAILED") {
                self.lines += 1;
                self.failed.insert(name.to_owned());
            } else if end.ends_with("ok") {
                self.passed.insert(name.to_owned());
            }
        } else if let Some(sum) = line.strip_prefix("test result: ") {
            self.ended = true;
            let failed = sum.split("; ").find_map(|part| part.strip_suffix(" failed")?.parse::<usize>().ok());
            self.sum += failed.unwrap_or_default();
        } else if line.starts_with("error: test failed") || line.starts_with("error: doctest failed") {
            self.crashed |= !self.ended;
        } else if line.starts_with("error: could not compile") {
            self.crashed = true;
        }
    }

    /// Those to try once more: all that failed, if they are few enough, the name of each was heard and nothing else
    /// went wrong.
    pub fn worth_another(&self, most: usize) -> Option<Vec<String>> {
        let few = (1..=most).contains(&self.failed.len());
        (few && self.lines == self.sum && !self.crashed).then(|| self.failed.iter().cloned().collect())
    }

    /// Those of these that did not run and pass.
    pub fn missing(&self, names: &[String]) -> Vec<String> {
        names.iter().filter(|n| self.failed.contains(*n) || !self.passed.contains(*n)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "
     Running tests/captures.rs (target/debug/deps/captures-00ff)
test whole ... ok
test torn ... FAILED
test wrong - should panic ... ok

failures:
    torn

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

error: test failed, to rerun pass `-p tenet-stt --test captures`
     Running tests/other.rs (target/debug/deps/other-12)
test fine ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    fn heard(text: &str) -> Failures {
        let mut new = Failures::default();
        text.lines().for_each(|l| new.hear(l));
        new
    }

    #[test]
    fn a_few_failures_are_worth_another_attempt() {
        let run = heard(RUN);
        assert_eq!(run.worth_another(2).unwrap(), ["torn"]);
        assert!(run.passed.contains("wrong") && !run.passed.contains("torn"));
        let two = format!("{RUN}test fine ... FAILED\ntest result: FAILED. 0 passed; 1 failed; 0 ignored");
        assert_eq!(heard(&two).worth_another(2).map(|n| n.len()), Some(2));
        assert_eq!(heard(&two).worth_another(1), None, "two are too many");
        assert_eq!(heard("test fine ... ok").worth_another(2), None, "there is none");
    }

    #[test]
    fn a_failure_whose_name_was_not_heard_is_not_forgotten() {
        let torn =
            "test late ... a word of a child\nFAILED\ntest result: FAILED. 0 passed; 1 failed; 0 ignored";
        assert_eq!(heard(&format!("{RUN}{torn}")).worth_another(5), None);
    }

    #[test]
    fn what_crashed_or_did_not_compile_is_not_tried_again() {
        let crash =
            "     Running tests/c.rs (target/debug/deps/c-1)\nerror: test failed, to rerun pass `--test c`";
        assert_eq!(heard(&format!("{RUN}{crash}")).worth_another(2), None);
        let broken = "error: could not compile `tenet-wire` (lib test) due to 1 previous error";
        assert_eq!(heard(&format!("{RUN}{broken}")).worth_another(2), None);
    }

    #[test]
    fn only_who_ran_and_passed_has_passed() {
        let again = heard("test torn ... ok\ntest late ... FAILED");
        let names = ["torn", "late", "gone"].map(str::to_owned);
        assert_eq!(again.missing(&names), ["late", "gone"]);
        assert!(again.missing(&names[..1]).is_empty());
        // The same name in another file: whoever failed has failed.
        assert_eq!(heard("test torn ... ok\ntest torn ... FAILED").missing(&names[..1]), ["torn"]);
    }
}
