//! A custom resource as it was observed, with what is wrong with it by itself.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use model::{Code, Namespace, ResourceRef};
use resources::diagnostic::Place;
use resources::kind::Kind;
use resources::{Diagnostic, Document, crd};

use crate::proposal;

/// A custom resource of one of our kinds.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: ResourceRef,
    /// The one that this is, of all that ever had its name.
    pub uid: String,
    /// Counts the changes of its `spec`.
    pub generation: i64,
    /// For a status that is written only if nothing has changed meanwhile.
    pub version: Option<String>,
    /// What its status says.
    pub conditions: Vec<Condition>,
    /// The generation that its status is about.
    pub observed_generation: Option<i64>,
    /// The document that it is, or what is wrong with it whatever else there is.
    pub document: Result<Document, Vec<Diagnostic>>,
}

impl Resource {
    /// Reads what the API server has; `None` if it has no name that a document can have.
    #[must_use]
    pub fn read(kind: Kind, object: &DynamicObject) -> Option<Self> {
        let metadata = &object.metadata;
        let namespace = metadata.namespace.as_deref().map(Namespace::new).transpose().ok()?;
        let name = ResourceRef::new(namespace, metadata.name.as_deref()?).ok()?;
        let conditions = object.data["status"]["conditions"].clone();
        Some(Self {
            kind,
            name,
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            version: metadata.resource_version.clone(),
            // A status that is not ours to read is written anew.
            conditions: serde_json::from_value(conditions).unwrap_or_default(),
            observed_generation: object.data["status"]["observedGeneration"].as_i64(),
            document: document(object),
        })
    }
}

/// The document that an object is.
///
/// # Errors
/// What is wrong with it whatever else there is.
pub fn document(object: &DynamicObject) -> Result<Document, Vec<Diagnostic>> {
    let value = serde_json::to_value(object)
        .map_err(|error| vec![Diagnostic::error(Code::YamlSyntax, Place::default(), error.to_string())])?;
    let document = Document::from_custom_resource(&value)?;
    let mut wrong = proposal::alone(&document);
    wrong.retain(Diagnostic::is_error);
    if wrong.is_empty() { Ok(document) } else { Err(wrong) }
}

/// How the API server calls a kind.
#[must_use]
pub fn api_resource(kind: Kind) -> ApiResource {
    let kind_of = GroupVersionKind::gvk(crd::GROUP, crd::VERSION, kind.as_str());
    ApiResource::from_gvk_with_plural(&kind_of, &kind.plural())
}
