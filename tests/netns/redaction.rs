//! A service that sends the credential back (case 11): the application does not get it.

use std::time::Duration;

use tests::{Answer, Egress, Workload, World};

use crate::{events, eventually};

const SOON: Duration = Duration::from_secs(20);

fn started(redact: bool) -> (World, Workload) {
    let mut world = World::started(Egress::Enforce).unwrap();
    let quickstart = std::fs::read_to_string(tests::world::quickstart().join("quickstart.yaml")).unwrap();
    let redacting =
        quickstart.replace("hosts: [payments.demo.test]", "redact: true\n  hosts: [payments.demo.test]");
    assert_ne!(redacting, quickstart);
    if redact {
        world.apply(&redacting).unwrap();
    }
    let billing = world.billing().unwrap();
    (world, billing)
}

/// The signatures of the tokens that reached the service: none of them may be anywhere in what the application got.
fn signatures(world: &World) -> Vec<String> {
    world.seen().unwrap().requests.into_iter().filter_map(|seen| seen.signature).collect()
}

fn got(answer: &Answer) -> String {
    format!("{:?} {} {}", answer.headers, answer.text(), answer.error)
}

#[test]
fn a_credential_that_is_sent_back_is_masked_wherever_it_stands() {
    let (world, billing) = started(true);
    for version in ["--http1.1", "--http2"] {
        for how in ["header", "length", "sse", "trailers", "split"] {
            for split in ["1", "7", "64", "100000"] {
                let path = format!("/v1/charges/mirror?how={how}&split={split}");
                let call = billing.payments(&path).args([version, "-v", "--raw"]).header("TE: trailers");
                let answer = call.header("Accept-Encoding: gzip").header("Range: bytes=0-9").send().unwrap();
                assert_eq!((answer.status, answer.exit), (200, 0), "{version} {how} {split} {answer:?}");
                let got = got(&answer);
                let signatures = signatures(&world);
                assert!(!signatures.is_empty());
                assert!(
                    !signatures.iter().any(|s| got.contains(s.as_str())),
                    "{version} {how} {split}: {got}"
                );
                // The rest is there: what was announced is as long as announced, and masked.
                assert!(got.contains("****"), "{version} {how} {split}: {got}");
                if how == "sse" && split == "100000" {
                    assert_eq!(answer.text().matches("you sent Bearer").count(), 3, "{got}");
                }
            }
        }
    }
    let asked = billing.payments("/v1/charges/42").header("Accept-Encoding: gzip").send().unwrap();
    assert_eq!(asked.json().unwrap()["headers"]["accept-encoding"], "identity");
}

#[test]
fn a_refused_credential_is_masked_too_when_there_is_no_second_answer() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let _edge = world.start_edge().unwrap();
    let destination = "apiVersion: countersign.dev/v1alpha1\nkind: Destination\nmetadata: { name: edge, namespace: payments }\n\
        spec: { hosts: [edge.demo.test], ports: [8446, 8447, 8448, 8449], redact: true }\n";
    world.apply(destination).unwrap();
    let billing = world.billing().unwrap();
    for version in ["--http1.1", "--http2"] {
        let call = || billing.edge(8446, &format!("/denied?{version}")).args([version]);
        let answer = call().send().unwrap();
        assert_eq!(answer.status, 401, "{answer:?}");
        let text = answer.text();
        assert!(text.starts_with("not Bearer ") && text.contains("****") && !text.contains("ey"), "{text}");
    }
}

#[test]
fn what_can_t_be_searched_is_refused() {
    let (world, billing) = started(true);
    for version in ["--http1.1", "--http2"] {
        let answer = billing.payments("/v1/charges/mirror?how=encoded").args([version]).send().unwrap();
        assert_eq!((answer.status, answer.code()), (502, "CS8020"), "{answer:?}");
        assert!(!signatures(&world).iter().any(|signature| got(&answer).contains(signature.as_str())));
        let trace = billing.payments("/v1/charges/42").args([version, "-X", "TRACE"]).send().unwrap();
        assert_eq!((trace.status, trace.code()), (405, "CS3009"), "{trace:?}");
    }
    let upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"];
    let call =
        upgrade.iter().fold(billing.payments("/v1/charges/42").http1(), |call, field| call.header(field));
    let answer = call.header("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==").send().unwrap();
    assert_eq!((answer.status, answer.code()), (403, "CS3010"), "{answer:?}");
    eventually(SOON, || events(&world, "outcome").iter().any(|event| event["code"] == "CS8020"));
}

#[test]
fn a_destination_that_does_not_ask_for_it_is_not_touched() {
    let (world, billing) = started(false);
    let answer = billing.payments("/v1/charges/mirror?how=header").send().unwrap();
    assert!(
        signatures(&world).iter().any(|signature| got(&answer).contains(signature.as_str())),
        "{answer:?}"
    );
    let opened = world.apply(
        "apiVersion: countersign.dev/v1alpha1\nkind: Destination\nmetadata: { name: pinned, namespace: payments }\n\
         spec: { hosts: [pinned.demo.test], tls: passthrough, redact: true }\n",
    );
    assert!(opened.unwrap_err().to_string().contains("can't be searched"));
}
