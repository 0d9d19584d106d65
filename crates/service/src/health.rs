//! Health and metrics, and nothing else: `/livez`, `/readyz`, `/metrics`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus::{Encoder as _, IntGauge, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;

/// What keeps the program from being ready, by name. Ready when nothing is left.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Held>>>, Arc<Mutex<String>>);

/// How many hold on to a name, and why it takes so long, if that is known.
#[derive(Debug, Default)]
struct Held {
    count: usize,
    reason: String,
}

/// One reason not to be ready; let go by dropping it.
#[derive(Debug)]
pub struct Blocker {
    readiness: Readiness,
    name: &'static str,
}

impl Readiness {
    /// Not ready until the blocker is dropped. Its name is what the probe prints.
    #[must_use]
    pub fn block(&self, name: &'static str) -> Blocker {
        self.held().entry(name).or_default().count += 1;
        Blocker { readiness: self.clone(), name }
    }

    /// Says something beside being ready or not, from now on; nothing if empty.
    pub fn note(&self, text: &str) {
        text.clone_into(&mut self.1.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn noted(&self) -> String {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is still missing.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.held().keys().copied().collect()
    }

    /// The same for people: each with why, where that is known.
    fn missing(&self) -> String {
        let said = |(name, held): (&&str, &Held)| match held.reason.as_str() {
            "" => (*name).to_owned(),
            reason => format!("{name} ({reason})"),
        };
        self.held().iter().map(said).collect::<Vec<_>>().join(", ")
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blocker {
    /// Why it takes so long, as of now: what was tried last and went wrong. The probe prints it; no secret may be in it.
    pub fn because(&self, reason: &str) {
        if let Some(held) = self.readiness.held().get_mut(self.name) {
            reason.clone_into(&mut held.reason);
        }
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        let mut held = self.readiness.held();
        if let Some(left) = held.get_mut(self.name) {
            left.count -= 1;
            if left.count == 0 {
                held.remove(self.name);
            }
        }
    }
}

/// A registry that says which version this is.
///
/// # Errors
/// If the metric's name or label is no valid one.
pub fn registry() -> Result<Registry, prometheus::Error> {
    let registry = Registry::new();
    let build = Opts::new("countersign_build_info", "Always 1; its label says which version this is.");
    let build = IntGauge::with_opts(build.const_label("version", env!("CARGO_PKG_VERSION")))?;
    build.set(1);
    registry.register(Box::new(build))?;
    Ok(registry)
}

/// Connections at a time; a probe needs one.
const CONNECTIONS_MAX: usize = 64;

/// Serves until the program ends.
///
/// # Errors
/// If the address can't be listened on.
pub async fn serve(address: SocketAddr, readiness: Readiness, registry: Registry) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (readiness, registry) = (readiness.clone(), registry.clone());
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(request.method(), request.uri().path(), &readiness, &registry);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(hyper_util::rt::TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(5))
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(std::time::Duration::from_secs(60), connection).await;
        });
    }
}

fn answer(method: &Method, path: &str, readiness: &Readiness, registry: &Registry) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match path {
        "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match readiness.pending().as_slice() {
            [] if readiness.noted().is_empty() => text(StatusCode::OK, "ok\n".to_owned()),
            [] => text(StatusCode::OK, format!("ok; {}\n", readiness.noted())),
            _ => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", readiness.missing())),
        },
        "/metrics" => {
            let mut rendered = Vec::new();
            match TextEncoder::new().encode(&registry.gather(), &mut rendered) {
                Ok(()) => response(StatusCode::OK, "text/plain; version=0.0.4", rendered),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "there is /livez, /readyz and /metrics\n".to_owned()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", body.into_bytes())
}

fn response(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_names_what_is_missing() {
        let (readiness, registry) = (Readiness::default(), registry().unwrap());
        let status = |path| answer(&Method::GET, path, &readiness, &registry).status();
        assert_eq!(status("/readyz"), StatusCode::OK);
        let bundle = readiness.block("trust bundle");
        let policy = readiness.block("first policy");
        assert_eq!(readiness.pending(), ["first policy", "trust bundle"]);
        assert_eq!(status("/readyz"), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status("/livez"), StatusCode::OK);
        policy.because("the control plane can't be reached");
        assert_eq!(readiness.missing(), "first policy (the control plane can't be reached), trust bundle");
        policy.because("");
        assert_eq!(readiness.missing(), "first policy, trust bundle");
        let again = readiness.block("first policy");
        drop((bundle, policy));
        assert_eq!(
            readiness.pending(),
            ["first policy"],
            "whoever let go first does not let go for the other"
        );
        drop(again);
        assert_eq!(status("/readyz"), StatusCode::OK);
        assert_eq!(status("/debug"), StatusCode::NOT_FOUND);
        assert_eq!(
            answer(&Method::POST, "/livez", &readiness, &registry).status(),
            StatusCode::METHOD_NOT_ALLOWED
        );
    }
}
