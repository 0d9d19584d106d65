//! Text into documents.

use model::{Code, Namespace, ResourceRef};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::diagnostic::{Diagnostic, Place};
use crate::kind::{API_VERSION, Kind, Metadata, Spec};
use crate::tree::{self, Spot, Tree};

/// A document, and where it was read.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its name.
    pub name: ResourceRef,
    /// `metadata`, with the namespace that it has in the end.
    pub metadata: Metadata,
    /// `spec`.
    pub spec: Spec,
    /// Where it was read; `None` if it comes from the store.
    pub source: Option<Source>,
}

/// Where a document was read.
#[derive(Clone, Debug)]
pub struct Source {
    file: String,
    text: std::sync::Arc<str>,
    tree: Tree,
}

impl Document {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.spec.kind()
    }

    /// `kind/namespace/name`, as audit and messages name it.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}/{}", self.kind().lower(), self.name)
    }

    /// The place of a value; of the nearest part around it, if it is not there itself.
    #[must_use]
    pub fn at(&self, path: &str) -> Place {
        let meant = path.to_owned();
        let Some(source) = &self.source else { return Place { path: meant, ..Place::default() } };
        let mut path = path;
        loop {
            if let Some(spot) = source.tree.values.get(path).or_else(|| source.tree.keys.get(path)) {
                return source.place(*spot, &meant);
            }
            match path.rfind('/') {
                Some(end) => path = &path[..end],
                None => return Place { file: source.file.clone(), path: meant, ..Place::default() },
            }
        }
    }

    /// The place of a part of a text value, by its byte offset and length there. Where the exact place can't be said
    /// that of the whole value, or of the field's name if the value begins on another line: a caret under the first of
    /// several lines would blame that line.
    #[must_use]
    pub fn within(&self, path: &str, offset: usize, length: usize) -> Place {
        let exact = self.source.as_ref().and_then(|source| {
            let value = source.tree.value.pointer(path)?.as_str()?;
            let at = *source.tree.values.get(path)?;
            Some(source.place(tree::within(&source.text, value, at, offset, length)?, path))
        });
        exact.unwrap_or_else(|| {
            let whole = self.at(path);
            let name = self
                .source
                .as_ref()
                .and_then(|source| Some(source.place(*source.tree.keys.get(path)?, path)));
            name.filter(|name| name.line != whole.line).unwrap_or(whole)
        })
    }

    /// The document as JSON: what the store keeps.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let spec = match &self.spec {
            Spec::Workload(spec) => serde_json::to_value(spec),
            Spec::TrustProvider(spec) => serde_json::to_value(spec),
            Spec::Destination(spec) => serde_json::to_value(spec),
            Spec::CredentialProvider(spec) => serde_json::to_value(spec),
            Spec::AccessPolicy(spec) => serde_json::to_value(spec),
            Spec::Condition(spec) => serde_json::to_value(spec),
            Spec::Guardrail(spec) => serde_json::to_value(spec),
        };
        json!({
            "apiVersion": API_VERSION,
            "kind": self.kind().as_str(),
            "metadata": self.metadata,
            // Plain structs with text keys: there is nothing in them that JSON can't say.
            "spec": spec.unwrap_or_default(),
        })
    }

    /// A document that the store kept.
    ///
    /// # Errors
    /// What is wrong with it: it was written by a newer version, or changed.
    pub fn from_json(text: &str) -> Result<Self, Vec<Diagnostic>> {
        let value = serde_json::from_str(text).map_err(|error| {
            vec![Diagnostic::error(Code::YamlSyntax, Place::default(), error.to_string())]
        })?;
        let source = Source { file: String::new(), text: "".into(), tree: Tree { value, ..Tree::default() } };
        let mut document = document(source, None)?;
        document.source = None;
        Ok(document)
    }

    /// The document that a custom resource is. Of its metadata only the name is taken: labels and annotations change
    /// with every tool that looks after it, and mean nothing here.
    ///
    /// # Errors
    /// What is wrong with its fields, as for a file.
    pub fn from_custom_resource(object: &Value) -> Result<Self, Vec<Diagnostic>> {
        let mut value = json!({ "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": {} });
        for field in ["name", "namespace"] {
            if let Some(text) = object["metadata"].get(field) {
                value["metadata"][field] = text.clone();
            }
        }
        if let Some(spec) = object.get("spec") {
            value["spec"] = spec.clone();
        }
        let source = Source { file: String::new(), text: "".into(), tree: Tree { value, ..Tree::default() } };
        let mut document = document(source, None)?;
        document.source = None;
        Ok(document)
    }
}

impl Source {
    fn place(&self, spot: Spot, path: &str) -> Place {
        Place {
            file: self.file.clone(),
            line: spot.line,
            column: spot.column,
            length: spot.length,
            path: path.to_owned(),
        }
    }

    fn at(&self, path: &str) -> Place {
        let nowhere = || Place { file: self.file.clone(), path: path.to_owned(), ..Place::default() };
        self.tree.values.get(path).map_or_else(nowhere, |spot| self.place(*spot, path))
    }

    fn key(&self, path: &str) -> Place {
        let whole = || Place { path: path.to_owned(), ..self.at("") };
        self.tree.keys.get(path).map_or_else(whole, |spot| self.place(*spot, path))
    }
}

/// What some files hold.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// The documents that could be read.
    pub documents: Vec<Document>,
    /// What is wrong with the rest.
    pub diagnostics: Vec<Diagnostic>,
    /// Names of the rest, as far as they have one: whoever refers to one of them does not refer to nothing.
    pub broken: Vec<(Kind, ResourceRef)>,
}

/// Reads the documents of some files: all that can be read, and all that is wrong with the rest.
///
/// Documents of namespaced kinds that name no namespace get `default_namespace`, if there is one.
#[must_use]
pub fn parse(files: &[(String, String)], default_namespace: Option<&str>) -> Parsed {
    let mut parsed = Parsed::default();
    for (file, text) in files {
        match tree::read(text) {
            Err((message, spot)) => {
                let at = spot.map_or_else(Place::default, |spot| Place {
                    file: String::new(),
                    line: spot.line,
                    column: spot.column,
                    length: 1,
                    path: String::new(),
                });
                parsed.diagnostics.push(Diagnostic::error(
                    Code::YamlSyntax,
                    Place { file: file.clone(), ..at },
                    message,
                ));
            }
            Ok(trees) => {
                let shared: std::sync::Arc<str> = text.as_str().into();
                for tree in trees {
                    let source = Source { file: file.clone(), text: shared.clone(), tree };
                    let name = name_of(&source.tree.value, default_namespace);
                    match document(source, default_namespace) {
                        Ok(document) => parsed.documents.push(document),
                        Err(found) => {
                            parsed.diagnostics.extend(found);
                            parsed.broken.extend(name);
                        }
                    }
                }
            }
        }
    }
    parsed
}

/// What a document is called, whatever else may be wrong with it.
fn name_of(value: &Value, default_namespace: Option<&str>) -> Option<(Kind, ResourceRef)> {
    let text = |path: &str| value.pointer(path).and_then(Value::as_str);
    let kind = Kind::ALL.into_iter().find(|kind| Some(kind.as_str()) == text("/kind"))?;
    let namespace = text("/metadata/namespace").or(default_namespace).filter(|_| kind.is_namespaced());
    let namespace = namespace.map(Namespace::new).transpose().ok()?;
    Some((kind, ResourceRef::new(namespace, text("/metadata/name")?).ok()?))
}

/// The outer shape of every document.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Value,
    /// What a cluster adds; not ours to read.
    #[serde(default)]
    #[allow(dead_code, reason = "accepted, because documents are also copied out of a cluster")]
    status: Option<Value>,
}

fn document(source: Source, default_namespace: Option<&str>) -> Result<Document, Vec<Diagnostic>> {
    let mut envelope: Envelope = typed(&source, source.tree.value.clone(), "")?;
    if envelope.api_version != API_VERSION {
        let message = format!("`apiVersion` must be `{API_VERSION}`");
        return Err(vec![Diagnostic::error(Code::InvalidValue, source.at("/apiVersion"), message)]);
    }
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == envelope.kind) else {
        let message = format!("`{}` is not a kind of document", envelope.kind);
        let known = Kind::ALL.map(Kind::as_str);
        return Err(vec![
            Diagnostic::error(Code::InvalidValue, source.at("/kind"), message)
                .help(format!("kinds are {}", known.join(", ")))
                .did_you_mean(&envelope.kind, known),
        ]);
    };
    let spec = spec(&source, kind, envelope.spec)?;
    let namespace = namespace(&source, kind, &mut envelope.metadata, default_namespace)?;
    let name = ResourceRef::new(namespace, &envelope.metadata.name).map_err(|e| {
        vec![Diagnostic::error(Code::InvalidValue, source.at("/metadata/name"), e.to_string())]
    })?;
    Ok(Document { name, metadata: envelope.metadata, spec, source: Some(source) })
}

fn spec(source: &Source, kind: Kind, value: Value) -> Result<Spec, Vec<Diagnostic>> {
    Ok(match kind {
        Kind::Workload => Spec::Workload(typed(source, value, "/spec")?),
        Kind::TrustProvider => Spec::TrustProvider(typed(source, value, "/spec")?),
        Kind::Destination => Spec::Destination(typed(source, value, "/spec")?),
        Kind::CredentialProvider => Spec::CredentialProvider(typed(source, value, "/spec")?),
        Kind::AccessPolicy => Spec::AccessPolicy(typed(source, value, "/spec")?),
        Kind::Condition => Spec::Condition(typed(source, value, "/spec")?),
        Kind::Guardrail => Spec::Guardrail(typed(source, value, "/spec")?),
    })
}

fn namespace(
    source: &Source,
    kind: Kind,
    metadata: &mut Metadata,
    default_namespace: Option<&str>,
) -> Result<Option<Namespace>, Vec<Diagnostic>> {
    let wrong = |message: String, help: &str| {
        let at = if metadata.namespace.is_some() { "/metadata/namespace" } else { "/metadata" };
        vec![Diagnostic::error(Code::WrongScope, source.at(at), message).help(help)]
    };
    if !kind.is_namespaced() {
        return match &metadata.namespace {
            None => Ok(None),
            Some(_) => Err(wrong(format!("a {kind} belongs to no namespace"), "remove `namespace`")),
        };
    }
    match metadata.namespace.as_deref().or(default_namespace) {
        None => {
            Err(wrong(format!("a {kind} belongs to a namespace"), "add `namespace`, or give one with `-n`"))
        }
        Some(name) => {
            let namespace = Namespace::new(name).map_err(|e| {
                vec![Diagnostic::error(Code::InvalidValue, source.at("/metadata/namespace"), e.to_string())]
            })?;
            metadata.namespace = Some(namespace.to_string());
            Ok(Some(namespace))
        }
    }
}

/// Makes a typed value of a part of the document. What is wrong is taken out and the rest read again, until all has
/// been found; a field that is missing, or an item of a list, ends the search.
fn typed<T: DeserializeOwned>(source: &Source, mut value: Value, base: &str) -> Result<T, Vec<Diagnostic>> {
    let mut found: Vec<Diagnostic> = Vec::new();
    loop {
        let error = match serde_path_to_error::deserialize::<_, T>(value.clone()) {
            Ok(typed) if found.is_empty() => return Ok(typed),
            Ok(_) => return Err(found),
            Err(error) => error,
        };
        let path = format!("{base}{}", pointer(error.path()));
        let message = error.inner().to_string();
        let wrong = match UnknownField::read(&message) {
            Some(unknown) => {
                // The path may or may not end with the field itself.
                let parent = path.strip_suffix(&format!("/{}", unknown.name)).unwrap_or(&path).to_owned();
                let wrong = format!("{parent}/{}", unknown.name);
                found.push(unknown_field(source, &unknown, &wrong));
                wrong
            }
            None => {
                // What was taken out may be what is missing now.
                let is_missing = message.starts_with("missing field");
                if !is_missing || found.is_empty() {
                    found.push(wrong_type(source, &path, &message));
                }
                if is_missing {
                    return Err(found);
                }
                path
            }
        };
        let removed = wrong[base.len()..].rsplit_once('/').and_then(|(parent, name)| {
            value.pointer_mut(parent).and_then(Value::as_object_mut).and_then(|object| object.remove(name))
        });
        if removed.is_none() {
            return Err(found);
        }
    }
}

fn unknown_field(source: &Source, unknown: &UnknownField, path: &str) -> Diagnostic {
    let message = format!("unknown field `{}`", unknown.name);
    Diagnostic::error(Code::UnknownField, source.key(path), message)
        .help(format!("fields here are {}", unknown.known.join(", ")))
        .did_you_mean(&unknown.name, unknown.known.iter().map(String::as_str))
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter()
        .map(|segment| match segment {
            Segment::Seq { index } => format!("/{index}"),
            Segment::Map { key } => format!("/{key}"),
            Segment::Enum { variant } => format!("/{variant}"),
            Segment::Unknown => String::new(),
        })
        .collect()
}

struct UnknownField {
    name: String,
    known: Vec<String>,
}

impl UnknownField {
    /// serde says: unknown field `a`, expected one of `b`, `c`.
    fn read(message: &str) -> Option<Self> {
        let mut quoted =
            message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2).map(str::to_owned);
        Some(Self { name: quoted.next()?, known: quoted.collect() })
    }
}

fn wrong_type(source: &Source, path: &str, message: &str) -> Diagnostic {
    let code = if message.starts_with("missing field") { Code::InvalidValue } else { Code::YamlSyntax };
    let spot = source.tree.values.get(path).copied();
    let whole = || Place { path: path.to_owned(), ..source.at("") };
    let at = spot.map_or_else(whole, |spot| source.place(spot, path));
    let text = match message.strip_prefix("missing field ") {
        Some(field) => format!("{field} is missing"),
        None => message.to_owned(),
    };
    Diagnostic::error(code, at, text)
}
