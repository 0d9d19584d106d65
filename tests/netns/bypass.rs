//! A bypass: for the day when something is wrong with the proxy. Nothing is opened, nothing is injected, everybody sees
//! it, and it ends by itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tests::world::SERVICE_ROOT;
use tests::{Call, Egress, Workload, World};

use crate::{events, eventually};

const CHARGE: &str = "/v1/charges/42";
const SOON: Duration = Duration::from_secs(20);
const SECOND: Duration = Duration::from_millis(1500);

fn begin(world: &World, time: &str) -> tests::Output {
    let bypass = ["bypass", "workload/billing", "-n", "payments", "--for", time, "--reason", "incident 7"];
    world.countersign(&bypass).unwrap()
}

fn lift(world: &World) -> tests::Output {
    world.countersign(&["bypass", "workload/billing", "-n", "payments", "--lift"]).unwrap()
}

/// Verified by the server's own root alone: whoever had opened the connection would be noticed.
fn untouched(billing: &Workload) -> Call {
    billing.payments(CHARGE).args(["--cacert", SERVICE_ROOT])
}

#[test]
fn a_bypass_passes_everything_untouched_and_is_shown_everywhere() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let mut billing = world.billing().unwrap();
    let mut kept = billing.steady("kept", "/v1/charges/{id}", &["--http2"]).unwrap();
    kept.wait_for(200, 3, SOON).unwrap();
    // curl 60: the certificate is not the server's own.
    assert_eq!(untouched(&billing).send().unwrap().exit, 60);

    let begun = begin(&world, "10m");
    assert!(begun.success() && begun.text().contains("1 of 1 proxies confirmed"), "{begun:?}");
    let (_, answer) = billing.eventually(SECOND, untouched, |answer| answer.exit == 0).unwrap();
    assert_eq!((answer.status, answer.code()), (401, ""), "the service's own answer: {answer:?}");
    // What was open before comes again by a connection that is not opened.
    kept.wait_for(401, 3, SOON).unwrap();
    let uncovered =
        billing.curl("https://issuer.demo.test:8443/openid/v1/jwks").args(["--cacert", SERVICE_ROOT]);
    assert_eq!(uncovered.send().unwrap().status, 200, "also what enforce refuses");
    let seen = world.seen().unwrap();
    let bare = seen.requests.iter().skip_while(|seen| seen.authorizations == 1);
    assert!(
        bare.clone().count() > 3 && bare.clone().all(|seen| seen.authorizations == 0),
        "nothing is injected"
    );

    let shown = world.countersign_json(&["get", "bypasses"]).unwrap();
    let id = shown[0]["data"]["items"][0]["id"].as_str().or(shown[0]["items"][0]["id"].as_str());
    let id = id.unwrap_or_else(|| panic!("{shown:?}")).to_owned();
    let status = world.countersign(&["status"]).unwrap().text();
    assert!(status.contains("BYPASSED") && status.contains("incident 7") && status.contains(&id), "{status}");
    let explain =
        ["explain", "--workload", "payments/billing", "DELETE", "https://payments.demo.test/v1/charges/42"];
    let explained = world.countersign(&explain).unwrap();
    assert!(explained.success() && explained.text().contains("BYPASSED"), "{explained:?}");
    assert_eq!(billing.proxy().metric("countersign_bypass_active", "").unwrap() as u32, 1);
    eventually(SOON, || world_metric(&mut world.sandbox().clone(), 1));
    let ready = world
        .sandbox()
        .command(billing.place(), tests::As::Root, "curl")
        .args(["-sS", "http://127.0.0.1:15020/readyz"])
        .output(SOON)
        .unwrap()
        .text();
    assert!(ready.starts_with("ok; bypassed until ") && ready.contains(&id), "{ready}");
    assert!(billing.proxy().logs().contains("connections pass untouched"));
    eventually(SOON, || events(&world, "passed").iter().any(|event| event["bypass"] == id.as_str()));
    let administered = events(&world, "administration");
    let by = administered.iter().find(|event| event["verb"] == "bypassed").unwrap();
    assert!(by["reason"].as_str().unwrap().contains("incident 7"), "{by}");
    assert!(by["author"].as_str().is_some_and(|author| author.starts_with("unix:")), "{by}");

    let lifted = lift(&world);
    assert!(lifted.success() && lifted.text().contains("no longer bypassed"), "{lifted:?}");
    let call = |billing: &Workload| billing.payments(CHARGE);
    billing.eventually(SECOND, call, |answer| answer.status == 200).unwrap();
    kept.wait_for(200, 10, SOON).unwrap();
    eventually(SOON, || world_metric(&mut world.sandbox().clone(), 0));
    assert!(lift(&world).text().contains("it is not bypassed"));
}

/// Whether the control plane counts this many bypasses.
fn world_metric(sandbox: &mut std::sync::Arc<tests::Sandbox>, count: u32) -> bool {
    let curl = sandbox.command(tests::Place::Service, tests::As::Root, "curl");
    let text = curl.args(["-sS", "http://127.0.0.1:8442/metrics"]).output(SOON).unwrap().text();
    text.contains(&format!("countersign_bypass_active {count}\n"))
}

#[test]
fn a_bypass_ends_by_itself_also_without_the_control_plane() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    assert!(begin(&world, "15s").success());
    let shown = world.countersign_json(&["get", "bypasses"]).unwrap();
    let until = shown[0].pointer("/data/items/0/until").or(shown[0].pointer("/items/0/until"));
    let until = until.and_then(serde_json::Value::as_str).unwrap_or_else(|| panic!("{shown:?}"));
    let date = world.sandbox().command(tests::Place::Service, tests::As::Root, "date");
    let until = date.args(["-d", until, "+%s%3N"]).output(SOON).unwrap().text().trim().parse().unwrap();
    billing.eventually(SECOND, untouched, |answer| answer.exit == 0).unwrap();
    world.control().kill9();
    // A connection that is carried under the bypass, and stays open.
    let became = billing.flood(&["idle", "--seconds", "40"]).unwrap();
    assert_eq!(became.keys().collect::<Vec<_>>(), ["closed"], "{became:?}");
    let cut =
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().saturating_sub(Duration::from_millis(until));
    // A second to be cut, and the time that the client's process takes to end.
    assert!(!cut.is_zero() && cut < Duration::from_millis(2500), "cut {cut:?} after the end");
    // Judged again: opened, and without a credential of this policy nothing is sent.
    let count = world.seen().unwrap().count;
    let answer = billing.payments(CHARGE).send().unwrap();
    assert_eq!((answer.status, answer.code()), (503, "CS6001"), "{answer:?}");
    assert_eq!(world.seen().unwrap().count, count);
}

/// Waits until the control plane knows of all that has happened.
fn all_is_told(billing: &mut Workload) {
    // The gauge is set ten times a second.
    std::thread::sleep(Duration::from_millis(250));
    eventually(SOON, || billing.proxy().metric("countersign_spool_events", "").unwrap() == 0.0);
}

#[test]
fn a_block_wins_over_a_bypass() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let mut billing = world.billing().unwrap();
    assert!(begin(&world, "10m").success());
    billing.eventually(SECOND, untouched, |answer| answer.exit == 0).unwrap();
    for (target, code) in [("workload/billing", "CS5007"), ("destination/payments-api", "CS5007")] {
        all_is_told(&mut billing);
        let before = events(&world, "passed").len();
        let billing = &billing;
        let held = std::thread::scope(|scope| {
            let held = scope.spawn(|| {
                let became = billing.flood(&["idle", "--seconds", "40"]).unwrap();
                (became, SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
            });
            eventually(SOON, || events(&world, "passed").len() > before);
            assert!(world.countersign(&["revoke", target, "-n", "payments"]).unwrap().success());
            let (became, cut) = held.join().unwrap();
            assert!(became.contains_key("closed"), "{became:?}");
            let blocked = events(&world, "administration");
            let blocked = blocked.iter().filter(|event| event["verb"] == "blocked");
            let blocked = blocked.filter_map(|event| event["time"].as_u64()).max().unwrap();
            cut.saturating_sub(Duration::from_millis(blocked))
        });
        // A second to be cut, and the time that the client's process takes to end.
        assert!(held < Duration::from_millis(2500), "{target}: cut after {held:?}");
        for version in ["--http1.1", "--http2"] {
            let answer = billing.payments(CHARGE).args([version]).send().unwrap();
            assert_eq!((answer.status, answer.code()), (403, code), "{target} {answer:?}");
        }
        assert!(world.countersign(&["revoke", target, "-n", "payments", "--lift"]).unwrap().success());
        billing.eventually(SECOND, untouched, |answer| answer.exit == 0).unwrap();
    }
}

#[test]
fn a_bypass_needs_a_reason_a_time_and_an_administrator() {
    let world = World::started(Egress::Enforce).unwrap();
    let bypass = |more: &[&str]| {
        world.countersign(&[&["bypass", "workload/billing", "-n", "payments"][..], more].concat()).unwrap()
    };
    assert_eq!(bypass(&["--for", "30m"]).exit, 2, "no reason");
    assert_eq!(bypass(&["--reason", "why"]).exit, 2, "no time");
    assert_eq!(bypass(&["--for", "soon", "--reason", "why"]).exit, 2);
    let long = bypass(&["--for", "25h", "--reason", "why"]);
    assert!(!long.success() && long.stderr.contains("24 h"), "{long:?}");
    assert!(!bypass(&["--for", "30m", "--reason", " "]).success());
    let nobody = world
        .countersign(&["bypass", "workload/nobody", "-n", "payments", "--for", "1m", "--reason", "why"])
        .unwrap();
    assert!(!nobody.success() && nobody.stderr.contains("CS0203"), "{nobody:?}");
    let stranger = world
        .sandbox()
        .command(tests::Place::Service, tests::As::Root, "setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .args([format!("{}/countersign", tests::sandbox::PROGRAMS).as_str(), "bypass", "workload/billing"])
        .args(["-n", "payments", "--for", "1m", "--reason", "why"])
        .env("COUNTERSIGN_SOCKET", tests::world::SOCKET)
        .output(SOON * 2)
        .unwrap();
    assert_eq!(stranger.exit, 4, "{stranger:?}");
    let none = world.countersign(&["get", "bypasses", "-o", "name"]).unwrap();
    assert_eq!(none.text(), "", "{none:?}");
}
