//! What people read when a document is wrong.

use proptest::prelude::*;
use resources::diagnostic::render;
use resources::{Set, parse, validate};

fn check(text: &str) -> String {
    let files = [("payments.yaml".to_owned(), text.to_owned())];
    let resources::Parsed { documents, mut diagnostics, broken } = parse(&files, None);
    let mut set = Set::default();
    for document in &documents {
        set.insert(document.clone());
    }
    broken.into_iter().for_each(|(kind, name)| set.note_broken(kind, name));
    diagnostics.extend(validate(&documents, &set));
    diagnostics.iter().map(|d| render(d, text)).collect::<Vec<_>>().join("\n")
}

const HEAD: &str = "apiVersion: countersign.dev/v1alpha1\n";

#[test]
fn the_quickstart_is_accepted() {
    assert_eq!(check(include_str!("../../../examples/quickstart/quickstart.yaml")), "");
}

#[test]
fn the_examples_for_kubernetes_are_accepted() {
    let examples = include_str!("../../../examples/kubernetes/policy.yaml");
    let in_the_cluster_test = include_str!("../../../tests/e2e/policy.yaml");
    assert_eq!(check(&format!("{examples}---\n{in_the_cluster_test}")), "");
}

#[test]
fn documents_read_back_from_json() {
    let files = [("q".to_owned(), include_str!("../../../examples/quickstart/quickstart.yaml").to_owned())];
    let documents = parse(&files, None).documents;
    assert_eq!(documents.len(), 5);
    for document in documents {
        let json = document.to_json().to_string();
        let again = resources::Document::from_json(&json).unwrap();
        assert_eq!(again.to_json(), document.to_json());
        assert_eq!((again.name, again.spec), (document.name, document.spec));
    }
}

#[test]
fn a_misspelt_field_and_a_dangling_reference() {
    let text = format!(
        "{HEAD}kind: AccessPolicy\nmetadata: {{ name: p, namespace: payments }}\nspec:\n  workload: billing\n  \
         destination: strpie\n  alow:\n    - methods: [GET]\n  allow: []\n---\n{HEAD}kind: Destination\nmetadata: \
         {{ name: stripe, namespace: payments }}\nspec:\n  hosts: [api.stripe.com]\n"
    );
    insta::assert_snapshot!(check(&text), @r"
    error[CS0102]: unknown field `alow`
      --> payments.yaml:7:3
      |
    7 |   alow:
      |   ^^^^
      = did you mean `allow`?
    ");
    insta::assert_snapshot!(check(&text.replace("  alow:\n    - methods: [GET]\n", "")), @r"
    error[CS0104]: there is no Workload `billing`
      --> payments.yaml:5:13
      |
    5 |   workload: billing
      |             ^^^^^^^

    error[CS0104]: there is no Destination `strpie`
      --> payments.yaml:6:16
      |
    6 |   destination: strpie
      |                ^^^^^^
      = did you mean `stripe`?

    error[CS0103]: a policy must allow something; `- {}` allows every request
      --> payments.yaml:7:10
      |
    7 |   allow: []
      |          ^
    ");
}

#[test]
fn what_is_broken_is_one_finding_and_not_its_consequences() {
    let text = format!(
        "{HEAD}kind: Workload\nmetadata: {{ name: w, namespace: a }}\nspec:\n  selectr: {{}}\n  destinations: d\n  \
         selector: {{ team: a }}\n  egress: [enforce]\n---\n{HEAD}kind: AccessPolicy\nmetadata: {{ name: p, namespace: a }}\n\
         spec: {{ workload: w, destination: d, allow: [{{}}] }}\n"
    );
    insta::assert_snapshot!(check(&text));
}

#[test]
fn values_that_can_not_be() {
    let text = format!(
        "{HEAD}kind: Destination\nmetadata: {{ name: d, namespace: a }}\nspec:\n  hosts: [\"*\", 10.0.0.1]\n  \
         addresses: [10.0.0.0/33]\n  tls: perhaps\n---\n{HEAD}kind: Guardrail\nmetadata: {{ name: g, namespace: a }}\n\
         spec: {{}}\n---\n{HEAD}kind: Condition\nmetadata: {{ name: c }}\nspec: {{ attestedWithin: 1x }}\n"
    );
    insta::assert_snapshot!(check(&text));
}

#[test]
fn what_is_not_yaml_or_not_ours() {
    insta::assert_snapshot!(check("a: [1\n"), @r"
    error[CS0101]: unclosed bracket '['
      --> payments.yaml:1:4
      |
    1 | a: [1
      |    ^
    ");
    insta::assert_snapshot!(check(&format!("{HEAD}kind: Polcy\nmetadata: {{ name: a }}\nspec: {{}}\n")), @r"
    error[CS0103]: `Polcy` is not a kind of document
      --> payments.yaml:2:7
      |
    2 | kind: Polcy
      |       ^^^^^
      = kinds are TrustProvider, Workload, Destination, CredentialProvider, Condition, AccessPolicy, Guardrail
    ");
}

#[test]
fn another_tenants_documents_are_not_ours_to_name() {
    let shared = |with: &str| {
        format!(
            "{HEAD}kind: Destination\nmetadata: {{ name: d, namespace: other }}\nspec: {{ hosts: [a.example]{with} }}\n\
             ---\n{HEAD}kind: Workload\nmetadata: {{ name: w, namespace: mine }}\nspec: {{ selector: {{ a: b }}, \
             destinations: [other/d] }}\n"
        )
    };
    assert!(
        check(&shared(""))
            .contains("error[CS0104]: Destination `other/d` is not shared with namespace `mine`")
    );
    assert_eq!(check(&shared(", sharedWith: [mine]")), "");
}

#[test]
fn a_document_can_not_write_to_the_readers_terminal() {
    let text = format!(
        "{HEAD}kind: Condition\nmetadata: {{ name: c, namespace: a }}\nspec: {{ attestedWithin: \"\\e[2J\u{202e}x\" }}\n"
    );
    let shown = check(&text);
    assert!(shown.contains("error[CS0103]: `?[2J?x` must be a duration"), "{shown}");
    assert!(!shown.contains(|c: char| c != '\n' && (c.is_control() || c == '\u{202e}')), "{shown}");
}

#[test]
fn a_field_given_twice_is_not_settled_by_the_last() {
    let text = format!(
        "{HEAD}kind: Guardrail\nkind: Condition\nmetadata: {{ name: g }}\nspec: {{ when: \"true\" }}\n"
    );
    assert!(check(&text).starts_with("error[CS0101]: duplicate mapping key: kind"));
}

#[test]
fn values_that_would_surprise() {
    let text = format!(
        "{HEAD}kind: Workload\nmetadata: {{ name: w, namespace: a }}\nspec: {{ selector: {{ team: a*b }} }}\n---\n{HEAD}\
         kind: Condition\nmetadata: {{ name: c, namespace: a }}\nspec:\n  timeWindow: {{ days: [monday], from: \"08:00\", \
         to: \"08:00\", timeZone: UTC }}\n  sharedWith: [Not A Name]\n"
    );
    insta::assert_snapshot!(check(&text));
}

/// A workload attested by Kubernetes, two credentials, and whatever else.
fn billing(rest: &str) -> String {
    let provider = |name: &str| {
        format!(
            "{HEAD}kind: CredentialProvider\nmetadata: {{ name: {name}, namespace: a }}\nspec: {{ jwt: {{ audience: [x] }} }}\n---\n"
        )
    };
    format!(
        "{HEAD}kind: Workload\nmetadata: {{ name: w, namespace: a }}\nspec: {{ selector: {{ kubernetes.serviceaccount: w }} }}\n\
         ---\n{HEAD}kind: Destination\nmetadata: {{ name: d, namespace: a }}\nspec: {{ hosts: [a.example] }}\n---\n{}{}{rest}",
        provider("one"),
        provider("two"),
    )
}

fn policy(name: &str, rest: &str) -> String {
    format!(
        "{HEAD}kind: AccessPolicy\nmetadata: {{ name: {name}, namespace: a }}\nspec: {{ workload: w, destination: d, {rest} }}\n---\n"
    )
}

#[test]
fn credentials_that_will_compete_are_foreseen() {
    let pair = |a: &str, b: &str| check(&billing(&(policy("p", a) + &policy("q", b))));
    let found =
        pair("credential: one, allow: [{ paths: [/a/**] }]", "credential: two, allow: [{ methods: [GET] }]");
    assert_eq!(found.matches("warning[CS0130]").count(), 2, "{found}");
    assert!(found.contains("accesspolicy/a/q covers the same calls with another credential"), "{found}");
    assert_eq!(
        pair("credential: one, allow: [{ paths: [/a] }]", "credential: two, allow: [{ paths: [/b] }]"),
        ""
    );
    // Two spellings of one name.
    assert_eq!(pair("credential: one, allow: [{}]", "credential: a/one, allow: [{}]"), "");
}

#[test]
fn a_credential_needs_a_connection_that_is_opened() {
    let with = |destination: &str, policy_rest: &str| {
        let set = billing(&policy("p", policy_rest));
        check(&set.replace("hosts: [a.example]", &format!("hosts: [a.example], {destination}")))
    };
    for never_opened in ["tls: passthrough", "protocol: tcp"] {
        for credential in ["credential: one, allow: [{}]", "allow: [{ credential: one }]"] {
            let found = with(never_opened, credential);
            assert!(found.starts_with("error[CS0103]: destination `d` says"), "{found}");
            assert!(found.contains(never_opened), "{found}");
        }
        assert_eq!(with(never_opened, "allow: [{}]"), "");
    }
    assert_eq!(with("tls: terminate", "credential: one, allow: [{}]"), "");
}

#[test]
fn only_the_application_s_address_is_never_right_without_tls() {
    let destination = |rest: &str| {
        check(&format!(
            "{HEAD}kind: Destination\nmetadata: {{ name: d, namespace: a }}\nspec:\n  hosts: [a.example]\n{rest}"
        ))
    };
    assert_eq!(destination("  resolve: application\n"), "");
    assert_eq!(destination("  resolve: name\n  insecure: true\n"), "");
    insta::assert_snapshot!(destination("  resolve: application\n  insecure: true\n"), @r"
    error[CS0103]: a destination that says `insecure` can't say `resolve: application`: without TLS, the proxy's own look-up is all that proves the server
      --> payments.yaml:6:12
      |
    6 |   resolve: application
      |            ^^^^^^^^^^^
    ");
    let unknown = destination("  resolve: perhaps\n");
    assert!(unknown.starts_with("error[CS0103]: `perhaps` must be `name` or `application`"), "{unknown}");
}

#[test]
fn what_is_shown_to_a_destination_needs_a_connection_that_is_opened() {
    let with = |fields: &str| {
        let head = "kind: Destination\nmetadata: { name: d, namespace: a }";
        check(&format!("{HEAD}{head}\nspec:\n  hosts: [a.example]\n{fields}"))
    };
    assert_eq!(with("  serverName: inside.example\n  clientCertificate: svid\n"), "");
    insta::assert_snapshot!(with("  serverName: \"*.example\"\n  clientCertificate: passport\n"));
    for shut in ["tls: passthrough", "protocol: tcp"] {
        let found = with(&format!("  {shut}\n  serverName: b.example\n  clientCertificate: svid\n"));
        assert!(found.contains(&format!("`{shut}` leaves its connections shut, so `serverName`")), "{found}");
        assert!(found.contains("so `clientCertificate` would do nothing"), "{found}");
    }
}

#[test]
fn freshness_out_of_reach_is_foreseen() {
    let within = |text: &str| {
        let condition = format!(
            "{HEAD}kind: Condition\nmetadata: {{ name: fresh, namespace: a }}\nspec: {{ attestedWithin: {text} }}\n---\n"
        );
        check(&billing(&(condition + &policy("p", "allow: [{}], conditions: [fresh]"))))
    };
    assert!(
        within("5m").starts_with("warning[CS0131]: `fresh` wants evidence of the last 5m"),
        "{}",
        within("5m")
    );
    assert_eq!(within("8m"), "");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is read, nothing panics, and what is shown can be shown.
    #[test]
    fn no_text_makes_it_panic(text in prop_oneof![
        any::<String>(),
        "[-a-z:{}\\[\\]&*!|>'\" \n\t#,%@0-9]{0,120}",
        // The quickstart with a hole in it, and something else put there.
        (any::<prop::sample::Index>(), 0..40_usize, "[-:{}\\[\\]&*|>'\" \na-z0]{0,8}").prop_map(|(at, cut, put)| {
            let text = include_str!("../../../examples/quickstart/quickstart.yaml");
            let characters: Vec<char> = text.chars().collect();
            let at = at.index(characters.len());
            let end = (at + cut).min(characters.len());
            characters[..at].iter().copied().chain(put.chars()).chain(characters[end..].iter().copied()).collect()
        }),
    ], offset in 0..50_usize, length in 0..50_usize) {
        let _ = check(&text);
        for document in parse(&[("f".to_owned(), text)], Some("a")).documents {
            let _ = document.within("/spec/when", offset, length);
            prop_assert!(resources::Document::from_json(&document.to_json().to_string()).is_ok());
        }
    }
}
