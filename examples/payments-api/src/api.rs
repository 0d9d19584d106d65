//! What the service answers, once it knows the caller.
//!
//! `/v1/charges/…` echoes what it saw. For tests, below the same prefix: `echo` sends the request's body back while it
//! arrives, `drip` sends slowly, `large` sends much, `trailers` ends with trailers, `slow` waits first, and `stale`
//! answers 401 to the first credential that it sees there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::json;

use crate::seen::{Arrival, Seen};
use crate::verify::{Refused, Token, Verifier, log};

/// A body of any kind.
pub(crate) type Body = BoxBody<Bytes, hyper::Error>;

/// Most bytes and milliseconds that a query may ask for.
const LARGE_MAX: u64 = 1 << 30;
const WAIT_MAX_MS: u64 = 120_000;
/// Size of a chunk of `large`.
const CHUNK: usize = 64 * 1024;

/// The service.
pub(crate) struct Api {
    verifier: Verifier,
    seen: Arc<Seen>,
    /// The first token that each key of `stale` has seen, by `jti`.
    stale: Mutex<BTreeMap<String, String>>,
}

impl Api {
    pub(crate) fn new(verifier: Verifier, seen: Arc<Seen>) -> Self {
        Self { verifier, seen, stale: Mutex::default() }
    }

    /// Notes the request, verifies its token and answers.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let token = self.verifier.verify(&parts.headers).await;
        self.seen.note(arrival(&parts, &token));
        match token {
            Ok(token) => self.route(&parts, body, &token).await,
            Err(refused) => unauthorised(&refused),
        }
    }

    async fn route(&self, parts: &Parts, body: Incoming, token: &Token) -> Response<Body> {
        let query = Query::of(parts);
        match parts.uri.path().strip_prefix("/v1/charges/") {
            Some("echo") => streamed(parts, body),
            Some("drip") => drip(&query),
            Some("large") => large(query.number("bytes", 1 << 20).min(LARGE_MAX)),
            Some("trailers") => trailers(parts, token),
            Some("mirror") => mirror(parts, &query),
            Some("slow") => {
                tokio::time::sleep(query.millis("ms", 1_000)).await;
                told(parts, body, token).await
            }
            Some("stale") if self.is_first(&query.text("key"), &token.id) => unauthorised(&Refused::Stale),
            _ => told(parts, body, token).await,
        }
    }

    fn is_first(&self, key: &str, token: &str) -> bool {
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        stale.entry(key.to_owned()).or_insert_with(|| token.to_owned()) == token
    }
}

fn arrival(parts: &Parts, token: &Result<Token, Refused>) -> Arrival {
    let id = parts.headers.get("x-request-id").and_then(|value| value.to_str().ok()).unwrap_or_default();
    Arrival {
        id: id.to_owned(),
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        version: format!("{:?}", parts.version),
        caller: token.as_ref().ok().map(|token| token.caller.clone()),
        authorizations: parts.headers.get_all(header::AUTHORIZATION).iter().count(),
        grant: token.as_ref().ok().map(|token| token.id.clone()),
        signature: token.as_ref().ok().map(|token| token.signature.clone()),
        refused: token.as_ref().err().map(ToString::to_string),
    }
}

/// Who was seen, with what, and what was asked.
async fn told(parts: &Parts, body: Incoming, token: &Token) -> Response<Body> {
    let length = match body.collect().await {
        Ok(body) => body.to_bytes().len(),
        Err(_) => return plain(StatusCode::BAD_REQUEST, json!({ "error": "the body broke off" })),
    };
    log(&format!(
        "{} {} by {} with a token that lives {} s, {} s left",
        parts.method,
        parts.uri.path(),
        token.caller,
        token.lifetime,
        token.seconds_left
    ));
    plain(
        StatusCode::OK,
        json!({
            "caller": token.caller,
            "tokenLifetimeSeconds": token.lifetime,
            "tokenSecondsLeft": token.seconds_left,
            "tokenId": token.id,
            "httpVersion": format!("{:?}", parts.version),
            "method": parts.method.as_str(),
            "path": parts.uri.path(),
            "bodyBytes": length,
            "claims": token.claims,
            "headers": names(&parts.headers),
        }),
    )
}

/// The request's header, for tests, without values that are nobody's business.
fn names(headers: &HeaderMap) -> BTreeMap<String, String> {
    headers
        .iter()
        .filter(|(name, _)| *name != header::AUTHORIZATION)
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

/// The request's body, sent back while it arrives; its trailers too.
fn streamed(parts: &Parts, body: Incoming) -> Response<Body> {
    let mut response = Response::new(body.boxed());
    if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    response
}

fn drip(query: &Query) -> Response<Body> {
    let (chunks, pause) = (query.number("chunks", 10).min(10_000), query.millis("every_ms", 100));
    let chunk = Bytes::from(vec![b'.'; query.number("size", 16).min(CHUNK as u64) as usize]);
    let (mut sender, body) = Channel::<Bytes, hyper::Error>::new(1);
    tokio::spawn(async move {
        for _ in 0..chunks {
            if sender.send_data(chunk.clone()).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    });
    let mut response = Response::new(body.boxed());
    if let Some(kind) = query.0.get("type").and_then(|kind| HeaderValue::try_from(kind).ok()) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

fn large(mut left: u64) -> Response<Body> {
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    let (mut sender, body) = Channel::<Bytes, hyper::Error>::new(2);
    let length = left;
    tokio::spawn(async move {
        while left > 0 {
            let size = left.min(CHUNK as u64);
            if sender.send_data(chunk.slice(..size as usize)).await.is_err() {
                return;
            }
            left -= size;
        }
    });
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

fn trailers(parts: &Parts, token: &Token) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("0badcafe"));
    let text = json!({ "caller": token.caller, "path": parts.uri.path() }).to_string();
    // Of unknown length: HTTP/1.1 has trailers only in a chunked body.
    let (mut sender, body) = Channel::<Bytes, hyper::Error>::new(1);
    tokio::spawn(async move {
        let _ = sender.send_data(Bytes::from(text)).await;
        let _ = sender.send_trailers(trailers).await;
    });
    let mut response = Response::new(body.boxed());
    // HTTP/1.1 sends only trailers that are announced.
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-checksum"));
    response
}

/// Sends the caller's credential back, as careless services do: in a header, a trailer, or the body, whole or `split`
/// into pieces of this many bytes.
fn mirror(parts: &Parts, query: &Query) -> Response<Body> {
    let sent = parts.headers.get(header::AUTHORIZATION).cloned();
    let Some(sent) = sent else { return plain(StatusCode::OK, json!({})) };
    let how = query.text("how");
    let text = format!("data: you sent {}\n\n", String::from_utf8_lossy(sent.as_bytes()));
    let text = Bytes::from(text.repeat(if how == "sse" { 3 } else { 1 }));
    if how == "length" {
        return Response::new(Full::new(text).map_err(|never| match never {}).boxed());
    }
    let split = query.number("split", 7).max(1) as usize;
    let trailers = (how == "trailers")
        .then(|| HeaderMap::from_iter([(HeaderName::from_static("x-echo"), sent.clone())]));
    let (mut sender, body) = Channel::<Bytes, hyper::Error>::new(1);
    tokio::spawn(async move {
        for piece in text.chunks(split) {
            if sender.send_data(Bytes::copy_from_slice(piece)).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        if let Some(trailers) = trailers {
            let _ = sender.send_trailers(trailers).await;
        }
    });
    let mut response = Response::new(body.boxed());
    let headers = response.headers_mut();
    match how.as_str() {
        "header" => drop(headers.insert("x-echo", sent)),
        "sse" => drop(headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))),
        "trailers" => drop(headers.insert(header::TRAILER, HeaderValue::from_static("x-echo"))),
        "encoded" => drop(headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))),
        _ => {}
    }
    response
}

/// RFC 6750 §3: the challenge, and the reason if a token was there.
fn unauthorised(refused: &Refused) -> Response<Body> {
    let challenge = match refused {
        Refused::Missing => "Bearer realm=\"payments\"".to_owned(),
        other => format!("Bearer realm=\"payments\", error=\"invalid_token\", error_description=\"{other}\""),
    };
    let mut response = plain(StatusCode::UNAUTHORIZED, json!({ "error": refused.to_string() }));
    if let Ok(challenge) = HeaderValue::from_str(&challenge) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

fn plain(status: StatusCode, value: serde_json::Value) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{value}\n"))).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The query's parameters: plain words and numbers, nothing encoded.
struct Query(BTreeMap<String, String>);

impl Query {
    fn of(parts: &Parts) -> Self {
        let pairs = parts.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    fn text(&self, key: &str) -> String {
        self.0.get(key).cloned().unwrap_or_default()
    }

    fn number(&self, key: &str, default: u64) -> u64 {
        self.0.get(key).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    fn millis(&self, key: &str, default: u64) -> Duration {
        Duration::from_millis(self.number(key, default).min(WAIT_MAX_MS))
    }
}
