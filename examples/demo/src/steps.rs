//! The steps.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tests::sandbox::HOME;
use tests::workload::{Made, Steady, tally};
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
    report.begin("memory");
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
    let events = events(world, "attested")?;
    let caller = events.iter().rev().find_map(|event| event["caller"].as_str());
    caller.map(str::to_owned).context("audit shows no attestation")
}

fn capture(billing: &Workload, report: &Report) -> anyhow::Result<()> {
    let said = billing.redirect()?;
    let rules = billing.capture(&["show"])?;
    ensure!(rules.contains("redirect"), "no redirect is installed:\n{rules}");
    let excluded: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("not captured: ")).collect();
    ensure!(!excluded.is_empty(), "capture did not say what it leaves alone:\n{said}");
    report.done(&format!(
        "all TCP of the client goes to the proxy, IPv4 and IPv6 (nft table countersign)\nbut not {}",
        excluded.join(",\nnor ")
    ));
    Ok(())
}

fn same_curl(world: &mut World, billing: &Workload, report: &Report) -> anyhow::Result<()> {
    let before = world.seen()?.authorised;
    let http1 = good(&billing.payments(CHARGE).http1().v4().send()?)?;
    let http2 = good(&billing.payments(CHARGE).http2().v6().send()?)?;
    ensure!(http1["httpVersion"] == "HTTP/1.1", "HTTP/1.1 was asked for: {http1}");
    ensure!(http2["httpVersion"] == "HTTP/2.0", "HTTP/2 was asked for: {http2}");
    let mut lines = vec!["curl → 200 over HTTP/1.1 and IPv4, 200 over HTTP/2 and IPv6".to_owned()];
    let logs = world.service().logs();
    let printed = logs.lines().rfind(|line| line.contains("with a token that lives"));
    lines.push(format!("the service prints:\n  {}", printed.context("the service printed nothing")?));
    let url = format!("https://{PAYMENTS}{CHARGE}");
    let mut calls = 2;
    for (name, script) in scripts(billing) {
        let Some(script) = script else {
            lines.push(format!("{name}: not installed where the client can use it"));
            continue;
        };
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

/// The scripts, if their runtimes are installed where the application can use them.
fn scripts(billing: &Workload) -> [(&'static str, Option<tests::sandbox::Inside>); 2] {
    let runs = |program: &str, args: &[&str]| {
        billing.application(program).args(args).output(PATIENCE).is_ok_and(|output| output.success())
    };
    let python =
        ["python3", "/usr/bin/python3"].into_iter().find(|python| runs(python, &["-c", "import requests"]));
    let python =
        python.map(|python| billing.application(python).args(["-c", include_str!("../scripts/requests.py")]));
    let node = ["node", "/usr/bin/node"]
        .into_iter()
        .find(|node| runs(node, &["-e", "if (!globalThis.fetch) process.exit(1)"]));
    let node = node.map(|node| {
        let script = include_str!("../scripts/fetch.mjs");
        billing.application(node).args(["--input-type=module", "-e", script, "script"])
    });
    [("Python requests", python), ("Node fetch", node)]
}

fn not_allowed(world: &mut World, billing: &Workload, report: &Report) -> anyhow::Result<()> {
    let before = world.seen()?.count;
    let refused = billing.payments(CHARGE).method("DELETE").send()?;
    ensure!(refused.status == 403, "DELETE should be refused, but: {}", refused.shown());
    let problem = refused.json()?;
    let said = |pointer: &str| -> anyhow::Result<&str> {
        problem
            .pointer(pointer)
            .and_then(Value::as_str)
            .with_context(|| format!("the problem has no {pointer}"))
    };
    let mut lines = vec![
        format!("DELETE {CHARGE} → {} · service saw nothing", refused.shown()),
        format!("reason   {}", said("/detail")?),
        format!(
            "nearest  policy {} but for its {}",
            said("/policies/0/name")?,
            said("/policies/0/failed/0/what")?
        ),
        format!("remedy   {}", said("/remedy")?),
        format!("         {}", explained(world, said("/decision_id")?)?),
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
    let attested = events(world, "attested")?;
    let refused = attested.iter().rev().find_map(|event| event["refused"].as_str());
    let refused = refused.context("audit shows no refused attestation")?;
    lines.push(format!("a third, whose evidence does not verify, gets no caller ({refused})"));
    lines.push(format!("  and nothing passes → {}", forged.shown()));

    let reached = world.seen()?.count - before;
    ensure!(reached == 0, "{reached} refused calls reached the service");
    report.done(&lines.join("\n"));
    Ok(())
}

/// What `countersign explain` says of the nearest policy, once the event has arrived.
fn explained(world: &World, decision: &str) -> anyhow::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let explained = world.countersign(&["explain", decision])?.text();
        if let Some(line) = explained.lines().find(|line| line.starts_with("Nearest:")) {
            return Ok(line.to_owned());
        }
        ensure!(Instant::now() < deadline, "countersign explain {decision} says: {explained}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn revoke(world: &World, billing: &Workload, report: &Report) -> anyhow::Result<()> {
    let mut steady = billing.steady("steady", "/v1/charges/7", &["--pause-ms", "5"])?;
    steady.wait_for(200, 5, PATIENCE)?;
    let block = ["revoke", "workload/billing", "-n", "payments", "--reason", "demo"];
    let (blocked, revoked) = acts(world, &mut steady, &block, 403)?;
    let (lifted, _) =
        acts(world, &mut steady, &["revoke", "workload/billing", "-n", "payments", "--lift"], 200)?;
    let delete = ["delete", "accesspolicy/billing-charges", "-n", "payments"];
    let (deleted, said) = acts(world, &mut steady, &delete, 403)?;
    let mut lines = vec![format!("next call refused after {blocked} ms (bound 1 s)")];
    lines.extend(revoked.lines().flat_map(|line| line.split("; ")).map(|line| format!("  {line}")));
    lines.push(format!("--lift → calls pass again after {lifted} ms"));
    lines.push(format!("deleting the policy instead → next call refused after {deleted} ms; delete says:"));
    lines.extend(said.lines().map(|line| format!("  {}", line.trim_start())));
    world.apply_quickstart()?;
    let passed = |steady: &Steady| steady.calls().iter().filter(|made| made.status == 200).count();
    steady.wait_for(200, passed(&steady) + 1, PATIENCE)?;
    steady.finish()?;
    report.done(&lines.join("\n"));
    Ok(())
}

/// Runs a command while calls go on; says after how many milliseconds the first of them was answered so, and what the
/// command said. From then on all of them must be.
fn acts(world: &World, steady: &mut Steady, command: &[&str], status: u16) -> anyhow::Result<(u128, String)> {
    let begun = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let so = |made: &&Made| made.sent >= begun && made.status == status;
    let output = world.countersign(command)?;
    ensure!(output.success(), "countersign {}: {}{}", command.join(" "), output.text(), output.stderr);
    let deadline = Instant::now() + PATIENCE;
    while steady.calls().iter().filter(so).count() < 3 {
        ensure!(Instant::now() < deadline, "no call was answered {status}: {:?}", tally(&steady.calls()));
        std::thread::sleep(Duration::from_millis(10));
    }
    let calls = steady.calls();
    let first = calls.iter().position(|made| so(&made)).context("no call was answered so")?;
    ensure!(
        calls[first..].iter().all(|made| made.status == status),
        "not all calls were answered {status} from then on: {:?}",
        tally(&calls[first..])
    );
    let after = calls[first].sent - begun;
    ensure!(after < REVOKED.as_millis(), "{} acted only after {after} ms", command.join(" "));
    Ok((after, format!("{}{}", output.text(), output.stderr).trim().to_owned()))
}

fn audit(world: &World, report: &Report) -> anyhow::Result<()> {
    let verified = world.countersign(&["audit", "verify"])?;
    let verdict = format!("{}{}", verified.text(), verified.stderr);
    ensure!(verified.success(), "countersign audit verify ended with {}: {verdict}", verified.exit);
    let rows = rows(&all_events(world)?);
    ensure!(!rows.is_empty(), "countersign audit lists no call");
    report.done(&format!(
        "audit verify → {}\naudit lists each call; the same once, with how often:",
        verdict.trim().lines().last().unwrap_or_default(),
    ));
    report.table(&["CALLER", "ACTION", "RESOURCE", "DECISION", "POLICIES", "TOKEN ID"], &rows);
    Ok(())
}

/// The calls among the events: caller, action, resource, decision, policies, credential's id.
fn rows(events: &[Value]) -> Vec<Vec<String>> {
    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or("-").to_owned();
    let path = |event: &Value| {
        let caller = text(event, "caller");
        let path = caller.strip_prefix("spiffe://demo/ns/").unwrap_or(&caller);
        path.replacen("/sa/", "/", 1)
    };
    let mut found: Vec<(Vec<String>, usize)> = Vec::new();
    for event in events {
        let destination = event["destination"].as_str().and_then(|name| name.split('/').next_back());
        let authority = text(event, "authority");
        let service = destination.or(authority.split(':').next()).unwrap_or_default();
        let resource = format!("{service}{}", text(event, "path"));
        let action = text(event, "method");
        let row = match event["kind"].as_str() {
            Some("intent") => {
                let policies = event["policies"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let names = policies.filter_map(|policy| policy.split('/').next_back());
                let policies = names.collect::<Vec<_>>().join(",");
                let grant: String = text(event, "grant").chars().take(8).collect();
                vec![path(event), action, resource, "allowed".to_owned(), policies, grant]
            }
            Some("refusal") => {
                let decision = format!("denied {}", text(event, "code"));
                vec![path(event), action, resource, decision, "-".to_owned(), "-".to_owned()]
            }
            _ => continue,
        };
        match found.iter_mut().find(|(known, _)| *known == row) {
            Some((_, times)) => *times += 1,
            None => found.push((row, 1)),
        }
    }
    let times = |(mut row, times): (Vec<String>, usize)| {
        if times > 1 {
            row[1].push_str(&format!(" ×{times}"));
        }
        row
    };
    found.into_iter().map(times).collect()
}

fn all_events(world: &World) -> anyhow::Result<Vec<Value>> {
    let lists = world.countersign_json(&["audit"])?;
    let items = lists.iter().filter_map(|list| list["items"].as_array()).flatten();
    Ok(items.map(|item| item["event"].clone()).collect())
}

fn events(world: &World, kind: &str) -> anyhow::Result<Vec<Value>> {
    Ok(all_events(world)?.into_iter().filter(|event| event["kind"] == kind).collect())
}

fn search_client(world: &World, billing: &Workload, report: &Report) -> anyhow::Result<()> {
    // One call, after which the client stays as it is.
    let mut kept = billing.steady("kept", "/v1/charges/{id}", &["--calls", "1"])?;
    kept.wait_for(200, 1, PATIENCE)?;
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
