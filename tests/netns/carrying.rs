//! How messages are carried: what is kept, what ends at each hop, what goes across, in both versions of HTTP, as bytes.

use std::time::Duration;

use serde_json::{Value, json};
use tests::raw::{self, RAW_HTTP1, RAW_HTTP2, answered, get, host};
use tests::{Workload, World};

use crate::eventually;
use crate::framing::{OK_BLOCK, started};

const SOON: Duration = Duration::from_secs(20);

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn heads(seen: &Value) -> Vec<&str> {
    seen["requests"].as_array().unwrap().iter().map(|request| text(&request["head"])).collect()
}

fn one(billing: &Workload, case: Value) -> Value {
    billing.raw(&[case]).unwrap().remove(0)
}

/// The same for a case that leaves or goes on, once the server has seen this many requests.
fn one_that_acts(world: &World, billing: &Workload, mut case: Value, requests: usize) -> Value {
    let file = "/tmp/raw-when";
    let outside = world.sandbox().outside(file);
    let _ = std::fs::remove_file(&outside);
    case["when"] = json!(file);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| one(billing, case));
        eventually_seen(world, |seen| seen["requests"].as_array().unwrap().len() >= requests);
        std::fs::write(&outside, "").unwrap();
        running.join().unwrap()
    })
}

#[track_caller]
fn dropped(billing: &mut Workload) -> f64 {
    billing.proxy().metric("countersign_trailer_fields_dropped_total", "").unwrap()
}

#[test]
fn a_connection_of_http1_is_kept_pipelined_and_ours_in_version_and_hops() {
    let (world, _server, billing) = started();
    let host = host(RAW_HTTP1);
    let third = "GET /third HTTP/1.1\r\nHost: edge.demo.test:8461\r\n";
    let pipelined = format!(
        "POST /first HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nX-MiXed: Kept\r\n\r\n\
        5\r\nhello\r\n0\r\n\r\nHEAD /second HTTP/1.1\r\nHost: {host}\r\n\r\n\
        {third}Connection: close, X-Mine, host\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n\r\n"
    );
    let told = one(&billing, json!({ "port": RAW_HTTP1, "bytes": pipelined, "answers": 3 }));
    let answers = text(&told["bytes"]);
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answers}");
    // HEAD has the length of what it has not; its neighbours have theirs.
    assert_eq!(answers.matches("Content-Length: 2\r\n").count(), 3, "{answers}");
    assert_eq!(answers.matches("\r\n\r\nok").count(), 2, "{answers}");
    assert_eq!(told["closed"], true, "the third asked for it");
    let seen = world.raw_seen().unwrap();
    let heads = heads(&seen);
    assert!(heads[0].contains("\r\nX-MiXed: Kept\r\n"), "{heads:?}");
    assert_eq!(text(&seen["requests"][0]["body"]), "5\r\nhello\r\n0\r\n\r\n");
    for ended in ["X-Mine", "Keep-Alive", "Connection"] {
        assert!(!heads[2].contains(ended), "{heads:?}");
    }
    assert!(seen["connections"].as_u64().unwrap() < 3, "connections are kept: {seen}");
    // HTTP/1.0 is answered as such, and asked for in our version.
    let old = format!("GET /old HTTP/1.0\r\nHost: {host}\r\nConnection: keep-alive\r\n\r\n");
    let told = one(&billing, json!({ "port": RAW_HTTP1, "bytes": old.repeat(2), "answers": 2 }));
    let answers = text(&told["bytes"]);
    assert_eq!(answers.matches("HTTP/1.0 200 OK\r\n").count(), 2, "{answers}");
    assert!(answers.to_ascii_lowercase().contains("connection: keep-alive"), "{answers}");
    let chunked =
        answered("end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    let told = one(
        &billing,
        json!({ "port": RAW_HTTP1, "bytes": format!("GET {chunked} HTTP/1.0\r\nHost: {host}\r\n\r\n") }),
    );
    assert!(text(&told["bytes"]).ends_with("\r\n\r\nok") && told["closed"] == true, "not chunked: {told}");
    let seen = world.raw_seen().unwrap();
    assert!(crate::carrying::heads(&seen).iter().all(|head| head.contains(" HTTP/1.1\r\n")), "{seen}");
}

#[test]
fn the_header_that_we_own_is_ours_however_the_application_writes_it() {
    let (world, _server, mut billing) = started();
    let host = host(RAW_HTTP1);
    let request = format!(
        "POST /v1?authorization=query HTTP/1.1\r\nHost: {host}\r\nConnection: Authorization\r\n\
        Authorization: Bearer one\r\nAUTHORIZATION: Bearer two\r\naUtHoRiZaTiOn: Bearer three\r\n\
        Cookie: authorization=cookie\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization, X-Fine\r\n\r\n\
        2\r\nok\r\n0\r\nAuthorization: Bearer four\r\nX-Fine: yes\r\n\r\n"
    );
    one(&billing, raw::http1(RAW_HTTP1, &request));
    let mut fields = get(&host, "/v2?authorization=query");
    fields[0] = (":method", "POST");
    fields.extend([("authorization", "Bearer one"), ("authorization", "Bearer two"), ("trailer", "x-fine")]);
    let mut case = raw::http2(RAW_HTTP1, &fields);
    case["data"] = json!("ok");
    case["more"] = json!([["authorization", "Bearer four"], ["x-fine", "yes"]]);
    one(&billing, case);
    let seen = world.raw_seen().unwrap();
    for request in seen["requests"].as_array().unwrap() {
        let (head, body) = (text(&request["head"]).to_ascii_lowercase(), text(&request["body"]));
        assert_eq!(head.matches("\r\nauthorization: bearer ey").count(), 1, "{head}");
        assert_eq!(head.matches("\r\nauthorization:").count(), 1, "{head}");
        assert!(head.contains("?authorization=query "), "what is not ours is not touched: {head}");
        assert!(body.ends_with("\r\n0\r\nx-fine: yes\r\n\r\n"), "{body}");
    }
    assert_eq!(seen["requests"].as_array().unwrap().len(), 2);
    assert!(dropped(&mut billing) >= 2.0);
}

#[test]
fn trailers_go_on_where_they_are_announced_and_are_counted_where_not() {
    let (world, _server, mut billing) = started();
    let host = host(RAW_HTTP1);
    let up = |announced: &str| {
        format!(
            "POST /trailers HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nTrailer: {announced}\r\n\r\n\
            2\r\nok\r\n0\r\nX-Sum: 1\r\nX-Else: 2\r\n\r\n"
        )
    };
    one(&billing, raw::http1(RAW_HTTP1, &up("X-Sum")));
    let seen = world.raw_seen().unwrap();
    assert_eq!(text(&seen["requests"][0]["body"]), "2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n");
    assert_eq!(dropped(&mut billing), 1.0);
    let path = answered(
        "keep",
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\nX-Else: 2\r\nAlt-Svc: h3\r\n\r\n",
    );
    let down = |version: &str, te: &str| format!("GET {path} HTTP/{version}\r\nHost: {host}\r\n{te}\r\n");
    for (te, sum) in [("TE: trailers\r\n", 3.0), ("", 5.0)] {
        let told = one(&billing, raw::http1(RAW_HTTP1, &down("1.1", te)));
        assert!(text(&told["bytes"]).ends_with("2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n"), "{told}");
        assert_eq!(dropped(&mut billing), sum, "X-Else and Alt-Svc");
    }
    let told = one(&billing, raw::http1(RAW_HTTP1, &down("1.0", "")));
    assert!(text(&told["bytes"]).ends_with("\r\n\r\nok"), "{told}");
    assert_eq!(dropped(&mut billing), 8.0, "HTTP/1.0 has no place for them");
    let told = one(&billing, raw::http2(RAW_HTTP1, &get(&host, &path)));
    assert_eq!((&told["body"], &told["ended"]), (&json!("ok"), &json!(true)), "{told}");
    assert_eq!(dropped(&mut billing), 9.0, "HTTP/2 takes all but Alt-Svc");
}

#[test]
fn what_was_judged_is_byte_for_byte_what_is_sent() {
    let (world, _server, billing) = started();
    let host = host(RAW_HTTP1);
    let paths = [
        "/a%2e%2e/b",
        "/a/../b",
        "/./a",
        "//double//",
        "/a;x=1",
        "/a%2Fb",
        "/a%2fb",
        "/%c0%ae%c0%ae/",
        "/a%00b",
        "/a%0d%0ab",
        "/~a!$&'()*+,=:@",
        "/a?b=%20&c=/../",
        "/a?",
        "/%zz",
        "/a%",
        "/A%41",
    ];
    // Not for a path, so that either it is refused or it arrives as it is.
    let odd = ["/a\\b", "/a|b", "/a\"b", "/a<b>", "/a{b}", "/a^b", "/a`b", "/caf\u{e9}", "/a\u{c0}\u{ae}"];
    for version in [1, 2] {
        world.forget_raw().unwrap();
        let all: Vec<&str> = paths.iter().chain(&odd).copied().collect();
        let cases: Vec<_> = all
            .iter()
            .map(|path| match version {
                1 => raw::http1(RAW_HTTP1, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")),
                _ => raw::http2(RAW_HTTP1, &get(&host, path)),
            })
            .collect();
        billing.raw(&cases).unwrap();
        let seen = world.raw_seen().unwrap();
        let mut sent: Vec<_> =
            heads(&seen).iter().map(|head| head.split(' ').nth(1).unwrap().to_owned()).collect();
        for path in &sent {
            assert!(all.contains(&path.as_str()), "HTTP/{version}: {path} is not as it came");
        }
        for path in paths {
            assert!(sent.iter().any(|sent| sent == path), "HTTP/{version}: {path} did not arrive");
        }
        // What audit says was judged.
        sent.iter_mut().for_each(|path| path.truncate(path.find('?').unwrap_or(path.len())));
        eventually(SOON, || {
            let judged: Vec<_> =
                crate::events(&world, "intent").iter().map(|e| text(&e["path"]).to_owned()).collect();
            sent.iter().all(|path| path.is_ascii() && judged.contains(path) || !path.is_ascii())
        });
    }
}

#[test]
fn an_application_that_leaves_takes_its_request_with_it() {
    let (world, _server, billing) = started();
    let host = host(RAW_HTTP1);
    let silent = format!("GET /silent HTTP/1.1\r\nHost: {host}\r\n\r\n");
    // More than the window of the server, which takes no more.
    let upload = format!(
        "POST /silent HTTP/1.1\r\nHost: {}\r\nContent-Length: 900000\r\n\r\n{}",
        raw::host(RAW_HTTP2),
        "x".repeat(110_000)
    );
    // What comes of the rest of a body at the last moment.
    let slow =
        format!("POST /silent HTTP/1.1\r\nHost: {}\r\nContent-Length: 4\r\n\r\nha", raw::host(RAW_HTTP2));
    for (name, port, bytes, after) in [
        ("alone", RAW_HTTP1, silent.clone(), None),
        ("with another behind it", RAW_HTTP1, silent.repeat(2), None),
        ("sending", RAW_HTTP2, upload, None),
        ("having sent", RAW_HTTP2, slow, Some("lf")),
    ] {
        world.plan_raw(&json!([{ "mute": true }])).unwrap();
        let before = crate::events(&world, "outcome").len();
        let case = json!({ "port": port, "bytes": bytes, "after": after, "fin": true, "quiet": 3000 });
        world.forget_raw().unwrap();
        let told = one_that_acts(&world, &billing, case, 1);
        assert_eq!(told["bytes"], "", "{name}: {told}");
        // Not when the answer's time is over, which is a minute.
        let deadline = std::time::Instant::now() + SOON;
        let outcomes = loop {
            let outcomes = crate::events(&world, "outcome");
            if outcomes.len() > before {
                break outcomes;
            }
            assert!(std::time::Instant::now() < deadline, "{name}: {outcomes:?} {told}");
        };
        assert_eq!(outcomes.len(), before + 1, "{name}");
        match port {
            // The server sees it too, by the version that it speaks.
            RAW_HTTP1 => eventually_seen(&world, |seen| !seen["ended"].as_array().unwrap().is_empty()),
            _ => eventually_seen(&world, |seen| seen["resets"] == json!([8])),
        }
        assert!(outcomes.iter().all(|outcome| outcome["result"] == "aborted"), "{name}: {outcomes:?}");
    }
}

#[test]
fn a_reset_goes_across_with_its_code() {
    let (world, _server, billing) = started();
    let host = host(RAW_HTTP2);
    let half = json!([[1, 4, OK_BLOCK], [0, 0, "6f6b"]]);
    // Before the answer, within the upload, within the answer.
    for (code, plan, data) in [
        (11, json!({ "mute": true }), Some("all")),
        (2, json!({ "mute": true }), None),
        (8, half.clone(), Some("all")),
    ] {
        world.forget_raw().unwrap();
        world.plan_raw(&json!([plan])).unwrap();
        let mut case = raw::http2(RAW_HTTP2, &get(&host, "/reset"));
        case["reset"] = json!(code);
        if let Some(data) = data {
            case["data"] = json!(data);
        }
        one_that_acts(&world, &billing, case, 1);
        eventually_seen(&world, |seen| seen["resets"] == json!([code]));
    }
    for code in [11, 8] {
        let mut plan = half.clone();
        plan.as_array_mut().unwrap().push(json!([3, 0, format!("{code:08x}")]));
        world.plan_raw(&json!([plan])).unwrap();
        let told = one(&billing, raw::http2(RAW_HTTP2, &get(&host, "/reset")));
        assert_eq!((&told["statuses"], &told["reset"]), (&json!([200]), &json!(code)), "{told}");
    }
    // Of a stream of HTTP/2 that goes on over HTTP/1 the connection ends.
    world.forget_raw().unwrap();
    let mut case = raw::http2(RAW_HTTP1, &get(&raw::host(RAW_HTTP1), "/silent"));
    case["reset"] = json!(8);
    case["data"] = json!("all");
    one_that_acts(&world, &billing, case, 1);
    eventually_seen(&world, |seen| !seen["ended"].as_array().unwrap().is_empty());
    // NO_ERROR (0) in the middle is no end of a message either, from neither side.
    let ended = json!([[1, 4, OK_BLOCK], [0, 0, "6f6b"], [3, 0, "00000000"]]);
    world.plan_raw(&json!([ended, ended])).unwrap();
    let told = one(&billing, raw::http2(RAW_HTTP2, &get(&host, "/reset")));
    assert_eq!((&told["ended"], &told["reset"]), (&json!(false), &json!(0)), "{told}");
    let told = one(&billing, raw::http1(RAW_HTTP2, &format!("GET /reset HTTP/1.1\r\nHost: {host}\r\n\r\n")));
    assert!(!text(&told["bytes"]).ends_with("0\r\n\r\n"), "{told}");
    world.forget_raw().unwrap();
    let other = raw::host(RAW_HTTP1);
    let mut fields = get(&other, "/half");
    fields[0] = (":method", "POST");
    let mut case = raw::http2(RAW_HTTP1, &fields);
    case["open"] = json!(true);
    case["after"] = json!("\0\0\u{4}\0\0\0\0\0\u{1}half\0\0\u{4}\u{3}\0\0\0\0\u{1}\0\0\0\0");
    one(&billing, case);
    eventually_seen(&world, |seen| !seen["ended"].as_array().unwrap().is_empty());
    assert_eq!(world.raw_seen().unwrap()["requests"], json!([]), "no whole request has come");
    // Of the upstream, before its answer: a cancellation; of gRPC, which has a status for each, all but a refusal; else a
    // bad answer, of which we say more.
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    for (code, more, carried) in [
        (8, &[][..], true),
        (11, &[], false),
        (8, &grpc, true),
        (2, &grpc, true),
        (11, &grpc, true),
        (7, &grpc, false),
    ] {
        let reset = json!([[3, 0, format!("{code:08x}")]]);
        world.plan_raw(&json!([reset, reset])).unwrap();
        let mut fields = get(&host, "/reset.Service/Method");
        fields[0] = (":method", "POST");
        fields.extend(more);
        let mut case = raw::http2(RAW_HTTP2, &fields);
        case["data"] = json!("all");
        let told = one(&billing, case);
        if carried {
            assert_eq!((&told["statuses"], &told["reset"]), (&json!([]), &json!(code)), "{more:?} {told}");
        } else {
            // The dialect of gRPC says it in trailers.
            let status = if more.is_empty() { 502 } else { 200 };
            assert_eq!((&told["statuses"], told.get("reset")), (&json!([status]), None), "{more:?} {told}");
        }
    }
    let failed = |event: &&Value| event["result"] == "failed" && event["code"] == "CS8005";
    eventually(SOON, || crate::events(&world, "outcome").iter().filter(failed).count() >= 6);
}

#[test]
fn a_frame_that_leads_elsewhere_is_not_passed_on() {
    let (world, _server, billing) = started();
    // ALTSVC (RFC 7838 §4): no origin, `h3=":443"`.
    let altsvc =
        format!("0000{}", "h3=\":443\"".bytes().map(|byte| format!("{byte:02x}")).collect::<String>());
    world.plan_raw(&json!([[[10, 0, altsvc], [1, 4, OK_BLOCK], [0, 1, "6f6b"]]])).unwrap();
    let told = one(&billing, raw::http2(RAW_HTTP2, &get(&host(RAW_HTTP2), "/alt-svc")));
    assert_eq!(
        (&told["body"], &told["ended"], told.get("unknown")),
        (&json!("ok"), &json!(true), None),
        "{told}"
    );
}

/// Waits until the server has seen something; shows what it has seen if it does not.
#[track_caller]
fn eventually_seen(world: &World, is_so: impl Fn(&Value) -> bool) {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let seen = world.raw_seen().unwrap();
        if is_so(&seen) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{seen}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_a_server_has_not_looked_at_is_sent_once_more() {
    let (world, _server, billing) = started();
    let host = host(RAW_HTTP2);
    // GOAWAY of a last stream below ours, without an error and with one, and a stream that is refused.
    let goaway = json!([[7, 0, "0000000000000000", 0]]);
    let angry = json!([[7, 0, "000000000000000b", 0]]);
    let refused = json!([[3, 0, "00000007"]]);
    for plan in [&goaway, &angry, &refused] {
        world.forget_raw().unwrap();
        world.plan_raw(&json!([plan])).unwrap();
        let told = one(&billing, raw::http2(RAW_HTTP2, &get(&host, "/again")));
        assert_eq!(told["statuses"], json!([200]), "{told}");
        assert_eq!(world.raw_seen().unwrap()["requests"].as_array().unwrap().len(), 2);
        // Once: a server that goes on refusing is believed.
        world.plan_raw(&json!([plan, plan])).unwrap();
        let told = one(&billing, raw::http2(RAW_HTTP2, &get(&host, "/again")));
        assert_eq!(told["statuses"], json!([502]), "{told}");
    }
    // A request with a body: where nothing of it has gone, and where something has.
    let late = "\0\0\u{5}\0\u{1}\0\0\0\u{1}hello";
    let mut post = raw::http2(RAW_HTTP2, &get(&host, "/body"));
    post["fields"][0][1] = json!("POST");
    post["reset"] = Value::Null;
    for (data, status, requests) in [(None, 200, 2), (Some("begun"), 502, 1)] {
        world.forget_raw().unwrap();
        world.plan_raw(&json!([refused])).unwrap();
        let mut case = post.clone();
        case.as_object_mut().unwrap().remove("reset");
        match data {
            None => {
                case["open"] = json!(true);
                case["after"] = json!(late);
            }
            Some(data) => case["data"] = json!(data),
        }
        let told = match data {
            // The body comes when the request was sent again, without it.
            None => one_that_acts(&world, &billing, case, 2),
            Some(_) => one(&billing, case),
        };
        assert_eq!(told["statuses"], json!([status]), "{told}");
        assert_eq!(world.raw_seen().unwrap()["requests"].as_array().unwrap().len(), requests, "{told}");
    }
}

#[test]
fn readers_that_stall_harm_no_other_stream_and_cost_little_memory() {
    let (world, _server, mut billing) = started();
    let small = json!({ "small": 100_000, "size": 10 });
    let proxy = billing.proxy().process().pid().unwrap();
    let told = one(&billing, raw::http2(RAW_HTTP2, &get(&host(RAW_HTTP2), "/warm")));
    assert_eq!(told["statuses"], json!([200]), "{told}");
    let before = resident_kib(proxy);
    // Of three the budget of h2's own would be used up several times.
    world.plan_raw(&json!([small, small, small])).unwrap();
    let (told, most) = std::thread::scope(|scope| {
        let running =
            scope.spawn(|| billing.script("stalled.mjs", &[&RAW_HTTP2.to_string(), "3", "50", "1000000"]));
        let mut most = 0;
        while !running.is_finished() {
            std::thread::sleep(Duration::from_millis(100));
            most = most.max(resident_kib(proxy));
        }
        (running.join().unwrap().unwrap(), most)
    });
    assert_eq!(told["answered"], 50, "{told}");
    assert_eq!(told["bytes"], json!([1_000_000, 1_000_000, 1_000_000]), "{told}");
    assert_eq!(told["errors"], json!([]), "{told}");
    assert_eq!(world.raw_seen().unwrap()["connections"], 1, "all on one connection");
    // Up to three megabytes wait. A frame at a time they would be thirty times that.
    assert!(most.saturating_sub(before) < 24 * 1024, "{before} KiB before, {most} KiB at most");
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn who_is_not_read_is_held_back() {
    let (world, _server, billing) = started();
    let most = 40 << 20;
    for version in ["1", "2"] {
        world.forget_raw().unwrap();
        let told = billing.script("pressure.mjs", &[version, "up", &RAW_HTTP1.to_string()]).unwrap();
        let sent = told["sent"].as_u64().unwrap();
        assert!((100_000..most).contains(&sent), "up, HTTP/{version}: {told}");
        billing.script("pressure.mjs", &[version, "down", &RAW_HTTP1.to_string()]).unwrap();
        let sent = world.raw_seen().unwrap()["sent"].as_u64().unwrap();
        assert!((100_000..most).contains(&sent), "down, HTTP/{version}: {sent}");
    }
}

#[test]
fn http2_in_the_clear_is_read_like_any_other() {
    let (world, _server, billing) = started();
    // Covered, where a credential is never sent in the clear; and not covered, where nothing may go.
    for (port, path, code) in [(RAW_HTTP1, "/covered", "CS3008"), (8464, "/uncovered", "CS5005")] {
        let host = host(port);
        let mut case = raw::http2(port, &get(&host, path));
        case["fields"][1][1] = json!("http");
        case["secure"] = json!(false);
        assert_eq!(one(&billing, case)["statuses"], json!([403]));
        let refused = |event: &Value| event["code"] == code && event["path"] == path;
        eventually(SOON, || crate::events(&world, "refusal").iter().any(refused));
    }
    assert_eq!(world.raw_seen().unwrap()["connections"], 0);
}
