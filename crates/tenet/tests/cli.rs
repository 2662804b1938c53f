//! The command line as a user meets it: arguments, messages, exit codes, pipes.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, also in its helpers")]

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn tenet(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenet"));
    command.args(args).env_remove("TENET_LAB").env_remove("TENET_ADMIN_FILE").env_remove("TENET_JOIN_TOKEN");
    command
}

fn run(args: &[&str]) -> Output {
    tenet(args).stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn exit_codes_are_as_documented() {
    for (args, code) in [
        (vec!["--help"], 0),
        (vec!["--version"], 0),
        (vec!["vm", "create", "--help"], 0),
        (vec![], 2),
        (vec!["nonsense"], 2),
        (vec!["vm", "create"], 2),
        (vec!["vm", "show", "a/b/c"], 2),
        (vec!["subnet", "create", "a/b/c", "--prefix", "nonsense"], 2),
        (vec!["vm", "create", "x", "--address", "10.0.0.1"], 2),
        (vec!["subnet", "create", "a/b/c"], 2),
        (vec!["network", "set", "a/b"], 2),
        (vec!["network", "set", "a/b", "--method", "gre"], 2),
        (vec!["host", "set", "h1"], 2),
        (vec!["host", "set", "h1", "--rewrite-pool", "nonsense"], 2),
        (vec!["site", "set", "--vxlan-port", "70000"], 2),
        (vec!["lab", "exec", "contoso/web"], 2),
        (vec!["--admin-file", "/nonexistent/admin.json", "status"], 3),
        (vec!["--lab", "no-such-lab", "status"], 3),
        (vec!["lab", "status", "no-such-lab"], 3),
        (vec!["completion", "bash"], 0),
    ] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_controller_that_does_not_answer_is_exit_code_3() {
    let dir = std::env::temp_dir().join(format!("tenet-cli-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let admin = dir.join("admin.json");
    std::fs::write(&admin, r#"{ "url": "https://127.0.0.1:1", "ca": "ca.pem", "token": "x" }"#).unwrap();
    // No CA file: it cannot be read.
    let output = run(&["--admin-file", admin.to_str().unwrap(), "status"]);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}

#[test]
fn every_error_says_what_happened_and_what_to_do() {
    for args in
        [vec!["--admin-file", "/nonexistent/admin.json", "status"], vec!["apply", "-f", "/nonexistent.yaml"]]
    {
        let text = stderr(&run(&args));
        assert!(text.starts_with("error: ") && text.contains("\nnext: "), "{args:?}: {text}");
    }
}

#[test]
fn a_wrong_site_file_is_told_by_line_and_column_without_asking_a_controller() {
    let file = std::env::temp_dir().join(format!("tenet-site-{}.yaml", std::process::id()));
    std::fs::write(&file, "hosts:\n  h1: { pa: nonsense }\n  h2: {}\n").unwrap();
    let output = run(&["--admin-file", "/nonexistent", "apply", "-f", file.to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains(&format!("{}:2:13: `nonsense` is not an address", file.display())), "{text}");
    assert!(text.contains(&format!("{}:3:3: host h2 lacks `pa`", file.display())), "{text}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = tenet(&["docs", "cli"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    // The pipe's reading end is closed now.
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn no_colour_goes_into_a_pipe() {
    let output = run(&["agent", "--check"]);
    assert!(!output.stdout.contains(&0x1b));
    assert!(!run(&["--help"]).stdout.contains(&0x1b));
}

#[test]
fn the_reference_in_the_repository_is_generated_from_the_code() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    let generated = String::from_utf8(run(&["docs", "cli"]).stdout).unwrap();
    assert!(written == generated, "renew it: cargo run --package tenet -- docs cli > docs/cli.md");
}
