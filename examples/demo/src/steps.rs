//! The steps.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tests::sandbox::HOME;
use tests::world::PAYMENTS;
use tests::{Answer, Egress, Evidence, Workload, World, search};

use crate::report::Report;

/// What the calls ask for.
const CHARGE: &str = "/v1/charges/42";
/// A revocation acts within this time.
const REVOKED: Duration = Duration::from_secs(1);
/// Time for anything that is not measured.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs them all; the first that fails ends it.
pub(crate) fn all(world: &mut World, report: &mut Report) -> anyhow::Result<()> {
    report.begin("service");
    let mut billing = service(world, report)?;
    report.begin("control plane");
    control_plane(world, &mut billing, report)?;
    report.begin("capture");
    capture(&billing, report)?;
    report.begin("same curl");
    same_curl(world, &billing, report)?;
    report.begin("not allowed");
    not_allowed(world, &billing, report)?;
    report.begin("revoke");
    revoke(world, &billing, report)?;
    report.begin("audit");
    audit(world, report)?;
    report.begin("search");
    search_client(world, &billing, report)
}

fn service(world: &mut World, report: &Report) -> anyhow::Result<Workload> {
    world.start_issuer()?;
    world.start_service()?;
    let billing = world.workload("billing", Evidence::billing())?;
    let answer = billing.payments(CHARGE).send()?;
    ensure!(answer.status == 401, "the service should refuse a stranger, but: {}", answer.shown());
    let why = answer.json()?["error"].as_str().unwrap_or_default().to_owned();
    report.done(&format!("payments-api on https://{PAYMENTS}, refuses strangers\ncurl → 401 {why}"));
    Ok(billing)
}

fn control_plane(world: &mut World, billing: &mut Workload, report: &Report) -> anyhow::Result<()> {
    world.start_control(Egress::Enforce)?;
    let applied = world.apply_quickstart()?;
    billing.start_proxy()?;
    let documents = applied.text().lines().filter(|line| line.ends_with("created")).count();
    report.done(&format!(
        "ready, {documents} documents applied from examples/quickstart\n\
         proxy ready, attested as {} by a projected token",
        attested(world)?
    ));
    Ok(())
}

/// The caller that the proxy was attested as, by the control plane's word.
fn attested(world: &World) -> anyhow::Result<String> {
    let events = world.countersign_json(&["audit"])?;
    let mut found = None;
    visit(&Value::Array(events), &mut |object| {
        if object.get("kind").and_then(Value::as_str) == Some("attested") {
            found = object.get("caller").and_then(Value::as_str).map(str::to_owned).or(found.take());
        }
    });
    found.context("audit shows no attestation")
}

fn capture(billing: &Workload, report: &Report) -> anyhow::Result<()> {
    let said = billing.redirect()?;
    let rules = billing.capture(&["show"])?;
    ensure!(rules.contains("redirect"), "no redirect is installed:\n{rules}");
    report.done(&format!("outbound TCP redirected, IPv4 and IPv6 (nft table countersign)\n{}", said.trim()));
    Ok(())
}

fn same_curl(world: &World, billing: &Workload, report: &Report) -> anyhow::Result<()> {
    let before = world.seen()?.authorised;
    let http1 = good(&billing.payments(CHARGE).http1().v4().send()?)?;
    let http2 = good(&billing.payments(CHARGE).http2().v6().send()?)?;
    ensure!(http2["httpVersion"] == "HTTP/2.0", "HTTP/2 was asked for: {http2}");
    let mut lines = vec![format!(
        "→ 200 · service saw {}, token valid {} · client sent no token",
        http1["caller"].as_str().unwrap_or_default(),
        minutes(http1["tokenSecondsLeft"].as_u64().unwrap_or(0))
    )];
    lines.push("curl over HTTP/1.1 and IPv4 → 200 · over HTTP/2 and IPv6 → 200".to_owned());
    let url = format!("https://{PAYMENTS}{CHARGE}");
    let mut calls = 2;
    for (name, script) in scripts(billing) {
        let output = script.arg(&url).output(PATIENCE)?;
        ensure!(output.text().starts_with("200 "), "{name}: {}{}", output.text(), output.stderr);
        lines.push(format!("{name} → {}", output.text().trim()));
        calls += 1;
    }
    let seen = world.seen()?.authorised - before;
    ensure!(seen == calls, "{calls} calls were made, but {seen} reached the service");
    report.done(&lines.join("\n"));
    Ok(())
}

fn good(answer: &Answer) -> anyhow::Result<Value> {
    ensure!(answer.status == 200, "expected 200, but: {} {}", answer.shown(), answer.text());
    answer.json()
}

/// The scripts whose runtimes are installed where the application can use them.
fn scripts(billing: &Workload) -> Vec<(&'static str, tests::sandbox::Inside)> {
    let mut scripts = Vec::new();
    for python in ["python3", "/usr/bin/python3"] {
        let try_it = billing.application(python).args(["-c", "import requests"]).output(PATIENCE);
        if try_it.is_ok_and(|output| output.success()) {
            let script = include_str!("../scripts/requests.py");
            scripts.push(("Python requests", billing.application(python).args(["-c", script])));
            break;
        }
    }
    let try_it = billing.application("node").args(["-e", "if (!globalThis.fetch) process.exit(1)"]);
    if try_it.output(PATIENCE).is_ok_and(|output| output.success()) {
        let script = include_str!("../scripts/fetch.mjs");
        let node = billing.application("node").args(["--input-type=module", "-e", script, "script"]);
        scripts.push(("Node fetch", node));
    }
    scripts
}

fn not_allowed(world: &mut World, billing: &Workload, report: &Report) -> anyhow::Result<()> {
    let before = world.seen()?.count;
    let refused = billing.payments(CHARGE).method("DELETE").send()?;
    ensure!(refused.status == 403, "DELETE should be refused, but: {}", refused.shown());
    let problem = refused.json()?;
    let policy = problem["policies"][0]["name"].as_str().context("the problem names no policy")?.to_owned();
    let remedy = problem["remedy"].as_str().context("the problem names no remedy")?.to_owned();
    let mut lines = vec![
        format!("DELETE {CHARGE} → {} · service saw nothing", refused.shown()),
        format!("nearest policy {policy} · {remedy}"),
    ];

    let mut nightly = world.workload("nightly", Evidence::pod("batch", "nightly"))?;
    nightly.start_proxy()?;
    let stranger = nightly.payments(CHARGE).send()?;
    ensure!(stranger.status == 403, "no policy names nightly, but: {}", stranger.shown());
    lines.push(format!("a second workload, batch/nightly, that no policy names → {}", stranger.shown()));

    let mut forger = world.workload("forger", Evidence::billing().forged())?;
    forger.launch_proxy()?;
    forger.proxy().wait_until_live()?;
    forger.redirect()?;
    let forged = forger.payments(CHARGE).send()?;
    ensure!(!(200..300).contains(&forged.status), "the evidence is forged, but: {}", forged.shown());
    lines.push(format!("a third, whose evidence does not verify → {}", forged.shown()));

    let reached = world.seen()?.count - before;
    ensure!(reached == 0, "{reached} refused calls reached the service");
    report.done(&lines.join("\n"));
    Ok(())
}

fn revoke(world: &World, billing: &Workload, report: &Report) -> anyhow::Result<()> {
    let mut steady = billing.steady("steady", "/v1/charges/{id}", &["--pause-ms", "5"])?;
    steady.wait_for(200, 5, PATIENCE)?;
    let begun = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let revoked = world.countersign(&["revoke", "workload/billing", "-n", "payments", "--reason", "demo"])?;
    ensure!(revoked.success(), "countersign revoke: {}{}", revoked.text(), revoked.stderr);
    steady.wait_for(403, 3, PATIENCE)?;
    let calls = steady.finish()?;
    let first = calls.iter().position(|made| made.sent >= begun && made.status == 403);
    let first = first.context("no call was refused")?;
    ensure!(
        calls[first..].iter().all(|made| made.status == 403),
        "a call passed after one was refused: {:?}",
        tests::workload::tally(&calls[first..])
    );
    let after = Duration::from_millis(u64::try_from(calls[first].sent - begun)?);
    ensure!(after < REVOKED, "the first refusal came {} ms after the command", after.as_millis());
    let said = format!("{}{}", revoked.text(), revoked.stderr);
    report.done(&format!("next call refused after {} ms (bound 1 s)\n{}", after.as_millis(), said.trim()));
    Ok(())
}

fn audit(world: &World, report: &Report) -> anyhow::Result<()> {
    let listed = world.countersign(&["audit"])?;
    ensure!(listed.success(), "countersign audit: {}", listed.stderr);
    let verified = world.countersign(&["audit", "verify"])?;
    let verdict = format!("{}{}", verified.text(), verified.stderr);
    ensure!(verified.success(), "countersign audit verify ended with {}: {verdict}", verified.exit);
    let text = listed.text();
    let lines: Vec<&str> = text.lines().collect();
    // The first rows: the steady client made many calls.
    let shown = lines.iter().take(ROWS).copied().collect::<Vec<_>>().join("\n");
    let more = lines.len().saturating_sub(ROWS);
    report.done(&format!("{}\n{shown}\n… {more} more", verdict.trim().lines().last().unwrap_or_default()));
    Ok(())
}

/// Rows of the audit's table that are shown.
const ROWS: usize = 9;

fn search_client(world: &World, billing: &Workload, report: &Report) -> anyhow::Result<()> {
    let lifted = world.countersign(&["revoke", "workload/billing", "-n", "payments", "--lift"])?;
    ensure!(lifted.success(), "countersign revoke --lift: {}{}", lifted.text(), lifted.stderr);
    // One call, after which the client stays as it is.
    let mut kept = billing.steady("kept", "/v1/charges/{id}", &["--calls", "1"])?;
    kept.wait_for(200, 1, PATIENCE).or_else(|_| {
        // The lift may reach the proxy after the call.
        kept = billing.steady("kept-2", "/v1/charges/{id}", &["--calls", "20"])?;
        kept.wait_for(200, 1, PATIENCE)
    })?;
    let seen = world.seen()?;
    let signatures: BTreeSet<&str> =
        seen.requests.iter().filter_map(|request| request.signature.as_deref()).collect();
    ensure!(!signatures.is_empty(), "no credential has reached the service");
    let needles: Vec<&[u8]> = signatures.iter().map(|signature| signature.as_bytes()).collect();
    let pid = kept.process().pid().context("the client has ended")?;
    let mut found = search::process(pid, &needles)?;
    // The same search finds what must be there, or it has not looked.
    let proof = search::process(pid, &[PAYMENTS.as_bytes()])?;
    ensure!(!proof.is_empty(), "the search found not even the name that the client called");
    for directory in [format!("{HOME}/trust"), format!("{HOME}/home"), format!("{HOME}/logs"), "/tmp".into()]
    {
        found.extend(search::files(Path::new(&world.sandbox().outside(directory)), &needles)?);
    }
    if !found.is_empty() {
        bail!("a credential was found in {}", found.join(", "));
    }
    report.done(&format!(
        "environment, files and memory of the client: none of the {} credentials that the service saw",
        signatures.len()
    ));
    Ok(())
}

fn minutes(seconds: u64) -> String {
    format!("{} min {} s", seconds / 60, seconds % 60)
}

/// Calls back for each object in a value.
fn visit(value: &Value, each: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            each(object);
            object.values().for_each(|value| visit(value, each));
        }
        Value::Array(values) => values.iter().for_each(|value| visit(value, each)),
        _ => (),
    }
}
