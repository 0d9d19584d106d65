//! Who calls: the attested workload, the running copy of it, and the human behind it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::{Namespace, SpiffeId};
use crate::time::UnixMillis;

/// The attested identity of a workload, with what the evidence proved about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Derived from the evidence by the trust provider.
    pub id: SpiffeId,
    /// The tenant in which it was attested: a namespaced `Workload` matches only callers of its own.
    pub namespace: Namespace,
    /// What the evidence proved, as `key → value`; keys are documented with each kind of evidence.
    pub attributes: BTreeMap<String, String>,
    /// How and when it was proved.
    pub attestation: Attestation,
}

/// How and when a caller was proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// The `TrustProvider` that was believed.
    pub provider: Box<str>,
    /// The kind of evidence: `oidc`, `kubernetes`.
    pub kind: Box<str>,
    /// When the evidence was issued (its `iat`), never when it was presented: age counts from here.
    pub issued_at: UnixMillis,
    /// When the evidence itself ends.
    pub expires_at: UnixMillis,
}

/// One running copy of a workload: a pod's UID, a CI job's run. What a bearer token is bound to at its first use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub Box<str>);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The human on whose behalf an agent acts, proved by a second token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subject {
    /// The token's issuer.
    pub issuer: Box<str>,
    /// The token's `sub`.
    pub id: Box<str>,
}
