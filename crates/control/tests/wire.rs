//! What proxies of earlier releases sent is sent again, byte for byte but for what is signed or expires, and today's
//! control plane answers what they understand: an upgrade leaves running pods as they are (tests/golden/wire/README.md).

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "common/served.rs"]
mod served;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use axum::http::{Request, Response};
use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use control::now;
use control::services::ProxyServices;
use http_body_util::BodyExt as _;
use model::slice::{Block, BlockTarget, Bypass};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tests::grpc::{self, Client};
use tests::recorded::{Conversation, Message, Release, Value};
use tonic::body::Body;
use wire::v1::control_plane_server::ControlPlaneServer;

use served::{AUDIENCE, ControlPlane, SOON};

/// What is signed at an attestation, before the nonce; of 0.1.0.
const CONTEXT: &[u8] = b"countersign attest v1\0";

/// What of a slice comes with the moment of the recording; `cedar` may say the same in other words.
const LIVE: [&str; 10] = [
    "epoch:",
    "revision:",
    "issued_at_ms:",
    "expires_at_ms:",
    "cedar:",
    "ca_bundle:",
    "attributes[\"claim.iss\"]",
    "attributes[\"claim.iat\"]",
    "attributes[\"claim.nbf\"]",
    "attributes[\"claim.exp\"]",
];

fn bytes(value: impl Into<Bytes>) -> Value {
    Value::Bytes(value.into())
}

/// A proxy of a release: a key, a channel, and what it said.
struct OldProxy<'a> {
    release: &'a Release,
    control: &'a ControlPlane,
    key: KeyPair,
    certificates: Vec<CertificateDer<'static>>,
}

impl<'a> OldProxy<'a> {
    fn new(release: &'a Release, control: &'a ControlPlane) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        Self { release, control, key, certificates: Vec::new() }
    }

    async fn connect(&self) -> Client {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.control.authority.now().roots()[0].clone()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(service::tls_provider::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let config = if self.certificates.is_empty() {
            builder.with_no_client_auth()
        } else {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
            builder.with_client_auth_cert(self.certificates.clone(), key).unwrap()
        };
        Client::connect(self.control.address, "countersign-control", config).await.unwrap()
    }

    fn said(&self, name: &str) -> Conversation {
        self.release.conversation(name).unwrap()
    }

    fn request(&self, said: &Conversation, number: usize) -> Message {
        self.release.message(&said.path, "request", &said.requests[number - 1]).unwrap()
    }

    /// An answer of today, as the release reads it.
    fn read(&self, said: &Conversation, answer: &[u8]) -> Message {
        self.release.message(&said.path, "answer", answer).unwrap()
    }

    /// Attests as it was recorded, with this evidence: live are the clock, the evidence, and what its key has signed.
    async fn attest(&self, name: &str, evidence: &str) -> Result<Message, grpc::Fields> {
        let said = self.said(name);
        let mut hello = self.request(&said, 1);
        hello.set("hello.now_ms", Value::I64(now().0));
        let mut call = self.connect().await.call(&said.path, &said.headers, hello.bytes()).await.unwrap();
        let challenge = self.read(&said, &call.next().await.unwrap().unwrap());
        let nonce = challenge.get("challenge.nonce").as_bytes().unwrap().clone();
        assert_eq!(nonce.len(), 32);
        assert!((challenge.get("challenge.now_ms").as_i64().unwrap() - now().0).abs() < 60_000);
        let private = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, self.key.serialized_der());
        let signature = private.unwrap().sign(&SystemRandom::new(), &[CONTEXT, &nonce].concat()).unwrap();
        let csr = CertificateParams::default().serialize_request(&self.key).unwrap().der().to_vec();
        let mut proof = self.request(&said, 2);
        proof.set("proof.evidence", bytes(evidence.to_owned()));
        proof.set("proof.csr", bytes(csr));
        proof.set("proof.signature", bytes(signature.as_ref().to_vec()));
        call.send(proof.bytes()).await.unwrap();
        match call.next().await.unwrap() {
            Some(session) => Ok(self.read(&said, &session)),
            None => Err(call.end().clone()),
        }
    }
}

/// The lines of a message's text, without what comes with the moment.
fn lasting(message: &Message) -> String {
    let text = message.text();
    let lasts = |line: &&str| !LIVE.iter().any(|live| line.trim_start().starts_with(live));
    text.lines().filter(lasts).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_of_an_earlier_release_goes_on_under_this_control_plane() {
    for release in Release::all().unwrap() {
        tokio::time::timeout(SOON, goes_on(&release)).await.expect("an answer is missing");
    }
}

async fn goes_on(release: &Release) {
    let control = ControlPlane::start(|services| services).await;
    block_the_database(&control).await;
    let mut proxy = OldProxy::new(release, &control);
    is_refused_for_another_audience(&proxy).await;
    is_attested(&mut proxy).await;
    let watch = watches(&proxy).await;

    let grant = is_given_a_credential(&proxy).await;
    reports(&proxy).await;
    is_told_of_a_revocation(&proxy, watch, &grant).await;
}

async fn is_refused_for_another_audience(proxy: &OldProxy<'_>) {
    let said = proxy.said("attest-refused");
    let refused = proxy.attest("attest-refused", &proxy.control.evidence.token("another")).await.unwrap_err();
    let field = |fields: &grpc::Fields, name: &str| {
        fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    for name in ["grpc-status", "countersign-code"] {
        assert_eq!(field(&refused, name), field(&said.end, name), "{refused:?}");
    }
    assert!(field(&refused, "grpc-message").is_some_and(|sentence| !sentence.is_empty()));
}

async fn is_attested(proxy: &mut OldProxy<'_>) {
    let said = proxy.said("attest");
    let session = proxy.attest("attest", &proxy.control.evidence.token(AUDIENCE)).await.unwrap();
    let recorded = proxy.read(&said, &said.answers[1]);
    for name in ["spiffe_id", "namespace"] {
        let path = format!("session.caller.{name}");
        assert_eq!(session.text_of(&path), recorded.text_of(&path));
    }
    assert_eq!(session.text_of("session.instance"), recorded.text_of("session.instance"));
    let life = |name: &str| session.get(&format!("session.{name}")).as_i64().unwrap() - now().0;
    assert!(life("not_before_ms") < 0 && life("not_after_ms") > 3_000_000);
    assert_eq!(session.get("session.fingerprint_key").as_bytes().unwrap().len(), 32);
    let root = session.get("session.bundle.roots").as_list().unwrap()[0].as_bytes().unwrap().clone();
    assert_eq!(root, proxy.control.authority.now().roots()[0].as_ref());
    let chain = session.get("session.certificates");
    proxy.certificates = chain
        .as_list()
        .unwrap()
        .iter()
        .map(|der| CertificateDer::from(der.as_bytes().unwrap().to_vec()))
        .collect();
}

/// Live are the versions, which are this store's.
async fn watches(proxy: &OldProxy<'_>) -> grpc::Call {
    let said = proxy.said("watch");
    let start = proxy.request(&said, 1);
    let mut call = proxy.connect().await.call(&said.path, &said.headers, start.bytes()).await.unwrap();
    let slice = loop {
        let answer = proxy.read(&said, &call.next().await.unwrap().unwrap());
        if answer.has("slice") {
            break answer;
        }
    };
    let recorded = said.answers.iter().map(|answer| proxy.read(&said, answer));
    let recorded = recorded.into_iter().find(|answer| answer.has("slice")).unwrap();
    assert_eq!(lasting(&without_hash(slice.clone())), lasting(&without_hash(recorded)));
    assert_eq!(slice.get("slice.hash").as_bytes().unwrap().len(), 32);
    for number in 2..=said.requests.len() {
        let mut message = proxy.request(&said, number);
        if message.has("ack") {
            message.set("ack.version", slice.get("slice.slice.version"));
        }
        call.send(message.bytes()).await.unwrap();
        if message.has("redirect") {
            let found = message.text_of("redirect.state");
            until(|| proxy.control.proxies.all()[0].redirect.state.as_str() == found).await;
        }
    }
    let known = || proxy.control.proxies.all().remove(0);
    until(|| known().running.revision > 0 && known().running == known().wanted).await;
    assert_eq!((known().refused.as_str(), known().program), ("", start.text_of("start.proxy_version")));
    call
}

fn without_hash(mut update: Message) -> Message {
    update.set("slice.hash", bytes(Bytes::new()));
    update
}

/// Live is the version under which the proxy decided.
async fn is_given_a_credential(proxy: &OldProxy<'_>) -> String {
    let said = proxy.said("issue");
    let mut request = proxy.request(&said, 1);
    let version = wire::v1::Version::from(proxy.control.proxies.all()[0].running);
    request.set("version.epoch", Value::U64(version.epoch));
    request.set("version.revision", Value::U64(version.revision));
    let mut call = proxy.connect().await.ask(&said.path, &said.headers, request.bytes()).await.unwrap();
    let answer = call.next().await.unwrap().unwrap_or_else(|| panic!("no credential: {:?}", call.end()));
    let answer = proxy.read(&said, &answer);
    let recorded = proxy.read(&said, &said.answers[0]);
    let claims = |answer: &Message| -> serde_json::Value {
        let credential = String::from_utf8(answer.get("credential").as_bytes().unwrap().to_vec()).unwrap();
        let claims = credential.split('.').nth(1).unwrap().to_owned();
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
        serde_json::from_slice(&claims).unwrap()
    };
    let (made, kept) = (claims(&answer), claims(&recorded));
    for name in ["iss", "sub", "aud", "team"] {
        assert!(!made[name].is_null() && made[name] == kept[name], "{name}: {made} {kept}");
    }
    let grant = answer.text_of("grant");
    assert_eq!(made["jti"], grant);
    // Three minutes, as the policy says; less the second that a token's times are cut to, and the machine's haste.
    let lifetime = answer.get("lifetime_ms").as_u64().unwrap();
    assert!((100_000..=180_000).contains(&lifetime), "{lifetime}");
    assert_eq!(answer.get("expires_at_ms").as_i64().unwrap() / 1000, made["exp"].as_i64().unwrap());
    assert!(answer.get("provider_revision").as_u64().unwrap() > 0);
    assert_eq!(answer.get("version.revision").as_u64(), Some(version.revision));
    grant
}

/// Nothing is live: a stream of records says itself where it stands.
async fn reports(proxy: &OldProxy<'_>) {
    let said = proxy.said("report");
    let first = proxy.request(&said, 1);
    let mut call = proxy.connect().await.call(&said.path, &said.headers, first.bytes()).await.unwrap();
    for number in 2..=said.requests.len() {
        call.send(proxy.request(&said, number).bytes()).await.unwrap();
    }
    let last = proxy.read(&said, said.answers.last().unwrap());
    let (stream, wanted) = (first.text_of("stream"), last.get("stored").as_u64().unwrap());
    loop {
        let answer = call.next().await.unwrap().unwrap_or_else(|| panic!("not stored: {:?}", call.end()));
        let answer = proxy.read(&said, &answer);
        assert_eq!(answer.text_of("stream"), stream);
        if answer.get("stored").as_u64().unwrap() == wanted {
            break;
        }
    }
    let stored = proxy.control.store.stream_records(&stream, 0, 1000).await.unwrap();
    let sent = (1..=said.requests.len()).flat_map(|number| payloads(proxy, &proxy.request(&said, number)));
    assert_eq!(stored.len() as u64, wanted);
    assert_eq!(stored.into_iter().map(|stored| stored.payload).collect::<Vec<_>>(), sent.collect::<Vec<_>>());
}

/// The payloads of a report, as the release's definition says that they are put together.
fn payloads(proxy: &OldProxy<'_>, report: &Message) -> Vec<Vec<u8>> {
    let list = |value: Value| -> Vec<Vec<u8>> {
        value.as_list().unwrap().iter().map(|item| item.as_bytes().unwrap().to_vec()).collect()
    };
    let shapes: BTreeMap<u32, Vec<Vec<u8>>> = report
        .list_of("shapes")
        .iter()
        .map(|shape| (shape.get("number").as_u32().unwrap(), list(shape.get("pieces"))))
        .collect();
    let payload = |record: Vec<u8>| {
        let record = proxy.release.inner("countersign.v1.ShapedRecord", &record).unwrap();
        let mut parts = list(record.get("parts")).into_iter();
        if !record.has("shape") {
            return parts.next().unwrap();
        }
        let pieces = &shapes[&record.get("shape").as_u32().unwrap()];
        pieces.iter().flat_map(|piece| [piece.clone(), parts.next().unwrap_or_default()].concat()).collect()
    };
    list(report.get("records")).into_iter().map(payload).collect()
}

async fn is_told_of_a_revocation(proxy: &OldProxy<'_>, mut watch: grpc::Call, grant: &str) {
    revoke(proxy.control, grant).await;
    let said = proxy.said("watch");
    loop {
        let answer = proxy.read(&said, &watch.next().await.unwrap().unwrap());
        if answer.has("revocations") && answer.get("revocations.serial").as_u64() == Some(1) {
            let grants = answer.get("revocations.grants");
            assert_eq!(
                grants.as_list().unwrap().iter().map(|id| id.as_str()).collect::<Vec<_>>(),
                [Some(grant)]
            );
            return;
        }
    }
}

async fn revoke(control: &ControlPlane, grant: &str) {
    let id = model::GrantId(grant.into());
    let revoked = control.store.revoke_grant(&id, now()).await.unwrap().unwrap();
    control.proxies.revoke(revoked.caller, id);
}

async fn block_the_database(control: &ControlPlane) {
    let target = BlockTarget::Destination("payments/database".parse().unwrap());
    let block = Block { id: "b-1".to_owned(), target, reason: "maintenance".to_owned() };
    let (_, _, version) = control.store.block(&block, "test", now()).await.unwrap();
    control::index::reached(&control.index, version).await.unwrap();
}

async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect("it did not come to pass");
}

// ---- The recording.

/// All calls that were heard, in order.
type Heard = Arc<Mutex<Vec<Arc<Mutex<Call>>>>>;

/// One, with its messages still in their frames.
#[derive(Default)]
struct Call {
    said: Conversation,
    requests: BytesMut,
    answers: BytesMut,
}

/// Hears what goes in and out of a service.
#[derive(Clone)]
struct Listening {
    inner: ControlPlaneServer<ProxyServices>,
    heard: Heard,
}

impl tonic::server::NamedService for Listening {
    const NAME: &'static str = <ControlPlaneServer<ProxyServices> as tonic::server::NamedService>::NAME;
}

impl tower::Service<Request<Body>> for Listening {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        tower::Service::<Request<Body>>::poll_ready(&mut self.inner, context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = Arc::new(Mutex::new(Call::default()));
        let (path, headers) = (request.uri().path().to_owned(), grpc::fields(request.headers()));
        call.lock().unwrap().said = Conversation { path, headers, ..Conversation::default() };
        self.heard.lock().unwrap().push(call.clone());
        let (asking, answering) = (call.clone(), call);
        let request = request.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let data = frame.data_ref().cloned().unwrap_or_default();
                asking.lock().unwrap().requests.extend_from_slice(&data);
                frame
            }))
        });
        let answer = tower::Service::call(&mut self.inner, request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let mut call = answering.lock().unwrap();
                    match frame.data_ref() {
                        Some(data) => call.answers.extend_from_slice(data),
                        None => {
                            call.said.end.extend(frame.trailers_ref().map(grpc::fields).unwrap_or_default())
                        }
                    }
                    drop(call);
                    frame
                }))
            }))
        })
    }
}

impl Call {
    fn said(&self) -> Conversation {
        let all = |bytes: &BytesMut| {
            let mut bytes = bytes.clone();
            std::iter::from_fn(move || grpc::next_of(&mut bytes)).collect()
        };
        Conversation { requests: all(&self.requests), answers: all(&self.answers), ..self.said.clone() }
    }
}

/// The port of the service in `golden/wire/documents.yaml`, and those of the proxy.
const SERVICE: u16 = 18_090;
const EXPLICIT: u16 = 18_091;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes tests/golden/wire/VERSION anew: for a release, and after a change before it; needs countersign-proxy built"]
async fn record() {
    let heard = Heard::default();
    let listening = heard.clone();
    let control = ControlPlane::start(|inner| Listening { inner, heard: listening }).await;
    block_the_database(&control).await;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(file("control-ca.pem"), control.authority.now().roots_pem()).unwrap();
    std::fs::write(file("token"), control.evidence.token("another")).unwrap();
    let log = directory.path().join("proxy.log");
    let args = [
        "serve".to_owned(),
        format!("--control=https://localhost:{}", control.address.port()),
        format!("--control-ca={}", file("control-ca.pem")),
        format!("--evidence-token={}", file("token")),
        "--evidence-kind=kubernetes".to_owned(),
        format!("--state={}", file("state")),
        format!("--spool={}", file("spool")),
        format!("--bundle={}", file("bundle.pem")),
        "--redirect=none".to_owned(),
        "--listen-port=18092".to_owned(),
        format!("--explicit-port={EXPLICIT}"),
        "--health=127.0.0.1:18093".to_owned(),
        "--trust-port=0".to_owned(),
    ];
    let program = tests::sandbox::programs().unwrap().join("countersign-proxy");
    let mut proxy = tests::sandbox::Inside::here(program).args(&args).start("proxy", &log).unwrap();
    let ended = |path: &str| {
        let calls = heard.lock().unwrap();
        let said = calls.iter().map(|call| call.lock().unwrap().said());
        said.filter(|said| said.path.ends_with(path) && !said.end.is_empty()).collect::<Vec<_>>()
    };
    until(|| !ended("/Attest").is_empty()).await;
    std::fs::write(file("token"), control.evidence.token(AUDIENCE)).unwrap();
    let known = || control.proxies.all().into_iter().next();
    until(|| known().is_some_and(|known| known.running.revision > 0)).await;

    answer_once().await;
    call_through_the_proxy().await;
    until(|| !ended("/Issue").is_empty()).await;
    let grant = {
        let live = control.store.live_grants(None, now()).await.unwrap();
        live[0].id.to_string()
    };
    let revision = control.index.now().version.revision;
    let until_ms = now().plus_secs(600);
    let bypass = Bypass {
        id: "y-1".to_owned(),
        workload: "payments/billing".parse().unwrap(),
        until: until_ms,
        reason: "incident 12".to_owned(),
    };
    control.store.bypass(&bypass, "test", now()).await.unwrap();
    until(|| known().is_some_and(|known| known.running.revision > revision)).await;
    revoke(&control, &grant).await;
    until(|| known().is_some_and(|known| known.revocations == 1)).await;
    assert_eq!(proxy.terminate(SOON).unwrap(), 0, "{}", proxy.tail());

    let proto =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/proto/countersign/v1/control_plane.proto");
    let release = Release::begin(env!("CARGO_PKG_VERSION"), &proto).unwrap();
    let mut kept = BTreeMap::new();
    for call in heard.lock().unwrap().iter() {
        let said = call.lock().unwrap().said();
        let refused = said.end.iter().any(|(name, value)| name == "grpc-status" && value != "0");
        let method = said.path.rsplit('/').next().unwrap().to_lowercase();
        let name = if refused { format!("{method}-refused") } else { method };
        kept.entry(name).or_insert(said);
    }
    assert_eq!(
        kept.keys().map(String::as_str).collect::<Vec<_>>(),
        ["attest", "attest-refused", "issue", "report", "watch"]
    );
    for (name, said) in &kept {
        release.keep(name, said).unwrap();
    }
}

/// The service, for one call.
async fn answer_once() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", SERVICE)).await.unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n").await;
        std::future::pending::<()>().await;
    });
}

async fn call_through_the_proxy() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", EXPLICIT)).await.unwrap();
    let request = format!(
        "GET http://localhost:{SERVICE}/v1/charges/1?page=2 HTTP/1.1\r\nhost: localhost:{SERVICE}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
