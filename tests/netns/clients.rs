//! Real clients through the real proxy, each over the versions of HTTP that it speaks: what they ask arrives with the
//! credential, and what they are answered reaches their user.

use std::time::Duration;

use serde_json::{Value, json};
use tests::clients::{CLIENTS_HOST, GRPC, Program, WEBSOCKET};
use tests::{Clients, Egress, World};

/// The edge server, at the port with both versions.
const BOTH: &str = "edge.demo.test:8446";

#[track_caller]
fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

#[test]
fn what_a_ci_run_calls_with_is_installed() {
    let clients = Clients::installed().unwrap();
    for name in [
        "requests",
        "httpx",
        "aiohttp",
        "websockets",
        "grpcio",
        "boto3",
        "awscli",
        "node",
        "npm",
        "ws",
        "grpc-js",
    ] {
        assert!(clients.has(name), "{name} is not installed: tests/clients/setup says why");
    }
    for name in ["go", "grpc-go", "java"] {
        assert!(
            !clients.are_all() || clients.has(name),
            "{name} is not installed: tests/clients/setup all says why"
        );
    }
}

#[test]
fn http_clients_get_post_and_stream_over_either_version() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let clients = Clients::installed().unwrap();
    let _edge = world.start_edge().unwrap();
    let billing = world.billing().unwrap();
    let cases = [
        ("requests", Program::Python("http_clients.py"), "requests", "HTTP/1.1"),
        ("httpx", Program::Python("http_clients.py"), "httpx", "HTTP/1.1"),
        ("httpx", Program::Python("http_clients.py"), "httpx2", "HTTP/2"),
        ("aiohttp", Program::Python("http_clients.py"), "aiohttp", "HTTP/1.1"),
        ("node", Program::Node("http_clients.mjs"), "fetch", "HTTP/1.1"),
        ("node", Program::Node("http_clients.mjs"), "http2", "HTTP/2.0"),
        ("java", Program::Java("HttpClients.java"), "1", "HTTP/1.1"),
        ("java", Program::Java("HttpClients.java"), "2", "HTTP/2.0"),
        ("go", Program::Go, "http-1", "HTTP/1.1"),
        ("go", Program::Go, "http-2", "HTTP/2.0"),
    ];
    let mut calls = 0;
    for (name, program, which, version) in cases.into_iter().filter(|case| clients.has(case.0)) {
        // The Go client is one program for all that it does.
        let args: Vec<&str> = which.split('-').chain([BOTH]).collect();
        let told = billing.told(program, &args).unwrap();
        let names: Vec<_> = told.iter().map(|call| text(call, "call")).collect();
        assert_eq!(names, ["get", "post", "upload", "events"], "{name}: {told:?}");
        for call in &told {
            assert_eq!((text(call, "version"), &call["status"]), (version, &json!(200)), "{name}: {call}");
        }
        let got: Value = serde_json::from_str(text(&told[0], "text")).unwrap();
        assert!(text(&got["headers"], "authorization").starts_with("Bearer ey"), "{name}: {got}");
        assert_eq!(text(&told[1], "text"), "posted", "{name}");
        assert_eq!(text(&told[2], "text"), "one two three", "{name}");
        // What the server said first was there before it said the rest.
        assert_eq!(text(&told[3], "first"), "data: one\n\n", "{name}");
        assert_eq!(text(&told[3], "text"), "data: one\n\ndata: two\n\n", "{name}");
        calls += told.len();
    }
    for version in ["--http1.1", "--http2"] {
        let url = |path: &str| format!("https://{BOTH}{path}?curl{version}");
        let got = billing.curl(&url("/get")).args([version]).send().unwrap();
        assert_eq!(got.status, 200, "{got:?}");
        let posted =
            billing.curl(&url("/echo")).args([version]).method("POST").body("posted").send().unwrap();
        assert_eq!(posted.text(), "posted", "{posted:?}");
        let events = billing.curl(&url("/events")).args([version, "-N"]).send().unwrap();
        assert_eq!(events.text(), "data: one\n\ndata: two\n\n", "{events:?}");
        calls += 3;
    }
    let seen = world.edge_seen().unwrap();
    let requests = seen["requests"].as_array().unwrap();
    assert_eq!(requests.len(), calls, "each call was seen once: {seen}");
    assert!(requests.iter().all(|request| request["authorised"] == true), "{seen}");
}

#[test]
fn grpc_clients_make_every_kind_of_call() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let clients = Clients::installed().unwrap();
    let _server = world.start_clients_server().unwrap();
    let billing = world.billing().unwrap();
    let host = format!("{CLIENTS_HOST}:{GRPC}");
    let cases: [(&str, Program<'_>, Vec<&str>); 3] = [
        ("grpcio", Program::Python("grpc_client.py"), vec![&host]),
        ("grpc-js", Program::Node("grpc_client.mjs"), vec![&host]),
        ("grpc-go", Program::Go, vec!["grpc", &host]),
    ];
    let mut made = 0;
    for (name, program, args) in cases.into_iter().filter(|case| clients.has(case.0)) {
        let told = billing.told(program, &args).unwrap();
        let call =
            |wanted: &str| told.iter().find(|call| call["call"] == wanted).cloned().unwrap_or_default();
        for (kind, got) in [
            ("unary", json!(["hello"])),
            ("server streaming", json!(["0", "1", "2"])),
            ("client streaming", json!(["abc"])),
            ("bidirectional", json!(["ping", "pong"])),
        ] {
            assert_eq!((&call(kind)["code"], &call(kind)["got"]), (&json!(0), &got), "{name}: {told:?}");
        }
        assert_eq!(call("deadline")["code"], 4, "{name}: {told:?}");
        let status = call("status");
        assert_eq!((&status["code"], text(&status, "message")), (&json!(9), "not tödäy, 100 %"), "{name}");
        assert_eq!(text(&status, "why"), "told in a trailer", "{name}");
        made += 1;
    }
    assert!(made > 0, "no client of gRPC is installed");
    let is_cancelled = |call: &&Value| call["cancelled"] == true;
    crate::eventually(Duration::from_secs(20), || {
        world.clients_seen().unwrap().iter().filter(is_cancelled).count() == made
    });
    let seen = world.clients_seen().unwrap();
    let begun: Vec<_> = seen.iter().filter(|call| call.get("cancelled").is_none()).collect();
    assert_eq!(begun.len(), 6 * made, "{seen:?}");
    for call in begun {
        assert_eq!(
            (&call["authorised"], &call["timed"]),
            (&json!(true), &json!(true)),
            "with its deadline: {call}"
        );
    }
}

#[test]
fn a_stream_of_grpc_that_is_cut_says_why() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let clients = Clients::installed().unwrap();
    let _server = world.start_clients_server().unwrap();
    let billing = world.billing().unwrap();
    if !clients.has("grpcio") {
        return;
    }
    let host = format!("{CLIENTS_HOST}:{GRPC}");
    let output = std::thread::scope(|scope| {
        let open = scope.spawn(|| billing.run(Program::Python("grpc_client.py"), &[&host, "hold"]).unwrap());
        crate::eventually(Duration::from_secs(20), || !world.clients_seen().unwrap().is_empty());
        // For its first message to be read.
        std::thread::sleep(Duration::from_secs(2));
        let block = ["revoke", "workload/billing", "-n", "payments", "--reason", "test"];
        assert!(world.countersign(&block).unwrap().success());
        open.join().unwrap()
    });
    assert_eq!(output.text(), "open\n", "{output:?}");
    assert!(output.stderr.contains("status = StatusCode.PERMISSION_DENIED"), "{}", output.stderr);
    let said = "details = \"CS5007 Blocked: the call was stopped: it is no longer allowed. ";
    assert!(output.stderr.contains(said), "{}", output.stderr);
}

#[test]
fn websocket_clients_talk_in_frames() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let clients = Clients::installed().unwrap();
    let _server = world.start_clients_server().unwrap();
    let billing = world.billing().unwrap();
    let url = format!("wss://{CLIENTS_HOST}:{WEBSOCKET}/talk");
    let cases = [
        ("websockets", Program::Python("websocket_client.py")),
        ("ws", Program::Node("websocket_client.mjs")),
    ];
    for (name, program) in cases.into_iter().filter(|case| clients.has(case.0)) {
        let told = billing.told(program, &[&url]).unwrap();
        let expected = json!({
            "call": "websocket", "echoed": [true, true, true], "pong": true, "close": 4001, "reason": "as you wish",
        });
        assert_eq!(told, [expected], "{name}");
    }
    let seen = world.clients_seen().unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|call| call["authorised"] == true), "{seen:?}");
}
