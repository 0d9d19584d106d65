//! Verifies tokens of OpenID Connect issuers: Kubernetes API servers, CI systems and others.
//!
//! Keys come from the issuer's discovery document (OpenID Connect Discovery 1.0 §4) or a configured address, are kept
//! while the issuer is away, and asked for again when a token names a key that is not among them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use model::{Code, Failure, Secret, UnixMillis};
use resources::kind::{KubernetesSpec, OidcSpec, TrustProviderSpec};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::caller::{self, Validity, Verified};
use crate::fetch;
use crate::gather::TOKEN_BYTES_MAX;
use crate::kubernetes::{ApiServer, BoundPod};

/// Asymmetric algorithms only: with a shared secret everybody who verifies could also sign (RFC 8725 §3.1).
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Difference between clocks that is forgiven in `exp`, `nbf` and `iat`, in seconds.
const LEEWAY_SECS: i64 = 60;

/// How long keys are kept: what the issuer says, within these.
const KEEP_LEAST: Duration = Duration::from_secs(60);
const KEEP_MOST: Duration = Duration::from_secs(3600);

/// A key that is not known makes us ask again at most this often.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// How long the name that a cluster's tokens carry is kept before it is asked for again.
const KEEP_ISSUER: Duration = Duration::from_secs(300);

/// Claims are looked into this deep; what lies deeper is no attribute.
const CLAIM_DEPTH: usize = 4;

/// Longest value of an attribute.
const ATTRIBUTE_BYTES_MAX: usize = 1024;

/// A trust provider: its name, and what its document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// The document's name.
    pub name: String,
    /// Its spec.
    pub spec: TrustProviderSpec,
}

/// Verifies evidence, with the keys of every issuer that it has met.
pub struct Verifier {
    trust_domain: String,
    roots: Arc<RootCertStore>,
    issuers: Mutex<HashMap<OidcKey, Arc<Mutex<Option<Keys>>>>>,
    clusters: Mutex<HashMap<ClusterKey, (String, Instant)>>,
}

/// A cluster: its address, and the file by which it is asked.
type ClusterKey = (Option<String>, Option<String>);

/// What makes an issuer's keys another issuer's: everything by which they were obtained.
#[derive(Clone, PartialEq, Eq, Hash)]
struct OidcKey {
    issuer: String,
    jwks_uri: Option<String>,
    ca_bundle: Option<String>,
    bearer_token_file: Option<String>,
}

struct Keys {
    set: JwkSet,
    fetched: Instant,
    good_for: Duration,
}

impl Verifier {
    /// A verifier that names callers in a trust domain, and believes issuers by these roots unless their document has
    /// its own.
    #[must_use]
    pub fn new(trust_domain: &str, roots: RootCertStore) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            roots: Arc::new(roots),
            issuers: Mutex::default(),
            clusters: Mutex::default(),
        }
    }

    /// Verifies a token, and asks for the pod where its provider is a cluster.
    ///
    /// # Errors
    /// [`Code::NoTrustProvider`] if nobody believes its issuer and audience, [`Code::EvidenceExpired`],
    /// [`Code::EvidenceInvalid`], [`Code::WorkloadGone`], or [`Code::IssuerUnreachable`] if its keys can't be had or
    /// its cluster not be asked.
    pub async fn verify(
        &self,
        token: &Secret,
        providers: &[Provider],
        now: UnixMillis,
    ) -> Result<Verified, Failure> {
        let unverified = Unverified::read(token)?;
        let (provider, issuer) = self.believed(&unverified, providers).await?;
        let (claims, proved) = match (&provider.spec.oidc, &provider.spec.kubernetes) {
            (Some(spec), _) => (self.claims(token, &unverified, spec, now).await?, BTreeMap::new()),
            (None, Some(spec)) => self.of_cluster(token, &unverified, issuer, spec, now).await?,
            (None, None) => return Err(invalid("the TrustProvider names no issuer")),
        };
        let validity = Validity { issued_at: moment(&claims, "iat")?, expires_at: moment(&claims, "exp")? };
        let mut attributes = attributes(&claims);
        attributes.extend(proved);
        // What the evidence is, it says itself; never the proxy that brings it.
        let kind = if claims["kubernetes.io"].is_object() { "kubernetes" } else { "oidc" };
        caller::name(&self.trust_domain, &provider.name, kind, &provider.spec.caller, attributes, validity)
    }

    /// Whether what was attested is still there: a pod, if its provider is a cluster. Of others nobody knows.
    ///
    /// # Errors
    /// [`Code::WorkloadGone`] if it is not, [`Code::IssuerUnreachable`] if that can't be found out.
    pub async fn still_there(
        &self,
        caller: &model::Caller,
        providers: &[Provider],
        now: UnixMillis,
    ) -> Result<(), Failure> {
        let provider = providers.iter().find(|provider| *provider.name == *caller.attestation.provider);
        let Some(spec) = provider.and_then(|provider| provider.spec.kubernetes.as_ref()) else {
            return Ok(());
        };
        let value = |name: &str| caller.attributes.get(name).cloned().unwrap_or_default();
        let pod = BoundPod {
            namespace: value("kubernetes.namespace"),
            name: value("kubernetes.pod.name"),
            uid: value("kubernetes.pod.uid"),
            service_account: value("kubernetes.serviceaccount"),
        };
        ApiServer::of(spec, &self.roots)?.pod(&pod, now).await.map(drop)
    }

    /// The provider that believes a token's issuer and audience, and that issuer.
    async fn believed<'a>(
        &self,
        token: &Unverified,
        providers: &'a [Provider],
    ) -> Result<(&'a Provider, String), Failure> {
        let mut of_issuer = Vec::new();
        for provider in providers {
            let Some(spec) = provider.spec.oidc.as_ref().filter(|spec| spec.issuer == token.issuer) else {
                continue;
            };
            if token.audiences.contains(&spec.audience) {
                return Ok((provider, token.issuer.clone()));
            }
            of_issuer.push((provider, &spec.audience));
        }
        let mut away = None;
        for provider in providers {
            let Some(spec) = &provider.spec.kubernetes else { continue };
            match self.cluster_issuer(spec).await {
                Ok(issuer) if issuer != token.issuer => {}
                Ok(issuer) if token.audiences.contains(&spec.audience) => return Ok((provider, issuer)),
                Ok(_) => of_issuer.push((provider, &spec.audience)),
                Err(failure) => away = Some(failure),
            }
        }
        Err(match (of_issuer.first(), away) {
            (Some((provider, audience)), _) => invalid(&format!(
                "the token is not for audience `{audience}`, which TrustProvider {} asks for",
                provider.name
            )),
            // The cluster that could not be asked may be the one.
            (None, Some(failure)) => failure,
            (None, None) => {
                let detail = format!("no TrustProvider believes the issuer {}", printable(&token.issuer));
                Failure::new(Code::NoTrustProvider, detail)
            }
        })
    }

    /// The `iss` of a cluster's tokens; if it can't be asked, as it was.
    async fn cluster_issuer(&self, spec: &KubernetesSpec) -> Result<String, Failure> {
        let server = spec.server.as_ref();
        let key =
            (server.map(|server| server.url.clone()), server.map(|server| server.bearer_token_file.clone()));
        // Held while asking: many tokens at once ask once.
        let mut clusters = self.clusters.lock().await;
        let known = clusters.get(&key).cloned();
        if let Some((issuer, asked)) = &known
            && asked.elapsed() < KEEP_ISSUER
        {
            return Ok(issuer.clone());
        }
        let asked = match ApiServer::of(spec, &self.roots) {
            Ok(server) => server.issuer().await,
            Err(failure) => Err(failure),
        };
        let issuer = match (asked, known) {
            (Ok(issuer), _) => issuer,
            (Err(failure), Some((issuer, _))) => {
                tracing::warn!(stage = "identity", %issuer, "a cluster's issuer is kept: {failure}");
                issuer
            }
            (Err(failure), None) => return Err(failure),
        };
        clusters.insert(key, (issuer.clone(), Instant::now()));
        Ok(issuer)
    }

    /// The claims of a pod's token, and what the API server says of the pod beyond them.
    async fn of_cluster(
        &self,
        token: &Secret,
        unverified: &Unverified,
        issuer: String,
        spec: &KubernetesSpec,
        now: UnixMillis,
    ) -> Result<(Value, BTreeMap<String, String>), Failure> {
        // Validation knows the usual names of such audiences; this one it can't know.
        if spec.audience == issuer {
            return Err(invalid("the TrustProvider's audience is the API server's own"));
        }
        let server = ApiServer::of(spec, &self.roots)?;
        let claims = if spec.verify.as_deref() == Some("tokenReview") {
            let review = server.review(token, &spec.audience).await?;
            // The API server has verified these very bytes.
            let claims = unverified.claims.clone();
            check_times(&claims, now)?;
            let pod = claims["kubernetes.io"].pointer("/pod/uid").and_then(Value::as_str);
            if claims["sub"] != *review.username || review.pod_uid.as_deref() != pod {
                return Err(invalid("the token says another than the API server does"));
            }
            claims
        } else {
            let keys = OidcSpec {
                issuer,
                audience: spec.audience.clone(),
                jwks_uri: Some(server.jwks_uri()),
                ca_bundle: server.ca.clone(),
                bearer_token_file: Some(server.token_file()),
            };
            self.claims(token, unverified, &keys, now).await?
        };
        let pod = bound_pod(&claims)?;
        let proved = server.pod(&pod, now).await?;
        let node = claims["kubernetes.io"].pointer("/node/name").and_then(Value::as_str);
        let placed = proved.get("kubernetes.node.name").map(String::as_str);
        if node.is_some() && node != placed {
            return Err(invalid("the token is for another node than the pod's"));
        }
        Ok((claims, proved))
    }

    /// The claims of a token whose signature, issuer, audience and times hold.
    async fn claims(
        &self,
        token: &Secret,
        unverified: &Unverified,
        spec: &OidcSpec,
        now: UnixMillis,
    ) -> Result<Value, Failure> {
        let text = std::str::from_utf8(token.expose()).map_err(|_| invalid("the token is not text"))?;
        let key = self.key(unverified, spec).await?;
        let mut validation = Validation::new(unverified.algorithm);
        validation.set_issuer(&[&spec.issuer]);
        validation.set_audience(&[&spec.audience]);
        validation.set_required_spec_claims(&["iss", "aud", "exp", "iat"]);
        // Times are compared with the clock that the caller of this function has, below.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let data = jsonwebtoken::decode::<Value>(text, &key, &validation)
            .map_err(|error| invalid(&format!("the token does not verify: {error}")))?;
        check_times(&data.claims, now)?;
        Ok(data.claims)
    }

    /// The key that the token names. Asks the issuer again, once, if it is not among those that are known.
    async fn key(&self, unverified: &Unverified, spec: &OidcSpec) -> Result<DecodingKey, Failure> {
        let slot = {
            let key = OidcKey {
                issuer: spec.issuer.clone(),
                jwks_uri: spec.jwks_uri.clone(),
                ca_bundle: spec.ca_bundle.clone(),
                bearer_token_file: spec.bearer_token_file.clone(),
            };
            self.issuers.lock().await.entry(key).or_default().clone()
        };
        // Held while asking: many tokens at once ask once.
        let mut keys = slot.lock().await;
        let stale = keys.as_ref().is_none_or(|keys| keys.fetched.elapsed() >= keys.good_for);
        if stale {
            self.refresh(&mut keys, spec).await?;
        }
        if let Some(found) = keys.as_ref().and_then(|keys| find(&keys.set, unverified)) {
            return found;
        }
        if keys.as_ref().is_some_and(|keys| keys.fetched.elapsed() >= ASK_AGAIN) {
            self.refresh(&mut keys, spec).await?;
        }
        keys.as_ref()
            .and_then(|keys| find(&keys.set, unverified))
            .unwrap_or_else(|| Err(invalid("the token's key is not one of its issuer's")))
    }

    /// Gets the issuer's keys. If it is away, those that are there go on being used.
    async fn refresh(&self, keys: &mut Option<Keys>, spec: &OidcSpec) -> Result<(), Failure> {
        match self.fetch(spec).await {
            Ok(fresh) => {
                *keys = Some(fresh);
                Ok(())
            }
            Err(error) => match keys {
                Some(kept) => {
                    tracing::warn!(stage = "identity", issuer = %spec.issuer, "its keys are kept: {error:#}");
                    kept.fetched = Instant::now();
                    kept.good_for = ASK_AGAIN;
                    Ok(())
                }
                None => {
                    let detail = format!("the keys of {} can't be had", spec.issuer);
                    Err(Failure::new(Code::IssuerUnreachable, detail).because(error.into_boxed_dyn_error()))
                }
            },
        }
    }

    async fn fetch(&self, spec: &OidcSpec) -> anyhow::Result<Keys> {
        let roots = match &spec.ca_bundle {
            None => self.roots.clone(),
            Some(pem) => Arc::new(parse_roots(pem)?),
        };
        let bearer = match &spec.bearer_token_file {
            None => None,
            Some(path) => Some(crate::gather::token(Path::new(path))?),
        };
        let jwks_uri = match &spec.jwks_uri {
            Some(uri) => uri.clone(),
            None => {
                let url = format!("{}/.well-known/openid-configuration", spec.issuer.trim_end_matches('/'));
                let document = fetch::get(&url, &roots, bearer.as_ref()).await?;
                discovered(&document.body, &spec.issuer)?
            }
        };
        let document = fetch::get(&jwks_uri, &roots, bearer.as_ref()).await?;
        let set: JwkSet = serde_json::from_slice(&document.body)?;
        let good_for = document.max_age.unwrap_or(KEEP_LEAST * 5).clamp(KEEP_LEAST, KEEP_MOST);
        Ok(Keys { set, fetched: Instant::now(), good_for })
    }
}

/// The address of the keys, from a discovery document that names the issuer that was asked (§4.3).
fn discovered(document: &[u8], issuer: &str) -> anyhow::Result<String> {
    #[derive(serde::Deserialize)]
    struct Discovery {
        issuer: String,
        jwks_uri: String,
    }
    let discovery: Discovery = serde_json::from_slice(document)?;
    anyhow::ensure!(discovery.issuer == issuer, "the discovery document names another issuer");
    anyhow::ensure!(
        discovery.jwks_uri.starts_with("https://"),
        "the discovery document's keys are not https"
    );
    Ok(discovery.jwks_uri)
}

pub(crate) fn parse_roots(pem: &str) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    anyhow::ensure!(!roots.is_empty(), "the caBundle has no certificate");
    Ok(roots)
}

/// What a token says of itself, before anything is believed.
struct Unverified {
    algorithm: Algorithm,
    key_id: Option<String>,
    issuer: String,
    audiences: Vec<String>,
    claims: Value,
}

impl Unverified {
    fn read(token: &Secret) -> Result<Self, Failure> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(invalid("the token is too long"));
        }
        let text = std::str::from_utf8(token.expose()).map_err(|_| invalid("the token is not text"))?;
        let header = jsonwebtoken::decode_header(text).map_err(|_| invalid("the token has no header"))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(invalid("the token's algorithm is not one that is believed"));
        }
        let payload = text.split('.').nth(1).unwrap_or_default();
        let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(payload)
            .map_err(|_| invalid("the token has no payload"))?;
        let claims: Value =
            serde_json::from_slice(&payload).map_err(|_| invalid("the token's payload is not JSON"))?;
        let audiences = match &claims["aud"] {
            Value::String(one) => vec![one.clone()],
            Value::Array(many) => many.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        let issuer = claims["iss"].as_str().ok_or_else(|| invalid("the token names no issuer"))?.to_owned();
        Ok(Self { algorithm: header.alg, key_id: header.kid, issuer, audiences, claims })
    }
}

/// A stranger's text, fit for a message.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn find(set: &JwkSet, token: &Unverified) -> Option<Result<DecodingKey, Failure>> {
    let jwk = match &token.key_id {
        Some(id) => set.find(id)?,
        // A token without a key id is for issuers that have one key.
        None => match set.keys.as_slice() {
            [only] => only,
            _ => return None,
        },
    };
    // A key that says what it is for must not be used for something else (RFC 8725 §3.1).
    let fits = jwk
        .common
        .key_algorithm
        .is_none_or(|algorithm| algorithm.to_string() == format!("{:?}", token.algorithm));
    if !fits {
        return Some(Err(invalid("the token's algorithm is not its key's")));
    }
    Some(DecodingKey::from_jwk(jwk).map_err(|_| invalid("the token's key can't be used")))
}

fn check_times(claims: &Value, now: UnixMillis) -> Result<(), Failure> {
    if now >= moment(claims, "exp")?.plus_secs(LEEWAY_SECS) {
        return Err(Failure::new(Code::EvidenceExpired, "the token has expired"));
    }
    if moment(claims, "iat")? > now.plus_secs(LEEWAY_SECS) {
        return Err(invalid("the token was issued in the future"));
    }
    if claims.get("nbf").is_some() && moment(claims, "nbf")? > now.plus_secs(LEEWAY_SECS) {
        return Err(invalid("the token is not valid yet"));
    }
    Ok(())
}

/// A `NumericDate` (RFC 7519 §2), which may have a fraction.
fn moment(claims: &Value, name: &str) -> Result<UnixMillis, Failure> {
    let seconds = claims[name].as_f64().filter(|seconds| (0.0..1e12).contains(seconds));
    let seconds = seconds.ok_or_else(|| invalid(&format!("the token's `{name}` is not a time")))?;
    #[expect(clippy::cast_possible_truncation, reason = "bounded just above")]
    let millis = (seconds * 1000.0) as i64;
    Ok(UnixMillis(millis))
}

fn invalid(detail: &str) -> Failure {
    Failure::new(Code::EvidenceInvalid, detail)
}

/// The pod that a service account's token is bound to; a token that is bound to none proves no running copy.
fn bound_pod(claims: &Value) -> Result<BoundPod, Failure> {
    let kubernetes = &claims["kubernetes.io"];
    // Only the token that every pod has for the API server itself outlives what it was asked for, and says so by this.
    if kubernetes.get("warnafter").is_some() {
        return Err(invalid("the token is a pod's default token, which is for the API server"));
    }
    let text = |pointer: &str| kubernetes.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let pod = match (text("/namespace"), text("/pod/name"), text("/pod/uid"), text("/serviceaccount/name")) {
        (Some(namespace), Some(name), Some(uid), Some(service_account)) => {
            BoundPod { namespace, name, uid, service_account }
        }
        _ => return Err(invalid("the token is not bound to a pod")),
    };
    if claims["sub"] != format!("system:serviceaccount:{}:{}", pod.namespace, pod.service_account) {
        return Err(invalid("the token's `sub` is not its service account"));
    }
    Ok(pod)
}

/// What the claims prove: each as `claim.NAME`, nested ones with dots; and the ones that Kubernetes nests (KEP-1205) under
/// names of their own.
fn attributes(claims: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    flatten("claim", claims, CLAIM_DEPTH, &mut found);
    let kubernetes = &claims["kubernetes.io"];
    for (name, pointer) in [
        ("kubernetes.namespace", "/namespace"),
        ("kubernetes.serviceaccount", "/serviceaccount/name"),
        ("kubernetes.serviceaccount.uid", "/serviceaccount/uid"),
        ("kubernetes.pod.name", "/pod/name"),
        ("kubernetes.pod.uid", "/pod/uid"),
        ("kubernetes.node.name", "/node/name"),
    ] {
        if let Some(value) = kubernetes.pointer(pointer).and_then(Value::as_str) {
            found.insert(name.to_owned(), value.to_owned());
        }
    }
    found
}

fn flatten(path: &str, value: &Value, depth: usize, into: &mut BTreeMap<String, String>) {
    let text = match value {
        Value::Object(fields) if depth > 0 => {
            for (name, value) in fields {
                flatten(&format!("{path}.{name}"), value, depth - 1, into);
            }
            return;
        }
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Object(_) | Value::Array(_) | Value::Null => return,
    };
    if text.len() <= ATTRIBUTE_BYTES_MAX && path.len() <= ATTRIBUTE_BYTES_MAX {
        into.insert(path.to_owned(), text);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kubernetes_claims_become_attributes() {
        let found = attributes(&json!({
            "sub": "system:serviceaccount:payments:billing",
            "kubernetes.io": {
                "namespace": "payments",
                "node": { "name": "n1", "uid": "x" },
                "pod": { "name": "billing-1", "uid": "u-1" },
                "serviceaccount": { "name": "billing", "uid": "s-1" }
            }
        }));
        assert_eq!(found["kubernetes.pod.uid"], "u-1");
        assert_eq!(found["kubernetes.serviceaccount"], "billing");
        assert_eq!(found["claim.sub"], "system:serviceaccount:payments:billing");
    }

    #[test]
    fn only_a_token_that_is_bound_to_a_pod_proves_one() {
        let claims = || {
            json!({ "sub": "system:serviceaccount:probe:worker", "kubernetes.io": {
                "namespace": "probe", "pod": { "name": "projected", "uid": "u-1" },
                "serviceaccount": { "name": "worker", "uid": "s-1" } } })
        };
        assert_eq!(bound_pod(&claims()).unwrap().name, "projected");
        // As `kubectl create token` makes them; and as lies in every pod, for a year.
        let mut unbound = claims();
        unbound["kubernetes.io"].as_object_mut().unwrap().remove("pod");
        let mut default = claims();
        default["kubernetes.io"]["warnafter"] = json!(1_795_327_499);
        let mut other = claims();
        other["sub"] = json!("system:serviceaccount:probe:other");
        for refused in [unbound, default, other, json!({ "sub": "x" })] {
            assert_eq!(bound_pod(&refused).unwrap_err().code, Code::EvidenceInvalid, "{refused}");
        }
    }

    #[test]
    fn ci_claims_become_attributes() {
        // GitHub's documented claims: docs.github.com, "OpenID Connect reference".
        let found = attributes(&json!({
            "repository": "acme/site", "ref": "refs/heads/main", "run_id": "123", "run_attempt": 2, "environment": null,
            "deep": { "a": { "b": { "c": { "d": 1 } } } }, "list": [1]
        }));
        assert_eq!((found["claim.run_id"].as_str(), found["claim.run_attempt"].as_str()), ("123", "2"));
        assert!(!found.contains_key("claim.environment") && !found.contains_key("claim.list"));
        assert!(!found.keys().any(|key| key.ends_with(".d")), "too deep");
    }

    #[test]
    fn a_discovery_document_must_be_its_issuers() {
        let document = br#"{"issuer":"https://a.example","jwks_uri":"https://a.example/keys"}"#;
        assert!(discovered(document, "https://a.example").is_ok());
        assert!(discovered(document, "https://b.example").is_err());
        let plain = br#"{"issuer":"https://a.example","jwks_uri":"http://a.example/keys"}"#;
        assert!(discovered(plain, "https://a.example").is_err());
    }
}
