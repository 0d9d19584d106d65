//! Every answer and refusal of ours: one table of stable codes, and the error that carries one.
//!
//! From this table come the documentation page, the metric label, `countersign explain CODE`, and the fields of
//! events and answers. A code is never used again for another meaning.

use std::fmt;

/// The nine stages of a call. The same words are the module, the span, the metric label and the heading in the docs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Documents, installation and command line: not part of a call.
    Documents,
    /// Where was it really going?
    Capture,
    /// Open it or leave it shut?
    Tls,
    /// What is being asked?
    Protocol,
    /// Who asks?
    Identity,
    /// May it, with what?
    Policy,
    /// Get it.
    Credential,
    /// What changes in the message?
    Rewrite,
    /// Send it to the right server.
    Upstream,
    /// What happened?
    Audit,
}

impl Stage {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Documents => "documents",
            Self::Capture => "capture",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::Identity => "identity",
            Self::Policy => "policy",
            Self::Credential => "credential",
            Self::Rewrite => "rewrite",
            Self::Upstream => "upstream",
            Self::Audit => "audit",
        }
    }
}

/// Who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The application, or whoever wrote it.
    Caller,
    /// The platform team: documents, installation.
    Operator,
    /// The destination.
    Upstream,
    /// Whoever issues the credential.
    Issuer,
    /// Countersign.
    Us,
}

/// Stands in a remedy for the id of the decision that it is about.
const DECISION: &str = "DECISION";

/// One row of the table.
#[derive(Debug)]
pub struct Entry {
    /// The code's variant.
    pub code: Code,
    /// `CS` + the stage's digit + three digits.
    pub text: &'static str,
    /// Constant for the code: RFC 9457 `title`, and the HTTP/1.1 reason phrase with the code behind it.
    pub title: &'static str,
    /// HTTP status of our answer; `None` where no HTTP answer exists (the connection is closed or reset, or the code
    /// is the command line's).
    pub status: Option<u16>,
    /// Error type for the `proxy-status` header (RFC 9209 §2.3).
    pub proxy_status: &'static str,
    /// Whether the same call can succeed later without anybody mending anything.
    pub retryable: bool,
    /// Who has to act.
    pub fault: Fault,
    /// What it means and what usually causes it.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

macro_rules! codes {
    ($($variant:ident $text:literal $title:literal $status:expr, $proxy_status:literal, $retryable:literal, $fault:ident,
        $meaning:literal, $remedy:literal;)*) => {
        /// A stable code. The variants' documentation is the table itself: see [`Code::entry`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "each row of the table documents its variant")]
        pub enum Code { $($variant),* }

        /// All codes, ordered by number.
        pub const TABLE: &[Entry] = &[$(Entry {
            code: Code::$variant,
            text: $text,
            title: $title,
            status: $status,
            proxy_status: $proxy_status,
            retryable: $retryable,
            fault: Fault::$fault,
            meaning: $meaning,
            remedy: $remedy,
        }),*];
    };
}

codes! {
    // 0: documents, installation, command line
    YamlSyntax "CS0101" "Not a YAML document" None, "-", false, Operator,
        "The text could not be read as YAML, or a value has the wrong type.",
        "Mend the line that the message shows.";
    UnknownField "CS0102" "Unknown field" None, "-", false, Operator,
        "The document has a field that this kind does not know; a misspelt field must not be ignored silently.",
        "Use the field that the message proposes; `countersign explain KIND` lists all of them (docs/reference/resources.md).";
    InvalidValue "CS0103" "Invalid value" None, "-", false, Operator,
        "A field's value is not one that it can have.",
        "The message says what is allowed.";
    DanglingReference "CS0104" "Reference to nothing" None, "-", false, Operator,
        "A document names another that is neither in these files nor in the store, in this namespace or shared with it.",
        "Correct the name, apply the missing document with this one, or share it with the namespace.";
    InvalidExpression "CS0105" "Expression does not type-check" None, "-", false, Operator,
        "The Cedar expression in `when` or a guardrail does not parse, or names what a policy can't see.",
        "Mend the part under the caret; `countersign explain context` lists what an expression can see.";
    DuplicateDocument "CS0106" "Document given twice" None, "-", false, Operator,
        "Two documents of one kind have the same namespace and name.",
        "Remove or rename one.";
    NotPermitted "CS0107" "Destination not permitted" None, "-", false, Operator,
        "A policy names a destination that the Workload's `destinations` does not permit.",
        "Permit it in the Workload, or point the policy elsewhere.";
    WrongScope "CS0108" "Wrong scope" None, "-", false, Operator,
        "A cluster-scoped kind has a namespace, or a namespaced one has none.",
        "Remove or add `metadata.namespace`.";
    ReadOnlyDocument "CS0109" "Document has another owner" None, "-", false, Operator,
        "The document is synchronised from a custom resource and can't be changed by `apply`.",
        "Change it with kubectl.";
    StillReferenced "CS0110" "Document is still referenced" None, "-", false, Operator,
        "Another document refers to the one to be deleted.",
        "Delete or change the documents that the message lists first.";
    AmbiguousCredentialAhead "CS0130" "Policies name different credentials" None, "-", false, Operator,
        "Two policies of one workload cover the same destination with different credentials; calls that both allow are refused with CS5006.",
        "Make the rules disjoint, or name one credential.";
    FreshnessOutOfReach "CS0131" "Evidence can't be that fresh" None, "-", false, Operator,
        "A policy asks for a fresher attestation than the kind of evidence can give.",
        "Allow at least the evidence's renewal interval.";
    UncoveredAfterDelete "CS0132" "Destination is no longer covered" None, "-", false, Operator,
        "After this deletion nothing covers the destination: in egress mode `observe` calls pass without a credential, in `enforce` they are refused.",
        "Set `egress: enforce` on the Workload, or block it with `countersign revoke workload/NAME`.";
    ControlPlaneAway "CS0201" "Control plane can't be reached" None, "-", true, Us,
        "The command line could not connect to the control plane.",
        "Check that countersign-control runs, and the address or socket given.";
    NotAuthorised "CS0202" "Not authorised" None, "-", false, Operator,
        "The control plane did not accept the administrator's proof: the socket's peer UID, or the token; or, in a cluster, the user's roles do not let them have one.",
        "Run as the control plane's user or root, or give the token file that its first start wrote; in a cluster ask for the Role countersign-viewer or countersign-admin.";
    NotFound "CS0203" "Not found" None, "-", false, Operator,
        "There is no such document, decision, grant or block.",
        "`countersign get KIND` lists what there is; `countersign audit` has the ids of decisions.";

    // 1: capture
    NoOriginalDestination "CS1001" "Original destination unknown" None, "-", false, Operator,
        "A connection reached the proxy's port without having been redirected.",
        "Nothing may dial the proxy's port by itself; check the redirect with `countersign-proxy capture show`.";
    ForbiddenAddress "CS1002" "Address refused" Some(403), "destination_ip_prohibited", false, Operator,
        "A covered or an explicit-proxy call would go to a loopback, link-local, unspecified, multicast or metadata address, to a network that `--refuse-cidr` names, or to one of the proxy's own ports.",
        "List the address in the Destination if it is meant; the proxy's own ports are always refused.";
    RedirectGone "CS1003" "Redirect is gone" None, "-", false, Operator,
        "The rules that send the workload's connections to the proxy are not there, or not for both IPv4 and IPv6: calls go around it.",
        "Find out who removed them, and reinstall them with `countersign-proxy capture install`.";
    RedirectLoop "CS1004" "Redirect catches the proxy" None, "-", false, Operator,
        "The rules send the proxy's own connections back to it, so it carries nothing.",
        "Reinstall them with the UID that the proxy runs as, or with its mark.";
    UidShared "CS1005" "Another process has the proxy's UID" None, "-", false, Operator,
        "A process that is not the proxy runs with its UID, so the redirect exempts it too: its calls go around the proxy.",
        "Give the proxy a UID of its own, and the application another.";
    ProxyAuthentication "CS1006" "Proxy authentication required" Some(407), "http_request_denied", false, Caller,
        "The explicit proxy asks for a token (`--explicit-token-file`), and the application did not send it.",
        "Put it into the proxy's URL as the password: http://any:TOKEN@127.0.0.1:PORT.";

    // 2: tls
    BadClientHello "CS2001" "Not a TLS handshake" None, "-", false, Caller,
        "The connection began like TLS but its ClientHello could not be read.",
        "See what the application speaks; `tls: passthrough` leaves a destination's TLS alone.";
    ApplicationDistrusts "CS2002" "Application does not trust the proxy" None, "-", false, Operator,
        "The application ended the handshake because it does not trust the instance's CA.",
        "Set the trust variables for its runtime: docs/trust.md.";
    DownstreamHandshake "CS2003" "Application's TLS handshake failed" None, "-", false, Caller,
        "The application and the proxy have no TLS version or cipher in common, or the handshake broke off.",
        "TLS 1.2 with ECDHE and AEAD, or TLS 1.3, is needed.";

    // 3: protocol
    MalformedRequest "CS3001" "Malformed request" Some(400), "http_request_error", false, Caller,
        "The request is not valid HTTP, or could be read in two ways.",
        "Mend the client.";
    HeaderTooLarge "CS3002" "Request header too large" Some(431), "http_request_error", false, Caller,
        "The request's header has more fields or bytes than the proxy's limit.",
        "Send less, or raise the proxy's `--max-header-kib` or `--max-headers`.";
    BodyTooLarge "CS3003" "Request body too large" Some(413), "http_request_error", false, Caller,
        "The request's body is longer than the configured limit.",
        "Send less, or raise the proxy's `--max-body-mib`.";
    TooManyRequests "CS3004" "Too many requests" Some(429), "http_request_error", true, Caller,
        "The application has more open requests than the proxy's limit for it.",
        "Make fewer calls at a time, or raise the proxy's `--max-requests`.";
    OverLimit "CS3005" "Proxy is at its limit" Some(503), "connection_limit_reached", true, Us,
        "The proxy holds as many connections, or as much memory, as its limit.",
        "Raise the proxy's `--max-connections` or `--max-memory-mib`; in a pod the latter is three quarters of its container's memory limit.";
    Misdirected "CS3006" "Names disagree" Some(421), "http_request_error", false, Caller,
        "SNI, Host or `:authority`, and port of one request name different services.",
        "Mend the client; a connection is for the one name that it was opened for.";
    UnknownProtocol "CS3007" "Unknown protocol to a covered destination" None, "-", false, Operator,
        "The bytes are neither TLS nor HTTP, but a policy covers the destination.",
        "Say `protocol: tcp` or `tls: passthrough` in the Destination if the connection as such is to be judged.";
    PlainHttp "CS3008" "Plain HTTP to a covered destination" Some(403), "http_request_denied", false, Caller,
        "The destination is covered by a policy, and a credential is never sent in the clear.",
        "Call it with https, or say `insecure: true` in the Destination.";
    MethodRefused "CS3009" "Method refused" Some(405), "http_request_denied", false, Caller,
        "TRACE would echo the credential to the application.",
        "Use another method.";
    NotCarried "CS3010" "Not carried" Some(403), "http_request_denied", false, Us,
        "The request asks for what the proxy does not carry: CONNECT or an Upgrade to a covered destination, another scheme than `http` in absolute-form, or HTTP/2 to the explicit proxy.",
        "Say `tls: passthrough` in the Destination if the connection as such is to be judged.";
    GrpcNeedsHttp2 "CS3011" "gRPC needs HTTP/2" Some(403), "http_protocol_error", false, Caller,
        "The call is gRPC, but the application or the destination speaks HTTP/1.1 only; gRPC is never translated down.",
        "Use a gRPC client over HTTP/2; see that the destination offers `h2`, or is declared with `httpVersions: [h2]`.";
    UnmetExpectation "CS3012" "Expectation can't be met" Some(417), "http_request_error", false, Caller,
        "The request's `Expect` asks for something else than `100-continue`, and there is nothing else (RFC 9110 §10.1.1).",
        "Send the request without that field.";
    RequestTimeout "CS3020" "Request took too long" Some(408), "http_request_error", true, Caller,
        "The request's header did not end, or its body did not go on, in time.",
        "See why the client stalls, or raise the proxy's `--header-timeout` or `--body-timeout`.";
    BodyStalled "CS3021" "Exchange stood still" None, "-", false, Us,
        "Nothing of an answer's body moved for as long as the time-out: its sender or its reader stalls.",
        "See which of them stalls, or raise the proxy's `--body-timeout` or `--stream-timeout`.";
    StreamFlood "CS3022" "Too many streams given up" None, "-", false, Caller,
        "The application opened streams of one HTTP/2 connection and gave them up, more often than the limit.",
        "Mend the client, or raise the proxy's `--max-resets`.";

    // 4: identity
    NoCaller "CS4001" "Workload is not attested" Some(503), "proxy_internal_error", true, Operator,
        "The proxy has no attested caller: the control plane did not accept its evidence, or could not be asked yet.",
        "See the proxy's log, or `countersign audit --denied`, for the reason.";
    EvidenceInvalid "CS4002" "Evidence does not verify" None, "-", false, Operator,
        "Signature, issuer, audience or form of the evidence is not what the TrustProvider asks for.",
        "Compare the token's `iss` and `aud` with the TrustProvider.";
    EvidenceExpired "CS4003" "Evidence has expired" None, "-", true, Operator,
        "The token's `exp` has passed.",
        "See why the platform has not renewed it.";
    EvidenceReplayed "CS4004" "Evidence is bound to another key" None, "-", false, Operator,
        "The evidence was used before with another key, and is not newer: it was copied from elsewhere.",
        "Find out who else holds the token. A new proxy for the same instance needs a newer token.";
    ClockSkew "CS4005" "Clocks disagree" None, "-", false, Operator,
        "The clocks of proxy and control plane are more than five minutes apart.",
        "Mend the clock that is wrong.";
    NoTrustProvider "CS4006" "No trust provider" None, "-", false, Operator,
        "No TrustProvider believes this kind of evidence from this issuer.",
        "Apply a TrustProvider for the issuer.";
    WrongCaller "CS4007" "Name is not the channel's" None, "-", false, Caller,
        "A message named another caller than the certificate of its channel.",
        "Nothing honest does this: look at who holds the proxy's key.";
    SessionEnded "CS4008" "Session has ended" None, "-", true, Us,
        "The channel's certificate has expired, or a newer session of the same instance has replaced it.",
        "The proxy attests again by itself.";
    WorkloadGone "CS4009" "Workload is gone" None, "-", false, Caller,
        "The evidence, or the session that it began, belongs to a pod that is no longer there, that has ended, or whose grace period is over.",
        "Nothing honest goes on after its pod: look at who holds the token or the proxy's key.";

    // 5: policy
    NoPolicyAllows "CS5001" "Denied by policy" Some(403), "http_request_denied", false, Operator,
        "Policies cover the destination, but none allows this request.",
        "`countersign explain DECISION` shows the nearest policy and what it lacks.";
    Forbidden "CS5002" "Forbidden by guardrail" Some(403), "http_request_denied", false, Operator,
        "A guardrail forbids it; no policy can override that.",
        "Talk to the owner of the guardrail.";
    NoSnapshot "CS5003" "No policy yet" Some(503), "proxy_internal_error", true, Us,
        "The proxy has never received its policy, nor kept one from before; nothing passes until then.",
        "Check that the control plane can be reached from the proxy; `countersign status` shows which proxies it knows.";
    PolicyError "CS5004" "Policy could not be evaluated" Some(403), "http_request_denied", false, Operator,
        "An expression failed while it was evaluated; an erring guardrail must not be skipped, so the call is denied.",
        "`countersign explain DECISION` names the expression; ask with `has` before using a value that may be absent.";
    NotCovered "CS5005" "No policy covers it" Some(403), "http_request_denied", false, Operator,
        "No policy covers this destination for this workload, and its egress mode is `enforce`.",
        "Write an AccessPolicy for it, or set the egress mode to `observe`.";
    AmbiguousCredential "CS5006" "Policies name different credentials" Some(403), "http_request_denied", false, Operator,
        "The policies that allow the request name different credentials.",
        "Make the rules disjoint, or name one credential.";
    Blocked "CS5007" "Blocked" Some(403), "http_request_denied", false, Operator,
        "An administrator has blocked the workload, the destination or the credential provider.",
        "`countersign get blocks` shows it; `countersign revoke TARGET --lift` ends it.";
    BypassEnded "CS5020" "Bypass has ended" None, "-", false, Operator,
        "The connection passed untouched under a bypass, which is over; a policy covers what it goes to.",
        "Nothing: a new connection is judged as ever. `countersign get bypasses` shows those in force.";

    // 6: credential
    ControlPlaneUnreachable "CS6001" "Control plane can't be reached" Some(503), "proxy_internal_error", true, Us,
        "A new credential is needed and the control plane does not answer.",
        "Check the control plane; what was granted before goes on working until it expires.";
    IssuerRefused "CS6002" "Issuer refused" Some(403), "http_request_denied", false, Issuer,
        "The issuer of the credential said no: a mistake that no retry mends.",
        "The detail has the issuer's reason; correct the CredentialProvider or the issuer's configuration.";
    IssuerUnreachable "CS6003" "Issuer can't be reached" Some(503), "proxy_internal_error", true, Issuer,
        "The issuer of the credential does not answer, or throttles.",
        "Check the issuer.";
    PolicyMoved "CS6004" "Policy is changing" Some(503), "proxy_internal_error", true, Us,
        "Proxy and control plane do not run the same version of the policy yet; deny wins while they disagree.",
        "Try again; if it stays, see `countersign status`.";
    CredentialUnusable "CS6005" "Credential can't be sent" Some(403), "http_request_denied", false, Issuer,
        "The credential is empty, or has bytes that a header can't carry.",
        "Correct the CredentialProvider.";
    IssueDenied "CS6006" "Denied by the control plane" Some(403), "http_request_denied", false, Operator,
        "The control plane decided again on issuing, and denied.",
        "`countersign explain DECISION` shows its reason.";

    // 8: upstream
    UpstreamUntrusted "CS8001" "Upstream certificate does not verify" Some(502), "tls_certificate_error", false, Upstream,
        "The certificate is for another name, expired, or signed by nobody whom the proxy trusts. Nothing was sent.",
        "Give the destination's roots to the proxy (`--roots`) or in the Destination (`caBundle`).";
    UpstreamWantsCertificate "CS8002" "Upstream wants a client certificate" Some(502), "tls_protocol_error", false, Operator,
        "The server asks for a client certificate, and none is shown to it; or it does not accept the one that is.",
        "`clientCertificate: svid` in the Destination shows the workload's own, which the server must trust; `tls: passthrough` lets the application use its own.";
    UpstreamUnreachable "CS8003" "Upstream can't be reached" Some(502), "destination_unavailable", true, Upstream,
        "The destination refused the connection, or no route leads there.",
        "Check the destination.";
    UpstreamTimeout "CS8004" "Upstream too slow" Some(504), "http_response_timeout", true, Upstream,
        "The destination did not accept the connection, or did not answer, in time.",
        "Check the destination, or raise the proxy's `--connect-timeout` or `--answer-timeout`.";
    UpstreamBadAnswer "CS8005" "Upstream's answer is not valid" Some(502), "http_protocol_error", false, Upstream,
        "The destination broke off before its answer, or answered what is not valid HTTP.",
        "Check the destination.";
    NameNotResolved "CS8006" "Name does not resolve" Some(502), "dns_error", true, Upstream,
        "The judged name has no address.",
        "Check the name and the resolver.";
    UpstreamTls "CS8007" "Upstream TLS handshake failed" Some(502), "tls_protocol_error", false, Upstream,
        "The destination speaks no TLS version or cipher that the proxy accepts; the detail says what is missing.",
        "TLS 1.2 with ECDHE and AEAD, or TLS 1.3, is needed.";

    UpstreamProxyRefused "CS8008" "Refused by the corporate proxy" Some(502), "proxy_configuration_error", false, Operator,
        "The corporate proxy (`--upstream-proxy`) does not take our credential (407), or does not let the call through.",
        "Correct its credential (the proxy's `--upstream-proxy-credential-file`), or have it allow the destination.";
    UpstreamProxyUnusable "CS8009" "Corporate proxy can't be used" Some(502), "proxy_configuration_error", true, Operator,
        "The corporate proxy (`--upstream-proxy`) can't be reached, or does not answer CONNECT with valid HTTP.",
        "Check its address and that it is up; the proxy's `--upstream-proxy-except` says what is reached without it.";
    EncodedAnswer "CS8020" "Answer is compressed" Some(502), "http_protocol_error", false, Upstream,
        "The destination says `redact`, and its answer is compressed although it was asked for as it is.",
        "Let the service honour `accept-encoding: identity`, or drop `redact` from the Destination.";

    // 9: audit
    SpoolFull "CS9001" "Audit spool is full" Some(503), "proxy_internal_error", true, Us,
        "Events can't be delivered and the spool on disk is full; a call that needs a credential is not made unrecorded.",
        "Check the control plane; raise the proxy's `--spool-max-mib`.";
    ChainBroken "CS9002" "Audit chain is broken" None, "-", false, Operator,
        "A record does not match the hash that its successor remembers: one of them was changed.",
        "Compare with an export or a backup; `countersign audit verify` says where and whose stream.";
    ChainGap "CS9003" "Audit records are missing" None, "-", false, Operator,
        "A stream has a gap, or its tail behind a signed checkpoint is gone.",
        "`countersign audit verify` says who owed the records.";
}

impl Entry {
    /// What to do about one decision: a command in it can be run as it is.
    #[must_use]
    pub fn remedy_for(&self, decision: crate::DecisionId) -> String {
        self.remedy.replace(DECISION, &decision.to_string())
    }
}

impl Code {
    /// The code's row.
    #[must_use]
    pub const fn entry(self) -> &'static Entry {
        &TABLE[self as usize]
    }

    /// `CS5001`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.entry().text
    }

    /// The stage, from the code's first digit.
    #[must_use]
    pub const fn stage(self) -> Stage {
        match self.as_str().as_bytes()[2] {
            b'0' => Stage::Documents,
            b'1' => Stage::Capture,
            b'2' => Stage::Tls,
            b'3' => Stage::Protocol,
            b'4' => Stage::Identity,
            b'5' => Stage::Policy,
            b'6' => Stage::Credential,
            b'7' => Stage::Rewrite,
            b'8' => Stage::Upstream,
            _ => Stage::Audit,
        }
    }

    /// The code with this text, as messages and the command line carry it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        TABLE.iter().find(|entry| entry.text.eq_ignore_ascii_case(text)).map(|entry| entry.code)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("unknown code `{text}`")))
    }
}

/// A refusal or failure of ours: which code, and what happened this time.
///
/// `detail` may reach the application and `countersign audit`; it never holds a secret. `cause` is for the log only.
#[derive(Debug)]
pub struct Failure {
    /// Which row of the table.
    pub code: Code,
    /// One sentence about this occurrence, in the user's nouns.
    pub detail: String,
    /// What lies underneath, for the log.
    pub cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Failure {
    /// A failure without an underlying error.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), cause: None }
    }

    /// The same failure with what lies underneath.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.code.entry().title, self.detail)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_each_row_finds_itself() {
        for (i, entry) in TABLE.iter().enumerate() {
            assert_eq!(entry.code as usize, i);
            assert_eq!(Code::parse(entry.text), Some(entry.code));
            assert_eq!(entry.text.len(), 6, "{}", entry.text);
            assert!(entry.meaning.ends_with('.') && entry.remedy.ends_with('.'), "{}", entry.text);
            assert_eq!(entry.status.is_none(), entry.proxy_status == "-", "{}", entry.text);
        }
        assert!(TABLE.windows(2).all(|pair| pair[0].text < pair[1].text), "ordered, and none twice");
    }

    #[test]
    fn no_mistake_that_needs_mending_is_a_status_that_clients_retry() {
        for entry in TABLE {
            let retried = matches!(entry.status, Some(429 | 503 | 504));
            assert!(!retried || entry.retryable, "{}", entry.text);
        }
    }
}
