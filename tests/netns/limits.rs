//! Each bound of docs/limits.md: what happens to a call, or a connection, that goes past it.

use std::time::{Duration, Instant};

use tests::{Answer, Egress, Workload, World};

use crate::{events, eventually};

const CHARGE: &str = "/v1/charges/42";
const SOON: Duration = Duration::from_secs(20);

fn started(settings: &[&str]) -> (World, Workload) {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing_with(settings).unwrap();
    let call = |billing: &Workload| billing.payments(CHARGE);
    billing.eventually(SOON, call, |answer| answer.status == 200).unwrap();
    (world, billing)
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{answer:?} {}", answer.text());
}

/// How many of the flood's connections had this end, and that no other was there.
#[track_caller]
fn all_became(billing: &Workload, args: &[&str], count: usize, what: &str) {
    let became = billing.flood(args).unwrap();
    let such: usize = became.iter().filter(|(end, _)| end.starts_with(what)).map(|(_, count)| count).sum();
    assert_eq!(such, count, "{args:?}: {became:?}");
    assert_eq!(became.values().sum::<usize>(), count, "{args:?}: {became:?}");
}

#[test]
fn whoever_stalls_is_told_in_time_and_others_go_on() {
    let settings = ["--header-timeout", "2", "--body-timeout", "2", "--idle-timeout", "3"];
    let (world, mut billing) = started(&settings);
    let mut others = billing.steady("others", "/v1/charges/{id}", &["--pause-ms", "20"]).unwrap();
    others.wait_for(200, 5, SOON).unwrap();
    let begun = Instant::now();
    all_became(&billing, &["hellos", "--count", "50"], 50, "closed");
    all_became(&billing, &["heads", "--count", "50"], 50, "HTTP/1.1 408 Request took too long CS3020");
    all_became(&billing, &["bodies", "--count", "50"], 50, "HTTP/1.1 408 Request took too long CS3020");
    // A connection whose first request never comes.
    all_became(&billing, &["idle", "--count", "50"], 50, "HTTP/1.1 408");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    // One that has had a request is ended without a word, so that nothing is lost: the client opens another.
    let mut resting = billing.steady("resting", "/v1/charges/{id}", &["--pause-ms", "5000"]).unwrap();
    resting.wait_for(200, 2, Duration::from_secs(15)).unwrap();
    let metric = |billing: &mut Workload| billing.proxy().metric("countersign_connections_open", "").unwrap();
    // Of all those connections the two steady clients' are left.
    let mut left = metric(&mut billing);
    let deadline = Instant::now() + SOON * 2;
    while left > 2.0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        left = metric(&mut billing);
    }
    assert!(left <= 2.0, "{left} connections are left");
    let calls = others.finish().unwrap();
    assert!(calls.iter().all(|made| made.status == 200), "{:?}", tests::workload::tally(&calls));
    eventually(SOON, || events(&world, "refusal").iter().any(|event| event["code"] == "CS3020"));
}

#[test]
fn an_answer_that_nobody_reads_is_cut_and_a_silent_event_stream_is_not() {
    let (world, billing) = started(&["--body-timeout", "2", "--stream-timeout", "60"]);
    std::thread::scope(|scope| {
        let unread = scope.spawn(|| billing.flood(&["unread", "--count", "4", "--seconds", "8"]).unwrap());
        // Silent for longer than a body may be.
        let silent = "/v1/charges/drip?chunks=2&every_ms=4000&size=10";
        for (kind, whole) in [("text/event-stream", true), ("text/plain", false)] {
            let drip = billing.payments(&format!("{silent}&type={kind}")).send().unwrap();
            assert_eq!(drip.exit == 0, whole, "{kind} {drip:?}");
        }
        let became = unread.join().unwrap();
        assert_eq!(became.get("HTTP/1.1 200 OK, cut"), Some(&4), "{became:?}");
    });
    let became = billing.flood(&["windowless", "--count", "20", "--seconds", "15"]).unwrap();
    assert_eq!(became.get("given up, each by itself"), Some(&1), "{became:?}");
    // Those that had come as a whole too, but for a few that the connection may leave.
    let settings = ["--body-timeout", "2", "--idle-timeout", "6"];
    let (_world, billing) = started(&settings);
    let whole = ["windowless", "--count", "20", "--bytes", "15000", "--seconds", "25"];
    let became = billing.flood(&whole).unwrap().into_keys().next().unwrap();
    let reset = became.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(20);
    assert!(became.starts_with("given up") && reset >= 15, "{became}");
    eventually(SOON, || {
        let cut = |event: &&serde_json::Value| event["code"] == "CS3021" && event["result"] == "cut";
        events(&world, "outcome").iter().filter(cut).count() >= 25
    });
}

#[test]
fn header_fields_and_bytes_are_bounded_on_both_versions() {
    let (world, billing) = started(&["--max-headers", "50", "--max-header-kib", "16"]);
    let many: Vec<String> = (0..60).map(|number| format!("x-{number}: 1")).collect();
    let long = format!("x-long: {}", "a".repeat(20_000));
    let before = world.seen().unwrap().count;
    for version in ["--http1.1", "--http2"] {
        let call = || billing.payments(CHARGE).args([version]);
        let fields = many.iter().fold(call(), |call, field| call.header(field));
        refused(&fields.send().unwrap(), 431, "CS3002");
        assert_eq!(call().header(&long).send().unwrap().status, 431, "{version}");
    }
    assert_eq!(world.seen().unwrap().count, before);
}

#[test]
fn more_streams_than_there_may_be_are_refused_one_by_one() {
    let (_world, billing) = started(&["--max-streams", "5"]);
    let became = billing.flood(&["streams", "--count", "8"]).unwrap();
    assert_eq!(became.get("3 were refused"), Some(&1), "{became:?}");
}

#[test]
fn what_memory_there_is_not_is_refused_and_comes_back() {
    // What a proxy of a debug build has by itself is below this; 512 connections of 32 KiB are not.
    let (_world, mut billing) = started(&["--max-memory-mib", "16", "--header-timeout", "15"]);
    let call = |billing: &Workload| billing.payments(CHARGE);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| billing.flood(&["hellos", "--count", "700", "--seconds", "40"]).unwrap());
        let (_, over) = billing.eventually(SOON, call, |answer| answer.status != 200).unwrap();
        // The first few that there is no room for are told; the rest find the door shut.
        assert!(over.status == 0 || over.code() == "CS3005", "{over:?}");
        assert_eq!(held.join().unwrap().get("closed"), Some(&700));
    });
    billing.eventually(SOON * 2, call, |answer| answer.status == 200).unwrap();
    let refused = billing.proxy().metric("countersign_connections_refused_total", "").unwrap();
    assert!(refused > 0.0);
    let reserved = billing.proxy().metric("countersign_memory_reserved_bytes", "").unwrap();
    // But for the window of the connection to the service.
    assert!(reserved < 4.5e6, "all that was reserved is given back: {reserved}");
}
