//! What is open does not outlive its authority (case 30): each kind of long-lived stream is cut within a second of a
//! block.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tests::raw::{self, RAW_HTTP1};
use tests::{Egress, Workload, World};

use crate::{BOUND, PATIENCE, cut_by_a_block, events, eventually};

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
    let drip = "/v1/charges/drip?chunks=400&every_ms=250&size=20&type=text/event-stream";
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

/// An event stream that goes on for longer than any of these tests.
const DRIP: &str = "/v1/charges/drip?chunks=400&every_ms=250&size=20&type=text/event-stream";

/// How long after `ends` the event stream that was open had ended, and why. `ends` says when that was, if it is not as
/// soon as it returns.
fn cut_after(
    world: &World,
    billing: &Workload,
    ends: impl FnOnce() -> Option<SystemTime>,
) -> (Duration, String) {
    let cuts =
        || events(world, "outcome").into_iter().filter(|event| event["result"] == "cut").collect::<Vec<_>>();
    let (begun, before) = (events(world, "intent").len(), cuts().len());
    std::thread::scope(|scope| {
        let open = scope.spawn(|| billing.payments(DRIP).args(["-N"]).within(PATIENCE * 5).send().unwrap());
        eventually(PATIENCE, || events(world, "intent").len() > begun);
        std::thread::sleep(Duration::from_millis(500));
        assert!(!open.is_finished(), "it ended by itself");
        let at = ends().unwrap_or_else(SystemTime::now);
        let answer = open.join().unwrap();
        assert!(answer.exit != 0 && !answer.body.is_empty(), "{answer:?}");
        eventually(PATIENCE, || cuts().len() > before);
        let cut = cuts().pop().unwrap();
        let when = UNIX_EPOCH + Duration::from_millis(cut["time"].as_u64().unwrap());
        // What is confirmed may be cut before the command has come back.
        (when.duration_since(at).unwrap_or_default(), cut["code"].as_str().unwrap_or_default().to_owned())
    })
}

#[test]
fn a_stream_is_cut_whatever_ended_its_authority() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    let quickstart = std::fs::read_to_string(tests::world::quickstart().join("quickstart.yaml")).unwrap();
    let again = |world: &World| {
        world.apply(&quickstart).unwrap();
        billing
            .eventually(PATIENCE, |b| b.payments("/v1/charges/42"), |answer| answer.status == 200)
            .unwrap();
    };
    // Its credential is revoked: alone, the next call gets another.
    let (after, code) = cut_after(&world, &billing, || {
        let grant = world.seen().unwrap().requests.last().and_then(|seen| seen.grant.clone()).unwrap();
        assert!(world.countersign(&["revoke", &format!("grant/{grant}")]).unwrap().success());
        None
    });
    assert!(after < BOUND && code == "CS5007", "{after:?} {code}");
    again(&world);
    // Its policy is deleted.
    let (after, code) = cut_after(&world, &billing, || {
        let delete = ["delete", "accesspolicy", "billing-charges", "-n", "payments"];
        assert!(world.countersign(&delete).unwrap().success());
        None
    });
    assert!(after < BOUND && code == "CS5005", "{after:?} {code}");
    again(&world);
    // A guardrail forbids it.
    let guardrail = "apiVersion: countersign.dev/v1alpha1\nkind: Guardrail\nmetadata: { name: no-drips }\n\
        spec: { deny: [{ paths: [/v1/charges/drip] }] }\n";
    let (after, code) = cut_after(&world, &billing, || {
        world.apply(guardrail).unwrap();
        None
    });
    assert!(after < BOUND && code == "CS5002", "{after:?} {code}");
    let deleted = world.countersign(&["delete", "guardrail", "no-drips", "--yes"]).unwrap();
    assert!(deleted.success(), "{deleted:?}");
    // Nothing changes but the time: the window in which its policy holds is over.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    // Of the next minute that is not about to begin.
    let minute = (now + 10) / 60 + 1;
    let window = format!(
        "---\napiVersion: countersign.dev/v1alpha1\nkind: Condition\nmetadata: {{ name: till-then, namespace: payments }}\n\
        spec: {{ timeWindow: {{ from: \"{:02}:{:02}\", to: \"{:02}:{:02}\", timeZone: UTC }} }}\n",
        (minute + 1) / 60 % 24,
        (minute + 1) % 60,
        minute / 60 % 24,
        minute % 60,
    );
    let when = "  when: context.attestation.age";
    let held = quickstart.replace(when, &format!("  conditions: [till-then]\n{when}"));
    world.apply(&(held + &window)).unwrap();
    billing.eventually(PATIENCE, |b| b.payments("/v1/charges/42"), |answer| answer.status == 200).unwrap();
    let ends = UNIX_EPOCH + Duration::from_secs(minute * 60);
    let (after, code) = cut_after(&world, &billing, || Some(ends));
    assert!(after < BOUND && code == "CS5001", "{after:?} {code}");
}

/// A request of HTTP/1 whose answer is over may still go up: what is left of it is judged and bounded like the rest.
#[test]
fn an_upload_that_outlives_its_answer_is_cut_within_a_second_of_a_block() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let _server = world.start_raw().unwrap();
    let billing = world.billing_with(&["--idle-timeout", "2"]).unwrap();
    let host = raw::host(RAW_HTTP1);
    let when = "/tmp/raw-when";
    let head =
        format!("POST /early HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n");
    let case = json!({ "port": RAW_HTTP1, "bytes": head, "every": "2\r\ncd\r\n", "when": when, "after": "0\r\n\r\n" });
    let received = || world.raw_seen().unwrap()["received"].as_u64().unwrap();
    let cut = || events(&world, "outcome").into_iter().find(|event| event["result"] == "cut");
    std::thread::scope(|scope| {
        let upload = scope.spawn(|| billing.raw(&[case]).unwrap().remove(0));
        // Longer than a connection without an open request may be there.
        std::thread::sleep(Duration::from_secs(4));
        let so_far = received();
        eventually(PATIENCE, || received() > so_far);
        assert!(cut().is_none() && !upload.is_finished());
        let block = ["revoke", "workload/billing", "-n", "payments", "--reason", "test"];
        assert!(world.countersign(&block).unwrap().success());
        let told = upload.join().unwrap();
        assert!(told["bytes"].as_str().unwrap().starts_with("HTTP/1.1 200 OK"), "{told}");
        assert_eq!(told["closed"], true, "{told}");
    });
    eventually(PATIENCE, || cut().is_some());
    let cut = cut().unwrap();
    let blocked =
        events(&world, "administration").into_iter().find(|event| event["verb"] == "blocked").unwrap();
    let after = cut["time"].as_u64().unwrap().saturating_sub(blocked["time"].as_u64().unwrap());
    assert!(Duration::from_millis(after) < BOUND && cut["code"] == "CS5007", "{after} ms {cut}");
    let left = received();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(received(), left, "nothing more comes");
}
