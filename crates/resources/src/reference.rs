//! The fields of the documents, for people: read off the types, so that it can't say anything else than they do.

use std::fmt::Write as _;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::kind::{
    AccessPolicySpec, ConditionSpec, CredentialProviderSpec, DestinationSpec, GuardrailSpec, Kind, Metadata,
    TrustProviderSpec, WorkloadSpec,
};

/// A field of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// `spec.allow[].methods`.
    pub path: String,
    /// `text`, `number`, `truth value`, `object`, `list of text`.
    pub kind: String,
    /// Whether it must be given.
    pub required: bool,
    /// What it is for.
    pub meaning: String,
}

/// What a kind is for, in one sentence.
#[must_use]
pub fn meaning(kind: Kind) -> String {
    described(&schema(kind))
}

/// All fields of a kind, in the order in which they are declared.
#[must_use]
pub fn fields(kind: Kind) -> Vec<Field> {
    let mut found = Vec::new();
    collect(&schema_of::<Metadata>(), "metadata", &mut found);
    if !kind.is_namespaced() {
        found.retain(|field| field.path != "metadata.namespace");
    }
    collect(&schema(kind), "spec", &mut found);
    found
}

/// The page of all kinds, as Markdown.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# Documents\n\n\
         Generated from the program; `make gen` writes it anew.\n\
         Every document has `apiVersion: countersign.dev/v1alpha1`, `kind`, `metadata` and `spec`.\n\
         A field that is not here is an error.\n\
         On a terminal, `countersign explain KIND` and `countersign explain KIND.spec.FIELD` say the same.\n",
    );
    for kind in Kind::ALL {
        let scope = if kind.is_namespaced() { "belongs to a namespace" } else { "belongs to no namespace" };
        let _ = write!(page, "\n## {kind}\n\n{}\nIt {scope}.\n\n", meaning(kind));
        page.push_str("| field | type | required | meaning |\n|---|---|---|---|\n");
        for field in fields(kind) {
            let required = if field.required { "yes" } else { "" };
            let meaning = field.meaning.replace('|', "\\|");
            let _ = writeln!(page, "| `{}` | {} | {required} | {meaning} |", field.path, field.kind);
        }
    }
    page
}

pub(crate) fn schema(kind: Kind) -> Value {
    match kind {
        Kind::Workload => schema_of::<WorkloadSpec>(),
        Kind::TrustProvider => schema_of::<TrustProviderSpec>(),
        Kind::Destination => schema_of::<DestinationSpec>(),
        Kind::CredentialProvider => schema_of::<CredentialProviderSpec>(),
        Kind::AccessPolicy => schema_of::<AccessPolicySpec>(),
        Kind::Condition => schema_of::<ConditionSpec>(),
        Kind::Guardrail => schema_of::<GuardrailSpec>(),
    }
}

fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// The fields of an object, each followed by the fields of what it holds.
fn collect(schema: &Value, path: &str, found: &mut Vec<Field>) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let value = present(field);
        found.push(Field {
            path: path.clone(),
            kind: type_of(value),
            required: required.contains(&name.as_str()),
            meaning: described(field),
        });
        match value["type"].as_str() {
            Some("array") => collect(&value["items"], &format!("{path}[]"), found),
            _ => collect(value, &path, found),
        }
    }
}

/// What is there if it is there: an optional object is written as a choice between the object and nothing.
pub(crate) fn present(schema: &Value) -> &Value {
    let choices = schema["anyOf"].as_array().into_iter().flatten();
    choices.into_iter().find(|choice| choice["type"] != "null").unwrap_or(schema)
}

/// The type of what is there; `None` if it can be anything.
pub(crate) fn type_name(schema: &Value) -> Option<&str> {
    match &schema["type"] {
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        name => name.as_str(),
    }
}

fn type_of(schema: &Value) -> String {
    match type_name(schema) {
        Some("string") => "text".to_owned(),
        Some("integer" | "number") => "number".to_owned(),
        Some("boolean") => "truth value".to_owned(),
        Some("array") => format!("list of {}", type_of(&schema["items"])),
        Some("object") if schema["properties"].is_object() => "object".to_owned(),
        Some("object") => format!("map to {}", type_of(&schema["additionalProperties"])),
        _ => "any value".to_owned(),
    }
}

pub(crate) fn described(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_there_with_its_meaning() {
        for kind in Kind::ALL {
            assert!(meaning(kind).ends_with('.'), "{kind}: {}", meaning(kind));
            let fields = fields(kind);
            assert!(fields.len() > 4, "{kind}: {fields:?}");
            for field in fields {
                assert!(field.meaning.ends_with('.'), "{kind}: {field:?}");
            }
        }
    }

    #[test]
    fn fields_say_their_place_and_type() {
        let of = |kind, path: &str| {
            let found = fields(kind).into_iter().find(|field| field.path == path);
            let field = found.unwrap_or_else(|| panic!("{path} in {:?}", fields(kind)));
            (field.kind, field.required)
        };
        assert_eq!(of(Kind::AccessPolicy, "spec.workload"), ("text".to_owned(), true));
        assert_eq!(of(Kind::AccessPolicy, "spec.when"), ("text".to_owned(), false));
        assert_eq!(of(Kind::AccessPolicy, "spec.allow"), ("list of object".to_owned(), true));
        assert_eq!(of(Kind::AccessPolicy, "spec.allow[].methods"), ("list of text".to_owned(), false));
        assert_eq!(of(Kind::Workload, "spec.selector"), ("map to text".to_owned(), true));
        assert_eq!(of(Kind::Destination, "spec.ports"), ("list of number".to_owned(), false));
        assert_eq!(of(Kind::Condition, "spec.timeWindow.timeZone"), ("text".to_owned(), true));
        assert_eq!(of(Kind::CredentialProvider, "spec.jwt.claims"), ("map to any value".to_owned(), false));
        assert!(!fields(Kind::Guardrail).iter().any(|field| field.path == "metadata.namespace"));
    }
}
