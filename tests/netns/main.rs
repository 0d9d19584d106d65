//! The real programs in network namespaces of their own, as root or as any user.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod bypass;
mod capture;
mod carrying;
mod cli;
mod clients;
mod corporate;
mod demo;
mod dialects;
mod explicit;
mod failures;
mod floods;
mod framing;
mod kill;
mod limits;
mod names;
mod passage;
mod pod;
mod protocols;
mod redaction;
mod redirect;
mod revocation;
mod sandbox;
mod secrets;
mod service;
mod sessions;
mod story;
mod tls;
mod trust;
mod workers;

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::World;

/// The audit events of one kind, from what `countersign audit` prints as JSON.
fn events(world: &World, kind: &str) -> Vec<Value> {
    let mut found = Vec::new();
    for value in world.countersign_json(&["audit"]).unwrap() {
        collect(&value, kind, &mut found);
    }
    found
}

fn collect(value: &Value, kind: &str, found: &mut Vec<Value>) {
    match value {
        Value::Object(object) if object.get("kind").is_some_and(|known| known == kind) => {
            found.push(value.clone());
        }
        Value::Object(object) => object.values().for_each(|value| collect(value, kind, found)),
        Value::Array(values) => values.iter().for_each(|value| collect(value, kind, found)),
        _ => (),
    }
}

/// Waits until something is so.
#[track_caller]
fn eventually(within: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {} s", within.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Within which a block cuts what is open: the promise is a second, and two clocks are read for it.
const BOUND: Duration = Duration::from_millis(1500);

/// Time for what is no promise.
const PATIENCE: Duration = Duration::from_secs(20);

/// Blocks billing while something is open, and lifts the block again. How long after the block audit has the last cut,
/// and what came of what was open, which ended in good time too.
fn cut_by_a_block<T: Send>(world: &World, open: impl FnOnce() -> T + Send) -> (Duration, T) {
    let target = ["workload/billing", "-n", "payments"];
    let block = [&["revoke"], &target[..], &["--reason", "test"]].concat();
    let lift = [&["revoke"], &target[..], &["--lift"]].concat();
    let times = |kind: &str, is_such: fn(&Value) -> bool| -> Vec<u64> {
        events(world, kind)
            .iter()
            .filter(|event| is_such(event))
            .filter_map(|event| event["time"].as_u64())
            .collect()
    };
    let cuts = || times("outcome", |event| event["result"] == "cut");
    let (begun, cut) = (events(world, "intent").len(), cuts().len());
    let came = std::thread::scope(|scope| {
        let running = scope.spawn(open);
        eventually(PATIENCE, || running.is_finished() || events(world, "intent").len() > begun);
        // For what is open to say something; nothing depends on how much.
        std::thread::sleep(Duration::from_secs(1));
        assert!(!running.is_finished(), "it ended by itself");
        assert!(world.countersign(&block).unwrap().success());
        let since = Instant::now();
        let came = running.join().unwrap();
        assert!(since.elapsed() < PATIENCE / 2, "it was cut, and lived on for {:?}", since.elapsed());
        came
    });
    eventually(PATIENCE, || cuts().len() > cut);
    let blocked = times("administration", |event| event["verb"] == "blocked").into_iter().max().unwrap();
    assert!(world.countersign(&lift).unwrap().success());
    (Duration::from_millis(cuts().into_iter().max().unwrap().saturating_sub(blocked)), came)
}
