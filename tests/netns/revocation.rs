//! What is open does not outlive its authority (case 30): each kind of long-lived stream is cut within a second of a
//! block.

use std::time::Duration;

use tests::{Egress, Workload, World};

use crate::{BOUND, cut_by_a_block, events, eventually};

const SOON: Duration = Duration::from_secs(20);

const PASSED: &str = r"
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: { name: pinned, namespace: payments }
spec: { hosts: [issuer.demo.test], ports: [8443], tls: passthrough }
---
apiVersion: countersign.dev/v1alpha1
kind: AccessPolicy
metadata: { name: billing-pinned, namespace: payments }
spec: { workload: billing, destination: pinned, allow: [{}] }
";

fn became(billing: &Workload, args: &[&str]) -> String {
    billing.flood(args).unwrap().into_keys().collect::<Vec<_>>().join(", ")
}

#[test]
fn streams_and_carried_connections_are_cut_within_a_second_of_a_block() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let quickstart = std::fs::read_to_string(tests::world::quickstart().join("quickstart.yaml")).unwrap();
    // The quickstart's workload may call its one destination; here it may call any.
    world.apply(&quickstart.replace("  destinations: [payments-api]\n", "")).unwrap();
    world.apply(PASSED).unwrap();
    let billing = world.billing().unwrap();
    let drip = "/v1/charges/drip?chunks=400&every_ms=100&size=20&type=text/event-stream";
    let sse = || {
        let answer = billing.payments(drip).args(["-N"]).within(Duration::from_secs(40)).send().unwrap();
        format!("{} {}", answer.exit, !answer.body.is_empty())
    };
    let (events_cut, said) = cut_by_a_block(&world, sse);
    assert!(events_cut < BOUND && said != "0 true" && said.ends_with("true"), "{events_cut:?} {said}");
    let (grpc_cut, said) = cut_by_a_block(&world, || became(&billing, &["grpc", "--seconds", "40"]));
    assert!(grpc_cut < BOUND && said == "heard, then cut", "{grpc_cut:?} {said}");
    let idle = ["idle", "--host", "issuer.demo.test", "--port", "8443", "--seconds", "40"];
    let (passed_cut, said) = cut_by_a_block(&world, || became(&billing, &idle));
    assert!(passed_cut < BOUND && said == "closed", "{passed_cut:?} {said}");
    eventually(SOON, || {
        let cut = |event: &&serde_json::Value| event["result"] == "cut" && event["code"] == "CS5007";
        events(&world, "outcome").iter().filter(cut).count() >= 3
    });
}

#[test]
fn a_websocket_is_cut_within_a_second_of_a_block() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let _edge = world.start_edge().unwrap();
    let billing = world.billing().unwrap();
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let fields = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key];
    let open = || {
        let call = billing.edge(8446, "/ws").http1().within(Duration::from_secs(40));
        let answer = fields.iter().fold(call, |call, field| call.header(field)).send().unwrap();
        format!("{} {}", answer.status, answer.exit)
    };
    let (cut, said) = cut_by_a_block(&world, open);
    assert!(cut < BOUND && said.starts_with("101"), "{cut:?} {said}");
}
