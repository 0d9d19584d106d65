//! What the control plane of an earlier release answered is answered again, byte for byte but for what is signed or
//! expires, and today's proxy takes it and says what that release understands: after a rollback the control plane is
//! older than the pods (tests/golden/wire/README.md).

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use model::audit::{Gap, What};
use model::redirect::Redirect;
use model::request::Action;
use model::slice::Egress;
use model::{Code, GrantId, RequestFacts, UnixMillis, Verdict};
use policy::Question;
use proxy::audit::Audit;
use proxy::caller::CallerState;
use proxy::credential::{self, Issuer as _, Key, Order};
use proxy::session::Session;
use proxy::session::attest::{self, Evidence};
use proxy::session::channel::{self, Address};
use proxy::session::run::SessionConfig;
use proxy::session::trust::Trust;
use proxy::socket::SocketOptions;
use proxy::state::StateDir;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tests::grpc::{self, Asked};
use tests::recorded::{Conversation, Message, Release, Value};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// Time for what happens at once on an idle machine.
const SOON: Duration = Duration::from_secs(60);

/// A control plane that says what a release said. Live are its roots, and the certificate for the key that asks.
struct OldControl {
    release: Release,
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// How often attestation is still refused.
    refusals: Mutex<u32>,
    /// What a proxy sent, by the release's own reading.
    heard: Mutex<Vec<Message>>,
    /// After this the rest of a watch is said.
    later: Notify,
    /// Whether the workload is gone: nothing is told it any more.
    gone: bool,
}

impl OldControl {
    async fn start(release: Release, gone: bool) -> (Arc<Self>, SocketAddr) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::from_ca_cert_der(&root, key).unwrap();
        let server_key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec!["countersign-control".to_owned()]).unwrap();
        let server = server.signed_by(&server_key, &issuer).unwrap().der().clone();
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
        let tls = rustls::ServerConfig::builder_with_provider(service::tls_provider::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![server], private)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (refusals, heard) = (Mutex::new(u32::from(!gone)), Mutex::default());
        let old = Arc::new(Self { release, root, issuer, refusals, heard, later: Notify::new(), gone });
        let answering = old.clone();
        let handler = move |asked| {
            let old = answering.clone();
            async move { old.answer(asked).await }
        };
        tokio::spawn(grpc::serve(listener, tls, handler));
        (old, address)
    }

    fn said(&self, name: &str) -> Conversation {
        self.release.conversation(name).unwrap()
    }

    fn answer_of(&self, said: &Conversation, number: usize) -> Message {
        self.release.message(&said.path, "answer", &said.answers[number - 1]).unwrap()
    }

    /// The next message of a proxy; what the release can't read is none.
    async fn hear(&self, asked: &mut Asked) -> Option<Message> {
        let bytes = asked.requests.next().await.ok().flatten()?;
        let message = self.release.message(&asked.path, "request", &bytes).unwrap();
        self.heard.lock().unwrap().push(message.clone());
        Some(message)
    }

    /// Calls that the release does not know are not answered.
    async fn answer(&self, asked: Asked) {
        let path = asked.path.clone();
        if path == self.said("attest").path {
            self.attest(asked).await;
        } else if path == self.said("watch").path {
            self.watch(asked).await;
        } else if path == self.said("issue").path {
            self.issue(asked).await;
        } else if path == self.said("report").path {
            self.report(asked).await;
        }
    }

    async fn attest(&self, mut asked: Asked) {
        let refuses = {
            let mut refusals = self.refusals.lock().unwrap();
            let refuses = *refusals > 0;
            *refusals = refusals.saturating_sub(1);
            refuses
        };
        let said = self.said(if refuses { "attest-refused" } else { "attest" });
        self.hear(&mut asked).await.unwrap();
        asked.answers.send(said.answers[0].clone()).await.unwrap();
        let Some(proof) = self.hear(&mut asked).await else { return };
        if refuses {
            asked.end.lock().unwrap().clone_from(&said.end);
            return;
        }
        let csr = proof.get("proof.csr").as_bytes().unwrap().to_vec();
        let csr = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        let leaf = csr.signed_by(&self.issuer).unwrap().der().to_vec();
        let mut session = self.answer_of(&said, 2);
        session.set("session.certificates", Value::List(vec![Value::Bytes(leaf.into())]));
        session.set("session.bundle.roots", self.roots());
        asked.answers.send(session.bytes()).await.unwrap();
    }

    async fn watch(&self, mut asked: Asked) {
        if self.gone {
            self.hear(&mut asked).await;
            let end = [("grpc-status", "7"), ("countersign-code", Code::WorkloadGone.as_str())];
            *asked.end.lock().unwrap() =
                end.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
            return;
        }
        let said = self.said("watch");
        let mut slices = 0;
        for number in 1..=said.answers.len() {
            if slices == 1 {
                while self.hear(&mut asked).await.is_some_and(|message| !acknowledges_a_version(&message)) {}
                self.later.notified().await;
            }
            let mut message = self.answer_of(&said, number);
            slices += u32::from(message.has("slice"));
            let bytes = if message.has("bundle") {
                message.set("bundle.roots", self.roots());
                message.bytes()
            } else {
                said.answers[number - 1].clone()
            };
            if asked.answers.send(bytes).await.is_err() {
                return;
            }
        }
        while self.hear(&mut asked).await.is_some() {}
    }

    async fn issue(&self, mut asked: Asked) {
        self.hear(&mut asked).await.unwrap();
        asked.answers.send(self.said("issue").answers[0].clone()).await.unwrap();
    }

    /// Live are the stream's name and the numbers in it.
    async fn report(&self, mut asked: Asked) {
        let said = self.said("report");
        while let Some(report) = self.hear(&mut asked).await {
            let records = report.get("records").as_list().unwrap().len() as u64;
            let mut answer = self.answer_of(&said, 1);
            answer.set("stream", report.get("stream"));
            answer.set("stored", Value::U64(report.get("first").as_u64().unwrap() + records - 1));
            asked.answers.send(answer.bytes()).await.unwrap();
        }
    }

    fn roots(&self) -> Value {
        Value::List(vec![Value::Bytes(self.root.to_vec().into())])
    }

    fn heard(&self, kind: &str) -> Vec<Message> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter(|message| message.kind().ends_with(kind)).cloned().collect()
    }

    /// What was acknowledged, as text.
    fn acknowledged(&self) -> Vec<String> {
        self.heard("WatchRequest").iter().filter(|said| said.has("ack")).map(Message::text).collect()
    }
}

fn acknowledges_a_version(message: &Message) -> bool {
    message.has("ack") && message.text().contains("version:")
}

/// A proxy's session, without the rest of the proxy.
struct Proxy {
    session: Arc<Session>,
    caller: Arc<CallerState>,
    audit: Audit,
    _found: tokio::sync::watch::Sender<Redirect>,
    directory: tempfile::TempDir,
}

fn log() -> service::telemetry::LogHandle {
    static LOG: OnceLock<service::telemetry::LogHandle> = OnceLock::new();
    LOG.get_or_init(|| service::telemetry::init("off", service::telemetry::Format::Text).unwrap()).clone()
}

impl Proxy {
    /// Not running yet, and with which settings it would.
    fn new(old: &OldControl, address: SocketAddr) -> (Self, impl Fn() -> SessionConfig) {
        service::tls_provider::install();
        let directory = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(&directory.path().join("state")).unwrap());
        let token = directory.path().join("token");
        std::fs::write(&token, "e30.e30.e30").unwrap();
        let trust = Arc::new(Trust::new(vec![old.root.clone()], None, &state).unwrap());
        let config = move || SessionConfig {
            address: Address::parse(&format!("https://localhost:{}", address.port())).unwrap(),
            trust: trust.clone(),
            evidence: Evidence { kind: "kubernetes", token: token.clone() },
            socket: SocketOptions { mark: None },
        };
        let (cache, _orders) = credential::cache();
        let caller = Arc::new(CallerState::new(Arc::new(cache)));
        let registry = prometheus::Registry::new();
        let audit = Audit::open(&directory.path().join("spool"), 8 << 20, false, &registry).unwrap();
        let (_found, redirect) = tokio::sync::watch::channel(Redirect::default());
        let session =
            Session::new(config(), caller.clone(), state, audit.clone(), log(), redirect, &registry).unwrap();
        (Self { session, caller, audit, _found, directory }, config)
    }

    async fn reports(&self) {
        self.audit.write(What::Gap(Gap { count: Some(1), reason: "torn_tail".to_owned() })).unwrap();
        until(|| self.audit.pending() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn this_proxy_works_under_the_control_plane_of_an_earlier_release() {
    for release in Release::all().unwrap() {
        tokio::time::timeout(2 * SOON, works_under(release)).await.expect("something did not come to pass");
    }
}

async fn works_under(release: Release) {
    let (old, address) = OldControl::start(release, false).await;
    let (proxy, config) = Proxy::new(&old, address);
    let (session, caller) = (&proxy.session, &proxy.caller);
    understands_a_refusal(&old, &config(), proxy.directory.path()).await;
    let running = tokio::spawn(session.clone().run());

    decides_by_the_policy(&old, caller).await;
    let grant = gets_a_credential(&old, caller, session).await;
    proxy.reports().await;
    let report = old.heard("ReportRequest").remove(0);
    assert_eq!((report.get("first").as_u64(), report.text_of("stream")), (Some(1), proxy.audit.stream()));

    old.later.notify_one();
    until(|| caller.is_revoked(&grant)).await;
    let bypasses = caller.snapshot().unwrap().slice().bypasses.clone();
    assert_eq!(bypasses.iter().map(|bypass| bypass.reason.as_str()).collect::<Vec<_>>(), ["incident 12"]);
    until(|| old.acknowledged().iter().any(|ack| ack.contains("revocations: 1"))).await;
    assert!(!old.acknowledged().iter().any(|ack| ack.contains("refused:")), "{:?}", old.acknowledged());
    running.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_that_is_gone_still_reports_what_it_did_and_asks_for_nothing_more() {
    let release = Release::all().unwrap().remove(0);
    let (old, address) = OldControl::start(release, true).await;
    let (proxy, _) = Proxy::new(&old, address);
    let running = tokio::spawn(proxy.session.clone().run());
    until(|| !old.heard("WatchRequest").is_empty()).await;
    for _ in 0..3 {
        proxy.reports().await;
    }
    assert!(proxy.caller.snapshot().is_none());
    assert!(proxy.session.trouble().borrow().is_empty(), "nothing else went wrong");
    let starts = old.heard("WatchRequest").iter().filter(|said| said.has("start")).count();
    assert_eq!(starts, 1, "it is asked for again in a minute, not while it reports");
    running.abort();
}

async fn understands_a_refusal(old: &OldControl, config: &SessionConfig, directory: &std::path::Path) {
    let said = old.said("attest-refused");
    let client = channel::connect(&config.address, &config.trust, None, config.socket).await.unwrap();
    let key = attest::channel_key(&StateDir::open(&directory.join("other")).unwrap()).unwrap();
    let now = UnixMillis::from_system(std::time::SystemTime::now());
    let Err(failure) = attest::attest(client, &config.evidence, &key, now).await else {
        panic!("it was refused");
    };
    let code = said.end.iter().find(|(name, _)| name == "countersign-code").unwrap();
    assert_eq!(Some(failure.code), Code::parse(&code.1), "{failure}");
    assert!(failure.detail.contains("audience"), "{failure}");
    let hello = old.heard("AttestRequest").remove(0);
    assert_eq!(hello.text_of("hello.proxy_version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(hello.get("hello.now_ms").as_i64(), Some(now.0));
    let proof = old.heard("AttestRequest").remove(1);
    assert_eq!(proof.text_of("proof.evidence_kind"), "kubernetes");
    assert_eq!(proof.get("proof.evidence").as_bytes().unwrap().as_ref(), b"e30.e30.e30");
}

/// As of the moment of the recording: the time is a parameter of decisions.
async fn decides_by_the_policy(old: &OldControl, caller: &CallerState) {
    until(|| caller.snapshot().is_some()).await;
    let said = old.said("watch");
    let recorded =
        (1..).map(|number| old.answer_of(&said, number)).find(|answer| answer.has("slice")).unwrap();
    let (snapshot, request) = (caller.snapshot().unwrap(), asked(old));
    let version = recorded.get("slice.slice.version.revision").as_u64();
    assert_eq!(Some(snapshot.version().revision), version);
    let attested = recorded.get("slice.slice.caller.attestation.issued_at_ms").as_i64().unwrap();
    let who = Arc::new(snapshot.slice().caller.clone());
    let destination = snapshot.cover(&request.host, request.port).unwrap();
    let decide = |method: &str, after_secs: i64| {
        let request = RequestFacts { method: method.to_owned(), ..request.clone() };
        let now = UnixMillis(attested).plus_secs(after_secs);
        snapshot.decide(&Question { caller: &who, destination, request: &request, now }).verdict.clone()
    };
    let allow = |credential: &str| Verdict::Allow {
        credential: Some(credential.parse().unwrap()),
        ttl_seconds: Some(180),
    };
    assert_eq!(decide("GET", 60), allow("payments/charges-token"));
    assert_eq!(decide("HEAD", 60), allow("payments/reader"));
    assert!(matches!(decide("GET", 3601), Verdict::Deny { .. }), "the evidence is too old then");
    assert!(matches!(decide("DELETE", 60), Verdict::Deny { .. }), "the guardrail forbids it");
    assert!(snapshot.slice().is_destination_blocked(&"payments/database".parse().unwrap()));
    assert_eq!(snapshot.slice().egress, Egress::Enforce);
}

/// The question that was recorded.
fn asked(old: &OldControl) -> RequestFacts {
    let said = old.said("issue");
    let request = old.release.message(&said.path, "request", &said.requests[0]).unwrap();
    RequestFacts {
        action: Action::Http,
        method: request.text_of("request.method"),
        host: request.text_of("request.host").parse().unwrap(),
        port: u16::try_from(request.get("request.port").as_u32().unwrap()).unwrap(),
        path: request.text_of("request.path"),
        headers: std::collections::BTreeMap::new(),
    }
}

async fn gets_a_credential(old: &OldControl, caller: &CallerState, session: &Session) -> GrantId {
    let said = old.said("issue");
    let recorded = old.release.message(&said.path, "request", &said.requests[0]).unwrap();
    let snapshot = caller.snapshot().unwrap();
    let face = snapshot.provider(&recorded.text_of("provider").parse().unwrap()).unwrap();
    assert_eq!(
        (face.injection.header.as_str(), face.injection.prefix.as_str()),
        ("x-charges-token", "Token ")
    );
    let order = Order {
        key: Key::new(recorded.text_of("destination").parse().unwrap(), face),
        request: asked(old),
        decision: recorded.text_of("decision").parse().unwrap(),
        version: snapshot.version(),
    };
    let issued = session.issue(&order).await.unwrap();
    let answer = old.answer_of(&said, 1);
    assert_eq!(&*issued.id.0, answer.text_of("grant"));
    assert_eq!(issued.credential.expose(), answer.get("credential").as_bytes().unwrap().as_ref());
    assert_eq!(Some(issued.lifetime.as_millis()), answer.get("lifetime_ms").as_u64().map(u128::from));
    assert_eq!(issued.version, snapshot.version());
    // What it asked is what was recorded, by the release's own reading.
    assert_eq!(old.heard("IssueRequest").last().unwrap().text(), recorded.text());
    issued.id
}

async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect("it did not come to pass");
}
