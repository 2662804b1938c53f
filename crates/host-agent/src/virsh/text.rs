//! What virsh prints. No I/O.

use serde_json::Value;

/// A line of `virsh qemu-monitor-event --loop --timestamp`.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Event<'a> {
    /// QEMU's name of it.
    pub(crate) name: &'a str,
    /// The domain.
    pub(crate) domain: &'a str,
    /// Its values.
    pub(crate) data: Value,
}

/// Reads a line; none for what is no event.
pub(crate) fn event(line: &str) -> Option<Event<'_>> {
    let rest = line.strip_prefix("event ").or_else(|| line.split_once(": event ").map(|(_, rest)| rest))?;
    let (name, rest) = rest.split_once(" for domain '")?;
    // A domain's name may hold anything but what begins the values.
    let end = rest.find("': {").or_else(|| rest.find("': <null>")).or_else(|| rest.find("':"))?;
    let (domain, data) = (rest.get(..end)?, rest.get(end + 2..)?);
    let data = serde_json::from_str(data.trim()).unwrap_or(Value::Null);
    Some(Event { name, domain, data })
}

/// A line of `virsh domjobinfo`, by its name, as virsh prints it.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// `12.345 MiB` in bytes.
fn bytes(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    let number: f64 = words.next()?.parse().ok()?;
    let power = match words.next()? {
        "B" => 0,
        "KiB" => 1,
        "MiB" => 2,
        "GiB" => 3,
        "TiB" => 4,
        _ => return None,
    };
    let bytes = number * 1024_f64.powi(power);
    // A float beyond the integers becomes the largest one.
    bytes.is_finite().then_some(bytes as u64)
}

/// How far `virsh domjobinfo` says a migration away from here is: bytes moved and in all; none if there is none.
pub(crate) fn outgoing(text: &str) -> Option<(u64, u64)> {
    if field(text, "Operation") != Some("Outgoing migration") || field(text, "Job type") == Some("None") {
        return None;
    }
    let total = field(text, "Memory total").and_then(bytes).unwrap_or(0);
    let left = field(text, "Memory remaining").and_then(bytes).unwrap_or(total);
    Some((total.saturating_sub(left), total))
}

/// Whether `virsh domjobinfo` says that the domain comes or goes by a migration.
pub(crate) fn migrates(text: &str) -> bool {
    let operation = field(text, "Operation");
    let one = matches!(operation, Some("Outgoing migration" | "Incoming migration"));
    one && field(text, "Job type").is_some_and(|t| t != "None" && t != "Completed")
}

/// Whether `virsh domjobinfo` says that nothing is done with the domain.
pub(crate) fn idle(text: &str) -> bool {
    field(text, "Job type") == Some("None")
}

/// Whether a domain in this state, or of which virsh says this error, is not there.
pub(crate) fn gone(text: &str) -> bool {
    text.trim().starts_with("shut off") || text.contains("failed to get domain")
}

/// How long `virsh domjobinfo --completed` says that the domain stood still.
pub(crate) fn downtime_ms(text: &str) -> Option<u64> {
    field(text, "Total downtime")?.split_whitespace().next()?.parse().ok()
}

/// What `virsh domstate` means, beside `virsh domjobinfo`: runs, stands still to be switched, or neither. A domain that
/// comes here is in the same state as one that leaves, but has not begun to run.
pub(crate) fn runs(state: &str, job: &str) -> Option<bool> {
    match state.trim() {
        s if s.starts_with("running") => Some(true),
        s if !s.starts_with("paused (migrating)") && !s.starts_with("paused (post-copy") => None,
        _ if field(job, "Operation") == Some("Incoming migration") => None,
        _ => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_real_virsh_are_understood() {
        let stop = "2026-11-23 07:36:27.341+0000: event STOP for domain 'vm1': <null>";
        assert_eq!(event(stop), Some(Event { name: "STOP", domain: "vm1", data: Value::Null }));
        let moving =
            "2026-11-23 07:36:27.347+0000: event MIGRATION for domain 'vm1': {\"status\":\"pre-switchover\"}";
        let found = event(moving).unwrap();
        assert_eq!((found.name, found.data["status"].as_str()), ("MIGRATION", Some("pre-switchover")));
        let odd = "event RESUME for domain 'it's: mine': <null>";
        assert_eq!(event(odd).unwrap().domain, "it's: mine");
        for line in ["", "events received: 3", "error: lost", "event STOP", "event STOP for domain 'x"] {
            assert_eq!(event(line), None, "{line}");
        }
    }

    #[test]
    fn a_job_is_read_from_its_table() {
        let text = "Job type:         Unbounded   \nOperation:        Outgoing migration\n\
                    Memory processed: 436.775 KiB\nMemory remaining: 8.000 MiB\nMemory total:     16.000 MiB\n";
        assert_eq!(outgoing(text), Some((8 << 20, 16 << 20)));
        assert_eq!(outgoing("Job type:         None        \n"), None);
        assert!(migrates(text) && migrates("Job type: Unbounded\nOperation: Incoming migration\n"));
        assert!(!migrates("Job type:         None        \n") && !migrates("garbage"));
        assert!(idle("Job type:         None        \n") && !idle(text) && !idle(""));
        assert_eq!(outgoing("Job type: Unbounded\nOperation: Incoming migration\n"), None);
        assert_eq!(outgoing("garbage"), None);
        let done = "Job type:         Completed   \nTotal downtime:   98           ms\n";
        assert_eq!((downtime_ms(done), downtime_ms("")), (Some(98), None));
        assert_eq!(bytes("-1 MiB"), Some(0));
        assert_eq!((bytes("x MiB"), bytes("1 PB"), bytes("1")), (None, None, None));
    }

    #[test]
    fn states_are_known_by_their_words() {
        let (comes, leaves) = ("Operation: Incoming migration\n", "Operation: Outgoing migration\n");
        assert_eq!(runs("running (migrated)\n\n", comes), Some(true));
        assert_eq!(runs("paused (migrating)\n", leaves), Some(false));
        assert_eq!(runs("paused (migrating)\n", ""), Some(false));
        assert_eq!(runs("paused (migrating)\n", comes), None, "it has not begun to run");
        assert!(gone("shut off (migrated)\n") && gone("failed to get domain 'vm1'"));
        assert!(!gone("running (booted)") && !gone("virsh did not answer within 10 s"));
        assert_eq!(runs("paused (post-copy)\n", leaves), Some(false));
        assert_eq!(runs("running (post-copy)\n", comes), Some(true));
        assert_eq!(runs("paused (post-copy failed)\n", comes), None, "it may go on");
        for state in ["paused (user)", "shut off (migrated)", ""] {
            assert_eq!(runs(state, leaves), None, "{state}");
        }
    }
}
