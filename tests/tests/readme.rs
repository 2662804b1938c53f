//! The README's tour is run, line by line, as it stands there.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Commands of all `console` blocks from the tour's marker on; true: the README says that it is refused.
fn tour(readme: &str) -> Vec<(String, bool)> {
    let Some((_, tour)) = readme.split_once("<!-- tour:") else { return Vec::new() };
    let mut inside = false;
    let mut commands = Vec::new();
    for line in tour.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if let Some(command) = line.strip_prefix("$ ").filter(|_| inside) {
            commands.push((command.to_owned(), command.ends_with("# refused")));
        }
    }
    commands
}

/// Ends the lab also when a step failed.
struct Down<'a>(&'a Path, String);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        Command::new(self.0.join("tenet")).args(["lab", "down", &self.1]).output().ok();
    }
}

#[test]
fn every_command_of_the_tour_does_what_the_readme_says() {
    if let Some(why) = tenet_tests::missing() {
        return tenet_tests::skipped(why);
    }
    let binary = tenet_tests::binary();
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let commands = tour(&readme);
    assert!(commands.len() >= 12, "the tour lost its commands: {commands:?}");

    let folder: PathBuf = binary.parent().unwrap().to_owned();
    let lab = format!("tour{}", std::process::id());
    let _down = Down(&folder, lab.clone());
    let scratch = std::env::temp_dir().join(&lab);
    std::fs::create_dir_all(&scratch).unwrap();
    // One shell runs it all, so that `export` works as a reader's shell would; each line's outcome is its own.
    let mut script = String::from("fail() { echo \"FAILED: $1\"; exit 1; }\n");
    for (command, refused) in &commands {
        let here = command.replace("tour", &lab);
        let check = if *refused { "&& fail" } else { "|| fail" };
        let bare = here.trim_end_matches("# refused").trim_end();
        script.push_str(&format!("echo '$ {bare}'\n{bare} {check} '{bare}'\n"));
    }
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(&scratch)
        .env("PATH", format!("{}:{}", folder.display(), std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    std::fs::remove_dir_all(&scratch).ok();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    for promised in [
        "0% packet loss",
        "moved from host h1 to host h2",
        "every host is proven",
        "overlaps 10.1.1.0/24",
        "nothing to do",
    ] {
        assert!(said.contains(promised), "`{promised}` is missing in:\n{said}");
    }
}
