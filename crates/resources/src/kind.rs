//! The seven kinds of document, as they are written.
//!
//! An unknown field is an error. Values that need more than a type (names, durations, expressions) are checked by
//! [`crate::validate`], which can say where they stand. What is said here in `schemars` is for the custom resources
//! ([`crate::crd`]) alone: an API server can hold to it without us. It refuses nothing that the validation accepts.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules;

/// The `apiVersion` of every document.
pub const API_VERSION: &str = "countersign.dev/v1alpha1";

/// `metadata`, as in Kubernetes. Fields of other owners (labels, annotations) are kept and not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Metadata {
    /// An RFC 1123 subdomain.
    pub name: String,
    /// The tenant; absent for cluster-scoped kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Free.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// `Workload`: the software that makes calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadSpec {
    /// Attested attributes that must all be equal; at least one. A value may end in `*` for a prefix.
    #[schemars(extend("minProperties" = 1))]
    pub selector: BTreeMap<String, String>,
    /// Who answers for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// `production`, `staging`: free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Destinations that policies of this workload may name; absent permits all that the namespace may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destinations: Option<Vec<String>>,
    /// What happens to calls that no policy covers: `observe` or `enforce`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["observe", "enforce"]))]
    pub egress: Option<String>,
}

/// `TrustProvider` (cluster-scoped): whose evidence is believed, and how it is verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::TRUST_PROVIDER))]
pub struct TrustProviderSpec {
    /// An OpenID Connect issuer: a CI system, or a Kubernetes cluster that can't be asked for its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<OidcSpec>,
    /// A Kubernetes cluster: tokens that are bound to pods, and the pods themselves. Exactly one of `oidc` and
    /// `kubernetes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesSpec>,
    /// How the caller is named.
    pub caller: CallerSpec,
}

/// An OpenID Connect issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OidcSpec {
    /// The token's `iss`, byte for byte; an https URL.
    #[schemars(extend("x-kubernetes-validations" = rules::HTTPS))]
    pub issuer: String,
    /// The token's `aud` must hold this.
    #[schemars(length(min = 1))]
    pub audience: String,
    /// Where the keys are; absent asks the issuer's discovery document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = rules::HTTPS))]
    pub jwks_uri: Option<String>,
    /// Roots for the issuer's certificate in PEM; absent uses the control plane's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// A file with a bearer token to present when asking for discovery and keys: an API server wants one. Read anew
    /// for each request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer_token_file: Option<String>,
}

/// A Kubernetes cluster, whose API server signs the tokens of pods and knows which pods there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KubernetesSpec {
    /// The token's `aud` must hold this: the audience of the projected token, never the API server's own.
    #[schemars(length(min = 1))]
    pub audience: String,
    /// Who verifies tokens: `jwks` (default) is the control plane, by the API server's keys; `tokenReview` is the API
    /// server, which must then be there for each attestation, and refuses what its own rules refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["jwks", "tokenReview"]))]
    pub verify: Option<String>,
    /// The API server; absent is that of the cluster in which the control plane runs, with what each pod is given for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ApiServerSpec>,
}

/// A Kubernetes API server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ApiServerSpec {
    /// Its address; an https URL without a path.
    #[schemars(extend("x-kubernetes-validations" = rules::HTTPS))]
    pub url: String,
    /// Roots for its certificate in PEM; absent uses the control plane's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// A file with the bearer token to present. Read anew for each request.
    pub bearer_token_file: String,
}

/// How a caller is named from the evidence's claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CallerSpec {
    /// Path of the SPIFFE ID, with `{attribute}` for attested attributes:
    /// `ns/{kubernetes.namespace}/sa/{kubernetes.serviceaccount}`.
    #[schemars(length(min = 1))]
    pub path: String,
    /// The namespace of its callers: a name, or one `{attribute}`.
    #[schemars(length(min = 1))]
    pub namespace: String,
    /// The attribute that names the running copy, to which a token is bound at its first use:
    /// `kubernetes.pod.uid`, `claim.run_id`.
    #[schemars(length(min = 1))]
    pub instance: String,
}

/// `Destination`: what is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::DESTINATION))]
pub struct DestinationSpec {
    /// Host names; `*.example.com` is one label below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// TCP ports; 443 if absent (80 too if `insecure`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 1)))]
    pub ports: Vec<u16>,
    /// CIDR blocks or addresses: connections without a name are matched by them, and they allow what is otherwise
    /// refused (loopback, link-local, metadata).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// `http` (default) or `tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["http", "tcp"]))]
    pub protocol: Option<String>,
    /// `h2`, `http/1.1`, best first; absent if it is to be learned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("items" = { "type": "string", "enum": ["h2", "http/1.1"] }))]
    pub http_versions: Vec<String>,
    /// `terminate` (default) or `passthrough`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["terminate", "passthrough"]))]
    pub tls: Option<String>,
    /// Who finds its address: `name` (default) is the proxy, by the name; `application` is the application alone, for
    /// headless services, where only the member that it has chosen is right. Never together with `insecure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["name", "application"]))]
    pub resolve: Option<String>,
    /// Whether a credential may go to it without TLS.
    #[serde(default)]
    pub insecure: bool,
    /// Roots for its certificate in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// The name that is sent to it (SNI) and must be in its certificate; absent is the name that is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// What is shown to it when it asks for a client certificate: `svid`, the workload's own X.509-SVID; absent is
    /// nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["svid"]))]
    pub client_certificate: Option<String>,
    /// Whether the credential of a call is taken out of the answer, where the service sends it back: of header,
    /// trailers and body. The service is asked for an answer that is not compressed; one that is all the same is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub redact: bool,
    /// How sensitive its data is; free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<String>,
    /// Namespaces that may refer to it; `*` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_with: Vec<String>,
}

/// `CredentialProvider`: the recipe by which a credential is obtained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CredentialProviderSpec {
    /// A JWT signed by the control plane, which the destination verifies by the control plane's JWKS.
    pub jwt: JwtSpec,
    /// Where the credential goes; absent is `authorization: Bearer …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inject: Option<InjectSpec>,
    /// Namespaces that may refer to it; `*` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_with: Vec<String>,
}

/// A JWT of the control plane's own (RFC 7519, profile of RFC 9068 where it applies).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct JwtSpec {
    /// `aud`; at least one.
    #[schemars(length(min = 1), inner(length(min = 1)))]
    pub audience: Vec<String>,
    /// How long a token lives: `30s` to `1h`; `5m` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Further claims; `{attribute}` in a string is replaced by the attested attribute. `iss`, `sub`, `aud`, `exp`,
    /// `nbf`, `iat`, `jti` can't be set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, serde_json::Value>,
}

/// Where a credential goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct InjectSpec {
    /// Name of the header.
    #[schemars(length(min = 1))]
    pub header: String,
    /// What stands before the credential: `"Bearer "`; empty if absent.
    #[serde(default)]
    pub prefix: String,
}

/// `AccessPolicy`: which caller may do what at which destination, with which credential, under which conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AccessPolicySpec {
    /// A `Workload` of the same namespace.
    pub workload: String,
    /// A `Destination` of the same namespace, or `namespace/name` of one that is shared with it.
    pub destination: String,
    /// A `CredentialProvider`, likewise; absent lets the call pass with what the application sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// What is allowed; at least one rule.
    #[schemars(length(min = 1))]
    pub allow: Vec<RuleSpec>,
    /// `Condition`s that must all hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
    /// A Cedar expression that must be true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// Longest life of a credential under this policy: `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

/// One rule. What is absent is not restricted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RuleSpec {
    /// HTTP methods, upper case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Path templates: `*` is one segment, `**` any number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// The credential that this rule selects instead of the policy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
}

/// `Condition`: a fact about now that must hold. Exactly one of the fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::CONDITION))]
pub struct ConditionSpec {
    /// Within a window of the week.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_window: Option<TimeWindowSpec>,
    /// The evidence is not older than this: `1h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attested_within: Option<String>,
    /// Namespaces that may refer to it; `*` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_with: Vec<String>,
}

/// A window of the week.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::TIME_WINDOW))]
pub struct TimeWindowSpec {
    /// `mon` … `sun`; absent is every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("items" = { "type": "string", "enum": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"] }))]
    pub days: Vec<String>,
    /// `08:00`.
    pub from: String,
    /// `18:00`, exclusive; earlier than `from` runs past midnight.
    pub to: String,
    /// IANA name: `Europe/Berlin`.
    #[schemars(length(min = 1))]
    pub time_zone: String,
}

/// `Guardrail` (cluster-scoped): a `forbid` that no policy can override.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::GUARDRAIL))]
pub struct GuardrailSpec {
    /// What is forbidden, and what could be read as it; absent forbids all that `when` says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<RuleSpec>,
    /// A Cedar expression; forbidden if true. `when` or `deny` must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// What people read when it strikes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The spec of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant's type is documented")]
pub enum Spec {
    Workload(WorkloadSpec),
    TrustProvider(TrustProviderSpec),
    Destination(DestinationSpec),
    CredentialProvider(CredentialProviderSpec),
    AccessPolicy(AccessPolicySpec),
    Condition(ConditionSpec),
    Guardrail(GuardrailSpec),
}

/// The name of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each kind's spec is documented")]
pub enum Kind {
    Workload,
    TrustProvider,
    Destination,
    CredentialProvider,
    AccessPolicy,
    Condition,
    Guardrail,
}

impl Kind {
    /// All kinds, in the order in which documents build on one another.
    pub const ALL: [Self; 7] = [
        Self::TrustProvider,
        Self::Workload,
        Self::Destination,
        Self::CredentialProvider,
        Self::Condition,
        Self::AccessPolicy,
        Self::Guardrail,
    ];

    /// As a document writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Workload => "Workload",
            Self::TrustProvider => "TrustProvider",
            Self::Destination => "Destination",
            Self::CredentialProvider => "CredentialProvider",
            Self::AccessPolicy => "AccessPolicy",
            Self::Condition => "Condition",
            Self::Guardrail => "Guardrail",
        }
    }

    /// As the command line writes it: `accesspolicy`.
    #[must_use]
    pub fn lower(self) -> String {
        self.as_str().to_ascii_lowercase()
    }

    /// All of the kind, as the command line writes it: `accesspolicies`.
    #[must_use]
    pub fn plural(self) -> String {
        let lower = self.lower();
        match lower.strip_suffix('y') {
            Some(stem) => format!("{stem}ies"),
            None => format!("{lower}s"),
        }
    }

    /// Reads a kind as people type it: any case, singular or plural.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let singular = match text.strip_suffix("ies") {
            Some(stem) => format!("{stem}y"),
            None => text.strip_suffix('s').unwrap_or(&text).to_owned(),
        };
        Self::ALL.into_iter().find(|kind| kind.lower() == text || kind.lower() == singular)
    }

    /// Whether documents of this kind belong to a namespace.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::TrustProvider | Self::Guardrail)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Spec {
    /// Which kind it is of.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Workload(_) => Kind::Workload,
            Self::TrustProvider(_) => Kind::TrustProvider,
            Self::Destination(_) => Kind::Destination,
            Self::CredentialProvider(_) => Kind::CredentialProvider,
            Self::AccessPolicy(_) => Kind::AccessPolicy,
            Self::Condition(_) => Kind::Condition,
            Self::Guardrail(_) => Kind::Guardrail,
        }
    }

    /// Namespaces that may refer to the document; `*` for all.
    #[must_use]
    pub fn shared_with(&self) -> &[String] {
        match self {
            Self::Destination(spec) => &spec.shared_with,
            Self::CredentialProvider(spec) => &spec.shared_with,
            Self::Condition(spec) => &spec.shared_with,
            _ => &[],
        }
    }
}
