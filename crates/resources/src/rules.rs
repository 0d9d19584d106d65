//! What only several fields say together, as rules that an API server can hold to (CEL, Kubernetes 1.25 and later), each
//! with the sentence that the command line says of it too.
//!
//! An API server bounds what a rule may cost before it takes the definition, so there is nothing here but `has`, `size`
//! and comparisons with literals.

use serde::Serialize;

/// A rule of `x-kubernetes-validations`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// A CEL expression over `self` that must be true.
    pub rule: &'static str,
    /// What people read if it is not.
    pub message: &'static str,
}

pub(crate) const MUST_BE_HTTPS: &str = "must be an https URL";
pub(crate) const ONE_ISSUER: &str = "a trust provider must have exactly one of `oidc` and `kubernetes`";
pub(crate) const NO_HOSTS: &str = "a destination must have `hosts` or `addresses`";
pub(crate) const INSECURE_BY_APPLICATION: &str = "a destination that says `insecure` can't say `resolve: application`: without TLS, the proxy's own look-up is all \
     that proves the server";
pub(crate) const REDACT_UNOPENED: &str =
    "what is not opened can't be searched: `redact` needs HTTP, and TLS that is opened";
pub(crate) const INSECURE_WITH_TLS: &str = "a destination that says `insecure` has no TLS to speak of";
pub(crate) const ONE_CONDITION: &str =
    "a condition must have exactly one of `timeWindow` and `attestedWithin`";
pub(crate) const EMPTY_WINDOW: &str = "`to` must differ from `from`; a whole day is `00:00` to `24:00`";
pub(crate) const EMPTY_GUARDRAIL: &str = "a guardrail must have `deny` or `when`";

pub(crate) const HTTPS: [Rule; 1] = [Rule { rule: "self.startsWith('https://')", message: MUST_BE_HTTPS }];

pub(crate) const TRUST_PROVIDER: [Rule; 1] =
    [Rule { rule: "has(self.oidc) != has(self.kubernetes)", message: ONE_ISSUER }];

pub(crate) const DESTINATION: [Rule; 4] = [
    Rule {
        rule: "(has(self.hosts) && size(self.hosts) > 0) || (has(self.addresses) && size(self.addresses) > 0)",
        message: NO_HOSTS,
    },
    Rule {
        rule: "!(has(self.insecure) && self.insecure && has(self.resolve) && self.resolve == 'application')",
        message: INSECURE_BY_APPLICATION,
    },
    Rule {
        rule: "!(has(self.redact) && self.redact && ((has(self.tls) && self.tls == 'passthrough') || \
               (has(self.protocol) && self.protocol == 'tcp')))",
        message: REDACT_UNOPENED,
    },
    Rule {
        rule: "!(has(self.insecure) && self.insecure && has(self.hosts) && size(self.hosts) > 0 && \
               !(has(self.addresses) && size(self.addresses) > 0) && has(self.tls))",
        message: INSECURE_WITH_TLS,
    },
];

pub(crate) const CONDITION: [Rule; 1] =
    [Rule { rule: "has(self.timeWindow) != has(self.attestedWithin)", message: ONE_CONDITION }];

pub(crate) const TIME_WINDOW: [Rule; 1] = [Rule { rule: "self.from != self.to", message: EMPTY_WINDOW }];

pub(crate) const GUARDRAIL: [Rule; 1] =
    [Rule { rule: "has(self.when) || (has(self.deny) && size(self.deny) > 0)", message: EMPTY_GUARDRAIL }];
