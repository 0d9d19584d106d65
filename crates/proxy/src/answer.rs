//! Answers of ours: one table from failure to response.
//!
//! The text is made by the pure half ([`protocols::answer`]); here it becomes a message of the connection's version.

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use hyper::ext::ReasonPhrase;
use model::decision::NearMiss;
use model::{Code, DecisionId, Failure};
use protocols::answer::{Dialect, Said};

use crate::protocol::Body;

/// The answer that tells the application of a failure, in the dialect of its call.
pub fn answer(
    dialect: Dialect,
    failure: &Failure,
    decision: DecisionId,
    nearest: &[NearMiss],
) -> Response<Body> {
    let said = Said { code: failure.code, detail: &failure.detail, decision, nearest };
    let made = protocols::answer::answer(dialect, &said);
    let body = if made.body.is_empty() { Body::Empty } else { Body::Full(made.body) };
    let mut response = Response::new(body);
    *response.status_mut() = made.status;
    *response.headers_mut() = made.headers;
    if failure.code == Code::ProxyAuthentication {
        let challenge = HeaderValue::from_static("Basic realm=\"countersign\"");
        response.headers_mut().insert(header::PROXY_AUTHENTICATE, challenge);
    }
    // Only HTTP/1 has a reason phrase; h2 ignores the extension.
    if let Ok(reason) = ReasonPhrase::try_from(Bytes::from(made.reason)) {
        response.extensions_mut().insert(reason);
    }
    response
}

/// Says that the connection ends with this answer, on HTTP/1.
pub fn closing(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The answer as bytes of HTTP/1.1, for a connection on which no request could be read. It closes.
pub fn as_http1(response: &Response<Body>) -> Vec<u8> {
    let status = response.status();
    let reason = response.extensions().get::<ReasonPhrase>().map_or(&b""[..], |reason| reason.as_bytes());
    let mut bytes = format!("HTTP/1.1 {} ", status.as_u16()).into_bytes();
    bytes.extend_from_slice(reason);
    bytes.extend_from_slice(b"\r\n");
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"connection: close\r\n\r\n");
    if let Body::Full(body) = response.body() {
        bytes.extend_from_slice(body);
    }
    bytes
}
