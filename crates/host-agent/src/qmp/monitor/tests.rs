//! The dialogue with a QEMU that answers from a list.

use super::*;

/// A QEMU that answers what it is asked from a list.
fn talk(monitor: &mut Monitor, acts: Vec<Act>, answer: impl Fn(&str) -> Value) -> (Vec<String>, Vec<What>) {
    let (mut asked, mut said) = (Vec::new(), Vec::new());
    let mut todo: std::collections::VecDeque<Act> = acts.into();
    while let Some(act) = todo.pop_front() {
        match act {
            Act::Say(what, _) => said.push(what),
            Act::Send(line) => {
                let command: Value = serde_json::from_str(&line).unwrap();
                let name = command["execute"].as_str().unwrap().to_owned();
                let mut reply = answer(&name);
                reply["id"] = command["id"].clone();
                asked.push(name);
                todo.extend(monitor.take(&reply.to_string()));
            }
        }
    }
    (asked, said)
}

fn status(vm: &'static str, migration: &'static str) -> impl Fn(&str) -> Value {
    move |name| match name {
        "query-status" => json!({ "return": { "status": vm } }),
        "query-migrate" if migration.is_empty() => json!({ "return": {} }),
        "query-migrate" => {
            json!({ "return": { "status": migration, "downtime": 7, "error-desc": "no room" } })
        }
        _ => json!({ "return": {} }),
    }
}

fn begun(vm: &'static str, migration: &'static str) -> (Monitor, Vec<What>) {
    let mut monitor = Monitor::default();
    let acts = monitor.take(r#"{"QMP": {}}"#);
    let (asked, said) = talk(&mut monitor, acts, status(vm, migration));
    assert_eq!(asked[..2], ["qmp_capabilities", "migrate-set-capabilities"]);
    (monitor, said)
}

fn to(migration: &str) -> Drive {
    Drive { migration: migration.into(), uri: "tcp:x:1".into(), want: Want::Move, post_copy: false }
}

fn no(migration: &str) -> Drive {
    Drive { migration: migration.into(), uri: String::new(), want: Want::Cancel, post_copy: false }
}

fn event(name: &str, status: Option<&str>) -> String {
    let data = status.map_or(json!({}), |s| json!({ "status": s }));
    json!({ "event": name, "data": data, "timestamp": { "seconds": 1, "microseconds": 2 } }).to_string()
}

#[test]
fn what_a_vm_does_is_told_from_the_first_moment_on() {
    assert_eq!(begun("running", "").1, [What::Resumed]);
    assert_eq!(begun("inmigrate", "").1, []);
    assert_eq!(begun("paused", "").1, []);
    assert_eq!(begun("postmigrate", "completed").1, [What::Stopped]);
    let (mut monitor, said) = begun("running", "active");
    assert!(matches!(&said[..], [What::Migration(m), What::Resumed] if m.status == "active"), "{said:?}");
    // An agent that came late knows that this stop is the switch.
    assert_eq!(monitor.take(&event("STOP", None)), [Act::Say(What::Stopped, 1_000_002)]);
}

#[test]
fn a_pause_is_no_switch() {
    let (mut monitor, _) = begun("running", "");
    assert_eq!(monitor.take(&event("STOP", None)), []);
    assert_eq!(monitor.take(&event("RESUME", None)), [Act::Say(What::Resumed, 1_000_002)]);
    let _ = monitor.take(&event("MIGRATION", Some("active")));
    assert_eq!(monitor.take(&event("STOP", None)).len(), 1);
    let _ = monitor.take(&event("MIGRATION", Some("failed")));
    assert_eq!(monitor.take(&event("STOP", None)), []);
}

#[test]
fn the_end_comes_with_its_figures_or_its_reason() {
    let (mut monitor, _) = begun("running", "active");
    let acts = monitor.take(&event("MIGRATION", Some("completed")));
    let (_, said) = talk(&mut monitor, acts, status("postmigrate", "completed"));
    assert!(matches!(&said[..], [What::Migration(m)] if m.downtime_ms == Some(7)), "{said:?}");
    let acts = monitor.take(&event("MIGRATION", Some("failed")));
    let (_, said) = talk(&mut monitor, acts, status("running", "failed"));
    assert!(matches!(&said[..], [What::Migration(m)] if m.status == "failed" && m.error == "no room"));
    // Figures that never come do not keep the end back.
    let acts = monitor.take(&event("MIGRATION", Some("completed")));
    let (asked, said) = talk(&mut monitor, acts, status("postmigrate", ""));
    assert_eq!((asked.len(), said.len()), (1 + AGAIN as usize, 1));
    // A destination's QEMU has none.
    let acts = monitor.take(&event("MIGRATION", Some("completed")));
    let (asked, said) = talk(&mut monitor, acts, |_| json!({ "return": { "status": "completed" } }));
    assert_eq!((asked.len(), said.len()), (1, 1));
}

#[test]
fn a_vm_is_moved_once_however_often_it_is_said() {
    let (mut monitor, _) = begun("running", "");
    let acts = monitor.drive(to("a"));
    let (asked, _) = talk(&mut monitor, acts, status("running", ""));
    assert_eq!(asked, ["query-status", "query-migrate", "migrate-set-capabilities", "migrate"]);
    let acts = monitor.drive(to("a"));
    let (asked, said) = talk(&mut monitor, acts, status("running", "active"));
    assert_eq!(asked, ["query-status", "query-migrate"]);
    assert_eq!(said.len(), 1);
    let acts = monitor.drive(to("a"));
    let (asked, said) = talk(&mut monitor, acts, status("postmigrate", "completed"));
    assert!(!asked.contains(&"migrate".to_owned()));
    assert!(matches!(&said[..], [What::Migration(m)] if m.status == "completed"), "{said:?}");
    // It came here by a migration, which QEMU still speaks of.
    let acts = monitor.drive(to("b"));
    let (asked, _) = talk(&mut monitor, acts, status("running", "completed"));
    assert_eq!(asked[3], "migrate");
}

#[test]
fn a_refusal_is_the_reason_and_giving_up_is_confirmed() {
    let (mut monitor, _) = begun("running", "");
    let acts = monitor.drive(to("a"));
    let refuse = |name: &str| match name {
        "migrate" => json!({ "error": { "desc": "unknown migration protocol" } }),
        other => status("running", "")(other),
    };
    let (_, said) = talk(&mut monitor, acts, refuse);
    assert!(matches!(&said[..], [What::Migration(m)] if m.error == "unknown migration protocol"));
    let acts = monitor.drive(no("a"));
    let (asked, said) = talk(&mut monitor, acts, status("running", ""));
    assert_eq!(asked, ["query-migrate"]);
    assert!(matches!(&said[..], [What::Migration(m)] if m.status == "cancelled"));
    let acts = monitor.drive(no("a"));
    let (asked, said) = talk(&mut monitor, acts, status("running", "active"));
    assert_eq!((asked[1].as_str(), said.len()), ("migrate_cancel", 0));
}

#[test]
fn what_would_run_a_program_is_not_even_asked_of_qemu() {
    let (mut monitor, _) = begun("running", "");
    let mut early = Monitor::default();
    for uri in ["exec:touch /tmp/x", "file:/etc/shadow", "fd:3", "-x", ""] {
        for monitor in [&mut monitor, &mut early] {
            let acts = monitor.drive(Drive { uri: uri.to_owned(), ..to("a") });
            assert!(
                matches!(&acts[..], [Act::Say(What::Migration(m), _)]
                    if m.status == "failed" && m.error.contains("tcp:HOST:PORT")),
                "{uri}: {acts:?}"
            );
        }
    }
    let (asked, _) = talk(&mut monitor, Vec::new(), status("running", ""));
    assert!(asked.is_empty(), "{asked:?}");
}

#[test]
fn an_order_before_the_greeting_waits_for_it() {
    let mut monitor = Monitor::default();
    assert_eq!(monitor.drive(to("a")), []);
    assert!(!monitor.ready());
    let acts = monitor.take(r#"{"QMP": {}}"#);
    let (asked, _) = talk(&mut monitor, acts, status("running", ""));
    assert!(asked.contains(&"migrate".to_owned()), "{asked:?}");
    // What nobody asked for and what no QEMU says is passed over.
    for line in ["", "{}", r#"{"return": {}, "id": 99}"#, r#"{"error": {}, "id": 98}"#] {
        assert_eq!(monitor.take(line), []);
    }
}

#[test]
fn words_carry_the_migration_that_they_are_of() {
    let of = |said: &[What]| -> Vec<(String, String)> {
        let words = said.iter().filter_map(|w| if let What::Migration(m) = w { Some(m) } else { None });
        words.map(|m| (m.migration.clone(), m.status.clone())).collect()
    };
    let is = |id: &str, status: &str| vec![(id.to_owned(), status.to_owned())];
    let (mut monitor, _) = begun("running", "");
    let acts = monitor.drive(to("a"));
    let _ = talk(&mut monitor, acts, status("running", ""));
    let acts = monitor.take(&event("MIGRATION", Some("active")));
    let (_, said) = talk(&mut monitor, acts, status("running", "active"));
    assert_eq!(of(&said)[0], is("a", "active")[0]);
    // Another one waits its turn, and the first is not harmed by what is said of that.
    let acts = monitor.drive(to("b"));
    let (asked, said) = talk(&mut monitor, acts, status("running", "active"));
    assert_eq!((of(&said), asked.contains(&"migrate".to_owned())), (is("b", "failed"), false));
    let acts = monitor.drive(no("b"));
    let (asked, said) = talk(&mut monitor, acts, status("running", "active"));
    assert_eq!((of(&said), asked.len()), (is("b", "cancelled"), 1), "the first goes on");
    let acts = monitor.take(&event("MIGRATION", Some("failed")));
    let (_, said) = talk(&mut monitor, acts, status("running", "failed"));
    assert_eq!(of(&said), is("a", "failed"));
    // Somebody else begins one by a monitor of their own.
    let acts = monitor.take(&event("MIGRATION", Some("setup")));
    let (_, said) = talk(&mut monitor, acts, status("running", ""));
    assert_eq!(of(&said), is("", "setup"));
}

#[test]
fn a_move_to_where_nobody_listens_is_begun_again_for_a_time() {
    // QEMU fails at once, and says why when it is asked.
    let fails = |monitor: &mut Monitor, acts, why: &'static str| {
        let (asked, mut said) = talk(monitor, acts, status("running", ""));
        let acts = monitor.take(&event("MIGRATION", Some("failed")));
        let reply = move |_: &str| json!({ "return": { "status": "failed", "error-desc": why } });
        said.extend(talk(monitor, acts, reply).1);
        let [What::Migration(m)] = &said[..] else { panic!("{said:?}") };
        (asked.contains(&"migrate".to_owned()), m.status.clone())
    };
    let (refused, waiting) = ("Failed to connect: Connection refused", (true, "waiting".to_owned()));
    let (mut monitor, _) = begun("running", "");
    let acts = monitor.drive(to("a"));
    assert_eq!(fails(&mut monitor, acts, refused), waiting);
    for _ in 2..ATTEMPTS {
        let acts = (0..PAUSE).flat_map(|_| monitor.tick()).collect::<Vec<_>>();
        assert!(acts.is_empty(), "too early: {acts:?}");
        let acts = monitor.tick();
        assert_eq!(fails(&mut monitor, acts, refused), waiting);
    }
    let acts = (0..=PAUSE).flat_map(|_| monitor.tick()).collect();
    assert_eq!(fails(&mut monitor, acts, refused), (true, "failed".to_owned()), "it was the last time");
    assert!((0..=2 * PAUSE).all(|_| monitor.tick().is_empty()));
    // Any other failure is one, and an end of the monitor ends the waiting.
    let acts = monitor.drive(to("b"));
    assert_eq!(fails(&mut monitor, acts, "no room"), (true, "failed".to_owned()));
    let acts = monitor.drive(to("c"));
    assert_eq!(fails(&mut monitor, acts, refused), waiting);
    let acts = monitor.closed("QEMU ended");
    assert_eq!(acts, [failed("c", "QEMU ended")]);
}

fn pass(number: u64) -> String {
    json!({ "event": "MIGRATION_PASS", "data": { "pass": number } }).to_string()
}

#[test]
fn a_move_goes_on_in_post_copy_after_its_first_pass_and_is_not_given_up_then() {
    let (mut monitor, _) = begun("running", "");
    let drive = Drive { post_copy: true, ..to("a") };
    let acts = monitor.drive(drive.clone());
    let (asked, _) = talk(&mut monitor, acts, status("running", ""));
    assert_eq!(asked, ["query-status", "query-migrate", "migrate-set-capabilities", "migrate"]);
    let _ = monitor.take(&event("MIGRATION", Some("active")));
    assert_eq!(monitor.take(&pass(1)), []);
    let acts = monitor.take(&pass(2));
    let (asked, _) = talk(&mut monitor, acts, status("running", "active"));
    assert_eq!(asked, ["migrate-start-postcopy"]);
    assert_eq!(monitor.take(&pass(3)), [], "told once");
    // QEMU may be about to do it.
    for migration in ["active", "postcopy-active", "postcopy-paused"] {
        let acts = monitor.drive(no("a"));
        let (asked, said) = talk(&mut monitor, acts, status("running", migration));
        assert_eq!(asked, ["query-migrate"], "{migration}");
        assert!(matches!(&said[..], [What::Migration(m)] if m.status.starts_with("postcopy-")), "{said:?}");
    }
    // One that is given up before does not go on.
    let (mut monitor, _) = begun("running", "");
    let acts = monitor.drive(drive.clone());
    let _ = talk(&mut monitor, acts, status("running", ""));
    let acts = monitor.drive(no("a"));
    let (asked, _) = talk(&mut monitor, acts, status("running", "active"));
    assert_eq!(asked, ["query-migrate", "migrate_cancel"]);
    assert_eq!(monitor.take(&pass(2)), []);
    // Nor does one that is not to.
    let (mut monitor, _) = begun("running", "");
    let acts = monitor.drive(to("a"));
    let _ = talk(&mut monitor, acts, status("running", ""));
    assert_eq!(monitor.take(&pass(2)), []);
    // An agent that was started again finds it under way, and the pass in its figures.
    let (mut monitor, _) = begun("running", "active");
    let figures = |name: &str| match name {
        "query-migrate" => {
            json!({ "return": { "status": "active", "ram": { "dirty-sync-count": 2, "total": 9 } } })
        }
        other => status("running", "active")(other),
    };
    let mut acts = monitor.drive(drive);
    acts.extend(monitor.tick());
    let (mut asked, _) = talk(&mut monitor, acts, figures);
    let acts = monitor.tick();
    asked.extend(talk(&mut monitor, acts, figures).0);
    assert!(asked.contains(&"migrate-start-postcopy".to_owned()), "{asked:?}");
    assert!(!asked.contains(&"migrate".to_owned()), "{asked:?}");
}

#[test]
fn a_qemu_without_post_copy_is_told_with_what_to_do() {
    let refuse = |name: &str| match name {
        "migrate-set-capabilities" => json!({ "error": { "desc": "Postcopy is not supported" } }),
        "query-status" => json!({ "return": { "status": "inmigrate" } }),
        _ => json!({ "return": {} }),
    };
    let reason = |said: &[What]| match said {
        [What::Migration(m)] if m.status == "failed" => m.error.clone(),
        other => panic!("{other:?}"),
    };
    let receive = Drive { want: Want::Receive, post_copy: true, ..to("a") };
    let (mut monitor, _) = begun("inmigrate", "");
    let acts = monitor.drive(receive.clone());
    let said = talk(&mut monitor, acts, refuse).1;
    assert!(reason(&said).contains("Postcopy is not supported; next: let its user"), "{said:?}");
    let (mut monitor, _) = begun("running", "");
    let acts = monitor.drive(Drive { post_copy: true, ..to("a") });
    let running = |name: &str| match name {
        "query-status" => json!({ "return": { "status": "running" } }),
        other => refuse(other),
    };
    let said = talk(&mut monitor, acts, running).1;
    assert!(reason(&said).contains("moves the VM away from here"), "{said:?}");
    // Only the one that waits is made ready.
    let (mut monitor, _) = begun("inmigrate", "");
    let acts = monitor.drive(receive.clone());
    let (asked, said) = talk(&mut monitor, acts, status("inmigrate", ""));
    assert_eq!(asked, ["query-status", "migrate-set-capabilities"]);
    assert!(matches!(&said[..], [What::Migration(m)] if m.status == READY), "{said:?}");
    let (mut monitor, _) = begun("postmigrate", "completed");
    let acts = monitor.drive(receive);
    let (asked, said) = talk(&mut monitor, acts, status("postmigrate", ""));
    assert_eq!(asked, ["query-status"]);
    assert!(matches!(&said[..], [What::Migration(m)] if m.status == WAITING), "{said:?}");
}

#[test]
fn who_asks_how_it_stands_begins_nothing() {
    let follow = |migration: &str| Drive { want: Want::Follow, ..to(migration) };
    let ask = |monitor: &mut Monitor, id, vm, migration| {
        let acts = monitor.drive(follow(id));
        let (asked, said) = talk(monitor, acts, status(vm, migration));
        assert!(!asked.contains(&"migrate".to_owned()), "{asked:?}");
        let [What::Migration(m)] = &said[..] else { panic!("{said:?}") };
        (m.migration.clone(), m.status.clone())
    };
    let is = |id: &str, status: &str| (id.to_owned(), status.to_owned());
    let (mut monitor, _) = begun("running", "");
    assert_eq!(ask(&mut monitor, "a", "running", ""), is("a", "idle"));
    // What an earlier one came to is nothing of this one.
    assert_eq!(ask(&mut monitor, "a", "running", "failed"), is("a", "idle"));
    assert_eq!(ask(&mut monitor, "a", "running", "active"), is("a", "active"));
    let (mut monitor, _) = begun("running", "");
    let acts = monitor.drive(to("a"));
    let _ = talk(&mut monitor, acts, status("running", ""));
    assert_eq!(ask(&mut monitor, "b", "running", "active"), is("b", "gone"), "the one that runs is another");
    assert_eq!(ask(&mut monitor, "a", "running", "failed"), is("a", "failed"));
    // An agent that was started again has all of it from QEMU.
    let (mut monitor, _) = begun("postmigrate", "completed");
    assert_eq!(ask(&mut monitor, "a", "postmigrate", "completed"), is("a", "completed"));
}

#[test]
fn a_vm_that_has_left_is_not_given_up() {
    let (mut monitor, _) = begun("postmigrate", "completed");
    let acts = monitor.drive(no("a"));
    let (_, said) = talk(&mut monitor, acts, status("postmigrate", "completed"));
    assert!(matches!(&said[..], [What::Migration(m)] if m.status == "completed"), "{said:?}");
    // One that came by a migration has not left.
    let (mut monitor, _) = begun("running", "completed");
    let acts = monitor.drive(no("a"));
    let (_, said) = talk(&mut monitor, acts, status("running", "completed"));
    assert!(matches!(&said[..], [What::Migration(m)] if m.status == "cancelled"), "{said:?}");
}

#[test]
fn the_end_of_qemu_ends_what_was_under_way() {
    let (mut monitor, _) = begun("running", "");
    assert_eq!(monitor.closed("QEMU ended"), []);
    let acts = monitor.drive(to("a"));
    let _ = talk(&mut monitor, acts, status("running", ""));
    assert_eq!(monitor.closed("QEMU ended"), [failed("a", "QEMU ended")]);
    // All of it was moved: only the figures are lost.
    let (mut monitor, _) = begun("running", "active");
    let _ = monitor.take(&event("MIGRATION", Some("completed")));
    assert_eq!(monitor.closed("QEMU ended"), [ended(Migrate::word("", "completed"))]);
    let (mut monitor, _) = begun("running", "active");
    assert_eq!(monitor.closed("QEMU ended"), [failed("", "QEMU ended")]);
    let mut monitor = Monitor::default();
    let _ = monitor.drive(to("a"));
    assert_eq!(monitor.give_up("taken"), [failed("a", "taken")]);
    assert_eq!(monitor.give_up("taken"), []);
}

/// Lines that QEMU is sent, with the commands' names.
fn sent(acts: Vec<Act>) -> Vec<(String, Value)> {
    let lines = acts.into_iter().filter_map(|act| if let Act::Send(line) = act { Some(line) } else { None });
    let commands = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    commands.map(|c| (c["execute"].as_str().unwrap().to_owned(), c["id"].clone())).collect()
}

fn answer(monitor: &mut Monitor, id: &Value, value: Value) -> Vec<Act> {
    monitor.take(&json!({ "return": value, "id": id }).to_string())
}

/// Answers everything in the order in which it was asked, as QEMU does; what it was asked, and what was said.
fn catch_up(
    monitor: &mut Monitor,
    questions: Vec<(String, Value)>,
    reply: impl Fn(&str) -> Value,
) -> (Vec<String>, Vec<What>) {
    let (mut asked, mut said) = (Vec::new(), Vec::new());
    let mut todo: std::collections::VecDeque<_> = questions.into();
    while let Some((name, id)) = todo.pop_front() {
        let acts = answer(monitor, &id, reply(&name)["return"].clone());
        said.extend(acts.iter().filter_map(|a| if let Act::Say(w, _) = a { Some(w.clone()) } else { None }));
        todo.extend(sent(acts));
        asked.push(name);
    }
    (asked, said)
}

#[test]
fn a_move_that_is_given_up_before_qemu_answers_does_not_begin() {
    for post_copy in [false, true] {
        // However many questions before `migrate` are answered by then.
        for answered in 0..=2 {
            let (mut monitor, _) = begun("running", "");
            let mut questions = sent(monitor.drive(Drive { post_copy, ..to("a") }));
            for _ in 0..answered {
                let (name, id) = questions.remove(0);
                let acts = answer(&mut monitor, &id, status("running", "")(&name)["return"].clone());
                questions.extend(sent(acts));
            }
            let begins = questions.iter().any(|(name, _)| name == "migrate");
            questions.extend(sent(monitor.drive(no("a"))));
            let now = if begins { "active" } else { "" };
            let (asked, said) = catch_up(&mut monitor, questions, status("running", now));
            assert_eq!(asked.iter().any(|name| name == "migrate"), begins, "{answered} {asked:?}");
            if begins {
                assert!(asked.contains(&"migrate_cancel".to_owned()), "{asked:?}");
            } else {
                assert!(matches!(&said[..], [What::Migration(m)] if m.status == "cancelled"), "{said:?}");
                assert_eq!(monitor.closed("QEMU ended"), [], "{post_copy} {answered}");
            }
        }
    }
}

#[test]
fn a_move_that_is_said_twice_before_qemu_answers_begins_once() {
    let (mut monitor, _) = begun("running", "");
    let mut questions = sent(monitor.drive(to("a")));
    assert_eq!(monitor.drive(to("a")), []);
    assert_eq!(monitor.drive(to("b")), [failed("b", NOT_ENDED)]);
    let (_, id) = questions.remove(0);
    questions.extend(sent(answer(&mut monitor, &id, json!({ "status": "running" }))));
    assert_eq!(monitor.drive(to("a")), []);
    let (asked, said) = catch_up(&mut monitor, questions, status("running", ""));
    assert_eq!((asked.iter().filter(|a| *a == "migrate").count(), said), (1, vec![]));
}

#[test]
fn giving_up_ends_the_attempts_of_its_own_migration_and_no_other() {
    let refused = |_: &str| json!({ "return": { "status": "failed", "error-desc": "Connection refused" } });
    let waiting = || {
        let (mut monitor, _) = begun("running", "");
        let acts = monitor.drive(to("a"));
        let _ = talk(&mut monitor, acts, status("running", ""));
        monitor
    };
    let begins = |monitor: &mut Monitor| {
        let acts = (0..=PAUSE).flat_map(|_| monitor.tick()).collect();
        talk(monitor, acts, status("running", "")).0.contains(&"migrate".to_owned())
    };
    // An older one's order, come late.
    let mut monitor = waiting();
    let acts = monitor.take(&event("MIGRATION", Some("failed")));
    let _ = talk(&mut monitor, acts, refused);
    let acts = monitor.drive(no("z"));
    let (_, said) = talk(&mut monitor, acts, refused);
    assert!(matches!(&said[..], [What::Migration(m)] if (&*m.migration, &*m.status) == ("z", "cancelled")));
    assert!(begins(&mut monitor));
    // Its own, come just when QEMU has failed and is asked why.
    let mut monitor = waiting();
    let mut questions = sent(monitor.take(&event("MIGRATION", Some("failed"))));
    questions.extend(sent(monitor.drive(no("a"))));
    let (_, said) = catch_up(&mut monitor, questions, refused);
    assert!(matches!(said.last(), Some(What::Migration(m)) if m.status == "cancelled"), "{said:?}");
    assert!(!begins(&mut monitor));
}

#[test]
fn a_qemu_that_does_not_answer_fails_the_move_and_not_later() {
    for answered in 0..=2 {
        let (mut monitor, _) = begun("running", "");
        let mut questions = sent(monitor.drive(Drive { post_copy: true, ..to("a") }));
        for _ in 0..answered {
            let (name, id) = questions.remove(0);
            let acts = answer(&mut monitor, &id, status("running", "")(&name)["return"].clone());
            questions.extend(sent(acts));
        }
        assert!((0..ANSWER).all(|_| monitor.tick().is_empty()), "too early");
        let acts = monitor.tick();
        let [Act::Say(What::Migration(m), _)] = &acts[..] else { panic!("{acts:?}") };
        assert!(m.status == "failed" && m.error.contains("has not answered its monitor"), "{m:?}");
        let (asked, said) = catch_up(&mut monitor, questions, status("running", ""));
        assert_eq!((asked.len(), said), (1, vec![]), "it is too late for that");
        assert_eq!(monitor.closed("QEMU ended"), []);
    }
    // That it has ended is said also where its figures do not come.
    let (mut monitor, _) = begun("running", "active");
    let _ = monitor.take(&event("MIGRATION", Some("completed")));
    let acts: Vec<Act> = (0..=ANSWER).flat_map(|_| monitor.tick()).collect();
    assert_eq!(acts, [ended(Migrate::word("", "completed"))]);
}

#[test]
fn a_flood_of_events_is_not_kept() {
    let (mut monitor, _) = begun("running", "");
    let lines = ["completed", "failed", "active"].map(|status| event("MIGRATION", Some(status)));
    let lines = lines.iter().map(String::as_str).chain([r#"{"QMP": {}}"#]);
    let asked = lines.cycle().take(10_000).map(|line| sent(monitor.take(line)).len()).sum::<usize>();
    assert!(asked <= 3, "{asked}");
    assert!(monitor.asked.len() <= 3, "{:?}", monitor.asked);
}
