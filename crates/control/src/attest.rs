//! Attest: a challenge, evidence and a signing request, a caller and its certificate.

use std::sync::Arc;

use attestation::Verifier;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use model::audit::{Attested, What};
use model::{Code, Failure, Secret};
use rcgen::{CertificateSigningRequestParams, PublicKeyData as _};
use sha2::{Digest as _, Sha256};
use tonic::Streaming;
use wire::v1;

use crate::authority::Authority;
use crate::index::Index;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::store::{Binding, Bound, Store};
use crate::{now, store_failure};

/// Clocks that are further apart than this are refused, in milliseconds.
const SKEW_MAX_MS: i64 = 5 * 60 * 1000;

/// What is signed, before the nonce.
const CONTEXT: &[u8] = b"countersign attest v1\0";

/// For the whole exchange.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// What attestation needs.
pub struct Attestor {
    /// Remembers who proved what with which key.
    pub store: Arc<dyn Store>,
    /// Verifies evidence.
    pub verifier: Arc<Verifier>,
    /// Makes certificates.
    pub authority: Arc<Authority>,
    /// Whom we believe.
    pub index: Arc<Index>,
    /// For the fingerprint key.
    pub keys: Keys,
    /// What is counted.
    pub metrics: Metrics,
    /// How long a certificate lives, in seconds.
    pub svid_life_secs: i64,
}

/// What was learned of a proxy on the way: for the audit, also when it is refused.
#[derive(Default)]
struct Seen {
    binding: Option<Binding>,
    key: Option<[u8; 32]>,
}

impl Attestor {
    /// Carries one attestation through and records how it ended.
    ///
    /// # Errors
    /// Of stage identity.
    pub async fn attest(
        &self,
        mut requests: Streaming<v1::AttestRequest>,
        answers: tokio::sync::mpsc::Sender<Result<v1::AttestResponse, tonic::Status>>,
        peer: String,
    ) {
        let mut seen = Seen::default();
        let exchange = self.exchange(&mut requests, &answers, &mut seen);
        let ended = match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(ended) => ended,
            Err(_) => Err(Failure::new(Code::EvidenceInvalid, "the attestation took too long")),
        };
        let (refused, session, new_key) = match ended {
            Ok((session, new_key)) => (None, Some(session), new_key),
            Err(failure) => (Some(failure), None, false),
        };
        let event = Attested {
            caller: seen.binding.as_ref().map(|binding| binding.caller.id.clone()),
            instance: seen.binding.as_ref().map(|binding| binding.instance.to_string()),
            provider: seen.binding.as_ref().map(|binding| binding.caller.attestation.provider.to_string()),
            peer,
            key: seen
                .key
                .map(|key| key.iter().map(|byte| format!("{byte:02x}")).collect())
                .unwrap_or_default(),
            new_key,
            expires_at: session.as_ref().map(|session| model::UnixMillis(session.not_after_ms)),
            refused: refused.as_ref().map(|failure| failure.code),
            detail: refused.as_ref().map(|failure| failure.detail.clone()),
        };
        self.metrics.attested(refused.as_ref());
        // What can't be recorded is not given.
        let recorded = self.store.append_events(&[What::Attested(event)], now()).await;
        let answer = match (refused, session, recorded) {
            (Some(failure), _, _) => {
                tracing::warn!(stage = "identity", code = %failure.code, cause = ?failure.cause, "{failure}");
                Err(wire::status::from_failure(&failure))
            }
            (None, _, Err(error)) => Err(wire::status::from_failure(&store_failure(error))),
            (None, session, Ok(())) => {
                let message = session.map(v1::attest_response::Message::Session);
                Ok(v1::AttestResponse { message })
            }
        };
        let _ = answers.send(answer).await;
    }

    async fn exchange(
        &self,
        requests: &mut Streaming<v1::AttestRequest>,
        answers: &tokio::sync::mpsc::Sender<Result<v1::AttestResponse, tonic::Status>>,
        seen: &mut Seen,
    ) -> Result<(v1::Session, bool), Failure> {
        let hello = match next(requests).await? {
            v1::attest_request::Message::Hello(hello) => hello,
            v1::attest_request::Message::Proof(_) => {
                return Err(invalid("the attestation did not begin with a greeting"));
            }
        };
        close_enough(now().0, hello.now_ms)?;
        let nonce: [u8; 32] = rand::random();
        let challenge = v1::Challenge { nonce: nonce.to_vec(), now_ms: now().0 };
        let challenge =
            v1::AttestResponse { message: Some(v1::attest_response::Message::Challenge(challenge)) };
        answers.send(Ok(challenge)).await.map_err(|_| invalid("the proxy left"))?;
        let proof = match next(requests).await? {
            v1::attest_request::Message::Proof(proof) => proof,
            v1::attest_request::Message::Hello(_) => {
                return Err(invalid("the proxy did not answer the challenge"));
            }
        };
        self.prove(proof, &nonce, seen).await
    }

    async fn prove(
        &self,
        proof: v1::Proof,
        nonce: &[u8],
        seen: &mut Seen,
    ) -> Result<(v1::Session, bool), Failure> {
        let csr = CertificateSigningRequestParams::from_der(&proof.csr.as_slice().into())
            .map_err(|_| invalid("the signing request can't be read, or its signature does not hold"))?;
        let key: [u8; 32] = Sha256::digest(csr.public_key.subject_public_key_info()).into();
        seen.key = Some(key);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, csr.public_key.der_bytes())
            .verify(&[CONTEXT, nonce].concat(), &proof.signature)
            .map_err(|_| invalid("the challenge was not signed with the key of the signing request"))?;
        if !["oidc", "kubernetes"].contains(&proof.evidence_kind.as_str()) {
            return Err(Failure::new(Code::NoTrustProvider, "this kind of evidence is not known"));
        }
        let token = Secret::new(proof.evidence);
        let policies = self.index.now();
        let verified = self.verifier.verify(&token, &policies.trust, now()).await?;
        let binding = Binding { instance: verified.instance, caller: verified.caller, key };
        seen.binding = Some(binding.clone());
        let new_key = match self.store.bind(&binding, now()).await.map_err(store_failure)? {
            Bound::Same => false,
            Bound::Replaced => true,
            Bound::Replayed => {
                let detail =
                    format!("the evidence of instance {} was used before with another key", binding.instance);
                return Err(Failure::new(Code::EvidenceReplayed, detail));
            }
        };
        Ok((self.session(&binding, &csr).await?, new_key))
    }

    async fn session(
        &self,
        binding: &Binding,
        csr: &CertificateSigningRequestParams,
    ) -> Result<v1::Session, Failure> {
        let svid = self
            .authority
            .svid(&binding.caller.id, &csr.public_key, self.svid_life_secs, now())
            .map_err(|e| {
                Failure::new(Code::NoCaller, "no certificate could be made").because(e.into_boxed_dyn_error())
            })?;
        let fingerprint_key = self.keys.fingerprint().await.map_err(store_failure)?;
        Ok(v1::Session {
            certificates: svid.certificates.iter().map(|der| der.to_vec()).collect(),
            caller: Some((&binding.caller).into()),
            instance: binding.instance.to_string(),
            not_before_ms: svid.not_before.0,
            not_after_ms: svid.not_after.0,
            bundle: Some(self.authority.now().bundle()),
            fingerprint_key: fingerprint_key.expose().to_vec(),
        })
    }
}

/// Beyond five minutes nothing that is said of time can be relied on.
fn close_enough(ours_ms: i64, theirs_ms: i64) -> Result<(), Failure> {
    let skew = ours_ms.saturating_sub(theirs_ms);
    if skew.saturating_abs() > SKEW_MAX_MS {
        let detail = format!("the proxy's clock is {} s away from the control plane's", skew / 1000);
        return Err(Failure::new(Code::ClockSkew, detail));
    }
    Ok(())
}

async fn next(requests: &mut Streaming<v1::AttestRequest>) -> Result<v1::attest_request::Message, Failure> {
    let message = requests.message().await.map_err(|_| invalid("the proxy left"))?;
    message.and_then(|message| message.message).ok_or_else(|| invalid("the proxy left"))
}

fn invalid(detail: &str) -> Failure {
    Failure::new(Code::EvidenceInvalid, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_may_differ_by_five_minutes_and_no_more() {
        let now = 1_795_514_400_000;
        for skew in [0, 299_999, 300_000, -300_000] {
            assert!(close_enough(now, now + skew).is_ok(), "{skew}");
        }
        for skew in [300_001, -300_001, i64::MIN / 2, i64::MAX / 2] {
            let refused = close_enough(now, now.saturating_add(skew)).unwrap_err();
            assert_eq!(refused.code, Code::ClockSkew, "{skew}");
        }
    }
}
