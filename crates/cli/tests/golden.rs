//! What people and scripts see: help, messages, exit codes.
#![allow(clippy::unwrap_used, reason = "a test's set-up")]

use std::process::Command;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn run(arguments: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_countersign"))
        .args(arguments)
        .env_clear()
        .env("COUNTERSIGN_SOCKET", "/nonexistent/control.sock")
        .env("LANG", "C.UTF-8")
        .output()
        .unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn a_control_plane_that_is_away_is_code_5_in_every_form() {
    let text = run(&["get", "workloads"]);
    insta::assert_snapshot!(text.err, @r"
    error[CS0201]: the control plane does not answer at /nonexistent/control.sock: No such file or directory (os error 2)
      Check that countersign-control runs, and the address or socket given.
    ");
    assert_eq!((text.code, text.out.as_str()), (5, ""));
    let json = run(&["get", "workloads", "-o", "json"]);
    assert_eq!((json.code, json.out.as_str()), (5, ""), "the exit code does not depend on the form");
    let error: serde_json::Value = serde_json::from_str(&json.err).unwrap();
    assert_eq!(error["error"]["code"], "CS0201");
}

#[test]
fn a_code_is_explained_without_a_control_plane() {
    let ran = run(&["explain", "cs5001"]);
    insta::assert_snapshot!(ran.out, @r"
    CS5001 Denied by policy

    Policies cover the destination, but none allows this request.

    What to do:  `countersign explain` shows the nearest policy and what it lacks.
    HTTP status: 403
    Stage:       policy
    ");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let json: serde_json::Value =
        serde_json::from_str(&run(&["explain", "CS5001", "-o", "json"]).out).unwrap();
    assert_eq!((&json["kind"], &json["status"]), (&"Code".into(), &403.into()));
}

#[test]
fn what_an_expression_can_see_is_listed() {
    let ran = run(&["explain", "context"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.starts_with("NAME") && ran.out.contains("context.attestation.age"), "{}", ran.out);
}

#[test]
fn wrong_usage_is_code_2_and_says_what_is_right() {
    for arguments in [
        &["frobnicate"][..],
        &["revoke", "planet/earth"],
        &["revoke", "workload/billing"],
        &["delete", "workload", "billing"],
        &["explain", "GET", "https://a.example"],
        &["audit", "--since", "yesterday"],
    ] {
        let ran = run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains("error"), "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn everything_is_asked_about_first_and_nobody_is_there_to_ask() {
    let ran = run(&["revoke", "everything"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("--yes"), "{}", ran.err);
}

#[test]
fn help_begins_with_what_it_is_and_ends_with_examples() {
    let ran = run(&["--help"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.starts_with("Gives workloads credentials"), "{}", ran.out);
    assert!(ran.out.contains("Exit codes: 0 done or yes"), "{}", ran.out);
    assert_eq!(run(&[]).code, 2, "without a command it is help, not a hang");
}

#[test]
fn an_export_is_verified_without_a_control_plane() {
    use model::audit::{Hash, Record};
    let first = Record::after(Hash::default(), "proxy/a", 1, b"{\"a\":1}".to_vec());
    let second = Record::after(first.hash, "proxy/a", 2, b"{\"a\":2}".to_vec());
    let line = |record: &Record, payload: &str| {
        serde_json::json!({
            "stream": record.stream, "sequence": record.sequence, "previous": record.previous.to_string(),
            "hash": record.hash.to_string(), "payload": payload,
        })
        .to_string()
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("export.jsonl");
    let verify = |text: String| {
        std::fs::write(&path, text).unwrap();
        run(&["audit", "verify", path.to_str().unwrap()])
    };
    let whole = verify([line(&first, "{\"a\":1}"), line(&second, "{\"a\":2}")].join("\n"));
    assert_eq!(whole.code, 0, "{}", whole.out);
    assert!(whole.out.ends_with("whole: 2 records in 1 streams of an export\n"), "{}", whole.out);
    let edited = verify([line(&first, "{\"a\":1}"), line(&second, "{\"a\":3}")].join("\n"));
    assert_eq!(edited.code, 3);
    assert!(edited.out.contains("broken at record 2: CS9002"), "{}", edited.out);
    let gap = verify(line(&second, "{\"a\":2}"));
    assert_eq!(gap.code, 3);
    assert!(gap.out.contains("CS9003"), "{}", gap.out);
}
