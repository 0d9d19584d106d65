//! The kinds as custom resources: `CustomResourceDefinition`s (`apiextensions.k8s.io/v1`) read off the types, as JSON, so
//! that nobody who links this crate sees Kubernetes.
//!
//! The schema is structural (Kubernetes documentation, "Specifying a structural schema"): one type for each value, no
//! references. Fields that are not known are kept, so that they are refused by name and never dropped silently
//! (docs/decisions/0032-custom-resources.md).

use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::reference;

/// The API group of the kinds.
pub const GROUP: &str = "countersign.dev";

/// The one version there is.
pub const VERSION: &str = "v1alpha1";

/// `kubectl get countersign` lists all kinds.
const CATEGORY: &str = "countersign";

/// Keywords of the types' schema that an API server understands as they are.
const KEPT: [&str; 12] = [
    "description",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    RULES,
];

const RULES: &str = "x-kubernetes-validations";
const KEEP_UNKNOWN: &str = "x-kubernetes-preserve-unknown-fields";

/// Whether a definition has CEL rules; API servers before 1.25 do not know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// It has.
    With,
    /// It has not: what they say is left to the webhook and the controller.
    Without,
}

/// The definition of a kind.
#[must_use]
pub fn definition(kind: Kind, rules: Rules) -> Value {
    let plural = kind.plural();
    let scope = if kind.is_namespaced() { "Namespaced" } else { "Cluster" };
    let mut schema = json!({
        "type": "object",
        "description": reference::meaning(kind),
        "required": ["spec"],
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "type": "object" },
            "spec": structural(&reference::schema(kind)),
            "status": status(),
        },
    });
    if rules == Rules::Without {
        strip_rules(&mut schema);
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{GROUP}") },
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.as_str(),
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short_name(kind)],
                "categories": [CATEGORY],
            },
            "scope": scope,
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns(kind),
                "schema": { "openAPIV3Schema": schema },
            }],
        },
    })
}

/// `Workload` and `Condition` are words that others use too, so each short name says whose it is.
const fn short_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Workload => "cswl",
        Kind::TrustProvider => "cstp",
        Kind::Destination => "csdest",
        Kind::CredentialProvider => "cscp",
        Kind::AccessPolicy => "csap",
        Kind::Condition => "cscond",
        Kind::Guardrail => "csgr",
    }
}

/// What `kubectl get` shows, besides the name: what the document says at a glance, and what became of it.
fn columns(kind: Kind) -> Vec<Value> {
    // A column of priority 1 is shown by `-o wide` only.
    let own: &[(&str, &str, u8)] = match kind {
        Kind::Workload => {
            &[("Environment", "environment", 0), ("Egress", "egress", 0), ("Owner", "owner", 1)]
        }
        // One of the two; a cluster always says its audience, and the rest has defaults.
        Kind::TrustProvider => &[
            ("OIDC issuer", "oidc.issuer", 0),
            ("Cluster audience", "kubernetes.audience", 0),
            ("OIDC audience", "oidc.audience", 1),
            ("Cluster", "kubernetes.server.url", 1),
        ],
        Kind::Destination => {
            &[("Hosts", "hosts", 0), ("Protocol", "protocol", 1), ("Sensitivity", "sensitivity", 1)]
        }
        Kind::CredentialProvider => &[("Audience", "jwt.audience", 0), ("TTL", "jwt.ttl", 1)],
        Kind::AccessPolicy => &[
            ("Workload", "workload", 0),
            ("Destination", "destination", 0),
            ("Credential", "credential", 0),
            ("TTL", "ttl", 1),
        ],
        Kind::Condition => &[
            ("From", "timeWindow.from", 0),
            ("To", "timeWindow.to", 0),
            ("Zone", "timeWindow.timeZone", 0),
            ("Attested within", "attestedWithin", 0),
        ],
        Kind::Guardrail => &[("Reason", "reason", 0)],
    };
    let own = own.iter().map(|(name, path, priority)| {
        json!({ "name": name, "type": "string", "jsonPath": format!(".spec.{path}"), "priority": priority })
    });
    let condition = |name: &str, condition: &str| {
        let path = format!(".status.conditions[?(@.type==\"{condition}\")].status");
        json!({ "name": name, "type": "string", "jsonPath": path })
    };
    let common = [
        condition("Accepted", "Accepted"),
        condition("In force", "Programmed"),
        json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }),
    ];
    own.chain(common).collect()
}

/// `status`: conditions as the Kubernetes API conventions have them.
fn status() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    json!({
        "type": "object",
        "description": "What the control plane made of it.",
        "properties": {
            "observedGeneration": {
                "type": "integer",
                "format": "int64",
                "description": "The generation that this is about.",
            },
            "conditions": {
                "type": "array",
                "description": "`Accepted`: it is valid. `ResolvedRefs`: all that it names is there. `Programmed`: \
                                decisions are made by this generation.",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "reason", "message", "lastTransitionTime"],
                    "properties": {
                        "type": text("`Accepted`, `ResolvedRefs` or `Programmed`."),
                        "status": {
                            "type": "string",
                            "enum": ["True", "False", "Unknown"],
                            "description": "Whether it holds.",
                        },
                        "observedGeneration": {
                            "type": "integer",
                            "format": "int64",
                            "description": "The generation that this is about.",
                        },
                        "reason": text("Why, in one word."),
                        "message": text("Why, for people."),
                        "lastTransitionTime": {
                            "type": "string",
                            "format": "date-time",
                            "description": "When `status` last changed.",
                        },
                    },
                },
            },
        },
    })
}

/// The types' schema as an API server wants it.
fn structural(schema: &Value) -> Value {
    let present = reference::present(schema);
    let mut made = Map::new();
    if let Some(name) = reference::type_name(present) {
        made.insert("type".to_owned(), name.into());
    } else {
        // Any value at all.
        made.insert(KEEP_UNKNOWN.to_owned(), true.into());
    }
    // What is said at the field goes before what is said at its type.
    for source in [schema, present] {
        for key in KEPT {
            if let Some(value) = source.get(key).filter(|_| !made.contains_key(key)) {
                made.insert(key.to_owned(), value.clone());
            }
        }
    }
    if let Some(text) = made.get_mut("description") {
        *text = reference::described(&json!({ "description": text })).into();
    }
    if let Some(properties) = present["properties"].as_object() {
        let properties: Map<String, Value> =
            properties.iter().map(|(name, field)| (name.clone(), structural(field))).collect();
        made.insert("properties".to_owned(), properties.into());
        made.insert(KEEP_UNKNOWN.to_owned(), true.into());
    }
    if made.get("type").is_some_and(|name| name == "array") {
        made.insert("items".to_owned(), structural(&present["items"]));
    }
    if let Some(values) = present.get("additionalProperties").filter(|values| **values != Value::Bool(false))
    {
        made.insert("additionalProperties".to_owned(), structural(values));
    }
    made.into()
}

fn strip_rules(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.remove(RULES);
            map.values_mut().for_each(strip_rules);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_rules),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keywords that say nothing an API server needs: what they mean is said otherwise, or is ours to do.
    const DROPPED: [&str; 7] =
        ["$schema", "title", "type", "format", "default", "properties", "additionalProperties"];

    fn keywords(schema: &Value, found: &mut Vec<String>) {
        let Some(map) = schema.as_object() else { return };
        found.extend(map.keys().cloned());
        let nested = map.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::values);
        let nested = nested.chain(["items", "additionalProperties"].iter().filter_map(|key| map.get(*key)));
        let choices = map.get("anyOf").and_then(Value::as_array).into_iter().flatten();
        nested.chain(choices).for_each(|nested| keywords(nested, found));
    }

    #[test]
    fn no_keyword_of_the_types_is_lost_unseen() {
        let mut found = Vec::new();
        Kind::ALL.into_iter().for_each(|kind| keywords(&reference::schema(kind), &mut found));
        let is_known =
            |key: &str| KEPT.contains(&key) || DROPPED.contains(&key) || ["items", "anyOf"].contains(&key);
        found.retain(|key| !is_known(key));
        assert_eq!(found, Vec::<String>::new());
    }

    fn each(schema: &Value, path: &str, check: &dyn Fn(&str, &Value)) {
        check(path, schema);
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            each(field, &format!("{path}.{name}"), check);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(nested) = schema.get(key) {
                each(nested, &format!("{path}[]"), check);
            }
        }
    }

    #[test]
    fn schemas_are_structural_and_keep_what_they_do_not_know() {
        for kind in Kind::ALL {
            let definition = definition(kind, Rules::With);
            let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            each(&schema["properties"]["spec"], "spec", &|path, schema| {
                let keeps = schema[KEEP_UNKNOWN] == true;
                assert!(schema["type"].is_string() || keeps, "{kind} {path}: no type");
                assert_eq!(
                    schema["properties"].is_object(),
                    keeps && schema["type"] == "object",
                    "{kind} {path}"
                );
                for key in ["$ref", "anyOf", "oneOf", "allOf", "nullable", "default"] {
                    assert!(schema.get(key).is_none(), "{kind} {path}: {key}");
                }
                assert!(schema["additionalProperties"] != Value::Bool(false), "{kind} {path}");
            });
        }
    }

    #[test]
    fn rules_can_be_left_out() {
        let text = |rules| Kind::ALL.map(|kind| definition(kind, rules).to_string()).concat();
        assert!(text(Rules::With).contains(RULES) && !text(Rules::Without).contains(RULES));
    }

    #[test]
    fn enumerations_are_those_of_the_validation() {
        use crate::values;
        let spec = |kind| structural(&reference::schema(kind))["properties"].clone();
        let each = |field: &Value, reads: &dyn Fn(&str) -> bool, count: usize| {
            let words: Vec<&str> =
                field["enum"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            assert!(words.len() == count && words.iter().all(|word| reads(word)), "{words:?}");
        };
        let destination = spec(Kind::Destination);
        each(&spec(Kind::Workload)["egress"], &|text| values::egress(text).is_some(), 2);
        each(&destination["protocol"], &|text| values::protocol(text).is_some(), 2);
        each(&destination["tls"], &|text| values::tls_mode(text).is_some(), 2);
        each(&destination["resolve"], &|text| values::resolution(text).is_some(), 2);
        each(&destination["clientCertificate"], &|text| values::client_certificate(text).is_some(), 1);
        each(&destination["httpVersions"]["items"], &|text| values::http_version(text).is_some(), 2);
        let days = &spec(Kind::Condition)["timeWindow"]["properties"]["days"]["items"];
        each(days, &|text| values::day(text).is_some(), 7);
    }
}
