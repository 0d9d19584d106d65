//! The tables of docs/framing.md, row by row, as bytes through a real proxy.

use serde_json::{Value, json};
use tests::raw::{self, RAW_HTTP1, RAW_HTTP2, answered, host};
use tests::{Daemon, Egress, Workload, World};

/// The header block of a plain 200 (RFC 7541 appendix A).
pub(crate) const OK_BLOCK: &str = "88";

const DOCUMENT: &str = include_str!("../../docs/framing.md");

pub(crate) fn started() -> (World, Daemon, Workload) {
    let mut world = World::started(Egress::Enforce).unwrap();
    let server = world.start_raw().unwrap();
    let billing = world.billing().unwrap();
    (world, server, billing)
}

/// What we do, by the words of the document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Does {
    Refuse,
    Unmet,
    Misdirect,
    Reset,
    Rewrite,
    BadAnswer,
    Cancel,
    Cut,
}

impl Does {
    fn word(self) -> &'static str {
        match self {
            Self::Refuse => "400",
            Self::Unmet => "417",
            Self::Misdirect => "421",
            Self::Reset => "reset",
            Self::Rewrite => "rewritten",
            Self::BadAnswer => "502",
            Self::Cancel => "502, or the same reset on HTTP/2",
            Self::Cut => "cut",
        }
    }
}

use Does::{BadAnswer, Cancel, Cut, Misdirect, Refuse, Reset, Rewrite, Unmet};

/// The rows of the document's tables, by their first and last column.
fn documented() -> Vec<(String, String)> {
    let rows = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        (cells[0].trim_matches('`').to_owned(), cells[2].to_owned())
    })
    .collect()
}

#[test]
fn the_document_lists_what_is_tested() {
    let mut tested = Vec::new();
    tested.extend(from_http1().iter().map(|(row, does, _)| ((*row).to_owned(), does.word().to_owned())));
    tested.extend(from_http2().iter().map(|(row, does, _)| ((*row).to_owned(), does.word().to_owned())));
    tested.extend(of_http1().iter().map(|(row, does, _)| ((*row).to_owned(), does.word().to_owned())));
    tested.extend(of_http2().iter().map(|(row, does, _)| ((*row).to_owned(), does.word().to_owned())));
    assert_eq!(documented(), tested);
}

/// A request of HTTP/1 with these lines after its first two, and this behind them.
fn post(row: &str, lines: &str, body: &str) -> String {
    format!("POST /row/{row} HTTP/1.1\r\nHost: edge.demo.test:8461\r\n{lines}\r\n{body}")
}

/// One with this first line and these fields, each with its end.
fn head(row: &str, line: &str, fields: &str) -> String {
    format!("{}\r\n{fields}\r\n", line.replace("ROW", &format!("/row/{row}")))
}

const HOST: &str = "Host: edge.demo.test:8461\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

fn from_http1() -> Vec<(&'static str, Does, String)> {
    let five = "hello";
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    let get = "GET ROW HTTP/1.1";
    let made = |row, lines: &str, body| (row, Refuse, post(row, lines, body));
    let named = |row, does, fields: &str| (row, does, head(row, get, fields));
    let asked = |row, does, line: &str, fields: &str| (row, does, head(row, line, fields));
    vec![
        made("cl-te", &format!("Content-Length: 5\r\n{CHUNKED}"), chunks),
        made("te-cl", &format!("{CHUNKED}Content-Length: 5\r\n"), chunks),
        made("two-lengths", "Content-Length: 5\r\nContent-Length: 5\r\n", five),
        made("lengths-differ", "Content-Length: 5\r\nContent-Length: 0\r\n", five),
        made("length-list", "Content-Length: 5, 5\r\n", five),
        made("length-plus", "Content-Length: +5\r\n", five),
        made("length-hex", "Content-Length: 0x5\r\n", five),
        made("length-empty", "Content-Length:\r\n", five),
        made("length-huge", "Content-Length: 18446744073709551621\r\n", five),
        made("te-gzip-chunked", "Transfer-Encoding: gzip, chunked\r\n", chunks),
        made("te-chunked-identity", "Transfer-Encoding: chunked, identity\r\n", chunks),
        made("te-identity", "Transfer-Encoding: identity\r\n", chunks),
        made("te-twice", &format!("{CHUNKED}{CHUNKED}"), chunks),
        made("te-control", "Transfer-Encoding: \x0bchunked\r\n", chunks),
        ("te-http10", Refuse, head("te-http10", "POST ROW HTTP/1.0", &format!("{HOST}{CHUNKED}")) + chunks),
        named("bare-lf-field", Refuse, &format!("{HOST}X: a\nY: b\r\n")),
        ("bare-lf-head", Refuse, "GET /row/bare-lf-head HTTP/1.1\nHost: edge.demo.test:8461\n\n".to_owned()),
        named("bare-cr", Refuse, &format!("{HOST}X: a\rY: b\r\n")),
        named("nul", Refuse, &format!("{HOST}X: a\0b\r\n")),
        named("obs-fold", Refuse, &format!("{HOST}X: a\r\n b\r\n")),
        made("space-before-colon", "Content-Length : 5\r\n", five),
        named("no-colon", Refuse, &format!("{HOST}no colon\r\n")),
        ("chunk-extension", Rewrite, post("chunk-extension", CHUNKED, "5;a=\"b\";c\r\nhello\r\n0;d\r\n\r\n")),
        made("chunk-bare-lf", CHUNKED, "5\nhello\r\n0\r\n\r\n"),
        made("chunk-space", CHUNKED, "5 \r\nhello\r\n0\r\n\r\n"),
        made("chunk-longer", CHUNKED, "4\r\nhello\r\n0\r\n\r\n"),
        made("trailer-bare-lf", CHUNKED, "5\r\nhello\r\n0\r\nX: y\nZ: w\r\n\r\n"),
        (
            "trailer-length",
            Rewrite,
            post(
                "trailer-length",
                &format!("{CHUNKED}Trailer: Content-Length\r\n"),
                "5\r\nhello\r\n0\r\nContent-Length: 40\r\n\r\n",
            ),
        ),
        named("no-host", Refuse, "X: y\r\n"),
        asked("no-host-http10", Refuse, "GET ROW HTTP/1.0", "X: y\r\n"),
        named("two-hosts", Refuse, &format!("{HOST}{HOST}")),
        named("host-empty", Refuse, "Host:\r\n"),
        named("host-path", Refuse, "Host: edge.demo.test/b\r\n"),
        named("host-userinfo", Refuse, "Host: user@edge.demo.test:8461\r\n"),
        named("host-port", Refuse, "Host: edge.demo.test:x\r\n"),
        named("host-other", Misdirect, "Host: payments.demo.test:8461\r\n"),
        named("host-other-port", Misdirect, "Host: edge.demo.test:8462\r\n"),
        named("host-address", Misdirect, "Host: 10.77.0.20:8461\r\n"),
        named("host-spelling", Rewrite, "Host: Edge.DEMO.test.:8461\r\n"),
        asked("absolute-same", Rewrite, "GET https://edge.demo.test:8461ROW HTTP/1.1", HOST),
        asked("absolute-other", Misdirect, "GET https://payments.demo.test:8461ROW HTTP/1.1", HOST),
        asked("absolute-userinfo", Refuse, "GET https://u@edge.demo.test:8461ROW HTTP/1.1", HOST),
        asked("absolute-scheme", Misdirect, "GET http://edge.demo.test:8461ROW HTTP/1.1", HOST),
        asked("fragment", Refuse, "GET ROW#part HTTP/1.1", HOST),
        asked("asterisk", Refuse, "GET * HTTP/1.1", HOST),
        named("expect-other", Unmet, &format!("{HOST}Expect: a-miracle\r\n")),
        asked("preface", Refuse, "PRI * HTTP/2.0", ""),
        ("http09", Refuse, "GET /row/http09\r\n".to_owned()),
        (
            "upgrade-h2c",
            Rewrite,
            head(
                "upgrade-h2c",
                get,
                &format!(
                    "{HOST}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
                ),
            ) + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        ),
    ]
}

/// What would be a request of its own, if what is before it ended where the sender hopes.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: edge.demo.test:8461\r\n\r\n";

fn requests(seen: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let requests = seen["requests"].as_array().unwrap();
    requests.iter().map(|request| (text(&request["head"]), text(&request["body"]))).collect()
}

#[test]
fn what_an_application_of_http1_sends_is_read_in_one_way() {
    let (world, _server, billing) = started();
    let rows = from_http1();
    // Whole, and in pieces that end within a line.
    for split in [false, true] {
        world.forget_raw().unwrap();
        let cases: Vec<_> = rows
            .iter()
            .map(|(_, does, bytes)| {
                let bytes = if matches!(does, Refuse | Unmet) { format!("{bytes}{SMUGGLED}") } else { bytes.clone() };
                let (first, rest) = bytes.split_at(if split { bytes.len() / 3 } else { bytes.len() });
                json!({ "port": RAW_HTTP1, "bytes": first, "after": if split { Some(rest) } else { None }, "quiet": 2500 })
            })
            .collect();
        let told = billing.raw(&cases).unwrap();
        let seen = requests(&world.raw_seen().unwrap());
        for ((row, does, _), told) in rows.iter().zip(&told) {
            let answer = told["bytes"].as_str().unwrap();
            let reached: Vec<_> =
                seen.iter().filter(|(head, _)| head.contains(&format!("/row/{row} "))).collect();
            let (status, code) = match does {
                Refuse => ("400", "countersign-code: CS3001"),
                Unmet => ("417", "countersign-code: CS3012"),
                Misdirect => ("421", "countersign-code: CS3006"),
                _ => ("200", ""),
            };
            assert_eq!(answer.split(' ').nth(1), Some(status), "{row}: {told}");
            assert!(answer.contains(code), "{row}: {told}");
            if matches!(does, Refuse | Unmet) {
                let answers = answer.matches("countersign-code").count() + answer.matches("200 OK").count();
                assert_eq!(answers, 1, "{row}: one answer: {told}");
                assert_eq!(told["closed"], true, "{row}: {told}");
            }
            assert_eq!(reached.len(), usize::from(*does == Rewrite), "{row}: {reached:?}");
        }
        assert!(!seen.iter().any(|(head, _)| head.contains("/smuggled")), "{seen:?}");
        check_rewritten(&seen);
    }
}

/// What reached the upstream has one meaning, and it is ours.
#[track_caller]
fn check_rewritten(seen: &[(String, String)]) {
    for (head, body) in seen {
        let lower = head.to_ascii_lowercase();
        assert!(head.contains(" HTTP/1.1\r\n"), "{head}");
        assert!(lower.contains("\r\nhost: edge.demo.test:8461\r\n"), "{head}");
        assert!(head.starts_with("GET /row/") || head.starts_with("POST /row/"), "{head}");
        for ended in ["upgrade", "http2-settings", "connection"] {
            assert!(!lower.contains(&format!("\r\n{ended}:")), "{head}");
        }
        if head.contains("/row/chunk-extension ") || head.contains("/row/trailer-length ") {
            assert_eq!(body, "5\r\nhello\r\n0\r\n\r\n", "{head}");
        }
    }
}

fn from_http2() -> Vec<(&'static str, Does, Value)> {
    fn case(fields: &[(&str, &str)]) -> Value {
        raw::http2(RAW_HTTP1, fields)
    }
    fn ask<'a>(authority: Option<&'a str>, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut fields = vec![(":method", "GET"), (":scheme", "https"), (":path", "/row/h2")];
        fields.extend(authority.map(|authority| (":authority", authority)));
        fields.extend(more);
        fields
    }
    fn post(more: &[(&str, &str)]) -> Value {
        let mut fields = ask(Some(OURS), more);
        fields[0] = (":method", "POST");
        let mut case = case(&fields);
        case["data"] = json!("hello");
        case
    }
    const OURS: &str = "edge.demo.test:8461";
    let ours = Some(OURS);
    let mut plain = ask(ours, &[]);
    plain[1] = (":scheme", "http");
    let mut trailer = post(&[]);
    trailer["more"] = json!([["content-length", "40"], ["x-kept", "yes"]]);
    vec![
        ("h2-authority-other", Misdirect, case(&ask(Some("payments.demo.test:8461"), &[]))),
        ("h2-host-differs", Misdirect, case(&ask(ours, &[("host", "payments.demo.test:8461")]))),
        ("h2-host-same", Rewrite, case(&ask(ours, &[("host", OURS)]))),
        ("h2-host-alone", Rewrite, case(&ask(None, &[("host", OURS)]))),
        ("h2-two-hosts", Refuse, case(&ask(ours, &[("host", OURS), ("host", OURS)]))),
        ("h2-no-host", Refuse, case(&ask(None, &[]))),
        ("h2-userinfo", Refuse, case(&ask(Some("user@edge.demo.test:8461"), &[]))),
        ("h2-scheme", Misdirect, case(&plain)),
        ("h2-connection", Reset, case(&ask(ours, &[("connection", "close")]))),
        ("h2-transfer-encoding", Reset, post(&[("transfer-encoding", "chunked")])),
        ("h2-upper-case", Reset, case(&ask(ours, &[("X-Upper", "a")]))),
        ("h2-new-line", Reset, case(&ask(ours, &[("x-line", "a\r\nx-more: b")]))),
        ("h2-length-short", Reset, post(&[("content-length", "9")])),
        ("h2-two-lengths", Refuse, post(&[("content-length", "5"), ("content-length", "5")])),
        ("h2-length-plus", Reset, post(&[("content-length", "+5")])),
        ("h2-trailer-length", Rewrite, trailer),
    ]
}

#[test]
fn what_an_application_of_http2_sends_is_read_in_one_way() {
    let (world, _server, billing) = started();
    // The server speaks HTTP/1.1 only: what gets through is translated.
    let rows = from_http2();
    for (row, does, case) in &rows {
        world.forget_raw().unwrap();
        let told = &billing.raw(std::slice::from_ref(case)).unwrap()[0];
        let seen = requests(&world.raw_seen().unwrap());
        match does {
            Refuse => assert_eq!(told["statuses"], json!([400]), "{row}: {told}"),
            Misdirect => assert_eq!(told["statuses"], json!([421]), "{row}: {told}"),
            Reset => {
                let ended = told.get("reset").or(told.get("goaway"));
                assert_eq!(ended, Some(&json!(1)), "{row}: PROTOCOL_ERROR: {told}");
                assert_eq!(told["statuses"], json!([]), "{row}: {told}");
            }
            _ => assert_eq!(told["statuses"], json!([200]), "{row}: {told}"),
        }
        assert_eq!(seen.len(), usize::from(*does == Rewrite), "{row}: {seen:?}");
        for (head, body) in &seen {
            assert_eq!(
                head.to_ascii_lowercase().matches("\r\nhost: edge.demo.test:8461\r\n").count(),
                1,
                "{head}"
            );
            if *row == "h2-trailer-length" {
                // Nothing was announced, so that nothing goes to a peer of HTTP/1.
                assert_eq!(body, "5\r\nhello\r\n0\r\n\r\n", "{head}");
            }
        }
    }
}

fn of_http1() -> Vec<(&'static str, Does, &'static str)> {
    vec![
        (
            "up-cl-te",
            BadAnswer,
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        ),
        ("up-two-lengths", BadAnswer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab"),
        ("up-length-list", BadAnswer, "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab"),
        ("up-length-plus", BadAnswer, "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab"),
        ("up-te-gzip", BadAnswer, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab"),
        (
            "up-te-gzip-chunked",
            BadAnswer,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        ),
        (
            "up-te-twice",
            BadAnswer,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        ),
        (
            "up-te-http10",
            BadAnswer,
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        ),
        ("up-bare-lf", BadAnswer, "HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\r\nab"),
        ("up-bare-cr", BadAnswer, "HTTP/1.1 200 OK\r\nX: a\rY: b\r\nContent-Length: 2\r\n\r\nab"),
        ("up-nul", BadAnswer, "HTTP/1.1 200 OK\r\nX: a\0\r\nContent-Length: 2\r\n\r\nab"),
        ("up-obs-fold", BadAnswer, "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nab"),
        ("up-space-before-colon", BadAnswer, "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nab"),
        ("up-no-colon", BadAnswer, "HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 2\r\n\r\nab"),
        ("up-garbage", BadAnswer, "these are not the bytes\r\n\r\n"),
        ("up-nothing", BadAnswer, ""),
        ("up-half-head", BadAnswer, "HTTP/1.1 200 OK\r\nContent-Le"),
        (
            "up-switch",
            BadAnswer,
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        ),
        ("up-interim-lf", BadAnswer, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\nContent-Length: 2\n\nab"),
        (
            "up-chunk-extension",
            Rewrite,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0;c\r\n\r\n",
        ),
        ("up-http10", Rewrite, "HTTP/1.0 200 OK\r\n\r\nok"),
        (
            "up-surplus",
            Rewrite,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        ),
        (
            "up-chunk-lf",
            Cut,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3\nend\r\n0\r\n\r\n",
        ),
        ("up-length-short", Cut, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"),
        ("up-chunk-short", Cut, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"),
    ]
}

#[test]
fn what_an_upstream_of_http1_answers_is_read_in_one_way() {
    let (_world, _server, billing) = started();
    let rows = of_http1();
    let host = host(RAW_HTTP1);
    // An answer that is kept open must not poison the next one on its connection.
    let path = |bytes: &str, row: &str| answered(if row == "up-surplus" { "keep" } else { "end" }, bytes);
    let http1 = rows.iter().map(|(row, _, bytes)| {
        let request = format!("GET {} HTTP/1.1\r\nHost: {host}\r\n\r\n", path(bytes, row));
        raw::http1(RAW_HTTP1, &request)
    });
    let told = billing.raw(&http1.collect::<Vec<_>>()).unwrap();
    for ((row, does, _), told) in rows.iter().zip(&told) {
        let answer = told["bytes"].as_str().unwrap();
        match does {
            BadAnswer => {
                assert!(answer.starts_with("HTTP/1.1 502 "), "{row}: {told}");
                assert!(answer.contains("countersign-code: CS8005"), "{row}: {told}");
            }
            Rewrite => {
                assert!(answer.starts_with("HTTP/1.1 200 "), "{row}: {told}");
                let (_, body) = answer.split_once("\r\n\r\n").unwrap();
                assert!(["ok", "2\r\nok\r\n0\r\n\r\n"].contains(&body), "{row}: {told}");
            }
            _ => {
                assert!(answer.starts_with("HTTP/1.1 200 "), "{row}: {told}");
                assert!(told["closed"] == true && !answer.ends_with("0\r\n\r\n"), "{row}: {told}");
            }
        }
        assert!(!answer.contains("poison"), "{row}: {told}");
    }
    let http2 = rows.iter().map(|(row, _, bytes)| {
        let path = path(bytes, row);
        raw::http2(RAW_HTTP1, &raw::get(&host, &path))
    });
    let told = billing.raw(&http2.collect::<Vec<_>>()).unwrap();
    for ((row, does, _), told) in rows.iter().zip(&told) {
        let status = if *does == BadAnswer { 502 } else { 200 };
        let last = told["statuses"].as_array().unwrap().last();
        assert_eq!(last, Some(&json!(status)), "{row}: {told}");
        match does {
            Cut => assert!(told["reset"].is_number(), "{row}: {told}"),
            Rewrite => assert_eq!((&told["body"], &told["ended"]), (&json!("ok"), &json!(true)), "{row}"),
            _ => {}
        }
    }
}

/// Fields as RFC 7541 §6.2.2 writes them: literal, not indexed, in hexadecimal digits.
fn block(fields: &[(&str, &str)]) -> String {
    let text = |text: &str| {
        let bytes: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        format!("{:02x}{bytes}", text.len())
    };
    fields.iter().map(|(name, value)| format!("00{}{}", text(name), text(value))).collect()
}

/// The frames of the answer.
fn of_http2() -> Vec<(&'static str, Does, Value)> {
    let with = |fields: &[(&str, &str)]| {
        let fields = [&[(":status", "200")], fields].concat();
        json!([[1, 4, block(&fields)], [0, 1, "6f6b"]])
    };
    vec![
        ("h2up-connection", BadAnswer, with(&[("connection", "close")])),
        ("h2up-upper-case", BadAnswer, with(&[("X-Upper", "a")])),
        ("h2up-new-line", BadAnswer, with(&[("x-line", "a\r\nb: c")])),
        ("h2up-no-status", BadAnswer, json!([[1, 5, block(&[("x", "y")])]])),
        ("h2up-two-lengths", BadAnswer, with(&[("content-length", "2"), ("content-length", "2")])),
        ("h2up-reset", BadAnswer, json!([[3, 0, "00000002"]])),
        ("h2up-cancel", Cancel, json!([[3, 0, "00000008"]])),
        ("h2up-length-short", Cut, with(&[("content-length", "9")])),
    ]
}

#[test]
fn what_an_upstream_of_http2_answers_is_read_in_one_way() {
    let (world, _server, billing) = started();
    let host = host(RAW_HTTP2);
    for (row, does, plan) in of_http2() {
        for version in [1, 2] {
            world.plan_raw(&json!([plan])).unwrap();
            let request = format!("GET /{row} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let path = format!("/{row}");
            let case = match version {
                1 => raw::http1(RAW_HTTP2, &request),
                _ => raw::http2(RAW_HTTP2, &raw::get(&host, &path)),
            };
            let told = &billing.raw(&[case]).unwrap()[0];
            if does == Cancel && version == 2 {
                assert_eq!((&told["statuses"], &told["reset"]), (&json!([]), &json!(8)), "{row}: {told}");
                continue;
            }
            let expected = if matches!(does, BadAnswer | Cancel) { 502 } else { 200 };
            let status = match version {
                1 => {
                    told["bytes"].as_str().unwrap().split(' ').nth(1).unwrap_or_default().parse().unwrap_or(0)
                }
                _ => told["statuses"][0].as_u64().unwrap_or(0),
            };
            assert_eq!(status, expected, "{row} to HTTP/{version}: {told}");
            if does == Cut {
                let visibly = if version == 1 { &told["closed"] == true } else { told["reset"].is_number() };
                assert!(visibly, "{row} to HTTP/{version}: {told}");
            }
        }
    }
}
