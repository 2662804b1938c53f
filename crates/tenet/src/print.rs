//! Printing: tables for people, JSON for programs, progress for whoever waits at a terminal.

use crate::failure::{Failure, Outcome};
use serde::Serialize;
use std::future::Future;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A table: headings and rows of equal length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new<const N: usize>(headings: [&'static str; N]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Adds a column; rows that are added without it end before it.
    pub fn heading(&mut self, heading: &'static str) {
        self.headings.push(heading);
    }

    /// Adds a cell to the last row.
    pub fn cell(&mut self, cell: String) {
        if let Some(row) = self.rows.last_mut() {
            row.push(cell);
        }
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table's text; columns as wide as needed, two spaces between.
    #[must_use]
    pub fn text(&self, bold: bool) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count());
            cells.chain(self.headings.get(column).map(|h| h.chars().count())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let padded: Vec<String> = cells.zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
            padded.join("  ").trim_end().to_owned()
        };
        let head = line(&mut self.headings.iter().copied());
        let mut text = if bold { format!("\x1b[1m{head}\x1b[0m\n") } else { head + "\n" };
        for row in &self.rows {
            text += &line(&mut row.iter().map(String::as_str));
            text.push('\n');
        }
        text
    }
}

/// Whether to use bold and colour on standard output: never into a pipe.
#[must_use]
pub fn fancy() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Prints text as it is; a reader that has gone away is no error.
pub fn text(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|e| Failure::of(&e, "check where standard output goes")),
    }
}

/// Prints a line.
pub fn line(line: &str) -> Outcome {
    text(&format!("{line}\n"))
}

/// Prints a table, or a sentence where there is nothing.
pub fn table(table: &Table, nothing: &str) -> Outcome {
    if table.is_empty() { line(nothing) } else { text(&table.text(fancy())) }
}

/// Prints JSON.
pub fn json(value: &impl Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::of(&e, "report this as a bug"))?;
    line(&text)
}

/// Prints something on standard error that is not an answer.
pub fn note(text: &str) {
    // There is nobody left to tell if this fails.
    _ = writeln!(io::stderr(), "{text}");
}

/// The same while a line may be growing at the terminal, which goes on below.
pub fn aside(text: &str) {
    let fresh = if io::stderr().is_terminal() { "\r\x1b[K" } else { "" };
    _ = writeln!(io::stderr(), "{fresh}{text}");
}

/// Waits; from one second on, says at a terminal what for.
pub async fn progress<T>(what: &str, work: impl Future<Output = T>) -> T {
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let mut work = std::pin::pin!(work);
    let begin = Instant::now();
    let mut line = Bar::default();
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                line.show(&format!("{what} … {} s", begin.elapsed().as_secs()), (0, 0));
            }
        }
    }
}

/// A line that grows at a terminal, and leaves it when dropped; elsewhere one line for each new word.
#[derive(Debug, Default)]
pub struct Bar {
    said: String,
    shown: bool,
}

impl Bar {
    /// Shows what is done at the moment, and how much of how much of it.
    pub fn show(&mut self, what: &str, (done, total): (u64, u64)) {
        if !io::stderr().is_terminal() {
            if self.said != what {
                what.clone_into(&mut self.said);
                note(what);
            }
            return;
        }
        self.shown = true;
        _ = write!(io::stderr(), "\r\x1b[K{}", bar(what, done, total));
        _ = io::stderr().flush();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.shown {
            _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// `[######..............]  32 %   31.0 of   96.0 MiB  active`
fn bar(what: &str, done: u64, total: u64) -> String {
    if total == 0 {
        return what.to_owned();
    }
    let done = done.min(total);
    let part = |of: u64| u64::try_from(u128::from(done) * u128::from(of) / u128::from(total)).unwrap_or(of);
    let full = usize::try_from(part(20)).unwrap_or(20);
    let (done_text, total_text) = (mib(done), mib(total));
    format!("[{:.<20}] {:>3} %  {done_text} of {total_text} MiB  {what}", "#".repeat(full), part(100))
}

/// Bytes as MiB.
#[must_use]
pub fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// `yes` or `no`.
#[must_use]
pub fn yes(b: bool) -> String {
    if b { "yes" } else { "no" }.to_owned()
}

/// A moment in UTC, to the second, by RFC 3339: `2026-03-20T09:46:40Z`; a dash for one that no calendar has.
#[must_use]
pub fn utc(ms: u64) -> String {
    let moment = i64::try_from(ms / 1000).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    or_dash(moment.and_then(|m| m.format(&Rfc3339).ok()))
}

/// A value, or a dash where there is none.
#[must_use]
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// A time in the unit that reads best.
#[must_use]
pub fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_what_is_done() {
        assert_eq!(
            bar("active", 24 << 20, 96 << 20),
            "[#####...............]  25 %  24.0 of 96.0 MiB  active"
        );
        assert_eq!(bar("active", 200, 100), "[####################] 100 %  0.0 of 0.0 MiB  active");
        assert_eq!(bar("prepared", 0, 0), "prepared");
    }

    #[test]
    fn moments_are_written_by_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399_999, "2000-02-28T23:59:59Z"),
            (1_774_000_000_000, "2026-03-20T09:46:40Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
            (u64::MAX, "-"),
        ] {
            assert_eq!(utc(ms), text);
        }
    }

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_space() {
        let mut table = Table::new(["NAME", "A", "B"]);
        table.row(["x".into(), "long cell".into(), String::new()]);
        table.row(["µµµµµ".into(), "1".into(), "2".into()]);
        assert_eq!(table.text(false), "NAME   A          B\nx      long cell\nµµµµµ  1          2\n");
        assert!(table.text(true).starts_with("\x1b[1mNAME   A          B\x1b[0m\n"));
    }
}
