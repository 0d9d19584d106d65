//! The dialect of a call, and an answer in it: whatever the request is made of and whatever the detail says, the answer is
//! one message with our code.
#![no_main]

use http::Request;
use model::{Code, DecisionId};
use protocols::answer::{Dialect, Said, answer};

libfuzzer_sys::fuzz_target!(|text: &str| {
    // A method and a target, header fields, and behind an empty line the detail.
    let (head, detail) = text.split_once("\n\n").unwrap_or((text, text));
    let mut lines = head.lines();
    let (method, target) = lines.next().unwrap_or_default().split_once(' ').unwrap_or_default();
    let mut builder = Request::builder().method(method).uri(target);
    if head.contains("HTTP/2") {
        builder = builder.version(http::Version::HTTP_2);
    }
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        builder = builder.header(name, value);
    }
    let Ok(request) = builder.body(()) else { return };
    let dialect = Dialect::of(&request.into_parts().0);
    let said = Said { code: Code::NoPolicyAllows, detail, decision: DecisionId(7), nearest: &[] };
    let made = answer(dialect, &said);
    assert_eq!(made.headers["countersign-code"], "CS5001");
    match made.headers["content-type"].to_str() {
        Ok("application/grpc") => assert!(made.headers["grpc-message"].to_str().is_ok_and(|m| m.starts_with("CS5001 "))),
        Ok("text/xml" | "application/xml") => {
            let text = std::str::from_utf8(&made.body).expect("XML is text");
            // Names are ours and known: a stranger's words open and close nothing.
            let opened = text.matches('<').count();
            assert!(matches!(opened, 9 | 11 | 13), "{text}");
        }
        Ok(kind) if kind.contains("json") => {
            let text = std::str::from_utf8(&made.body).expect("JSON is text");
            assert!(text.starts_with('{') && !text.contains(|c: char| c.is_control() && c != '\n' && c < ' '), "{text}");
        }
        _ => assert!(made.body.windows(6).any(|window| window == b"CS5001")),
    }
});
