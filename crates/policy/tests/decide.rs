//! What is decided, from documents to verdict.
#![allow(clippy::unwrap_used, reason = "a test's set-up")]

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use model::request::{Action, RequestFacts};
use model::slice::{Block, BlockTarget, Effect, Egress, Rule};
use model::{
    Attestation, Caller, Code, Decision, HostName, Namespace, SpiffeId, UnixMillis, Verdict, Version,
};
use policy::compile::EgressDefaults;
use policy::matching::{is_ambiguous, rule_matches, template_matches};
use policy::{Question, Snapshot, compile};
use proptest::prelude::*;
use resources::{Set, parse, validate};

/// 2026-11-24T10:00:00Z, a Tuesday.
const NOW: UnixMillis = UnixMillis(1_795_514_400_000);

const BASE: &str = r#"
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: { name: billing, namespace: payments }
spec: { selector: { sa: billing } }
---
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: { name: api, namespace: payments }
spec: { hosts: [api.example, "*.api.example"], sensitivity: high }
---
apiVersion: countersign.dev/v1alpha1
kind: CredentialProvider
metadata: { name: token, namespace: payments }
spec: { jwt: { audience: [a] } }
---
apiVersion: countersign.dev/v1alpha1
kind: CredentialProvider
metadata: { name: other, namespace: payments }
spec: { jwt: { audience: [b] }, inject: { header: X-Api-Key } }
---
"#;

fn policy(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{ name: {name}, namespace: payments }}\n\
         spec: {{ workload: billing, destination: api, {rest} }}\n---\n"
    )
}

fn guardrail(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: Guardrail\nmetadata: {{ name: {name} }}\nspec: {{ {rest} }}\n---\n"
    )
}

fn caller() -> Caller {
    Caller {
        id: SpiffeId::new("spiffe://demo/ns/payments/sa/billing").unwrap(),
        namespace: Namespace::new("payments").unwrap(),
        attributes: [("sa".to_owned(), "billing".to_owned())].into(),
        attestation: Attestation {
            provider: "cluster".into(),
            kind: "kubernetes".into(),
            issued_at: NOW.plus_secs(-600),
            expires_at: NOW.plus_secs(3000),
        },
    }
}

fn snapshot_for(text: &str, caller: &Caller, blocks: &[Block]) -> Snapshot {
    let parsed = parse(&[("t".to_owned(), text.to_owned())], None);
    let documents = parsed.documents;
    assert_eq!(parsed.diagnostics, []);
    let mut set = Set::default();
    for document in &documents {
        set.insert(document.clone());
    }
    let errors: Vec<_> =
        validate(&documents, &set).into_iter().filter(resources::Diagnostic::is_error).collect();
    assert_eq!(errors, []);
    let compiled = compile(&set).unwrap();
    let slice =
        compiled.slice_for(caller, blocks, &[], &EgressDefaults::default(), Version::default(), &|_| 1);
    Snapshot::new(slice).unwrap()
}

fn snapshot(policies: &str) -> Snapshot {
    snapshot_for(&format!("{BASE}{policies}"), &caller(), &[])
}

fn request(method: &str, path: &str) -> RequestFacts {
    RequestFacts {
        action: Action::Http,
        method: method.into(),
        host: HostName::new("api.example").unwrap(),
        port: 443,
        path: path.into(),
        headers: BTreeMap::new(),
    }
}

fn ask_at(snapshot: &Snapshot, request: &RequestFacts, now: UnixMillis) -> Decision {
    let caller = Arc::new(caller());
    let destination = snapshot.cover(&request.host, request.port).expect("covered");
    Decision::clone(&snapshot.decide(&Question { caller: &caller, destination, request, now }))
}

fn ask(snapshot: &Snapshot, method: &str, path: &str) -> Decision {
    ask_at(snapshot, &request(method, path), NOW)
}

fn code(decision: &Decision) -> Option<Code> {
    match &decision.verdict {
        Verdict::Allow { .. } => None,
        Verdict::Deny { code, .. } => Some(*code),
    }
}

fn credential(decision: &Decision) -> Option<String> {
    match &decision.verdict {
        Verdict::Allow { credential, .. } => credential.as_ref().map(ToString::to_string),
        Verdict::Deny { .. } => panic!("{decision:?}"),
    }
}

#[test]
fn what_a_policy_allows_and_what_it_lacks() {
    let snapshot = snapshot(&policy(
        "charges",
        "credential: token, ttl: 2m, allow: [{ methods: [GET], paths: [/v1/charges/**] }]",
    ));
    let allowed = ask(&snapshot, "GET", "/v1/charges/42");
    assert_eq!(credential(&allowed).as_deref(), Some("payments/token"));
    assert!(matches!(allowed.verdict, Verdict::Allow { ttl_seconds: Some(120), .. }));
    assert_eq!(allowed.policies[0].to_string(), "payments/charges");
    let denied = ask(&snapshot, "DELETE", "/v1/charges/42");
    assert_eq!(code(&denied), Some(Code::NoPolicyAllows));
    let miss = &denied.nearest[0].failed[0];
    assert_eq!(
        (miss.what.as_str(), miss.seen.as_str(), miss.allowed.as_slice()),
        ("method", "DELETE", &["GET".to_owned()][..])
    );
    assert_eq!(code(&ask(&snapshot, "GET", "/v1/charges/../admin")), Some(Code::NoPolicyAllows));
}

#[test]
fn names_and_ports_cover() {
    let snapshot = snapshot(&policy("p", "allow: [{}]"));
    let covers = |host: &str, port| snapshot.cover(&HostName::new(host).unwrap(), port).is_some();
    assert!(covers("api.example", 443) && covers("eu.api.example", 443) && covers("API.example.", 443));
    assert!(!covers("api.example", 8443) && !covers("a.b.api.example", 443) && !covers("example", 443));
}

#[test]
fn another_namespaces_caller_matches_nothing() {
    let text = format!("{BASE}{}", policy("p", "allow: [{}]"));
    let mut stranger = caller();
    stranger.namespace = Namespace::new("other").unwrap();
    let slice = snapshot_for(&text, &stranger, &[]).slice().clone();
    assert!(slice.workloads.is_empty() && slice.policies.is_empty() && slice.destinations.is_empty());
    let mut unlike = caller();
    unlike.attributes = BTreeMap::new();
    assert!(snapshot_for(&text, &unlike, &[]).slice().policies.is_empty());
}

#[test]
fn a_guardrail_wins_and_says_why() {
    let both = policy("p", "allow: [{}]")
        + &guardrail("no-deletes", "deny: [{ methods: [DELETE] }], reason: ask the owner")
        + &guardrail("unused", "when: 'resource.sensitivity == \"low\"'");
    let snapshot = snapshot(&both);
    assert_eq!(code(&ask(&snapshot, "GET", "/")), None);
    let denied = ask(&snapshot, "DELETE", "/");
    assert_eq!(code(&denied), Some(Code::Forbidden));
    assert!(matches!(&denied.verdict, Verdict::Deny { reason, .. } if reason.ends_with("ask the owner")));
    assert_eq!(denied.policies[0].to_string(), "no-deletes");
}

#[test]
fn a_guardrail_has_every_reading_of_a_path() {
    let both = policy("p", "allow: [{}]")
        + &guardrail("no-admin", "deny: [{ paths: [/admin/**] }], reason: ask the owner");
    let snapshot = snapshot(&both);
    let reason = |method: &str, path: &str| match ask(&snapshot, method, path).verdict {
        Verdict::Deny { code: Code::Forbidden, reason } => reason,
        other => panic!("{method} {path}: {other:?}"),
    };
    for path in [
        "/admin//users",
        "/x/../admin/users",
        "//admin/x",
        "/%61dmin/users",
        "/a%2Fadmin",
        "/x;/admin",
        "/%ff",
    ] {
        // What is remembered is for another path.
        assert_eq!(code(&ask(&snapshot, "GET", "/x/users")), None);
        assert_eq!(
            reason("GET", path),
            format!("guardrail no-admin forbids what GET {path} could be read as: ask the owner")
        );
    }
    assert_eq!(reason("GET", "/admin/users"), "guardrail no-admin forbids it: ask the owner");
    for path in ["/", "/x/admin", "/administrators", "/x/%C3%A4", "/a%20b", "/@a%2Fb", "/x//y;z"] {
        assert_eq!(code(&ask(&snapshot, "GET", path)), None, "{path}");
    }
    // As does one that allows the same by name.
    let named = self::snapshot(&both.replace("[{}]", "[{ paths: ['/**'] }]"));
    assert_eq!(code(&ask(&named, "GET", "/admin//users")), Some(Code::Forbidden));
}

#[test]
fn a_guardrail_has_a_method_in_either_case() {
    let both = policy("p", "allow: [{}]") + &guardrail("no-deletes", "deny: [{ methods: [DELETE] }]");
    let snapshot = snapshot(&both);
    assert_eq!(code(&ask(&snapshot, "GET", "/")), None);
    assert_eq!(code(&ask(&snapshot, "delete", "/")), Some(Code::Forbidden));
    let permit = self::snapshot(&policy("p", "allow: [{ methods: [DELETE] }]"));
    assert_eq!(code(&ask(&permit, "delete", "/")), Some(Code::NoPolicyAllows));
}

#[test]
fn what_is_kept_for_http_is_not_for_grpc() {
    let both = policy("p", "allow: [{}]") + &guardrail("g", "when: 'action == Action::\"grpc\"'");
    let snapshot = snapshot(&both);
    let http = request("POST", "/a.B/C");
    let grpc = RequestFacts { action: Action::Grpc, ..http.clone() };
    assert_eq!(code(&ask_at(&snapshot, &http, NOW)), None);
    assert_eq!(code(&ask_at(&snapshot, &grpc, NOW)), Some(Code::Forbidden));
    assert_eq!(code(&ask_at(&snapshot, &http, NOW)), None);
}

#[test]
fn an_erring_guardrail_denies() {
    // The type checker can't see an overflow; Cedar skips a policy that errs, so without our rule this would allow.
    let overflow = guardrail("errs", "when: 'context.request.port * 9223372036854775807 > 0'");
    let snapshot = snapshot(&(policy("p", "allow: [{}]") + &overflow));
    assert_eq!(code(&ask(&snapshot, "GET", "/")), Some(Code::PolicyError));
}

#[test]
fn credentials_must_not_compete() {
    let two = policy("a", "credential: token, allow: [{}]")
        + &policy("b", "credential: other, allow: [{ methods: [POST] }]");
    let snapshot = snapshot(&two);
    assert_eq!(credential(&ask(&snapshot, "GET", "/")).as_deref(), Some("payments/token"));
    assert_eq!(code(&ask(&snapshot, "POST", "/")), Some(Code::AmbiguousCredential));
    let selecting = policy("a", "credential: token, allow: [{}, { paths: [/special], credential: other }]");
    let snapshot = self::snapshot(&selecting);
    assert_eq!(credential(&ask(&snapshot, "GET", "/special")).as_deref(), Some("payments/other"));
    let destination = snapshot.cover(&HostName::new("api.example").unwrap(), 443).unwrap();
    assert_eq!(snapshot.owned_headers(destination), ["authorization", "x-api-key"]);
}

#[test]
fn a_connection_that_wants_a_credential_is_not_carried_without_it() {
    let connect = RequestFacts { action: Action::Connect, ..request("", "") };
    let asked = |rest: &str| code(&ask_at(&snapshot(&policy("p", rest)), &connect, NOW));
    assert_eq!(asked("allow: [{}]"), None);
    assert_eq!(asked("credential: token, allow: [{}]"), Some(Code::NoPolicyAllows));
    assert_eq!(asked("allow: [{ credential: token }]"), Some(Code::NoPolicyAllows));
}

#[test]
fn blocks_stop_what_they_name() {
    let text = format!("{BASE}{}", policy("p", "credential: token, allow: [{}]"));
    let blocked = |target| {
        let block = Block { id: "b1".into(), target, reason: "incident 7".into() };
        let decision = ask(&snapshot_for(&text, &caller(), &[block]), "GET", "/");
        if let Verdict::Deny { reason, .. } = &decision.verdict {
            assert!(reason.contains("b1") && reason.contains("incident 7"), "{reason}");
        }
        code(&decision)
    };
    let name = |text: &str| text.parse().unwrap();
    for target in [
        BlockTarget::Workload(name("payments/billing")),
        BlockTarget::Destination(name("payments/api")),
        BlockTarget::Provider(name("payments/token")),
        BlockTarget::Everything,
    ] {
        assert_eq!(blocked(target.clone()), Some(Code::Blocked), "{target:?}");
    }
    assert_eq!(blocked(BlockTarget::Workload(name("payments/another"))), None);
}

#[test]
fn a_decision_says_until_when_it_is_good() {
    let hours = "apiVersion: countersign.dev/v1alpha1\nkind: Condition\nmetadata: { name: hours, namespace: payments }\n\
                 spec: { timeWindow: { from: \"08:00\", to: \"18:00\", timeZone: UTC } }\n---\n";
    let windowed = snapshot(&format!("{hours}{}", policy("p", "allow: [{}], conditions: [hours]")));
    let open = ask(&windowed, "GET", "/");
    assert_eq!((code(&open), open.valid_until), (None, NOW.plus_secs(8 * 3600)));
    let closed = ask_at(&windowed, &request("GET", "/"), NOW.plus_secs(9 * 3600));
    assert_eq!(code(&closed), Some(Code::NoPolicyAllows));
    assert_eq!(closed.nearest[0].failed[0].what, "condition");

    let aging = snapshot(&policy("p", "allow: [{}], when: 'context.attestation.age < duration(\"1h\")'"));
    let young = ask(&aging, "GET", "/");
    assert_eq!((code(&young), young.valid_until), (None, NOW.plus_millis(1000)));
    let old = ask_at(&aging, &request("GET", "/"), NOW.plus_secs(3001));
    assert_eq!(code(&old), Some(Code::NoPolicyAllows));
    assert_eq!(old.nearest[0].failed[0].what, "when");

    let plain = snapshot(&policy("p", "allow: [{}]"));
    assert_eq!(ask(&plain, "GET", "/").valid_until, UnixMillis(i64::MAX));
}

#[test]
fn the_strictest_egress_wins() {
    let text = |egress: &str| {
        BASE.replace("selector: { sa: billing }", &format!("selector: {{ sa: billing }}{egress}"))
    };
    let slice = |egress: &str| snapshot_for(&text(egress), &caller(), &[]).slice().egress;
    assert_eq!(slice(""), Egress::Observe);
    assert_eq!(slice(", egress: enforce"), Egress::Enforce);
    assert_eq!(slice(", egress: observe"), Egress::Observe);
}

#[test]
fn a_slice_that_is_not_understood_is_refused() {
    let mut slice = snapshot(&policy("p", "allow: [{}]")).slice().clone();
    slice.policies[0].cedar = "permit (principal, action, resource) when { context.hoverboard };x".into();
    assert!(Snapshot::new(slice.clone()).is_err());
    slice.policies[0].cedar = "permit (principal, action, resource);".into();
    slice.policies[0].conditions = vec!["payments/absent".parse().unwrap()];
    assert!(Snapshot::new(slice.clone()).is_err());
    slice.policies[0].conditions = Vec::new();
    assert!(Snapshot::new(slice.clone()).is_ok());
    // A newer control plane's guardrail would be skipped without a word.
    slice.policies[0].cedar = "permit (principal, action, resource) when { context has subject };".into();
    assert!(Snapshot::new(slice.clone()).is_err());
    slice.policies[0].cedar = "forbid (principal, action, resource);".into();
    assert!(Snapshot::new(slice).is_err());
}

#[test]
fn an_explanation_shows_what_was_looked_at() {
    let snapshot = snapshot(
        &(policy("p", "allow: [{ methods: [GET], paths: [/a] }]")
            + &guardrail("g", "deny: [{ methods: [PUT] }]")),
    );
    let (caller, request) = (Arc::new(caller()), request("GET", "/b"));
    let destination = snapshot.cover(&request.host, 443).unwrap();
    let explained = snapshot.explain(&Question { caller: &caller, destination, request: &request, now: NOW });
    let seen: Vec<_> = explained.considered[0].facts.iter().map(|f| (f.what.as_str(), f.held)).collect();
    assert_eq!(seen, [("method", Some(true)), ("path", Some(false))]);
    assert_eq!(explained.considered.len(), 2);
}

#[test]
fn an_explanation_shows_what_each_effect_makes_of_a_path() {
    let snapshot = snapshot(
        &(policy("p", "allow: [{ methods: [PUT], paths: [/a/**] }]")
            + &guardrail("g", "deny: [{ methods: [PUT], paths: [/b] }]")),
    );
    let (caller, request) = (Arc::new(caller()), request("put", "/a/../b"));
    let destination = snapshot.cover(&request.host, 443).unwrap();
    let explained = snapshot.explain(&Question { caller: &caller, destination, request: &request, now: NOW });
    let held =
        |index: usize| -> Vec<_> { explained.considered[index].facts.iter().map(|f| f.held).collect() };
    assert_eq!((held(0), held(1)), (vec![Some(false); 2], vec![Some(true); 2]));
    assert!(explained.considered[1].determined && !explained.considered[0].determined);
}

/// What servers, and what stands before them, make of a path before they look at it: each alone.
const READERS: [fn(&str) -> String; 5] = [without_dots, merged, unescaped, without_parameters, slashed];

/// RFC 3986 §5.2.4, on segments.
fn without_dots(path: &str) -> String {
    let mut kept = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (index, segment) in segments.iter().enumerate() {
        match *segment {
            ".." => drop(kept.pop()),
            "." => {}
            segment => kept.push(segment),
        }
        if index + 1 == segments.len() && [".", ".."].contains(segment) {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

/// Whether some server takes this reading for one that the template names: in either case, and with or without a slash at
/// its end.
fn names(template: &str, reading: &str) -> bool {
    let bare = |path: &str| path.strip_suffix('/').filter(|rest| !rest.is_empty()).unwrap_or(path).to_owned();
    let reading = reading.to_ascii_lowercase();
    template_matches(template, &reading) || template_matches(&bare(template), &bare(&reading))
}

fn merged(path: &str) -> String {
    let mut merged = path.to_owned();
    while merged.contains("//") {
        merged = merged.replace("//", "/");
    }
    merged
}

fn unescaped(path: &str) -> String {
    let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let (mut read, mut rest) = (Vec::new(), path.as_bytes());
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let escape = digits.filter(|_| *first == b'%').and_then(hex);
        read.push(escape.unwrap_or(*first));
        rest = if escape.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&read).into_owned()
}

fn without_parameters(path: &str) -> String {
    let segments = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
    segments.collect::<Vec<_>>().join("/")
}

fn slashed(path: &str) -> String {
    path.replace('\\', "/")
}

/// All that a path can be read as: whatever [`READERS`] make of it, one after another, in any order, any number of times.
fn readings(path: &str) -> BTreeSet<String> {
    let mut known = BTreeSet::from([path.to_owned()]);
    let mut open = vec![path.to_owned()];
    while let Some(next) = open.pop() {
        let read = READERS.iter().map(|reader| reader(&next));
        open.extend(read.filter(|reading| known.insert(reading.clone())));
    }
    known
}

#[test]
fn readings_are_what_servers_make_of_paths() {
    for path in [
        "/admin//users",
        "/x/../admin/users",
        "//admin/users",
        "/%61dmin/users",
        "/%2561dmin/users",
        "/x/%2e%2E/admin;a=b/users",
        "/x\\..\\admin/users",
        "/x%2F..%5Cadmin/./users",
        "/x;/%2e./admin/users",
    ] {
        assert!(readings(path).contains("/admin/users"), "{path}: {:?}", readings(path));
    }
}

const TEMPLATES: [&str; 8] =
    ["/admin/**", "/admin", "/admin/users", "/*/users", "/**/users", "/admin/**/users", "/", "/admin/"];

/// Paths of parts that mean something to a reader, all written in ASCII as a request line has to be.
fn paths() -> impl Strategy<Value = String> {
    let parts = vec![
        "admin",
        "users",
        "x",
        "/",
        "/",
        "/",
        "/",
        ".",
        "..",
        "\\",
        ";",
        ";a=b",
        "%61",
        "dmin",
        "%2f",
        "%2F",
        "%5c",
        "%2e",
        "%2E.",
        "%3b",
        "%25",
        "%2561dmin",
        "user%73",
        "%",
        "%C3%A4",
        "%20",
        "*",
        "%2a",
    ];
    let mixed = prop::collection::vec(prop::sample::select(parts), 0..8).prop_map(|parts| parts.concat());
    let plain = prop::collection::vec(
        prop::sample::select(vec!["admin", "%61dmin", "users", "user%73", "x", ""]),
        0..4,
    );
    let plain = plain.prop_map(|segments| segments.join("/"));
    prop_oneof![4 => mixed, 2 => plain, 1 => "[ -~]{0,12}"].prop_map(|path| format!("/{path}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// What some reader takes for a path that a guardrail names is forbidden, under each name for the method.
    #[test]
    fn what_could_be_read_as_forbidden_is_forbidden(
        template in 0..TEMPLATES.len(),
        method in prop::sample::select(vec!["GET", "get", "Get"]),
        path in paths(),
    ) {
        let snapshots = FORBIDDING.with(Clone::clone);
        let is_named = readings(&path).iter().any(|reading| names(TEMPLATES[template], reading));
        let decision = ask(&snapshots[template], method, &path);
        if is_named {
            prop_assert_eq!(code(&decision), Some(Code::Forbidden));
        }
        // And no more than a path that has several readings.
        if !is_named && readings(&path).len() == 1 && !path.contains(['%', ';', '?', '#', ' ']) {
            prop_assert_eq!(code(&decision), None);
        }
    }

    /// What a narrow rule permits, it permits whoever reads it; and no other than before effects were told apart.
    #[test]
    fn what_is_permitted_is_permitted_in_every_reading(
        template in prop::sample::select(TEMPLATES.to_vec()),
        method in prop::sample::select(vec!["GET", "get"]),
        path in paths(),
    ) {
        let rule = Rule { methods: vec!["GET".into()], paths: vec![template.into()], credential: None };
        let request = request(method, &path);
        let permitted = rule_matches(Effect::Permit, &rule, &request);
        prop_assert_eq!(permitted, method == "GET" && template_matches(template, &path) && !is_ambiguous(&path));
        if permitted {
            prop_assert!(readings(&path).iter().all(|reading| template_matches(template, reading)));
            prop_assert!(rule_matches(Effect::Forbid, &rule, &request), "what forbids has no less");
        }
    }
}

thread_local! {
    /// For each of [`TEMPLATES`] all allowed but that.
    static FORBIDDING: Rc<Vec<Snapshot>> = Rc::new(
        TEMPLATES
            .iter()
            .map(|template| {
                let deny = guardrail("g", &format!("deny: [{{ methods: [GET], paths: ['{template}'] }}]"));
                snapshot(&(policy("p", "allow: [{}]") + &deny))
            })
            .collect(),
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The same answer whatever the order of the policies, from the cache as from Cedar.
    #[test]
    fn order_and_cache_change_nothing(
        order in Just((0..4_usize).collect::<Vec<_>>()).prop_shuffle(),
        method in prop::sample::select(vec!["GET", "POST", "DELETE"]),
        path in prop::sample::select(vec!["/", "/a", "/a/b", "/c", "/a/../c"]),
    ) {
        let parts = [
            policy("a", "credential: token, allow: [{ methods: [GET], paths: [/a/**] }]"),
            policy("b", "credential: token, allow: [{ methods: [POST, DELETE] }]"),
            policy("c", "allow: [{ paths: [/c] }]"),
            guardrail("g", "deny: [{ methods: [DELETE], paths: [/a] }]"),
        ];
        let straight = snapshot(&parts.concat());
        let shuffled = snapshot(&order.iter().map(|i| parts[*i].as_str()).collect::<String>());
        let first = ask(&straight, method, path);
        prop_assert_eq!(&first, &ask(&straight, method, path));
        let other = ask(&shuffled, method, path);
        prop_assert_eq!(&first.verdict, &other.verdict);
        let sorted = |mut names: Vec<model::ResourceRef>| { names.sort(); names };
        prop_assert_eq!(sorted(first.policies), sorted(other.policies));
    }

    /// A snapshot that has answered before says what one that never has, and so asks Cedar, says: whatever was asked
    /// before, whenever, and however often the caller was attested anew.
    #[test]
    fn what_is_kept_is_what_cedar_says(
        chosen in prop::collection::vec(0..EXPRESSIONS.len(), 2),
        guarded in prop::option::weighted(0.3, 0..EXPRESSIONS.len()),
        asked in prop::collection::vec(
            // Mostly the same caller and the same moment: only then is anything kept.
            (
                0..METHODS.len(),
                0..PATHS.len(),
                prop_oneof![2 => Just(0), 1 => 0..MOMENTS.len()],
                prop_oneof![8 => Just(0), 1 => 0..4_usize],
                prop_oneof![6 => Just(Action::Http), 3 => Just(Action::Grpc), 1 => Just(Action::Connect)],
            ),
            20..40,
        ),
    ) {
        let mut text = format!("{BASE}{HOURS}");
        for (index, expression) in chosen.iter().enumerate() {
            let rule = ["{ methods: [GET], paths: [/a/**] }", "{ methods: [POST, GET], paths: [/**] }"][index];
            let condition = ["hours", ""][index];
            text += &policy(
                &format!("p{index}"),
                &format!("allow: [{rule}], conditions: [{condition}], when: '{}'", EXPRESSIONS[*expression]),
            );
        }
        if let Some(expression) = guarded {
            text += &guardrail("g", &format!("deny: [{{ paths: [/a/b] }}], when: '{}'", EXPRESSIONS[expression]));
        }
        let warm = snapshot_for(&text, &caller(), &[]);
        for (method, path, moment, attested, action) in asked {
            let mut who = caller();
            match attested {
                1 => who.attestation.issued_at = NOW,
                2 => who.attestation.provider = "ci".into(),
                3 => { who.attributes.insert("team".into(), "red".into()); }
                _ => {}
            }
            let who = Arc::new(who);
            let mut request = RequestFacts { action, ..request(METHODS[method], PATHS[path]) };
            if action == Action::Connect {
                request = RequestFacts { method: String::new(), path: String::new(), ..request };
            }
            let now = NOW.plus_millis(MOMENTS[moment]);
            let answer = |snapshot: &Snapshot| {
                let destination = snapshot.cover(&request.host, request.port).expect("covered");
                Decision::clone(&snapshot.decide(&Question { caller: &who, destination, request: &request, now }))
            };
            let (kept, fresh) = (answer(&warm), answer(&Snapshot::new(warm.slice().clone()).unwrap()));
            prop_assert_eq!(&kept.verdict, &fresh.verdict);
            prop_assert_eq!(&kept.policies, &fresh.policies);
            prop_assert!(kept.valid_until > now && kept.valid_until <= fresh.valid_until);
        }
    }
}

const HOURS: &str = "apiVersion: countersign.dev/v1alpha1\nkind: Condition\nmetadata: { name: hours, namespace: payments }\n\
                     spec: { timeWindow: { from: \"08:00\", to: \"18:00\", timeZone: UTC } }\n---\n";

const METHODS: [&str; 4] = ["GET", "POST", "DELETE", "get"];

const PATHS: [&str; 7] = ["/a", "/a/b", "/c", "/a/../c", "/a//b", "/a/%62", "/a/%63"];

/// In milliseconds from [`NOW`]; clocks are also set back.
const MOMENTS: [i64; 7] = [0, 400, 1500, -2000, 2_000_000, 9 * 3_600_000, -3 * 3_600_000];

/// All that a decision may rest on, also written so that a search of the text would not find it.
const EXPRESSIONS: [&str; 12] = [
    "true",
    "context.attestation.age < duration(\"12m\")",
    "context.now >= datetime(\"2026-11-24T10:00:00Z\")",
    r#"context["\u{6e}ow"] < datetime("2026-11-24T10:00:01Z")"#,
    r#"context["r\u{65}quest"].method == "GET""#,
    "context.request.path like \"*b\"",
    "context.attestation.provider == \"cluster\"",
    "principal.hasTag(\"team\")",
    "action == Action::\"grpc\"",
    "action != Action::\"http\"",
    "context.rules.contains(\"payments/p1#0\") || context.conditions.contains(\"payments/hours\")",
    "context.request.port * (if context.request.method == \"POST\" then 9223372036854775807 else 1) > 0",
];

#[test]
fn another_callers_snapshot_allows_nothing() {
    let snapshot = snapshot(&policy("p", "allow: [{}]"));
    let request = request("GET", "/");
    let destination = snapshot.cover(&request.host, request.port).unwrap();
    let mut stranger = caller();
    stranger.id = SpiffeId::new("spiffe://demo/ns/payments/sa/else").unwrap();
    let decision =
        snapshot.decide(&Question { caller: &Arc::new(stranger), destination, request: &request, now: NOW });
    assert_eq!(code(&decision), Some(Code::PolicyError));
}

/// Where an expression's fault is shown, for each way in which YAML can hold the expression.
#[test]
fn a_fault_in_an_expression_is_shown_where_it_stands() {
    let shown = |when: &str| {
        let text = format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: Guardrail\nmetadata: {{ name: g }}\nspec:\n  when: {when}\n"
        );
        let parsed = parse(&[("g.yaml".to_owned(), text.clone())], None);
        assert_eq!(parsed.diagnostics, []);
        let mut set = Set::default();
        let alone = policy::expressions(&parsed.documents);
        parsed.documents.into_iter().for_each(|document| drop(set.insert(document)));
        let found = compile(&set).unwrap_err();
        assert_eq!((found.len(), found[0].code), (1, Code::InvalidExpression));
        assert_eq!(alone, found, "the same, whether its references lead somewhere or not");
        resources::diagnostic::render(&found[0], &text)
    };
    insta::assert_snapshot!(
        [
            "context.nope == 1",
            "\"context.nope == 1\"",
            "'context.nope == 1'",
            "|\n    true\n    && context.nope == 1",
            ">\n    true\n    && context.nope == 1",
            "\"con\\u0074ext.nope == 1\"",
            "\"true\n    && context.nope == 1\"",
            "true\n    && context.nope == 1",
            "true && (",
            "context has subject",
        ]
        .map(shown)
        .join("\n")
    );
}
