//! Several workers, as a proxy has them unless it is told otherwise: the kernel spreads connections over their listeners,
//! and what concerns all connections reaches each worker.

use std::time::Duration;

use tests::sandbox::Inside;
use tests::world::{PAYMENTS, SERVICE_ROOT};
use tests::{Call, Egress, Workload, World};

use crate::{BOUND, cut_by_a_block, events, eventually};

const CHARGE: &str = "/v1/charges/42";
const SOON: Duration = Duration::from_secs(20);

/// Connections enough that none of two workers is left out: one in 2^15 runs would.
const MANY: usize = 16;

fn started() -> (World, Workload) {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing_on_workers(2).unwrap();
    (world, billing)
}

/// One curl that makes this many calls of payments at once, each over a connection of its own.
fn at_once(billing: &Workload, path: &str, more: &[&str]) -> Inside {
    at_once_of(billing, PAYMENTS, path, more)
}

fn at_once_of(billing: &Workload, host: &str, path: &str, more: &[&str]) -> Inside {
    let words =
        ["-sS", "--http1.1", "--parallel", "--parallel-immediate", "--parallel-max", "32", "--max-time"];
    let curl = billing.application("curl").args(words).args(["60", "-w", "%{http_code} %{exitcode}\\n"]);
    let urls = (0..MANY).map(|number| format!("https://{host}{path}{number}"));
    urls.fold(curl.args(more), |curl, url| curl.args(["-o", "/dev/null", &url]))
}

/// The status of each, and curl's word on how it ended.
fn ended(curl: Inside) -> Vec<String> {
    let output = curl.output(Duration::from_secs(90)).unwrap();
    output.text().lines().map(str::to_owned).collect()
}

#[test]
fn connections_are_spread_over_all_workers_and_a_block_cuts_on_each() {
    let (mut world, billing) = started();
    let _edge = world.start_edge().unwrap();
    billing.eventually(SOON, |b| b.edge(8448, "/"), |answer| answer.status == 200).unwrap();
    assert_eq!(ended(at_once_of(&billing, "edge.demo.test:8448", "/?", &[])), vec!["200 0"; MANY]);
    // Each worker has a connection of its own to a server of HTTP/2, and needs no other.
    assert_eq!(world.edge_seen().unwrap()["sessions"], 2);
    let drip = "/v1/charges/drip?chunks=400&every_ms=100&size=20&type=text/event-stream&id=";
    let (cut, ended) = cut_by_a_block(&world, || ended(at_once(&billing, drip, &[])));
    assert!(cut < BOUND, "{cut:?}");
    assert!(ended.len() == MANY && !ended.iter().any(|end| end == "200 0"), "{ended:?}");
    let cut = |event: &&serde_json::Value| event["result"] == "cut" && event["code"] == "CS5007";
    eventually(SOON, || events(&world, "outcome").iter().filter(cut).count() == MANY);
}

/// Verified by the server's own root alone: whoever had opened the connection would be noticed.
fn untouched(billing: &Workload) -> Call {
    billing.payments(CHARGE).args(["--cacert", SERVICE_ROOT])
}

#[test]
fn a_bypass_and_a_lost_redirect_are_known_to_all_workers() {
    let (world, mut billing) = started();
    assert_eq!(billing.payments(CHARGE).send().unwrap().status, 200);
    let target = ["workload/billing", "-n", "payments"];
    let begin = [&["bypass"], &target[..], &["--for", "10m", "--reason", "incident 7"]].concat();
    assert!(world.countersign(&begin).unwrap().success());
    billing.eventually(SOON, untouched, |answer| answer.exit == 0).unwrap();
    let trusting = ["--cacert", SERVICE_ROOT];
    assert_eq!(ended(at_once(&billing, "/v1/charges/", &trusting)), vec!["401 0"; MANY]);
    assert!(world.countersign(&[&["bypass"], &target[..], &["--lift"]].concat()).unwrap().success());
    let judged = |billing: &Workload| billing.payments(CHARGE);
    billing.eventually(SOON, judged, |answer| answer.status == 200).unwrap();
    assert_eq!(ended(at_once(&billing, "/v1/charges/", &[])), vec!["200 0"; MANY]);
    // The sentinel is answered by whichever worker is asked.
    for _ in 0..3 {
        world.sandbox().script(billing.place(), "nft flush ruleset").unwrap();
        eventually(SOON, || !billing.proxy().ready().unwrap());
        billing.redirect().unwrap();
        eventually(SOON, || billing.proxy().ready().unwrap());
    }
}

#[test]
fn what_is_open_on_any_worker_is_finished_when_the_proxy_is_told_to_stop() {
    let (world, mut billing) = started();
    let slow = at_once(&billing, "/v1/charges/slow?ms=4000&id=", &[]);
    std::thread::scope(|scope| {
        let slow = scope.spawn(move || ended(slow));
        eventually(SOON, || world.seen().unwrap().count == MANY as u64);
        assert_eq!(billing.proxy().terminate().unwrap(), 0);
        assert_eq!(slow.join().unwrap(), vec!["200 0"; MANY]);
    });
}
