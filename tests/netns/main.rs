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
