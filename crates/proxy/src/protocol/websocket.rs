//! WebSocket handshakes, in one form for both versions of HTTP.
//!
//! RFC 6455 §4 asks by `Upgrade` in a GET, RFC 8441 §5 by an extended CONNECT. Both are judged as the GET that they
//! are; an answer that agrees is a 101 here, whatever the version.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use h2::ext::Protocol;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Version};

/// Marks a request that asks for a WebSocket; kept in its extensions.
#[derive(Clone, Copy, Debug)]
pub struct WebSocket;

/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Marks an HTTP/1.1 request that asks for a WebSocket; returns its key.
pub fn mark_http1(request: &mut Parts) -> Option<HeaderValue> {
    let headers = &request.headers;
    let asks = request.version == Version::HTTP_11
        && request.method == Method::GET
        && has_token(headers, &CONNECTION, b"upgrade")
        && headers.get_all(UPGRADE).iter().count() == 1
        && has_token(headers, &UPGRADE, b"websocket");
    let key = asks.then(|| headers.get(SEC_WEBSOCKET_KEY).cloned()).flatten()?;
    request.extensions.insert(WebSocket);
    Some(key)
}

/// Marks an HTTP/2 request that asks for a WebSocket, and makes it the GET that it stands for.
pub fn mark_http2(request: &mut Parts) {
    let asks = request.method == Method::CONNECT
        && request.extensions.get::<Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket");
    if asks {
        request.method = Method::GET;
        request.extensions.remove::<Protocol>();
        request.extensions.insert(WebSocket);
    }
}

pub(super) fn has_token(headers: &HeaderMap, name: &http::HeaderName, token: &[u8]) -> bool {
    let tokens = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    tokens.map(<[u8]>::trim_ascii).any(|value| value.eq_ignore_ascii_case(token))
}

/// The header of a 101 to an application of HTTP/1.1.
pub fn agree_http1(headers: &mut HeaderMap, key: &HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept(key));
}

/// The request's header for an upstream of HTTP/1.1; returns the answer that its key asks for.
pub fn ask_http1(headers: &mut HeaderMap) -> HeaderValue {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let key = headers.entry(SEC_WEBSOCKET_KEY).or_insert_with(|| {
        let nonce = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
        HeaderValue::try_from(nonce).unwrap_or_else(|_| HeaderValue::from_static(""))
    });
    accept(key)
}

/// Makes the marked GET an extended CONNECT for an upstream of HTTP/2.
pub fn ask_http2(request: &mut Parts) {
    request.method = Method::CONNECT;
    request.headers.remove(SEC_WEBSOCKET_KEY);
    request.extensions.insert(Protocol::from_static("websocket"));
}

/// Whether the 101 of an HTTP/1.1 upstream agrees as RFC 6455 §4.1 asks.
pub fn is_agreed(headers: &HeaderMap, expected: &HeaderValue) -> bool {
    has_token(headers, &UPGRADE, b"websocket") && headers.get(SEC_WEBSOCKET_ACCEPT) == Some(expected)
}

/// RFC 6455 §4.2.2: the accept value of a key.
fn accept(key: &HeaderValue) -> HeaderValue {
    let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), GUID].concat());
    let text = base64::engine::general_purpose::STANDARD.encode(sum);
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn only_a_whole_handshake_is_one() {
        let whole =
            [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket"), ("sec-websocket-key", "x")];
        let request = |fields: &[(&str, &str)]| {
            let builder = fields.iter().fold(Request::builder(), |b, (name, value)| b.header(*name, *value));
            builder.body(()).unwrap().into_parts().0
        };
        assert!(mark_http1(&mut request(&whole)).is_some());
        for missing in 0..whole.len() {
            let fields: Vec<_> =
                whole.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, f)| *f).collect();
            assert!(mark_http1(&mut request(&fields)).is_none(), "{fields:?}");
        }
        let h2c = [
            ("connection", "upgrade"),
            ("upgrade", "websocket, h2c"),
            ("upgrade", "h2c"),
            ("sec-websocket-key", "x"),
        ];
        assert!(mark_http1(&mut request(&h2c)).is_none());
    }
}
