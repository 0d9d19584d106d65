//! What is wrong with a set of documents: values that can't be, references that lead nowhere.
//!
//! Expressions are not looked at here: the crate `policy` type-checks them.

use std::collections::HashSet;

use model::destination::Resolution;
use model::name::HostPattern;
use model::{Code, HostName, Namespace};

use crate::diagnostic::Diagnostic;
use crate::kind::{
    AccessPolicySpec, ConditionSpec, CredentialProviderSpec, DestinationSpec, GuardrailSpec, Kind,
    KubernetesSpec, RuleSpec, Spec, TrustProviderSpec, WorkloadSpec,
};
use crate::parse::Document;
use crate::rules;
use crate::set::{Dangling, Set, references};
use crate::values;

/// Longest life of a token of ours, in seconds.
pub const TTL_MAX: u32 = 3600;

/// Shortest life: below it the margin for clocks would leave nothing.
pub const TTL_MIN: u32 = 30;

/// Claims that the issuer sets itself (RFC 7519 §4.1).
const RESERVED_CLAIMS: [&str; 7] = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti"];

/// Headers that a credential can't go into: they frame or route the message.
const RESERVED_HEADERS: [&str; 8] =
    ["host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "expect"];

/// Looks at `documents` within the `set` that they are part of.
#[must_use]
pub fn validate(documents: &[Document], set: &Set) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for document in documents {
        if !seen.insert((document.kind(), document.name.clone())) {
            let message = format!("{} is there twice", document.label());
            found.push(Diagnostic::error(Code::DuplicateDocument, document.at("/metadata/name"), message));
        }
        values_of(document, &mut found);
        dangling(document, set, &mut found);
        if let Spec::AccessPolicy(spec) = &document.spec {
            permitted(document, spec, set, &mut found);
            unopened(document, spec, set, &mut found);
            ambiguous(document, spec, set, &mut found);
            out_of_reach(document, spec, set, &mut found);
        }
    }
    found.sort_by(|a, b| (&a.at, a.code).cmp(&(&b.at, b.code)));
    found
}

fn values_of(document: &Document, found: &mut Vec<Diagnostic>) {
    let mut check = Check { document, found };
    let namespace = |text: &str| (text == "*").then_some(()).or_else(|| Namespace::new(text).ok().map(drop));
    check.each(
        "/spec/sharedWith",
        document.spec.shared_with(),
        namespace,
        "must be a namespace, or `*` for all",
    );
    match &document.spec {
        Spec::Workload(spec) => check.workload(spec),
        Spec::TrustProvider(spec) => check.trust_provider(spec),
        Spec::Destination(spec) => check.destination(spec),
        Spec::CredentialProvider(spec) => check.credential_provider(spec),
        Spec::AccessPolicy(spec) => check.access_policy(spec),
        Spec::Condition(spec) => check.condition(spec),
        Spec::Guardrail(spec) => check.guardrail(spec),
    }
}

struct Check<'a> {
    document: &'a Document,
    found: &'a mut Vec<Diagnostic>,
}

impl Check<'_> {
    fn invalid(&mut self, path: &str, message: impl Into<String>) {
        self.found.push(Diagnostic::error(Code::InvalidValue, self.document.at(path), message));
    }

    /// Each item must be one that `read` understands.
    fn each<T>(&mut self, path: &str, items: &[String], read: impl Fn(&str) -> Option<T>, must: &str) {
        for (i, item) in items.iter().enumerate() {
            if read(item).is_none() {
                self.invalid(&format!("{path}/{i}"), format!("`{item}` {must}"));
            }
        }
    }

    fn one<T>(&mut self, path: &str, item: Option<&String>, read: impl Fn(&str) -> Option<T>, must: &str) {
        if let Some(item) = item
            && read(item).is_none()
        {
            self.invalid(path, format!("`{item}` {must}"));
        }
    }

    fn workload(&mut self, spec: &WorkloadSpec) {
        if spec.selector.is_empty() {
            self.invalid(
                "/spec/selector",
                "a selector must name at least one attribute: an empty one would match everybody",
            );
        }
        for (key, value) in &spec.selector {
            // Else it would be compared letter by letter, and nobody writes it for that.
            if value.strip_suffix('*').unwrap_or(value).contains('*') {
                let message = format!("`{value}` may have `*` at its end only");
                self.invalid(&format!("/spec/selector/{key}"), message);
            }
        }
        self.one("/spec/egress", spec.egress.as_ref(), values::egress, "must be `observe` or `enforce`");
    }

    fn trust_provider(&mut self, spec: &TrustProviderSpec) {
        let https = |text: &str| text.starts_with("https://").then_some(());
        if spec.oidc.is_some() == spec.kubernetes.is_some() {
            self.invalid("/spec", rules::ONE_ISSUER);
        }
        if let Some(oidc) = &spec.oidc {
            self.one("/spec/oidc/issuer", Some(&oidc.issuer), https, rules::MUST_BE_HTTPS);
            self.one("/spec/oidc/jwksUri", oidc.jwks_uri.as_ref(), https, rules::MUST_BE_HTTPS);
            if oidc.audience.is_empty() {
                self.invalid("/spec/oidc/audience", "the audience must not be empty");
            }
        }
        if let Some(kubernetes) = &spec.kubernetes {
            self.kubernetes(kubernetes);
        }
        for (path, template) in
            [("/spec/caller/path", &spec.caller.path), ("/spec/caller/namespace", &spec.caller.namespace)]
        {
            if let Err(problem) = values::template_attributes(template) {
                self.invalid(path, format!("the template has {problem}"));
            }
        }
        let path_bad = spec.caller.path.starts_with('/') || spec.caller.path.split('/').any(str::is_empty);
        if path_bad {
            self.invalid("/spec/caller/path", "the path must be segments joined by `/`, none of them empty");
        }
        if !values::template_attributes(&spec.caller.path).is_ok_and(|names| !names.is_empty()) {
            self.invalid(
                "/spec/caller/path",
                "the path must name at least one `{attribute}`: else all callers would be one",
            );
        }
        let constant = !spec.caller.namespace.contains('{');
        if constant && Namespace::new(&spec.caller.namespace).is_err() {
            self.invalid("/spec/caller/namespace", "the namespace must be a name, or one `{attribute}`");
        }
        if spec.caller.instance.is_empty() {
            self.invalid("/spec/caller/instance", "the attribute that names the running copy must be given");
        }
    }

    fn kubernetes(&mut self, spec: &KubernetesSpec) {
        if spec.audience.is_empty() {
            self.invalid("/spec/kubernetes/audience", "the audience must not be empty");
        }
        // An API server's own audiences are its issuer by default, whose well-known names these are; every pod has a
        // token for them, which anybody who gets hold of it could show here.
        if spec.audience.contains("kubernetes.default.svc") {
            let message =
                "this is an API server's own audience: its tokens lie in every pod, and live for a year";
            self.invalid("/spec/kubernetes/audience", message);
        }
        let verify = |text: &str| ["jwks", "tokenReview"].contains(&text).then_some(());
        self.one("/spec/kubernetes/verify", spec.verify.as_ref(), verify, "must be `jwks` or `tokenReview`");
        if let Some(server) = &spec.server {
            let address = |text: &str| {
                let rest = text.strip_prefix("https://")?;
                (!rest.is_empty() && !rest.contains('/')).then_some(())
            };
            let must = "must be an https URL without a path";
            self.one("/spec/kubernetes/server/url", Some(&server.url), address, must);
            if server.bearer_token_file.is_empty() {
                self.invalid("/spec/kubernetes/server/bearerTokenFile", "the file must be named");
            }
        }
    }

    fn destination(&mut self, spec: &DestinationSpec) {
        if spec.hosts.is_empty() && spec.addresses.is_empty() {
            self.invalid("/spec", rules::NO_HOSTS);
        }
        for (i, host) in spec.hosts.iter().enumerate() {
            if let Err(error) = host.parse::<HostPattern>() {
                self.invalid(&format!("/spec/hosts/{i}"), error.to_string());
            }
        }
        if let Some(i) = spec.ports.iter().position(|port| *port == 0) {
            self.invalid(&format!("/spec/ports/{i}"), "a port must be 1 to 65535");
        }
        self.each("/spec/addresses", &spec.addresses, values::network, "must be an address or a CIDR block");
        self.one("/spec/protocol", spec.protocol.as_ref(), values::protocol, "must be `http` or `tcp`");
        self.one("/spec/tls", spec.tls.as_ref(), values::tls_mode, "must be `terminate` or `passthrough`");
        if let Some(name) = &spec.server_name
            && let Err(error) = HostName::new(name)
        {
            self.invalid("/spec/serverName", error.to_string());
        }
        self.one(
            "/spec/clientCertificate",
            spec.client_certificate.as_ref(),
            values::client_certificate,
            "must be `svid`: the workload's own certificate is the only one that a proxy has",
        );
        self.only_if_opened(spec);
        self.each(
            "/spec/httpVersions",
            &spec.http_versions,
            values::http_version,
            "must be `h2` or `http/1.1`",
        );
        self.one(
            "/spec/resolve",
            spec.resolve.as_ref(),
            values::resolution,
            "must be `name` or `application`",
        );
        let application =
            spec.resolve.as_deref().and_then(values::resolution) == Some(Resolution::Application);
        if spec.insecure && application {
            self.invalid("/spec/resolve", rules::INSECURE_BY_APPLICATION);
        }
        if spec.redact
            && (spec.tls.as_deref() == Some("passthrough") || spec.protocol.as_deref() == Some("tcp"))
        {
            self.invalid("/spec/redact", rules::REDACT_UNOPENED);
        }
        if spec.insecure && !spec.hosts.is_empty() && spec.addresses.is_empty() && spec.tls.is_some() {
            self.invalid("/spec/tls", rules::INSECURE_WITH_TLS);
        }
    }

    /// What is said about the proxy's own TLS to a destination means nothing where the application's is carried.
    fn only_if_opened(&mut self, spec: &DestinationSpec) {
        let Some(why) = never_opened(spec) else { return };
        let said = [("serverName", &spec.server_name), ("clientCertificate", &spec.client_certificate)];
        for (field, _) in said.iter().filter(|(_, value)| value.is_some()) {
            let message = format!("`{why}` leaves its connections shut, so `{field}` would do nothing");
            self.invalid(&format!("/spec/{field}"), message);
        }
    }

    fn credential_provider(&mut self, spec: &CredentialProviderSpec) {
        if spec.jwt.audience.is_empty() || spec.jwt.audience.iter().any(String::is_empty) {
            self.invalid(
                "/spec/jwt/audience",
                "a token must be for somebody: at least one audience, none empty",
            );
        }
        self.ttl("/spec/jwt/ttl", spec.jwt.ttl.as_ref());
        for (claim, value) in &spec.jwt.claims {
            let path = format!("/spec/jwt/claims/{claim}");
            if RESERVED_CLAIMS.contains(&claim.as_str()) {
                self.invalid(&path, format!("`{claim}` is set by the issuer"));
            }
            if let Some(Err(problem)) = value.as_str().map(values::template_attributes) {
                self.invalid(&path, format!("the template has {problem}"));
            }
        }
        if let Some(inject) = &spec.inject {
            let lower = inject.header.to_ascii_lowercase();
            let token = !lower.is_empty()
                && lower.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !token || RESERVED_HEADERS.contains(&lower.as_str()) {
                let message = format!("`{}` is not a header that a credential can go into", inject.header);
                self.invalid("/spec/inject/header", message);
            }
            if !inject.prefix.bytes().all(|b| (b' '..=b'~').contains(&b)) {
                self.invalid("/spec/inject/prefix", "the prefix must be printable ASCII");
            }
        }
    }

    fn access_policy(&mut self, spec: &AccessPolicySpec) {
        if spec.allow.is_empty() {
            self.invalid("/spec/allow", "a policy must allow something; `- {}` allows every request");
        }
        self.rules("/spec/allow", &spec.allow);
        self.ttl("/spec/ttl", spec.ttl.as_ref());
    }

    fn rules(&mut self, path: &str, rules: &[RuleSpec]) {
        for (i, rule) in rules.iter().enumerate() {
            let method = |text: &str| values::is_method(text).then_some(());
            self.each(
                &format!("{path}/{i}/methods"),
                &rule.methods,
                method,
                "must be a method in upper case",
            );
            let template = |text: &str| values::is_path_template(text).then_some(());
            let must =
                "must begin with `/`, with `*` (one segment) and `**` (any number) only as whole segments";
            self.each(&format!("{path}/{i}/paths"), &rule.paths, template, must);
        }
    }

    fn ttl(&mut self, path: &str, ttl: Option<&String>) {
        let within =
            |text: &str| values::duration(text).filter(|seconds| (TTL_MIN..=TTL_MAX).contains(seconds));
        self.one(path, ttl, within, "must be between `30s` and `1h`");
    }

    fn condition(&mut self, spec: &ConditionSpec) {
        match (&spec.time_window, &spec.attested_within) {
            (Some(window), None) => {
                let must = "must be a time of day such as `08:00`";
                self.each(
                    "/spec/timeWindow/days",
                    &window.days,
                    values::day,
                    "must be one of `mon`, `tue`, `wed`, `thu`, `fri`, `sat`, `sun`",
                );
                self.one("/spec/timeWindow/from", Some(&window.from), values::minute_of_day, must);
                self.one("/spec/timeWindow/to", Some(&window.to), values::minute_of_day, must);
                if window.from == window.to {
                    self.invalid("/spec/timeWindow/to", rules::EMPTY_WINDOW);
                }
                if window.time_zone.is_empty() {
                    self.invalid(
                        "/spec/timeWindow/timeZone",
                        "the time zone must be an IANA name such as `Europe/Berlin`",
                    );
                }
            }
            (None, Some(within)) => {
                self.one(
                    "/spec/attestedWithin",
                    Some(within),
                    values::duration,
                    "must be a duration such as `1h`",
                );
            }
            _ => self.invalid("/spec", rules::ONE_CONDITION),
        }
    }

    fn guardrail(&mut self, spec: &GuardrailSpec) {
        if spec.deny.is_empty() && spec.when.is_none() {
            self.invalid("/spec", rules::EMPTY_GUARDRAIL);
        }
        self.rules("/spec/deny", &spec.deny);
        if let Some(i) = spec.deny.iter().position(|rule| rule.credential.is_some()) {
            self.invalid(&format!("/spec/deny/{i}/credential"), "a guardrail hands out no credential");
        }
    }
}

fn dangling(document: &Document, set: &Set, found: &mut Vec<Diagnostic>) {
    let namespace = document.name.namespace.as_ref();
    for reference in references(document) {
        let Err(problem) = set.resolve(reference.kind, reference.text, namespace) else { continue };
        let (kind, text) = (reference.kind, reference.text);
        let message = match problem {
            Dangling::Absent => format!("there is no {kind} `{text}`"),
            Dangling::NotShared => {
                let own = namespace.map_or_else(String::new, ToString::to_string);
                format!("{kind} `{text}` is not shared with namespace `{own}`")
            }
            Dangling::NotAName => format!("`{text}` is not a name"),
            Dangling::Broken => continue,
        };
        let near: Vec<String> = set
            .of_kind(kind)
            .filter(|candidate| candidate.name.namespace.as_ref() == namespace)
            .map(|candidate| candidate.name.name.to_string())
            .collect();
        found.push(
            Diagnostic::error(Code::DanglingReference, document.at(&reference.path), message)
                .did_you_mean(text, near.iter().map(String::as_str)),
        );
    }
}

/// The destination must be among those that the workload may use.
fn permitted(document: &Document, spec: &AccessPolicySpec, set: &Set, found: &mut Vec<Diagnostic>) {
    let namespace = document.name.namespace.as_ref();
    let (Ok(workload), Ok(destination)) = (
        set.resolve(Kind::Workload, &spec.workload, namespace),
        set.resolve(Kind::Destination, &spec.destination, namespace),
    ) else {
        return;
    };
    let Spec::Workload(workload_spec) = &workload.spec else { return };
    let Some(allowed) = &workload_spec.destinations else { return };
    let meant = |text: &String| {
        let found = set.resolve(Kind::Destination, text, workload.name.namespace.as_ref());
        found.is_ok_and(|found| found.name == destination.name)
    };
    if !allowed.iter().any(meant) {
        let message =
            format!("workload `{}` is not permitted destination `{}`", spec.workload, spec.destination);
        let listed = allowed.join(", ");
        found.push(
            Diagnostic::error(Code::NotPermitted, document.at("/spec/destination"), message).help(format!(
                "its `destinations` are {}",
                if allowed.is_empty() { "none" } else { &listed }
            )),
        );
    }
}

/// A credential for a destination whose connections are carried as they are: it could go nowhere, and every call would be
/// denied.
fn unopened(document: &Document, spec: &AccessPolicySpec, set: &Set, found: &mut Vec<Diagnostic>) {
    let namespace = document.name.namespace.as_ref();
    let Ok(destination) = set.resolve(Kind::Destination, &spec.destination, namespace) else { return };
    let Spec::Destination(destination) = &destination.spec else { return };
    let Some(why) = never_opened(destination) else { return };
    let own = spec.credential.iter().map(|_| "/spec/credential".to_owned());
    let rules = spec.allow.iter().enumerate().filter(|(_, rule)| rule.credential.is_some());
    for path in own.chain(rules.map(|(i, _)| format!("/spec/allow/{i}/credential"))) {
        let message = format!(
            "destination `{}` says `{why}`: its connections are not opened, so no credential can be put in",
            spec.destination
        );
        found.push(
            Diagnostic::error(Code::InvalidValue, document.at(&path), message)
                .help("remove `credential`, or let the destination be opened"),
        );
    }
}

/// What a destination says by which its connections are carried as they are.
fn never_opened(destination: &DestinationSpec) -> Option<&'static str> {
    match (destination.protocol.as_deref(), destination.tls.as_deref()) {
        (Some("tcp"), _) => Some("protocol: tcp"),
        (_, Some("passthrough")) => Some("tls: passthrough"),
        _ => None,
    }
}

/// Two policies of one workload for one destination that name different credentials.
fn ambiguous(document: &Document, spec: &AccessPolicySpec, set: &Set, found: &mut Vec<Diagnostic>) {
    let Some(credential) = &spec.credential else { return };
    let namespace = document.name.namespace.as_ref();
    // Nothing can be said of a credential that is not there; that it is not has been said.
    if set.resolve(Kind::CredentialProvider, credential, namespace).is_err() {
        return;
    }
    // Two spellings of one name (`a`, `own/a`) mean the same.
    let same = |kind, ours: &str, theirs: &str| {
        let meant = |text| set.resolve(kind, text, namespace).ok().map(|found| &found.name);
        ours == theirs || meant(ours).is_some_and(|ours| meant(theirs) == Some(ours))
    };
    for other in set.of_kind(Kind::AccessPolicy) {
        let Spec::AccessPolicy(other_spec) = &other.spec else { continue };
        let same_pair = other.name != document.name
            && other.name.namespace.as_ref() == namespace
            && same(Kind::Workload, &other_spec.workload, &spec.workload)
            && same(Kind::Destination, &other_spec.destination, &spec.destination);
        let theirs = other_spec.credential.as_ref();
        let differs = theirs.is_some_and(|theirs| !same(Kind::CredentialProvider, theirs, credential));
        if same_pair && differs && may_overlap(&spec.allow, &other_spec.allow) {
            let message =
                format!("accesspolicy/{} covers the same calls with another credential", other.name);
            found.push(
                Diagnostic::warning(Code::AmbiguousCredentialAhead, document.at("/spec/credential"), message)
                    .help("calls that both allow are refused with CS5006; make their rules disjoint"),
            );
        }
    }
}

/// Age that a projected service-account token reaches before the kubelet replaces it: 80 % of its life, which the API
/// server lets be no shorter than 10 minutes (Kubernetes documentation, "Configure Service Accounts for Pods").
const KUBERNETES_AGE: u32 = 480;

/// A condition that asks for fresher evidence than the workload's kind can give. Only Kubernetes says how often evidence
/// is renewed; a workload that selects by its attributes gets it from there.
fn out_of_reach(document: &Document, spec: &AccessPolicySpec, set: &Set, found: &mut Vec<Diagnostic>) {
    let namespace = document.name.namespace.as_ref();
    let Ok(workload) = set.resolve(Kind::Workload, &spec.workload, namespace) else { return };
    let Spec::Workload(workload) = &workload.spec else { return };
    if !workload.selector.keys().any(|key| key.starts_with("kubernetes.")) {
        return;
    }
    for (i, text) in spec.conditions.iter().enumerate() {
        let Ok(condition) = set.resolve(Kind::Condition, text, namespace) else { continue };
        let Spec::Condition(condition) = &condition.spec else { continue };
        let Some(within) = &condition.attested_within else { continue };
        if values::duration(within).is_some_and(|seconds| seconds < KUBERNETES_AGE) {
            let at = document.at(&format!("/spec/conditions/{i}"));
            let message = format!(
                "`{text}` wants evidence of the last {within}, but service-account tokens are renewed every 8m at best"
            );
            found.push(Diagnostic::warning(Code::FreshnessOutOfReach, at, message).help(
                "calls are denied in between; allow at least `8m`, and give the token the shortest life",
            ));
        }
    }
}

fn may_overlap(a: &[RuleSpec], b: &[RuleSpec]) -> bool {
    let meet =
        |a: &[String], b: &[String]| a.is_empty() || b.is_empty() || a.iter().any(|item| b.contains(item));
    // Templates are compared by their first literal segments only: a warning may be one too many, never too few.
    let paths_meet = |a: &RuleSpec, b: &RuleSpec| {
        a.paths.is_empty()
            || b.paths.is_empty()
            || a.paths.iter().any(|p| b.paths.iter().any(|q| prefixes_meet(p, q)))
    };
    a.iter().any(|a| b.iter().any(|b| meet(&a.methods, &b.methods) && paths_meet(a, b)))
}

fn prefixes_meet(a: &str, b: &str) -> bool {
    let literal = |template: &str| -> Vec<String> {
        template.split('/').take_while(|segment| !segment.contains('*')).map(str::to_owned).collect()
    };
    literal(a).iter().zip(literal(b).iter()).all(|(x, y)| x == y)
}
