//! The webhook's door: only reviews of an API server are served, nobody else learns or changes anything, and its
//! certificate changes while it serves.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use control::kubernetes::webhook::certificate::{Files, Shown, certified};
use control::kubernetes::webhook::injection::Injection;
use control::kubernetes::webhook::metrics::Metrics;
use control::kubernetes::webhook::namespaces::Namespaces;
use control::kubernetes::webhook::{door, review};
use kube::Client;
use kube::core::admission::AdmissionResponse;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tower::ServiceExt as _;

use common::settings;

const CANARY: &str = "canary-7f3a";

fn real_review() -> Value {
    let path = "../../tests/golden/kubernetes/admissionreview/002-CREATE-pods-bare-bare.json";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A webhook that admits everything.
fn admits() -> Router {
    Router::new().route("/inject", review::route(|request| async move { AdmissionResponse::from(&request) }))
}

async fn ask(router: Router, method: &str, path: &str, kind: &str, body: Vec<u8>) -> (StatusCode, String) {
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let answer = router.oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let status = answer.status();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn what_no_api_server_sends_gets_a_fixed_text() {
    const JSON: &str = "application/json";
    let with = |change: &dyn Fn(&mut Value)| {
        let mut review = real_review();
        review["request"]["object"]["metadata"]["name"] = json!(CANARY);
        change(&mut review);
        review.to_string().into_bytes()
    };
    let good = || with(&|_| {});
    let large = || with(&|review| review["request"]["object"]["x"] = json!("x".repeat(review::REVIEW_MAX)));
    let cases: [(&str, &str, &str, Vec<u8>, u16); 12] = [
        ("GET", "/inject", JSON, good(), 405),
        ("POST", "/", JSON, good(), 404),
        ("POST", "/inject/x", JSON, good(), 404),
        ("POST", "/inject", "text/plain", good(), 415),
        ("POST", "/inject", "application/yaml", good(), 415),
        ("POST", "/inject", JSON, CANARY.into(), 400),
        (
            "POST",
            "/inject",
            JSON,
            with(&|review| review["apiVersion"] = json!("admission.k8s.io/v1beta1")),
            400,
        ),
        ("POST", "/inject", JSON, with(&|review| review["kind"] = json!("Pod")), 400),
        (
            "POST",
            "/inject",
            JSON,
            with(&|review| drop(review.as_object_mut().unwrap().remove("request"))),
            400,
        ),
        ("POST", "/inject", JSON, with(&|review| review["request"]["uid"] = json!("")), 400),
        ("POST", "/inject", JSON, with(&|review| review["request"]["operation"] = json!("EXPLODE")), 400),
        ("POST", "/inject", JSON, large(), 413),
    ];
    for (method, path, kind, body, status) in cases {
        let (got, text) = ask(admits(), method, path, kind, body).await;
        assert_eq!(got.as_u16(), status, "{method} {path} {kind}: {text}");
        assert!(!text.contains(CANARY) && text.len() < 100, "{text}");
    }
    let (status, answer) = ask(admits(), "POST", "/inject", "application/json; charset=utf-8", good()).await;
    assert_eq!(status, 200);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["response"]["uid"], real_review()["request"]["uid"]);
}

/// The part of an API server that the webhook asks: one namespace. What it was asked is recorded.
fn cluster(asked: &Arc<Mutex<Vec<String>>>) -> Client {
    let asked = asked.clone();
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (path, query) =
            (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
        asked.lock().unwrap().push(format!("{} {path}", request.method()));
        let labels = json!({ "countersign.dev/inject": "enabled", "team": CANARY });
        let metadata = json!({ "name": "bare", "resourceVersion": "1", "labels": labels });
        let list = "meta.k8s.io/v1";
        let (status, body) = match path.as_str() {
            _ if query.contains("watch=true") => {
                (200, Body::from_stream(tokio_stream::pending::<Result<Vec<u8>, std::io::Error>>()))
            }
            "/api/v1/namespaces" => {
                let items =
                    json!([{ "apiVersion": list, "kind": "PartialObjectMetadata", "metadata": metadata }]);
                let list = json!({ "apiVersion": list, "kind": "PartialObjectMetadataList", "metadata": { "resourceVersion": "1" }, "items": items });
                (200, Body::from(list.to_string()))
            }
            _ => {
                let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "message": "not found", "code": 404 });
                (404, Body::from(status.to_string()))
            }
        };
        let answer = Response::builder().status(status).header("content-type", "application/json").body(body);
        async move { Ok::<_, std::convert::Infallible>(answer.unwrap()) }
    });
    Client::new(service, "countersign")
}

#[tokio::test]
async fn whoever_calls_it_learns_nothing_of_the_cluster_and_changes_nothing_there() {
    let asked = Arc::default();
    let namespaces = Namespaces::watch(cluster(&asked));
    namespaces.known().await.unwrap();
    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    let settings = tokio::sync::watch::channel(Arc::new(settings())).1;
    let injection = Injection { settings, namespaces, metrics };
    let router =
        Router::new().route("/inject", review::route(move |request| injection.clone().answer(request)));
    let mut bodies = Vec::new();
    for (namespace, dry_run) in [("bare", false), ("bare", true), ("nowhere", false), ("kube-system", false)]
    {
        let mut review = real_review();
        review["request"]["namespace"] = json!(namespace);
        review["request"]["dryRun"] = json!(dry_run);
        let (status, body) =
            ask(router.clone(), "POST", "/inject", "application/json", review.to_string().into_bytes()).await;
        assert_eq!(status, 200);
        assert!(!body.contains(CANARY), "what a namespace's labels say beside is not told: {body}");
        bodies.push(serde_json::from_str::<Value>(&body).unwrap()["response"].take());
    }
    assert_eq!(bodies[0]["allowed"], true);
    assert_eq!(bodies[0], bodies[1], "a dry run is answered as any other");
    // What is not there, and what can't be asked for, look the same.
    assert_eq!(bodies[2]["allowed"], false);
    assert_eq!(bodies[2]["status"], bodies[3]["status"]);
    let written: Vec<String> =
        asked.lock().unwrap().iter().filter(|request| !request.starts_with("GET ")).cloned().collect();
    assert!(written.is_empty(), "{written:?}");

    let counted: BTreeMap<String, f64> = registry
        .gather()
        .iter()
        .filter(|family| family.name() == "countersign_webhook_admissions_total")
        .flat_map(|family| family.get_metric())
        .map(|metric| {
            let labels: Vec<&str> = metric.get_label().iter().map(|label| label.value()).collect();
            (labels.join(" "), metric.get_counter().get_value())
        })
        .collect();
    let expected = [("injected false ", 1.0), ("injected true ", 1.0), ("refused false namespace", 2.0)];
    assert_eq!(counted, expected.map(|(labels, count)| (labels.to_owned(), count)).into());
}

fn nothing_shown() -> Arc<Shown> {
    Arc::new(Shown::new(prometheus::IntGauge::new("expires", "When it ends.").unwrap()))
}

/// A CA, and certificates by it.
struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::from_ca_cert_der(&root, key).unwrap(), root }
    }

    fn leaf(&self, name: &str) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().der().clone(), key)
    }
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

/// A call over TLS of its own; with the certificate that was shown.
async fn call(
    address: SocketAddr,
    authority: &Authority,
    certificate: Option<(CertificateDer<'static>, KeyPair)>,
) -> anyhow::Result<(CertificateDer<'static>, String)> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.root.clone())?;
    let builder = ClientConfig::builder_with_provider(service::tls_provider::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match certificate {
        None => builder.with_no_client_auth(),
        Some((leaf, key)) => builder.with_client_auth_cert(vec![leaf], private(&key))?,
    };
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("hook.countersign.svc")?;
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let body = real_review().to_string();
    let head = format!(
        "POST /inject?timeout=5s HTTP/1.1\r\nHost: hook\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    anyhow::ensure!(!answer.is_empty(), "no answer");
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    Ok((shown, String::from_utf8(answer)?))
}

/// A door that admits everything.
async fn serve(
    shown: Arc<Shown>,
    clients: Option<&[CertificateDer<'static>]>,
) -> (SocketAddr, service::drain::Drain) {
    serve_router(admits(), shown, clients).await
}

/// A door with this router.
async fn serve_router(
    router: Router,
    shown: Arc<Shown>,
    clients: Option<&[CertificateDer<'static>]>,
) -> (SocketAddr, service::drain::Drain) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (drain, watch) = service::drain::new();
    let tls = door::tls(shown, clients).unwrap();
    tokio::spawn(door::serve(listener, tls, router, watch));
    (address, drain)
}

#[tokio::test]
async fn the_certificate_changes_while_it_serves_and_what_does_not_fit_changes_nothing() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let files =
        Files { certificate: directory.path().join("tls.crt"), key: directory.path().join("tls.key") };
    let write = |(leaf, key): &(CertificateDer<'static>, KeyPair)| {
        std::fs::write(&files.certificate, service::roots::to_pem(leaf)).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
    };
    let (first, second) = (authority.leaf("hook.countersign.svc"), authority.leaf("hook.countersign.svc"));
    write(&first);
    let shown = nothing_shown();
    shown.replace(files.read().unwrap());
    let (address, _drain) = serve(shown.clone(), None).await;
    let (certificate, answer) = call(address, &authority, None).await.unwrap();
    assert_eq!(certificate, first.0);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    std::fs::write(&files.certificate, service::roots::to_pem(&second.0)).unwrap();
    let error = files.read().unwrap_err();
    assert!(format!("{error:#}").contains("do not fit"), "{error:#}");
    assert_eq!(call(address, &authority, None).await.unwrap().0, first.0);
    write(&second);
    assert!(shown.replace(files.read().unwrap()));
    assert!(!shown.replace(files.read().unwrap()), "it is the same one");
    assert_eq!(call(address, &authority, None).await.unwrap().0, second.0);
}

#[tokio::test]
async fn with_a_client_ca_only_an_api_server_that_it_vouches_for_is_answered() {
    let (authority, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let (leaf, key) = authority.leaf("hook.countersign.svc");
    let shown = nothing_shown();
    shown.replace(certified(vec![leaf], private(&key)).unwrap());
    let (address, _drain) = serve(shown, Some(&[clients.root.clone()])).await;
    assert!(call(address, &authority, None).await.is_err());
    assert!(call(address, &authority, Some(others.leaf("kube-apiserver"))).await.is_err());
    let (_, answer) = call(address, &authority, Some(clients.leaf("kube-apiserver"))).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn what_is_open_when_it_is_told_to_end_is_answered() {
    let authority = Authority::new();
    let (leaf, key) = authority.leaf("hook.countersign.svc");
    let shown = nothing_shown();
    shown.replace(certified(vec![leaf], private(&key)).unwrap());
    let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, wait) = (asked.clone(), answer.clone());
    let slow = review::route(move |request| {
        let (told, wait) = (told.clone(), wait.clone());
        async move {
            told.notify_one();
            wait.notified().await;
            AdmissionResponse::from(&request)
        }
    });
    let (address, drain) = serve_router(Router::new().route("/inject", slow), shown, None).await;
    let open = tokio::spawn(async move { call(address, &authority, None).await });
    asked.notified().await;
    drain.start();
    drain.finish();
    answer.notify_one();
    let (_, said) = open.await.unwrap().unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
}

#[test]
fn an_argument_of_the_proxy_that_injection_sets_itself_is_refused_at_the_start() {
    for (arg, because) in [
        ("--health=0.0.0.0:1", "--proxy-arg: --health is set by injection itself"),
        ("max-headers", "--NAME=VALUE"),
    ] {
        let fingerprint = format!("--control-fingerprint=sha256:{}", "0".repeat(64));
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_countersign-control"))
            .env_clear()
            .args(["webhook", "--proxy-image=proxy:1", "--control=https://control:8440", &fingerprint])
            .args(["--proxy-arg=--max-header-kib=128", "--proxy-arg", arg])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(because), "{said}");
    }
}
