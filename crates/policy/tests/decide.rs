//! What is decided, from documents to verdict.
#![allow(clippy::unwrap_used, reason = "a test's set-up")]

use std::collections::BTreeMap;
use std::sync::Arc;

use model::request::{Action, RequestFacts};
use model::slice::{Block, BlockTarget, Egress};
use model::{
    Attestation, Caller, Code, Decision, HostName, Namespace, SpiffeId, UnixMillis, Verdict, Version,
};
use policy::compile::EgressDefaults;
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
                prop::bool::weighted(0.1),
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
        for (method, path, moment, attested, connect) in asked {
            let mut who = caller();
            match attested {
                1 => who.attestation.issued_at = NOW,
                2 => who.attestation.provider = "ci".into(),
                3 => { who.attributes.insert("team".into(), "red".into()); }
                _ => {}
            }
            let who = Arc::new(who);
            let mut request = request(METHODS[method], PATHS[path]);
            if connect {
                request = RequestFacts { action: Action::Connect, method: String::new(), path: String::new(), ..request };
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

const METHODS: [&str; 3] = ["GET", "POST", "DELETE"];

const PATHS: [&str; 4] = ["/a", "/a/b", "/c", "/a/../c"];

/// In milliseconds from [`NOW`]; clocks are also set back.
const MOMENTS: [i64; 7] = [0, 400, 1500, -2000, 2_000_000, 9 * 3_600_000, -3 * 3_600_000];

/// All that a decision may rest on, also written so that a search of the text would not find it.
const EXPRESSIONS: [&str; 10] = [
    "true",
    "context.attestation.age < duration(\"12m\")",
    "context.now >= datetime(\"2026-11-24T10:00:00Z\")",
    r#"context["\u{6e}ow"] < datetime("2026-11-24T10:00:01Z")"#,
    r#"context["r\u{65}quest"].method == "GET""#,
    "context.request.path like \"*b\"",
    "context.attestation.provider == \"cluster\"",
    "principal.hasTag(\"team\")",
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
