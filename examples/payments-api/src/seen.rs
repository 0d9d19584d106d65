//! What has reached the service, for tests: `/__seen` on a plain loopback port.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpListener;

/// Requests that are kept, newest last. The counts go on beyond it.
const KEPT_MAX: usize = 100_000;

/// One request, as it arrived.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Arrival {
    /// From `x-request-id`; empty if there was none.
    pub(crate) id: String,
    /// GET.
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub(crate) version: String,
    /// The token's `sub`, if the token was taken.
    pub(crate) caller: Option<String>,
    /// How many `authorization` fields it had.
    pub(crate) authorizations: usize,
    /// The token's `jti`, if it was taken.
    pub(crate) grant: Option<String>,
    /// The token's signature, useless without the rest: what a search of the caller's memory looks for.
    pub(crate) signature: Option<String>,
    /// Why the token was not taken.
    pub(crate) refused: Option<String>,
}

#[derive(Debug, Default)]
struct Log {
    count: u64,
    authorised: u64,
    greeted: u64,
    requests: VecDeque<Arrival>,
}

/// The log of requests.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Log>);

impl Seen {
    /// Notes a request, before it is answered.
    pub(crate) fn note(&self, request: Arrival) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.count += 1;
        log.authorised += u64::from(request.caller.is_some());
        if log.requests.len() == KEPT_MAX {
            log.requests.pop_front();
        }
        log.requests.push_back(request);
    }

    /// Notes a connection to the port that speaks first.
    pub(crate) fn note_greeting(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).greeted += 1;
    }

    fn json(&self, with_requests: bool) -> Vec<u8> {
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut value =
            serde_json::json!({ "count": log.count, "authorised": log.authorised, "greeted": log.greeted });
        if with_requests {
            value["requests"] = serde_json::json!(log.requests);
        }
        value.to_string().into_bytes()
    }

    fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Log::default();
    }
}

/// Serves `/__seen` (GET: counts and requests; DELETE: start anew) and `/__seen/count` until the program ends.
pub(crate) async fn serve(listener: TcpListener, seen: Arc<Seen>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let seen = seen.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(request.method(), request.uri().path(), &seen);
                async move { Ok::<_, Infallible>(response) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(method: &Method, path: &str, seen: &Seen) -> Response<Full<Bytes>> {
    let (status, body) = match (method, path) {
        (&Method::GET, "/__seen") => (StatusCode::OK, seen.json(true)),
        (&Method::GET, "/__seen/count") => (StatusCode::OK, seen.json(false)),
        (&Method::DELETE, "/__seen") => {
            seen.clear();
            (StatusCode::OK, seen.json(false))
        }
        _ => (StatusCode::NOT_FOUND, b"{}".to_vec()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
