//! What people and scripts see: help, messages, exit codes.
#![allow(clippy::unwrap_used, reason = "a test's set-up")]

use std::process::Command;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn run(arguments: &[&str]) -> Ran {
    with_env(arguments, &[])
}

fn with_env(arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_countersign"))
        .args(arguments)
        .env_clear()
        .env("COUNTERSIGN_SOCKET", "/nonexistent/control.sock")
        .env("LANG", "C.UTF-8")
        .envs(variables.iter().copied())
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
      more: countersign explain CS0201
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

    What to do:  `countersign explain DECISION` shows the nearest policy and what it lacks.
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
        &["explain", "GET", "--workload", "a/b"],
        &["explain", "nonsense"],
        &["explain", "accesspolicy.spec.nope"],
        &["get", "zebras"],
        &["get", "workload/a", "b"],
        &["get", "workload/a/b", "-n", "c"],
        &["revoke", "workload/a/b", "--wait", "soon"],
        &["bypass", "workload/a/b", "--lift", "--wait", "2000"],
        &["completion", "dos"],
        &["audit", "--since", "yesterday"],
    ] {
        let ran = run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains("error"), "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn what_was_probably_meant_is_said() {
    for (arguments, near) in [
        (&["get", "wrkloads"][..], "did you mean `workloads`?"),
        (&["delete", "guardrial", "g"], "did you mean `guardrails`?"),
        (&["explain", "AccesPolicy.spec.when"], "did you mean `AccessPolicy.spec.when`?"),
        (&["explain", "accesspolicy.spec.wen"], "did you mean `AccessPolicy.spec.when`?"),
        (&["aply", "-f", "x"], "'apply'"),
        (&["apply", "--dry-rn", "-f", "x"], "'--dry-run'"),
    ] {
        let ran = run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(near), "{arguments:?}: {}", ran.err);
    }
    let settings = with_env(&["explain", "CS5001"], &[("COUNTERSIGN_SOKET", "/x")]);
    assert_eq!(settings.err, "warning: COUNTERSIGN_SOKET is no setting; did you mean COUNTERSIGN_SOCKET?\n");
    let other = with_env(&["explain", "CS5001"], &[("COUNTERSIGN_PROXY_STATE", "/x")]);
    assert_eq!(other.err, "", "that one is for another program");
}

#[test]
fn a_kind_and_its_fields_are_explained_without_a_control_plane() {
    insta::assert_snapshot!(run(&["explain", "condition"]).out);
    let field = run(&["explain", "AccessPolicy.spec.allow[0].paths"]);
    insta::assert_snapshot!(field.out, @r"
    `AccessPolicy`: which caller may do what at which destination, with which credential, under which conditions.

    spec.allow[].paths  (list of text)
      Path templates: `*` is one segment, `**` any number.
    ");
    let json: serde_json::Value =
        serde_json::from_str(&run(&["explain", "accesspolicies.spec.when", "-o", "json"]).out).unwrap();
    assert_eq!((&json["kind"], &json["items"][0]["path"]), (&"Fields".into(), &"spec.when".into()));
}

#[test]
fn whoever_asks_for_a_form_gets_it_for_answers_and_for_errors() {
    let yaml = run(&["explain", "CS5001", "-o", "yaml"]);
    assert!(yaml.out.starts_with("---\napiVersion: countersign.dev/v1alpha1\nkind: Code\n"), "{}", yaml.out);
    for arguments in
        [&["get", "zebras", "-o", "json"][..], &["frobnicate", "-ojson"], &["apply", "--output=json"]]
    {
        let ran = run(arguments);
        let error: serde_json::Value =
            serde_json::from_str(&ran.err).unwrap_or_else(|_| panic!("{}", ran.err));
        assert!(error["error"]["message"].is_string() && ran.code == 2 && ran.out.is_empty(), "{error}");
    }
}

#[test]
fn colour_is_for_terminals_or_for_whoever_asks() {
    let escape = |ran: &Ran| ran.out.contains('\x1b') || ran.err.contains('\x1b');
    let away = ["get", "workloads"];
    assert!(!escape(&run(&away)), "a pipe gets none");
    assert!(escape(&run(&["get", "workloads", "--color", "always"])));
    assert!(escape(&with_env(&away, &[("CLICOLOR_FORCE", "1")])));
    assert!(!escape(&with_env(&away, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")])));
    assert!(!escape(&with_env(&away, &[("CLICOLOR_FORCE", "1"), ("TERM", "dumb")])));
}

#[test]
fn a_shell_is_told_what_comes_next() {
    let script = run(&["completion", "bash"]);
    assert!(script.code == 0 && script.out.contains("complete"), "{}", script.out);
    let next = |words: &[&str]| {
        let index = (words.len() - 1).to_string();
        let variables = [("COMPLETE", "bash"), ("_CLAP_COMPLETE_INDEX", &*index), ("_CLAP_IFS", "\n")];
        with_env(&[&["--"], words].concat(), &variables).out
    };
    assert!(next(&["countersign", "ap"]).contains("apply"));
    let kinds = next(&["countersign", "get", ""]);
    assert!(kinds.contains("accesspolicies") && kinds.contains("grants"), "{kinds}");
    // Nobody answers for live names here, and that is no error.
    assert!(next(&["countersign", "revoke", ""]).contains("everything"));
}

#[test]
fn what_can_not_be_undone_is_asked_about_first_and_nobody_is_there_to_ask() {
    for arguments in [&["revoke", "everything"][..], &["delete", "guardrail", "g"]] {
        let ran = run(arguments);
        assert_eq!(ran.code, 2);
        assert!(ran.err.contains("--yes"), "{}", ran.err);
    }
    // To be told what would happen needs no courage.
    assert_eq!(run(&["revoke", "everything", "--dry-run"]).code, 5);
    assert_eq!(run(&["delete", "guardrail", "g", "--dry-run"]).code, 5);
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
    assert!(whole.out.ends_with("whole: 2 records in 1 stream of an export\n"), "{}", whole.out);
    let edited = verify([line(&first, "{\"a\":1}"), line(&second, "{\"a\":3}")].join("\n"));
    assert_eq!(edited.code, 3);
    assert!(edited.out.contains("broken at record 2: CS9002"), "{}", edited.out);
    let gap = verify(line(&second, "{\"a\":2}"));
    assert_eq!(gap.code, 3);
    assert!(gap.out.contains("CS9003"), "{}", gap.out);
}
