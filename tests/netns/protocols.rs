//! The corners of HTTP, against a server that has them (`tests/clients/edge-server.mjs`).

use std::time::Duration;

use serde_json::Value;
use tests::{Answer, Daemon, Egress, Workload, World};

/// Both versions and answers of all kinds, answers that are not valid, HTTP/2 alone, HTTP/2 with two streams.
const BOTH: u16 = 8446;
const RAW: u16 = 8447;
const ONLY_HTTP2: u16 = 8448;
const TWO_STREAMS: u16 = 8449;

fn started() -> (World, Daemon, Workload) {
    let mut world = World::started(Egress::Enforce).unwrap();
    let edge = world.start_edge().unwrap();
    let billing = world.billing().unwrap();
    (world, edge, billing)
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{answer:?} {}", answer.text());
}

fn text(told: &Value, field: &str) -> String {
    told[field].as_str().unwrap_or_default().to_owned()
}

#[test]
fn websockets_are_carried_over_either_version_and_between_them() {
    let (_world, _edge, billing) = started();
    for (application, port, over) in
        [("1", BOTH, "1.1"), ("1", ONLY_HTTP2, "2.0"), ("2", ONLY_HTTP2, "2.0"), ("2", BOTH, "")]
    {
        let told = billing.script("websocket.mjs", &[application, &port.to_string(), "/ws"]).unwrap();
        let expected = if application == "1" { 101 } else { 200 };
        assert_eq!(told["status"], expected, "{application} to {port}: {told}");
        let bytes = text(&told, "bytes");
        let (first, echoed) = bytes.split_once('\n').unwrap();
        let first: Value = serde_json::from_str(first).unwrap();
        assert_eq!(first["authorised"], true, "{told}");
        assert!(first["over"].as_str().unwrap().starts_with(over), "{told}");
        assert_eq!(echoed, "echo me", "{application} to {port}");
        // The application's end reached the server, and the server's came back.
        assert_eq!(told["ended"], true, "{told}");
        if application == "1" {
            assert_eq!(told["accept"], true, "{told}");
        }
    }
}

#[test]
fn what_follows_a_refused_upgrade_is_never_forwarded() {
    let (world, _edge, billing) = started();
    // An application of either version, which does not wait, to a server of either.
    for (application, port) in [("1", BOTH), ("1", ONLY_HTTP2), ("2", BOTH), ("2", ONLY_HTTP2)] {
        let told =
            billing.script("websocket.mjs", &[application, &port.to_string(), "/refused", "eager"]).unwrap();
        assert_eq!(told["status"], 403, "{application} to {port}: {told}");
        let seen = world.edge_seen().unwrap();
        assert_eq!(seen["raw"], "", "{application} to {port}: nothing behind the request reached the server");
        if application == "1" {
            // It was read as the next request, which it is not.
            assert!(text(&told, "bytes").contains("CS3001"), "{told}");
        }
    }
}

#[test]
fn an_upgrade_to_anything_else_is_refused() {
    let (world, _edge, billing) = started();
    for protocol in ["h2c, websocket", "TLS/1.0", "foo"] {
        let upgrade = format!("Upgrade: {protocol}");
        let call = billing.edge(BOTH, "/ws").http1().header("Connection: Upgrade").header(&upgrade);
        refused(&call.send().unwrap(), 403, "CS3010");
    }
    assert_eq!(world.edge_seen().unwrap()["requests"].as_array().unwrap().len(), 0);
}

#[test]
fn a_websocket_is_cut_within_a_second_of_a_block() {
    let (world, _edge, billing) = started();
    for version in ["1", "2"] {
        let hold = || billing.script("websocket.mjs", &[version, &BOTH.to_string(), "/ws", "hold"]).unwrap();
        let (cut, told) = crate::cut_by_a_block(&world, hold);
        assert!(told["status"] == 101 || told["status"] == 200, "{told}");
        assert!(cut < crate::BOUND, "HTTP/{version}: {cut:?}");
    }
}

#[test]
fn interim_answers_are_relayed() {
    let (_world, _edge, billing) = started();
    // The upstream in the application's version, and in the other.
    for (version, first, port, path) in [
        ("--http1.1", "HTTP/1.1 103", BOTH, "/early"),
        ("--http2", "HTTP/2 103", BOTH, "/early"),
        ("--http1.1", "HTTP/1.1 103", ONLY_HTTP2, "/early"),
        ("--http1.1", "HTTP/1.1 103", RAW, "/early"),
        // The answer comes in one breath with them.
        ("--http1.1", "HTTP/1.1 103", RAW, "/early-at-once"),
    ] {
        let answer = billing.edge(port, path).args([version, "-v"]).send().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "after the hints"), "{answer:?}");
        assert!(answer.error.contains(first), "{version} {port}: {}", answer.error);
        let told = answer.error.to_lowercase();
        assert!(told.contains("link: </style.css>; rel=preload"), "{version} {port}: {told}");
    }
}

#[test]
fn an_application_of_http2_gets_every_interim_answer_of_a_server_of_http1() {
    let (_world, _edge, billing) = started();
    // The answer after them, and in one breath with them.
    for path in ["/early", "/early-at-once"] {
        let told = billing.script("interim.mjs", &[&RAW.to_string(), path]).unwrap();
        assert_eq!((&told["status"], &told["body"]), (&200.into(), &"after the hints".into()), "{told}");
        let interim = told["interim"].as_array().unwrap();
        let hints: Vec<_> =
            interim.iter().map(|hint| (hint[":status"].as_u64(), text(hint, "link"))).collect();
        let hint = |file: &str| (Some(103), format!("<{file}>; rel=preload"));
        assert_eq!(hints, [hint("/style.css"), hint("/script.js")], "{told}");
        // What is of one hop, or would lead elsewhere, does not go on.
        for field in ["x-hop", "connection", "alt-svc"] {
            assert!(interim.iter().all(|hint| hint[field].is_null()), "{told}");
        }
    }
}

#[test]
fn a_body_waits_for_the_upstream_s_leave() {
    let (world, _edge, billing) = started();
    let post = |path: &str, version: &'static str| {
        let call = billing.edge(BOTH, path).args([version, "-v", "-X", "POST", "--data-binary", "the body"]);
        call.header("Expect: 100-continue").send().unwrap()
    };
    let accepted = post("/echo", "--http1.1");
    assert_eq!((accepted.status, accepted.text().as_str()), (200, "the body"), "{accepted:?}");
    assert!(accepted.error.contains("HTTP/1.1 100"), "{}", accepted.error);
    // The final answer comes first: no leave, and the body is not sent.
    let refused = post("/refuses-body", "--http1.1");
    assert_eq!(refused.status, 401, "{refused:?}");
    assert!(!refused.error.contains("100 Continue"), "{}", refused.error);
    // A server that ignores it gets the body after a while; the application is told nothing that nobody said.
    let ignored = post("/ignores-expect", "--http1.1");
    assert_eq!((ignored.status, ignored.text().as_str()), (200, "read without asking"), "{ignored:?}");
    assert!(!ignored.error.contains("100 Continue"), "{}", ignored.error);
    let over_http2 = post("/echo", "--http2");
    assert_eq!((over_http2.status, over_http2.text().as_str()), (200, "the body"), "{over_http2:?}");
    let seen = world.edge_seen().unwrap();
    let methods: Vec<_> = seen["requests"].as_array().unwrap().iter().map(|r| text(r, "path")).collect();
    // A 401 that refuses the body is not tried again with another credential: the body may be gone.
    assert_eq!(methods, ["/echo", "/refuses-body", "/ignores-expect", "/echo"]);
}

#[test]
fn an_application_of_http1_reaches_a_server_of_http2() {
    let (_world, _edge, billing) = started();
    for _ in 0..2 {
        let answer = billing.edge(ONLY_HTTP2, "/v1?a=b").http1().header("Cookie: a=1").send().unwrap();
        let told = answer.json().unwrap();
        assert_eq!((answer.status, told["version"].as_str()), (200, Some("2.0")), "{answer:?}");
        assert_eq!(told["headers"]["cookie"], "a=1");
        assert_eq!(told["headers"][":authority"], "edge.demo.test:8448");
    }
    let echo = billing.edge(ONLY_HTTP2, "/echo").http1().method("POST").body("up and down").send().unwrap();
    assert_eq!((echo.status, echo.text().as_str()), (200, "up and down"));
}

#[test]
fn a_refused_stream_is_tried_once_more() {
    let (world, _edge, billing) = started();
    let answer = billing.edge(BOTH, "/refused-once?a").http2().send().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "second time"), "{answer:?}");
    // With a body that has begun, it is not.
    let post = billing.edge(BOTH, "/refused-once?b").http2().method("POST").body("x");
    refused(&post.send().unwrap(), 502, "CS8005");
    assert_eq!(world.edge_seen().unwrap()["requests"].as_array().unwrap().len(), 3);
}

#[test]
fn another_connection_opens_where_the_peer_s_streams_are_used_up() {
    let (world, _edge, billing) = started();
    let urls: Vec<String> =
        (0..6).map(|n| format!("https://edge.demo.test:{TWO_STREAMS}/hold?pause=6000&{n}")).collect();
    let call =
        billing.edge(TWO_STREAMS, "/hold?pause=6000").http2().args(["--parallel", "--parallel-immediate"]);
    let call = urls.iter().fold(call, |call, url| call.args(["-o", "/dev/null", url.as_str()]));
    call.send().unwrap();
    // Each holds its stream for 6 s, so that they are open at the same time.
    assert!(world.edge_seen().unwrap()["sessions"].as_u64().unwrap() >= 3);
}

#[test]
fn events_are_not_held_back() {
    let (_world, _edge, billing) = started();
    for version in ["--http1.1", "--http2"] {
        let call =
            billing.edge(BOTH, "/events?pause=15000").args([version, "-N"]).within(Duration::from_secs(6));
        let answer = call.send().unwrap();
        assert_eq!(answer.text(), "data: one\n\n", "{answer:?}");
    }
}

#[test]
fn grpc_is_never_translated_down() {
    let (world, _edge, billing) = started();
    let kind = "content-type: application/grpc";
    let down = billing.edge(RAW, "/pkg.Service/Method").http2().method("POST").header(kind);
    let answer = down.send().unwrap();
    assert_eq!(answer.code(), "CS3011", "{answer:?}");
    assert_eq!(world.edge_seen().unwrap()["raw"], "");
}

#[test]
fn a_broken_answer_is_told_and_never_passed_on() {
    let (_world, _edge, billing) = started();
    let broken = [
        "/two-lengths",
        "/length-list",
        "/unknown-coding",
        "/folded",
        "/nul",
        "/no-answer",
        "/garbage",
        "/unasked-switch",
        "/long-header",
        "/both-framings",
    ];
    for version in ["--http1.1", "--http2"] {
        for path in broken {
            let answer = billing.edge(RAW, path).args([version]).send().unwrap();
            assert_eq!((answer.status, answer.code()), (502, "CS8005"), "{version} {path}: {answer:?}");
        }
    }
    // What is merely old is carried, in our version of it.
    let old = billing.edge(RAW, "/old").http1().send().unwrap();
    assert_eq!((old.status, old.text().as_str(), old.version.as_str()), (200, "ok", "HTTP/1.1"));
    assert_eq!(old.header("keep-alive"), "");
    let own = billing.edge(RAW, "/custom-reason").http1().args(["-v"]).send().unwrap();
    assert_eq!(own.reason, "Very Fine");
    assert!(own.error.contains("X-MiXed-Case: Kept"), "{}", own.error);
}

#[test]
fn nothing_leads_the_application_elsewhere() {
    let (_world, _edge, billing) = started();
    // The upstream in the application's version, and in the other.
    for (version, port) in
        [("--http1.1", BOTH), ("--http2", BOTH), ("--http1.1", ONLY_HTTP2), ("--http2", RAW)]
    {
        let answer = billing.edge(port, "/alt-svc").args([version]).send().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "stay"), "{version} {port}: {answer:?}");
        assert_eq!(answer.header("alt-svc"), "", "{version} {port}");
    }
}
