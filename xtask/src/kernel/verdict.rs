//! What the guest's console says, and whether all that should have been said was.

use std::collections::BTreeSet;

/// What a guest has told so far.
#[derive(Default)]
pub struct Verdict {
    /// The kernel's release.
    pub release: Option<String>,
    /// Features that the kernel lacks: name, and what for.
    pub lacks: Vec<String>,
    /// Figures that tests print.
    pub rows: Vec<String>,
    /// Tests with their result.
    pub tests: Vec<(String, String)>,
    /// What is wrong.
    pub wrong: Vec<String>,
    suite: Option<String>,
    ended: BTreeSet<String>,
    done: bool,
}

impl Verdict {
    /// Takes a line; says what of it is news for a reader.
    pub fn hear(&mut self, line: &str) -> Option<String> {
        if let Some(rest) = line.strip_prefix("@@ ") {
            return self.mark(rest);
        }
        let suite = self.suite.clone()?;
        if suite == "check" {
            let mut words = line.split("  ").map(str::trim).filter(|w| !w.is_empty());
            if let (Some(name), Some("no"), Some(needed)) = (words.next(), words.next(), words.next()) {
                let what_for = words.last().unwrap_or_default();
                self.lacks.push(format!("{name}: {what_for}"));
                if needed == "yes" {
                    self.wrong.push(format!("the agent needs {name}"));
                }
            }
            return None;
        }
        if let Some(row) = line.strip_prefix("ROW ") {
            self.rows.push(row.to_owned());
            return None;
        }
        if line.contains("SKIPPED: ") {
            self.wrong.push(format!("{suite}: {line}"));
        }
        let (test, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
        self.tests.push((format!("{suite}: {test}"), result.to_owned()));
        if result != "ok" && !result.starts_with("ignored") {
            self.wrong.push(format!("{suite}: {test}: {result}"));
        }
        Some(format!("{suite}: {test}: {result}"))
    }

    fn mark(&mut self, line: &str) -> Option<String> {
        let mut words = line.split(' ');
        match (words.next(), words.next()) {
            (Some("up"), Some(release)) => {
                self.release = Some(release.to_owned());
                return Some(format!("{release} is up"));
            }
            (Some("begin"), Some(suite)) => self.suite = Some(suite.to_owned()),
            (Some("end"), Some(suite)) => {
                self.suite = None;
                self.ended.insert(suite.to_owned());
                let code = words.next().unwrap_or("nothing");
                if code != "0" {
                    self.wrong.push(format!("{suite} ended with {code}"));
                }
            }
            (Some("problem"), _) => self.wrong.push(line.trim_start_matches("problem ").to_owned()),
            (Some("done"), _) => self.done = true,
            _ => {}
        }
        None
    }

    /// What is wrong, once the guest has ended: all of these suites must have passed tests, on this kernel.
    pub fn finish(&mut self, release: &str, suites: &[&str]) -> &[String] {
        if self.release.as_deref() != Some(release) {
            self.wrong.push(format!("the guest ran {:?}, not {release}", self.release));
        }
        for suite in std::iter::once(&"check").chain(suites) {
            if !self.ended.contains(*suite) {
                self.wrong.push(format!("{suite} did not come to its end"));
            }
        }
        for suite in suites {
            let begin = format!("{suite}: ");
            if !self.tests.iter().any(|(test, result)| test.starts_with(&begin) && result == "ok") {
                self.wrong.push(format!("no test of {suite} passed"));
            }
        }
        if !self.done {
            self.wrong.push("the guest ended before it was done".to_owned());
        }
        &self.wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
[    0.1] booting
@@ up 6.1.0
@@ begin check
FEATURE     THERE  NEEDED  FOUND      FOR
kernel 5.15  yes    yes     6.1.0      all of it
TCX          no     helps   Invalid argument (os error 22)  programs that are swapped
@@ end check 0
@@ begin basic
test by_nvgre ... ok
test time_of_it ... ignored, a measurement
ROW nvgre | 20 of 20
@@ end basic 0
@@ done";

    fn told(text: &str) -> Verdict {
        let mut verdict = Verdict::default();
        for line in text.lines() {
            verdict.hear(line);
        }
        verdict
    }

    #[test]
    fn a_good_run_is_good() {
        let mut verdict = told(GOOD);
        assert_eq!(verdict.finish("6.1.0", &["basic"]), &[] as &[String]);
        assert_eq!(verdict.lacks, ["TCX: programs that are swapped"]);
        assert_eq!(verdict.rows, ["nvgre | 20 of 20"]);
        assert_eq!(verdict.tests.len(), 2);
    }

    #[test]
    fn what_is_missing_or_wrong_is_found() {
        for (from, to) in [
            ("by_nvgre ... ok", "by_nvgre ... FAILED"),
            ("test by_nvgre ... ok", ""),
            ("ROW nvgre", "SKIPPED: by_nvgre: needs root\nROW nvgre"),
            ("end basic 0", "end basic 101"),
            ("@@ end basic 0\n", ""),
            ("@@ done", ""),
            ("@@ done", "@@ problem the kernel says: BUG: scheduling\n@@ done"),
            ("up 6.1.0", "up 6.18.0"),
            ("end check 0", "end check 1"),
            ("no     helps", "no     yes"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let mut verdict = told(&GOOD.replace(from, to));
            assert!(!verdict.finish("6.1.0", &["basic"]).is_empty(), "{from:?} as {to:?}");
        }
        assert!(!told(GOOD).finish("6.1.0", &["basic", "parity"]).is_empty());
    }
}
