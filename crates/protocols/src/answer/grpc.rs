//! A status of gRPC in headers alone (gRPC over HTTP2, "Responses": Trailers-Only).
//!
//! Clients retry `UNAVAILABLE` where they are told to retry at all, so only what may pass by itself is that.

use std::fmt::Write as _;

use http::StatusCode;
use model::Code;

use super::{Form, Said};

const INVALID_ARGUMENT: u8 = 3;
const DEADLINE_EXCEEDED: u8 = 4;
const PERMISSION_DENIED: u8 = 7;
const RESOURCE_EXHAUSTED: u8 = 8;
const FAILED_PRECONDITION: u8 = 9;
const UNIMPLEMENTED: u8 = 12;
pub(super) const UNAVAILABLE: u8 = 14;

pub(super) fn form(said: &Said<'_>) -> Form {
    // The status of HTTP is about the transport, which works (gRPC over HTTP2, "Responses").
    Form::new("application/grpc", "")
        .status(StatusCode::OK)
        .header("grpc-status", status(said.code).to_string())
        .header("grpc-message", percent_encoded(&said.line()))
}

/// The status of a code.
pub(super) fn status(code: Code) -> u8 {
    let entry = code.entry();
    match (code, entry.status) {
        // Not what the caller may, but what can be carried.
        (Code::NotCarried | Code::GrpcNeedsHttp2 | Code::MethodRefused, _) => UNIMPLEMENTED,
        (_, Some(400)) => INVALID_ARGUMENT,
        (_, Some(403)) => PERMISSION_DENIED,
        (_, Some(413 | 429 | 431)) => RESOURCE_EXHAUSTED,
        // The upstream may have acted on it: to try again is the caller's decision.
        (_, Some(408 | 504)) => DEADLINE_EXCEEDED,
        _ if entry.retryable => UNAVAILABLE,
        // Something must be mended first: another name, a certificate.
        _ => FAILED_PRECONDITION,
    }
}

/// Space to tilde as they are, but for the percent sign; every other byte of the UTF-8 as `%XX`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => {
                let _ = write!(encoded, "%{byte:02X}");
            }
            plain => encoded.push(char::from(plain)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(text: &str) -> String {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let [first, tail @ ..] = rest {
            if let (b'%', Some(hex)) = (first, tail.get(..2)) {
                bytes.push(u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap());
                rest = &tail[2..];
            } else {
                bytes.push(*first);
                rest = tail;
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    proptest! {
        #[test]
        fn a_message_is_read_back(text in "\\PC*|[%\u{0}-\u{1f}\u{7f}é]*") {
            let encoded = percent_encoded(&text);
            prop_assert!(encoded.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
            prop_assert_eq!(decoded(&encoded), text);
        }
    }

    #[test]
    fn the_status_says_whether_to_try_again() {
        assert_eq!(status(Code::NoPolicyAllows), PERMISSION_DENIED);
        assert_eq!(status(Code::IssuerRefused), PERMISSION_DENIED);
        assert_eq!(status(Code::IssuerUnreachable), UNAVAILABLE);
        assert_eq!(status(Code::UpstreamUnreachable), UNAVAILABLE);
        assert_eq!(status(Code::UpstreamUntrusted), FAILED_PRECONDITION);
        assert_eq!(status(Code::UpstreamTimeout), DEADLINE_EXCEEDED);
        assert_eq!(status(Code::Misdirected), FAILED_PRECONDITION);
    }
}
