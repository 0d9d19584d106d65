//! Proves to the control plane what the workload is, and gets the session's certificate.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use model::{Caller, Code, Failure, InstanceId, UnixMillis};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use wire::v1;
use wire::v1::control_plane_client::ControlPlaneClient;
use zeroize::Zeroizing;

use super::channel::Identity;
use crate::state::StateDir;

const KEY_FILE: &str = "channel.key";

/// What is signed, before the nonce.
const CONTEXT: &[u8] = b"countersign attest v1\0";

/// Where the evidence is.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// `oidc` or `kubernetes`.
    pub kind: &'static str,
    /// The file with the token; the platform renews it.
    pub token: PathBuf,
}

/// What the control plane gave.
pub struct Attested {
    /// For the channel.
    pub identity: Identity,
    /// Who we are.
    pub caller: Caller,
    /// Which running copy.
    pub instance: InstanceId,
    /// When the certificate ends.
    pub not_after: UnixMillis,
    /// How long it is valid from now on, by the control plane's clock.
    pub valid_for_ms: i64,
    /// Control plane's clock less ours.
    pub skew_seconds: f64,
    /// The control plane's roots.
    pub bundle: v1::Bundle,
    /// For fingerprints of standing credentials.
    pub fingerprint_key: Zeroizing<Vec<u8>>,
}

/// The channel's key: made once for the instance, so that a restarted proxy proves the same one.
///
/// # Errors
/// If the state directory can't be used.
pub fn channel_key(state: &StateDir) -> anyhow::Result<Arc<Zeroizing<Vec<u8>>>> {
    if let Some(key) = state.read(KEY_FILE)? {
        return Ok(Arc::new(Zeroizing::new(key)));
    }
    let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_der());
    state.write(KEY_FILE, &key)?;
    Ok(Arc::new(key))
}

/// Attests once, with the newest evidence that there is.
///
/// # Errors
/// Of stage identity; [`Code::ControlPlaneUnreachable`] if nobody answers.
pub async fn attest(
    mut client: ControlPlaneClient<Channel>,
    evidence: &Evidence,
    key: &Arc<Zeroizing<Vec<u8>>>,
    now: UnixMillis,
) -> Result<Attested, Failure> {
    let unusable = |what: &str| Failure::new(Code::NoCaller, what);
    let token = attestation::gather::token(&evidence.token)?;
    let (requests, receiver) = tokio::sync::mpsc::channel(2);
    let hello = v1::Hello { proxy_version: env!("CARGO_PKG_VERSION").to_owned(), now_ms: now.0 };
    send(&requests, v1::attest_request::Message::Hello(hello)).await?;
    let answers = client.attest(ReceiverStream::new(receiver)).await.map_err(|status| refused(&status))?;
    let mut answers = answers.into_inner();
    let Some(v1::attest_response::Message::Challenge(challenge)) = next(&mut answers).await? else {
        return Err(unusable("the control plane sent no challenge"));
    };
    let apart = Duration::from_millis(challenge.now_ms.abs_diff(now.0)).as_secs_f64();
    let proof = prove(evidence, &token, key, &challenge.nonce)
        .map_err(|error| unusable("the proof could not be made").because(error.into_boxed_dyn_error()))?;
    send(&requests, v1::attest_request::Message::Proof(proof)).await?;
    let Some(v1::attest_response::Message::Session(session)) = next(&mut answers).await? else {
        return Err(unusable("the control plane sent no certificate"));
    };
    let caller = session.caller.as_ref().and_then(|caller| Caller::try_from(caller).ok());
    Ok(Attested {
        identity: Identity {
            certificates: session.certificates.into_iter().map(CertificateDer::from).collect(),
            key: key.clone(),
        },
        caller: caller.ok_or_else(|| unusable("the control plane named no caller"))?,
        instance: InstanceId(session.instance.into()),
        not_after: UnixMillis(session.not_after_ms),
        valid_for_ms: session.not_after_ms.saturating_sub(challenge.now_ms),
        skew_seconds: if challenge.now_ms < now.0 { -apart } else { apart },
        bundle: session.bundle.unwrap_or_default(),
        fingerprint_key: Zeroizing::new(session.fingerprint_key),
    })
}

async fn next(
    answers: &mut tonic::Streaming<v1::AttestResponse>,
) -> Result<Option<v1::attest_response::Message>, Failure> {
    let answer = answers.message().await.map_err(|status| refused(&status))?;
    Ok(answer.and_then(|answer| answer.message))
}

async fn send(
    requests: &tokio::sync::mpsc::Sender<v1::AttestRequest>,
    message: v1::attest_request::Message,
) -> Result<(), Failure> {
    let request = v1::AttestRequest { message: Some(message) };
    requests
        .send(request)
        .await
        .map_err(|_| Failure::new(Code::ControlPlaneUnreachable, "the control plane ended the attestation"))
}

fn refused(status: &tonic::Status) -> Failure {
    wire::status::to_failure(status, Code::ControlPlaneUnreachable)
}

fn prove(
    evidence: &Evidence,
    token: &model::Secret,
    key: &Zeroizing<Vec<u8>>,
    nonce: &[u8],
) -> anyhow::Result<v1::Proof> {
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_vec()));
    let pair = KeyPair::try_from(&private)?;
    let csr = CertificateParams::default().serialize_request(&pair)?.der().to_vec();
    let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key)
        .map_err(|_| anyhow::anyhow!("the channel's key can't be read"))?;
    let signature = signer
        .sign(&SystemRandom::new(), &[CONTEXT, nonce].concat())
        .map_err(|_| anyhow::anyhow!("the challenge could not be signed"))?;
    Ok(v1::Proof {
        evidence_kind: evidence.kind.to_owned(),
        evidence: token.expose().to_vec(),
        csr,
        signature: signature.as_ref().to_vec(),
    })
}
