//! The command line against a real control plane: what it prints, in which form, and with which exit code.

use std::time::Duration;

use tests::world::PAYMENTS;
use tests::{Egress, Output, World};

use crate::eventually;

const DOCUMENTS: &str = "/run/countersign/private/cli.yaml";

fn apply(world: &World, documents: &str, more: &[&str]) -> Output {
    world.sandbox().write(DOCUMENTS, documents).unwrap();
    world.countersign(&[&["apply", "-f", DOCUMENTS], more].concat()).unwrap()
}

fn ask(world: &World, args: &[&str]) -> Output {
    world.countersign(args).unwrap()
}

fn quickstart() -> String {
    std::fs::read_to_string(tests::world::quickstart().join("quickstart.yaml")).unwrap()
}

#[test]
fn documents_go_in_and_come_out_and_nothing_changes_twice() {
    let world = World::started(Egress::Enforce).unwrap();
    let again = apply(&world, &quickstart(), &[]);
    assert_eq!(again.exit, 0, "{again:?}");
    assert_eq!(again.text().lines().filter(|line| line.ends_with(" unchanged")).count(), 5, "{again:?}");

    let longer = quickstart().replace("    ttl: 5m", "    ttl: 4m");
    let dry = apply(&world, &longer, &["--dry-run"]);
    assert!(
        dry.text().contains("credentialprovider/payments/payments-token configured (dry run)\n"),
        "{dry:?}"
    );
    let kept = ask(&world, &["get", "credentialprovider/payments/payments-token", "-o", "yaml"]);
    assert!(kept.text().contains("ttl: 5m"), "{kept:?}");

    // What `get` prints is what `apply` takes.
    let mut all = String::new();
    for kind in ["trustproviders", "workloads", "destinations", "credentialproviders", "accesspolicies"] {
        all.push_str(&ask(&world, &["get", kind, "-o", "yaml"]).text());
    }
    let round = apply(&world, &all, &[]);
    assert_eq!(
        round.text().lines().filter(|line| line.ends_with(" unchanged")).count(),
        5,
        "{round:?} {all}"
    );

    // What `-o name` prints is what every command takes.
    let name = ask(&world, &["get", "accesspolicies", "-o", "name"]).text().trim().to_owned();
    assert_eq!(name, "accesspolicy/payments/billing-charges");
    let dry = ask(&world, &["delete", &name, "--dry-run"]);
    assert_eq!((dry.exit, dry.text()), (0, format!("{name} deleted (dry run)\n")), "{dry:?}");
    assert_eq!(ask(&world, &["get", &name]).exit, 0, "it is there still");

    let table = ask(&world, &["get", "accesspolicies"]);
    let text = table.text();
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().unwrap(), ["NAMESPACE", "NAME", "WORKLOAD", "DESTINATION", "CREDENTIAL", "AGE"]);
    let row = lines.next().unwrap();
    assert_eq!(row[..5], ["payments", "billing-charges", "billing", "payments-api", "payments-token"]);
    // A time that a program can read, where a program reads.
    assert!(row[5].ends_with('Z') && row[5].len() == 24, "{row:?}");
    assert_eq!(ask(&world, &["get", "accesspolicies", "--no-headers"]).text().lines().count(), 1);
}

#[test]
fn everything_that_is_wrong_is_said_at_once_and_nothing_is_applied() {
    let world = World::started(Egress::Enforce).unwrap();
    let wrong = quickstart()
        .replace("  ports: [443]", "  prots: [443]")
        .replace("  credential: payments-token", "  credential: payment-token")
        .replace(
            "  when: context.attestation.age < duration(\"1h\")",
            "  when: >-\n    context.attestaton.age < duration(\"1h\")\n    && context.request.methd == \"GET\"",
        );
    let refused = apply(&world, &wrong.replace("name: billing-charges", "name: other"), &[]);
    assert_eq!((refused.exit, refused.text().as_str()), (3, ""), "{refused:?}");
    let said = &refused.stderr;
    for expected in [
        "error[CS0102]: unknown field `prots`",
        "did you mean `ports`?",
        "error[CS0104]: there is no CredentialProvider `payment-token`",
        "did you mean `payments-token`?",
        "    context.attestaton.age < duration(\"1h\")\n",
        "    && context.request.methd == \"GET\"\n",
        "4 errors in 1 file. Nothing was applied.",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    // The misspelt field breaks the destination, but is not reported as a reference to nothing.
    assert!(!said.contains("no Destination"), "{said}");
    // Carets stand under what is meant, in a folded scalar too.
    let carets: Vec<usize> = said.lines().filter_map(|line| line.find('^')).collect();
    assert_eq!(carets.len(), 4, "{said}");
    assert_eq!(ask(&world, &["get", "accesspolicy/payments/other"]).exit, 1);
    let json = apply(&world, &wrong, &["-o", "json"]);
    assert_eq!(json.exit, 3, "the exit code does not depend on the form");
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let diagnostics = value["diagnostics"].as_array().unwrap();
    assert_eq!(diagnostics.len(), 4, "{value}");
    assert!(diagnostics.iter().all(|d| d["line"].as_u64().unwrap() > 0 && d["file"] == DOCUMENTS), "{value}");

    // What is stored already must stay whole too.
    let narrowed = quickstart().replace("  destinations: [payments-api]", "  destinations: []");
    let workload = narrowed.split("---\n").find(|document| document.contains("kind: Workload")).unwrap();
    let refused = apply(&world, workload, &[]);
    assert_eq!(refused.exit, 3, "{refused:?}");
    let expected =
        "accesspolicy/payments/billing-charges, which is stored: workload `billing` is not permitted";
    assert!(refused.stderr.contains(expected), "{}", refused.stderr);
}

#[test]
fn what_is_not_there_is_told_with_what_was_meant() {
    let world = World::started(Egress::Enforce).unwrap();
    for args in [
        &["get", "workload", "biling", "-n", "payments"][..],
        &["delete", "workload", "biling", "-n", "payments"],
        &["revoke", "workload/biling", "-n", "payments"],
        &["get", "workload", "billing", "-n", "batch"],
    ] {
        let ran = ask(&world, args);
        assert_eq!((ran.exit, ran.text().as_str()), (1, ""), "{ran:?}");
        assert!(ran.stderr.starts_with("error[CS0203]"), "{ran:?}");
        assert!(ran.stderr.contains("did you mean `payments/billing`?"), "{ran:?}");
    }
}

#[test]
fn a_revocation_can_be_tried_made_seen_and_lifted() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    assert_eq!(billing.payments("/v1/charges/1").send().unwrap().status, 200);
    let dry = ask(&world, &["revoke", "workload/payments/billing", "--dry-run"]);
    assert_eq!(dry.exit, 0, "{dry:?}");
    assert!(dry.text().contains("blocked (dry run)") && dry.text().contains("stays good until"), "{dry:?}");
    assert_eq!(billing.payments("/v1/charges/2").send().unwrap().status, 200);

    assert_eq!(ask(&world, &["revoke", "workload/payments/billing", "--reason", "try"]).exit, 0);
    let blocked = ask(&world, &["get", "blocks", "-o", "name"]).text();
    assert_eq!(blocked, "workload/payments/billing\n");
    assert!(ask(&world, &["get", "blocks"]).text().contains("try"));
    let url = format!("https://{PAYMENTS}/v1/charges/1");
    for form in ["text", "json", "yaml"] {
        let why =
            ask(&world, &["explain", "--workload", "billing", "-n", "payments", "GET", &url, "-o", form]);
        assert_eq!(why.exit, 3, "{why:?}");
        assert!(why.text().contains("CS5007"), "{why:?}");
    }
    assert_eq!(ask(&world, &["revoke", blocked.trim(), "--lift"]).exit, 0);
    let lifted = ask(&world, &["revoke", blocked.trim(), "--lift"]);
    assert_eq!(lifted.exit, 0, "{lifted:?}");
    assert!(lifted.text().contains("unchanged"), "{lifted:?}");
    let good = ask(&world, &["explain", "--workload", "payments/billing", "GET", &url, "-o", "json"]);
    assert_eq!(good.exit, 0, "{good:?}");
}

#[test]
fn what_an_answer_or_audit_names_can_be_explained() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    let refused = billing.payments("/v1/charges/1").method("DELETE").send().unwrap();
    let problem = refused.json().unwrap();
    // The remedy has a command between backquotes, to be run as it is.
    let remedy = problem["remedy"].as_str().unwrap();
    let command: Vec<&str> = remedy.split('`').nth(1).unwrap().split(' ').skip(1).collect();
    assert_eq!(command, ["explain", refused.header("countersign-decision")]);
    eventually(Duration::from_secs(20), || ask(&world, &command).exit == 3);
    let why = ask(&world, &command).text();
    for expected in
        ["DENIED DELETE", "payments/billing-charges", "method DELETE   allowed: GET, POST", "Nearest:"]
    {
        assert!(why.contains(expected), "{expected}\n{why}");
    }
    assert_eq!(billing.payments("/v1/charges/1").send().unwrap().status, 200);
    let ids = || ask(&world, &["audit", "-o", "name"]).text();
    eventually(Duration::from_secs(20), || ids().lines().count() >= 2);
    for id in ids().lines() {
        let explained = ask(&world, &["explain", id]);
        assert!(explained.exit == 0 || explained.exit == 3, "{explained:?}");
    }
    // Each line of the list has all that an auditor asks for.
    let list = ask(&world, &["audit"]).text();
    let call = list.lines().find(|line| line.contains(" GET ")).unwrap();
    for expected in
        ["ns/payments/sa/billing", PAYMENTS, "/v1/charges/1", "allowed", "payments/billing-charges"]
    {
        assert!(call.contains(expected), "{expected}\n{call}");
    }
    let grant = world.seen().unwrap().requests.last().and_then(|seen| seen.grant.clone()).unwrap();
    assert!(call.contains(&grant), "{call}");
    let denied = ask(&world, &["audit", "--denied"]).text();
    assert!(denied.contains("DELETE") && !denied.contains(" GET "), "{denied}");
    // The author of a change, too.
    assert!(
        list.lines()
            .any(|line| line.contains("unix:0") && line.contains("accesspolicy/payments/billing-charges"))
    );
}
