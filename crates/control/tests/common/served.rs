//! A control plane in this process: its four calls behind its own door, a store of its own, and an issuer of evidence.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use attestation::Verifier;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use axum::Router;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control::attendance::Attendance;
use control::attest::Attestor;
use control::authority::Authority;
use control::index::{self, Index};
use control::issue::Issuing;
use control::keys::Keys;
use control::kubernetes::webhook::certificate::{Shown, certified};
use control::kubernetes::webhook::door;
use control::metrics::Metrics;
use control::proxies::Proxies;
use control::services::ProxyServices;
use control::store::{DocumentChange, Owner, Store};
use control::watch::Watcher;
use control::{now, program, server};
use policy::compile::EgressDefaults;
use resources::parse;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tests::Certificates;
use tokio::net::TcpListener;
use wire::v1::control_plane_server::ControlPlaneServer;

/// The control plane's audience for evidence.
pub(crate) const AUDIENCE: &str = "countersign";

/// Time for what happens at once on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Signs evidence as a cluster's API server does, and publishes its key.
pub(crate) struct EvidenceIssuer {
    /// Its `iss`.
    pub(crate) url: String,
    pair: EcdsaKeyPair,
    certificates: Certificates,
}

impl EvidenceIssuer {
    async fn start() -> Self {
        let certificates = Certificates::new("Evidence").unwrap();
        let leaf = certificates.server(&["localhost"]).unwrap();
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let point = pair.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        let key =
            json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "1", "x": x, "y": y });
        let (keys, discovery) =
            (json!({ "keys": [key] }), json!({ "issuer": url, "jwks_uri": format!("{url}/keys") }));
        let document = |value: Value| get(move || async move { axum::Json(value) });
        let router = Router::new()
            .route("/keys", document(keys))
            .route("/.well-known/openid-configuration", document(discovery));
        let shown = Arc::new(Shown::new(prometheus::IntGauge::new("expires", "When it ends.").unwrap()));
        let chain = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes()).map(Result::unwrap).collect();
        shown.replace(certified(chain, PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap()).unwrap());
        let (drain, drained) = service::drain::new();
        tokio::spawn(async move {
            door::serve(listener, door::tls(shown, None).unwrap(), router, drained).await;
            drop(drain);
        });
        Self { url, pair, certificates }
    }

    /// The token of one pod, for an audience.
    pub(crate) fn token(&self, audience: &str) -> String {
        let seconds = now().as_secs();
        let claims = json!({
            "iss": self.url, "aud": [audience], "sub": "system:serviceaccount:payments:billing",
            "iat": seconds, "nbf": seconds, "exp": seconds + 3600,
            "kubernetes.io": {
                "namespace": "payments",
                "pod": { "name": "billing-1", "uid": "0d6a1c1e-7b0e-4d3f-9f43-1f6f7f9d2b11" },
                "serviceaccount": { "name": "billing", "uid": "5a3b6c0a-6a57-4c2f-8d0e-2f5a0a4e7c22" },
            },
        });
        let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({ "alg": "ES256", "kid": "1", "typ": "JWT" });
        let message = format!("{}.{}", encoded(&header), encoded(&claims));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// It ends with the runtime of its test.
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) index: Arc<Index>,
    pub(crate) proxies: Proxies,
    pub(crate) authority: Arc<Authority>,
    pub(crate) evidence: EvidenceIssuer,
    _directory: tempfile::TempDir,
}

impl ControlPlane {
    /// Begins to serve, with the documents of `golden/wire`. `layer` may listen to its calls.
    pub(crate) async fn start<S>(layer: impl FnOnce(ControlPlaneServer<ProxyServices>) -> S) -> Self
    where
        S: tower::Service<
                axum::http::Request<tonic::body::Body>,
                Response = axum::http::Response<tonic::body::Body>,
                Error = std::convert::Infallible,
            > + tonic::server::NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        service::tls_provider::install();
        let directory = tempfile::tempdir().unwrap();
        let evidence = EvidenceIssuer::start().await;
        let store: Arc<dyn Store> = program::open_store(&directory.path().join("state"), None).await.unwrap();
        let keys = Keys::open(store.clone(), now()).await.unwrap();
        let authority = Authority::open(store.clone(), "demo", now()).await.unwrap();
        let index = Index::start(store.clone(), EgressDefaults::default()).await.unwrap();
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let proxies = Proxies::new(metrics.proxies.clone());
        let root = CertificateDer::from_pem_slice(evidence.certificates.root().as_bytes()).unwrap();
        let verifier = Arc::new(Verifier::new("demo", service::roots::store(&[root]).unwrap()));
        let attendance = Arc::new(Attendance::new(verifier.clone(), index.clone()));
        let services = ProxyServices {
            store: store.clone(),
            attendance: attendance.clone(),
            attestor: Arc::new(Attestor {
                store: store.clone(),
                verifier,
                authority: authority.clone(),
                index: index.clone(),
                keys: keys.clone(),
                metrics: metrics.clone(),
                svid_life_secs: 3600,
            }),
            watcher: Arc::new(Watcher {
                store: store.clone(),
                index: index.clone(),
                proxies: proxies.clone(),
                attendance,
                authority: authority.clone(),
            }),
            issuing: Arc::new(Issuing {
                store: store.clone(),
                index: index.clone(),
                keys,
                issuer_url: "https://control.example".to_owned(),
            }),
            metrics,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = server::incoming(listener, authority.clone()).unwrap();
        let serving =
            tonic::transport::Server::builder().add_service(layer(ControlPlaneServer::new(services)));
        tokio::spawn(serving.serve_with_incoming(incoming));
        let control = Self { address, store, index, proxies, authority, evidence, _directory: directory };
        control.apply(&tests::recorded::Release::documents()).await;
        control
    }

    async fn apply(&self, file: &std::path::Path) {
        let root = self.evidence.certificates.root().trim_end().replace('\n', "\n    ");
        let text = std::fs::read_to_string(file).unwrap();
        let text = text.replace("ISSUER", &self.evidence.url).replace("CA_BUNDLE", &root);
        let parsed = parse::parse(&[("documents.yaml".to_owned(), text)], None);
        assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
        let changes: Vec<DocumentChange> = parsed
            .documents
            .iter()
            .map(|document| DocumentChange::Put {
                kind: document.kind(),
                name: document.name.clone(),
                json: document.to_json().to_string(),
                owner: Owner::Applied,
            })
            .collect();
        let before = self.store.version().await.unwrap();
        let changed = self.store.change_documents(before, &changes, "test", now()).await.unwrap();
        index::reached(&self.index, changed.unwrap()).await.unwrap();
    }
}
