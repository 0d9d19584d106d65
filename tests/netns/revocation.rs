//! What is open does not outlive its authority (case 30): each kind of long-lived stream is cut within a second of a
//! block.

use std::time::{Duration, Instant};

use tests::{Egress, Workload, World};

use crate::{events, eventually};

/// The promise is a second; the client's end is noticed a little later.
const BOUND: Duration = Duration::from_millis(1500);
const SOON: Duration = Duration::from_secs(5);

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

/// Blocks the workload while something is open; how long it then lived on, and what it said.
fn cut_after(world: &World, open: impl FnOnce() -> String + Send) -> (Duration, String) {
    let (said, ended, blocked) = std::thread::scope(|scope| {
        let running = scope.spawn(|| (open(), Instant::now()));
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!running.is_finished(), "it ended by itself: {}", running.join().unwrap().0);
        let blocked = Instant::now();
        let block = ["revoke", "workload/billing", "-n", "payments", "--reason", "test"];
        assert!(world.countersign(&block).unwrap().success());
        let (said, ended) = running.join().unwrap();
        (said, ended, blocked)
    });
    assert!(
        world.countersign(&["revoke", "workload/billing", "-n", "payments", "--lift"]).unwrap().success()
    );
    (ended.duration_since(blocked), said)
}

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
    let drip = "/v1/charges/drip?chunks=200&every_ms=100&size=20&type=text/event-stream";
    let sse = || {
        let answer = billing.payments(drip).args(["-N"]).send().unwrap();
        format!("{} {}", answer.exit, answer.body.len() > 100)
    };
    let (events_cut, said) = cut_after(&world, sse);
    assert!(events_cut < BOUND && said != "0 true" && said.ends_with("true"), "{events_cut:?} {said}");
    let (grpc_cut, said) = cut_after(&world, || became(&billing, &["grpc", "--seconds", "20"]));
    assert!(grpc_cut < BOUND && said == "heard, then cut", "{grpc_cut:?} {said}");
    let idle = ["idle", "--host", "issuer.demo.test", "--port", "8443", "--seconds", "20"];
    let (passed_cut, said) = cut_after(&world, || became(&billing, &idle));
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
        let call = billing.edge(8446, "/ws").http1().within(Duration::from_secs(15));
        let answer = fields.iter().fold(call, |call, field| call.header(field)).send().unwrap();
        format!("{} {}", answer.status, answer.exit)
    };
    let (cut, said) = cut_after(&world, open);
    assert!(cut < BOUND && said.starts_with("101"), "{cut:?} {said}");
}
