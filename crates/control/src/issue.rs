//! Issue: decision inputs in, grant out.
//!
//! The control plane decides again, under its own policy and clock. It trusts a proxy for nothing that it can check
//! itself: the caller is the channel's, names must be in the caller's slice, versions must agree.

use std::sync::Arc;

use model::audit::{Issued as IssuedEvent, What};
use model::{Caller, Code, Failure, RequestFacts, ResourceRef, UnixMillis, Verdict, Version};
use policy::{Question, Snapshot};
use sha2::{Digest as _, Sha256};
use wire::v1;

use crate::index::Index;
use crate::keys::Keys;
use crate::server::PeerCertificate;
use crate::store::{Binding, Store, StoredGrant};
use crate::{now, store_failure};

/// How long a replica that is behind waits for what the proxy has seen.
const CATCH_UP: std::time::Duration = std::time::Duration::from_millis(500);

/// What issuing needs.
pub struct Issuing {
    /// Where grants are remembered.
    pub store: Arc<dyn Store>,
    /// Where policy comes from.
    pub index: Arc<Index>,
    /// What signs.
    pub keys: Keys,
    /// The `iss` of our tokens.
    pub issuer_url: String,
}

/// A question whose form is good.
struct Asked {
    version: Version,
    destination: ResourceRef,
    provider: ResourceRef,
    request: RequestFacts,
}

impl Issuing {
    /// Answers one question, and records how.
    ///
    /// # Errors
    /// Of stages identity, policy and credential.
    pub async fn issue(
        &self,
        certificate: &PeerCertificate,
        binding: &Binding,
        request: v1::IssueRequest,
    ) -> Result<v1::IssueResponse, Failure> {
        if request.caller != certificate.caller.as_str() {
            let detail = "the question names another caller than the certificate of its channel";
            return Err(Failure::new(Code::WrongCaller, detail));
        }
        let asked = read(&request)?;
        let made = self.decide_and_make(&binding.caller, &asked).await;
        let event = |expires_at, grant: &str, policies, refused: Option<&Failure>| IssuedEvent {
            grant: model::GrantId(grant.into()),
            caller: binding.caller.id.clone(),
            instance: binding.instance.to_string(),
            destination: asked.destination.clone(),
            provider: asked.provider.clone(),
            policies,
            version: asked.version,
            expires_at,
            refused: refused.map(|failure| failure.code),
            detail: refused.map(|failure| failure.detail.clone()),
        };
        let made = match made {
            Ok(made) => made,
            Err(failure) => {
                let refused = event(UnixMillis(0), "", Vec::new(), Some(&failure));
                self.store.append_events(&[What::Issued(refused)], now()).await.map_err(store_failure)?;
                return Err(failure);
            }
        };
        let grant = StoredGrant {
            id: made.issued.grant.clone(),
            caller: binding.caller.id.clone(),
            instance: binding.instance.clone(),
            destination: asked.destination.clone(),
            provider: asked.provider.clone(),
            hash: Sha256::digest(made.issued.credential.expose()).into(),
            issued_at: now(),
            expires_at: made.issued.expires_at,
            revoked_at: None,
        };
        self.store.record_grant(&grant).await.map_err(store_failure)?;
        let event = event(grant.expires_at, &grant.id.0, made.policies, None);
        self.store.append_events(&[What::Issued(event)], now()).await.map_err(store_failure)?;
        Ok(v1::IssueResponse {
            grant: grant.id.to_string(),
            credential: made.issued.credential.expose().to_vec(),
            lifetime_ms: u64::try_from(grant.expires_at.millis_since(now())).unwrap_or_default(),
            expires_at_ms: grant.expires_at.0,
            provider_revision: made.provider_revision,
            version: Some(made.version.into()),
        })
    }

    async fn decide_and_make(&self, caller: &Caller, asked: &Asked) -> Result<Made, Failure> {
        let policies = self.caught_up(asked.version).await?;
        let slice = self.index.slice(&policies, caller);
        if slice.version != asked.version {
            let detail =
                format!("the proxy runs policy {}, the control plane {}", asked.version, slice.version);
            return Err(Failure::new(Code::PolicyMoved, detail));
        }
        let snapshot = Snapshot::new(slice).map_err(|refused| {
            Failure::new(Code::PolicyError, "the policy can't be evaluated").because(refused)
        })?;
        let destination = snapshot
            .destination(&asked.destination)
            .filter(|destination| destination.covers_host(&asked.request.host, asked.request.port))
            .ok_or_else(|| {
                Failure::new(
                    Code::IssueDenied,
                    format!("no policy covers {} for this caller", asked.request.host),
                )
            })?;
        let caller = Arc::new(caller.clone());
        let question = Question { caller: &caller, destination, request: &asked.request, now: now() };
        let decision = snapshot.decide(&question);
        let ttl = match &decision.verdict {
            Verdict::Deny { code: Code::Blocked, reason } => {
                return Err(Failure::new(Code::Blocked, reason.clone()));
            }
            Verdict::Deny { reason, .. } => return Err(Failure::new(Code::IssueDenied, reason.clone())),
            Verdict::Allow { credential, ttl_seconds } if credential.as_ref() == Some(&asked.provider) => {
                *ttl_seconds
            }
            Verdict::Allow { .. } => {
                let detail = format!("the policy does not use {} for this request", asked.provider);
                return Err(Failure::new(Code::IssueDenied, detail));
            }
        };
        let (recipe, revision) = policies
            .recipe(&asked.provider)
            .ok_or_else(|| Failure::new(Code::IssueDenied, "there is no such credential provider"))?;
        let signer = self.keys.signing(now()).await.map_err(store_failure)?;
        let issued = issuers::jwt::issue(&recipe.jwt, &self.issuer_url, &caller, ttl, &signer, now())?;
        Ok(Made {
            issued,
            policies: decision.policies.clone(),
            provider_revision: *revision,
            version: snapshot.version(),
        })
    }

    /// The policies, at least at this version: a replica that is behind catches up first.
    async fn caught_up(&self, version: Version) -> Result<Arc<crate::index::Policies>, Failure> {
        let reached = crate::index::reached(&self.index, version);
        match tokio::time::timeout(CATCH_UP, reached).await {
            Ok(Ok(())) => Ok(self.index.now()),
            _ => Err(Failure::new(Code::PolicyMoved, "this replica is behind the proxy's policy")),
        }
    }
}

struct Made {
    issued: issuers::Issued,
    policies: Vec<ResourceRef>,
    provider_revision: u64,
    version: Version,
}

fn read(request: &v1::IssueRequest) -> Result<Asked, Failure> {
    let malformed = |what: &str| Failure::new(Code::IssueDenied, format!("the question's {what} is not one"));
    let facts = request.request.as_ref().ok_or_else(|| malformed("request"))?;
    Ok(Asked {
        version: request.version.ok_or_else(|| malformed("version"))?.into(),
        destination: request.destination.parse().map_err(|_| malformed("destination"))?,
        provider: request.provider.parse().map_err(|_| malformed("provider"))?,
        request: RequestFacts::try_from(facts).map_err(|invalid| malformed(invalid.0))?,
    })
}
