//! The rules of the definitions (`x-kubernetes-validations`), evaluated over what they must refuse and what not.
//!
//! Not by an API server's own CEL: that one checks types against the schema and bounds what a rule may cost before it
//! takes a definition, which no interpreter here does; `make e2e` shows the same objects to a cluster. The rules keep to
//! what both have: `has`, `size`, `startsWith`, comparisons with literals.

use std::collections::BTreeSet;
use std::path::Path;

use cel::{Context, Program};
use serde_json::Value;

/// The schema of a kind.
fn schema(kind: &str) -> Value {
    let file = format!("../charts/countersign/files/crds/{}.yaml", kind.to_lowercase());
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let mut definition: Value = serde_saphyr::from_str(&text).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
}

/// The objects of a file, each with what must be said of it.
fn objects(file: &str) -> Vec<(Value, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/rules").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let said = |part: &str| {
        part.lines().find_map(|line| line.strip_prefix("# says: ")).unwrap_or_default().to_owned()
    };
    text.split("---\n")
        .filter(|part| part.contains("\nkind: "))
        .map(|part| (serde_saphyr::from_str(part).unwrap(), said(part)))
        .collect()
}

/// The messages of the rules that do not hold for a value, and for what is in it; each rule that was asked is noted.
fn refusals(schema: &Value, value: &Value, asked: &mut BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let text = rule["rule"].as_str().unwrap();
        asked.insert(text.to_owned());
        let mut context = Context::default();
        context.add_variable("self", value).unwrap();
        let holds = Program::compile(text).unwrap().execute(&context).unwrap();
        if holds != true.into() {
            found.push(rule["message"].as_str().unwrap().to_owned());
        }
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(value) = value.get(name) {
            found.extend(refusals(schema, value, asked));
        }
    }
    for item in value.as_array().into_iter().flatten() {
        found.extend(refusals(&schema["items"], item, asked));
    }
    found
}

fn all_rules(schema: &Value, found: &mut BTreeSet<String>) {
    let own = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    found.extend(own.map(|rule| rule["rule"].as_str().unwrap().to_owned()));
    schema["properties"].as_object().into_iter().flatten().for_each(|(_, schema)| all_rules(schema, found));
    if schema["items"].is_object() {
        all_rules(&schema["items"], found);
    }
}

#[test]
fn the_rules_refuse_what_they_say_and_nothing_else() {
    let (mut asked, mut broken) = (BTreeSet::new(), BTreeSet::new());
    for (object, says) in objects("refused.yaml") {
        let found = refusals(&schema(object["kind"].as_str().unwrap()), &object, &mut asked);
        assert!(found.len() == 1 && found[0].contains(&says), "{object}: {found:?}");
        broken.extend(found);
    }
    for (object, _) in objects("taken.yaml") {
        let found = refusals(&schema(object["kind"].as_str().unwrap()), &object, &mut asked);
        assert_eq!(found, Vec::<String>::new(), "{object}");
    }
    let mut all = BTreeSet::new();
    for kind in
        ["AccessPolicy", "Condition", "CredentialProvider", "Destination", "Guardrail", "TrustProvider"]
    {
        all_rules(&schema(kind), &mut all);
    }
    assert_eq!(asked, all, "each rule was asked of something");
    assert_eq!(broken.len(), all.len(), "and broken by something: {broken:?}");
}

#[test]
fn the_command_line_says_the_same_words_and_takes_the_same() {
    for (object, says) in objects("refused.yaml") {
        let found = of_the_command_line(&object);
        assert!(found.iter().any(|found| found.contains(&says)), "{object}: {found:?}");
    }
    for (object, _) in objects("taken.yaml") {
        assert_eq!(of_the_command_line(&object), Vec::<String>::new(), "{object}");
    }
}

/// What `countersign apply` says is wrong with an object.
fn of_the_command_line(object: &Value) -> Vec<String> {
    let found = resources::Document::from_custom_resource(object).and_then(|document| {
        let mut set = resources::Set::default();
        set.insert(document.clone());
        match resources::validate(&[document], &set) {
            found if found.is_empty() => Ok(()),
            found => Err(found),
        }
    });
    found.err().into_iter().flatten().map(|found| found.message).collect()
}
