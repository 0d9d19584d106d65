//! Which crate may know which (docs/architecture.md, "Code map").

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Our crates, and which of ours each may depend on. Adding an edge is a decision: write down why.
const ALLOWED: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("resources", &["model"]),
    ("policy", &["model", "resources"]),
    ("protocols", &["model"]),
    ("wire", &["model", "policy", "resources"]),
    ("attestation", &["model", "resources", "wire", "service"]),
    ("issuers", &["model", "resources", "wire", "service"]),
    ("service", &["model"]),
    ("proxy", &["model", "policy", "protocols", "wire", "attestation", "service"]),
    ("control", &["model", "resources", "policy", "wire", "attestation", "issuers", "service"]),
    ("cli", &["model", "resources", "policy", "wire", "service"]),
    // The list of trust variables, which the harness sets as an injector does.
    ("tests", &["model", "service"]),
    ("benches", &["tests", "model", "policy", "protocols", "wire", "service"]),
    ("payments-api", &[]),
    ("token-issuer", &[]),
    ("demo", &["tests"]),
];

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

#[test]
fn a_crate_knows_only_those_it_may() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ALLOWED.iter().map(|(name, may)| (*name, may.iter().copied().collect())).collect();
    let mut seen = BTreeSet::new();
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let may = allowed.get(name).unwrap_or_else(|| panic!("{name} is not in the table: add it"));
        seen.insert(name.to_owned());
        for dependency in package["dependencies"].as_array().unwrap() {
            // Tests may use more than the program does, as long as it is not a program.
            let for_tests = dependency["kind"] == "dev";
            let on = dependency["name"].as_str().unwrap();
            if dependency["path"].is_null() || may.contains(on) {
                continue;
            }
            assert!(for_tests && !["proxy", "control", "cli"].contains(&on), "{name} may not depend on {on}");
        }
    }
    let table: BTreeSet<_> = ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(seen, table, "the table names what there is");
}

#[test]
fn the_pure_crates_have_no_runtime_and_no_sockets() {
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        if !["model", "policy", "protocols", "resources"].contains(&name) {
            continue;
        }
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            let io = ["tokio", "hyper", "h2", "rustls", "tonic", "socket2", "rustix"].contains(&on);
            assert!(!io || dependency["kind"] == "dev", "{name} is pure, but depends on {on}");
        }
    }
}
