//! What people read when a document is wrong.

use resources::diagnostic::render;
use resources::{Set, parse, validate};

fn check(text: &str) -> String {
    let files = [("payments.yaml".to_owned(), text.to_owned())];
    let (documents, mut diagnostics) = parse(&files, None);
    let mut set = Set::default();
    for document in &documents {
        set.insert(document.clone());
    }
    diagnostics.extend(validate(&documents, &set));
    diagnostics.iter().map(|d| render(d, text)).collect::<Vec<_>>().join("\n")
}

const HEAD: &str = "apiVersion: countersign.dev/v1alpha1\n";

#[test]
fn the_quickstart_is_accepted() {
    assert_eq!(check(include_str!("../../../examples/quickstart/quickstart.yaml")), "");
}

#[test]
fn documents_read_back_from_json() {
    let files = [("q".to_owned(), include_str!("../../../examples/quickstart/quickstart.yaml").to_owned())];
    let (documents, _) = parse(&files, None);
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
