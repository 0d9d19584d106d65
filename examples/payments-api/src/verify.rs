//! Which tokens are taken: signed by a key of the issuer's JWKS (OpenID Connect Discovery 1.0 §4), for this audience,
//! with ES256, not expired, and not older than a few minutes.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// Whom to believe, and what a token must say.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) issuer: String,
    pub(crate) issuer_ca: Option<PathBuf>,
    pub(crate) audience: String,
    /// Seconds since `iat`.
    pub(crate) max_age: u64,
}

/// A token that was taken.
#[derive(Debug)]
pub(crate) struct Token {
    /// `sub`.
    pub(crate) caller: String,
    /// `jti`.
    pub(crate) id: String,
    /// From `iat` to `exp`, in seconds.
    pub(crate) lifetime: u64,
    /// From now to `exp`.
    pub(crate) seconds_left: u64,
    /// The third part, for the log.
    pub(crate) signature: String,
    /// Claims beyond those that every token has.
    pub(crate) claims: serde_json::Map<String, serde_json::Value>,
}

/// Why a token was not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    Missing,
    Several,
    NotBearer,
    UnknownKey,
    KeysAway,
    TooOld,
    Stale,
    Invalid(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing token"),
            Self::Several => f.write_str("several authorization fields"),
            Self::NotBearer => f.write_str("not a bearer token"),
            Self::UnknownKey => f.write_str("signed by an unknown key"),
            Self::KeysAway => f.write_str("the issuer's keys can't be fetched"),
            Self::TooOld => f.write_str("token is too old"),
            Self::Stale => f.write_str("this token is no longer taken"),
            Self::Invalid(reason) => f.write_str(reason),
        }
    }
}

/// Verifies tokens, with the issuer's keys kept between requests.
pub(crate) struct Verifier {
    settings: Settings,
    tls: Arc<rustls::ClientConfig>,
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    set: Option<JwkSet>,
    fetched: Option<Instant>,
}

/// Keys are fetched again after this time, and not sooner than the second for an unknown `kid`.
const KEYS_KEPT: Duration = Duration::from_secs(60);
const KEYS_RETRY: Duration = Duration::from_millis(200);
/// Most bytes of a discovery document or a key set, and time for fetching one.
const DOCUMENT_MAX: usize = 256 * 1024;
const FETCH: Duration = Duration::from_secs(5);
/// Difference of clocks that is tolerated, in seconds.
const SKEW: u64 = 5;

#[derive(Deserialize)]
struct Claims {
    sub: String,
    iat: u64,
    exp: u64,
    #[serde(default)]
    jti: String,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Verifier {
    /// Nothing is fetched yet: the issuer may start later than the service.
    pub(crate) fn new(settings: Settings) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        if let Some(path) = &settings.issuer_ca {
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .with_context(|| format!("could not read certificates from {}", path.display()))?;
            for certificate in certificates {
                roots.add(certificate)?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { settings, tls: Arc::new(tls), keys: Mutex::default() })
    }

    /// The request's token, if it is one that is taken.
    pub(crate) async fn verify(&self, headers: &HeaderMap) -> Result<Token, Refused> {
        let text = bearer(headers)?;
        let header =
            jsonwebtoken::decode_header(text).map_err(|_| Refused::Invalid("not a JWT".to_owned()))?;
        if header.alg != Algorithm::ES256 {
            return Err(Refused::Invalid("not signed with ES256".to_owned()));
        }
        let key = self.key(header.kid.as_deref().unwrap_or_default()).await?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[&self.settings.audience]);
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = SKEW;
        let claims = jsonwebtoken::decode::<Claims>(text, &key, &validation)
            .map_err(|error| Refused::Invalid(error.to_string()))?
            .claims;
        let now = jsonwebtoken::get_current_timestamp();
        if claims.iat > now + SKEW {
            return Err(Refused::Invalid("issued in the future".to_owned()));
        }
        if now.saturating_sub(claims.iat) > self.settings.max_age {
            return Err(Refused::TooOld);
        }
        Ok(Token {
            caller: claims.sub,
            id: claims.jti,
            lifetime: claims.exp.saturating_sub(claims.iat),
            seconds_left: claims.exp.saturating_sub(now),
            signature: text.rsplit('.').next().unwrap_or_default().to_owned(),
            claims: claims.rest,
        })
    }

    async fn key(&self, kid: &str) -> Result<DecodingKey, Refused> {
        let mut keys = self.keys.lock().await;
        let age = keys.fetched.map(|at| at.elapsed());
        let known = keys.set.as_ref().is_some_and(|set| set.find(kid).is_some());
        let due = if known { KEYS_KEPT } else { KEYS_RETRY };
        if age.is_none_or(|age| age >= due) {
            keys.fetched = Some(Instant::now());
            match tokio::time::timeout(FETCH, self.fetch_keys()).await {
                Ok(Ok(set)) => keys.set = Some(set),
                // What was fetched before stays good: an issuer that is away must not stop the service.
                Ok(Err(error)) => log(&format!("keys of {}: {error:#}", self.settings.issuer)),
                Err(_) => log(&format!("keys of {}: timed out", self.settings.issuer)),
            }
        }
        let set = keys.set.as_ref().ok_or(Refused::KeysAway)?;
        let jwk = set.find(kid).ok_or(Refused::UnknownKey)?;
        DecodingKey::from_jwk(jwk).map_err(|error| Refused::Invalid(error.to_string()))
    }

    async fn fetch_keys(&self) -> anyhow::Result<JwkSet> {
        let url = format!("{}/.well-known/openid-configuration", self.settings.issuer.trim_end_matches('/'));
        let discovery: Discovery = serde_json::from_slice(&self.get(&url).await?)?;
        anyhow::ensure!(
            discovery.issuer == self.settings.issuer,
            "the discovery document is of {}, not of {}",
            discovery.issuer,
            self.settings.issuer
        );
        Ok(serde_json::from_slice(&self.get(&discovery.jwks_uri).await?)?)
    }

    async fn get(&self, url: &str) -> anyhow::Result<Bytes> {
        let uri: Uri = url.parse()?;
        let host = uri.host().context("no host")?.to_owned();
        let https = uri.scheme() == Some(&Scheme::HTTPS);
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        if https {
            let name = ServerName::try_from(host)?;
            let stream = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
            get_over(TokioIo::new(stream), &uri).await
        } else {
            get_over(TokioIo::new(stream), &uri).await
        }
    }
}

async fn get_over<T>(io: T, uri: &Uri) -> anyhow::Result<Bytes>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let driver = tokio::spawn(connection);
    let authority = uri.authority().context("no authority")?.as_str();
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = Request::get(path).header(header::HOST, authority).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    anyhow::ensure!(response.status() == StatusCode::OK, "{uri} answered {}", response.status());
    let body = Limited::new(response.into_body(), DOCUMENT_MAX);
    let body = body.collect().await.map_err(|error| anyhow::anyhow!("{uri}: {error}"))?.to_bytes();
    driver.abort();
    Ok(body)
}

fn bearer(headers: &HeaderMap) -> Result<&str, Refused> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(Refused::Missing)?;
    if values.next().is_some() {
        return Err(Refused::Several);
    }
    let text = value.to_str().map_err(|_| Refused::NotBearer)?;
    let (scheme, token) = text.split_once(' ').ok_or(Refused::NotBearer)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(Refused::NotBearer) }
}

#[expect(clippy::print_stderr, reason = "an example's log is its standard error")]
pub(crate) fn log(line: &str) {
    eprintln!("{line}");
}
