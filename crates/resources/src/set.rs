//! Documents by kind and name, and what one refers to in another.

use std::collections::{BTreeMap, BTreeSet};

use model::{Namespace, ResourceRef};

use crate::kind::{Kind, Spec};
use crate::parse::Document;

/// All documents that are looked at together.
#[derive(Clone, Debug, Default)]
pub struct Set {
    documents: BTreeMap<(Kind, ResourceRef), Document>,
    broken: BTreeSet<(Kind, ResourceRef)>,
}

/// Why a reference leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dangling {
    /// There is no such document.
    Absent,
    /// There is one, in another namespace, that is not shared with this one.
    NotShared,
    /// The text is not a name.
    NotAName,
    /// It is there, but could not be read; that has been said.
    Broken,
}

impl Set {
    /// Adds a document; returns the one that it replaces.
    pub fn insert(&mut self, document: Document) -> Option<Document> {
        self.documents.insert((document.kind(), document.name.clone()), document)
    }

    /// Notes a document that could not be read: a reference to it is not one to nothing.
    pub fn note_broken(&mut self, kind: Kind, name: ResourceRef) {
        self.broken.insert((kind, name));
    }

    /// Removes a document.
    pub fn remove(&mut self, kind: Kind, name: &ResourceRef) -> Option<Document> {
        self.documents.remove(&(kind, name.clone()))
    }

    /// A document by its name.
    #[must_use]
    pub fn get(&self, kind: Kind, name: &ResourceRef) -> Option<&Document> {
        self.documents.get(&(kind, name.clone()))
    }

    /// All documents, by kind and name.
    pub fn iter(&self) -> impl Iterator<Item = &Document> {
        self.documents.values()
    }

    /// All documents of a kind, by name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Document> {
        self.documents.values().filter(move |document| document.kind() == kind)
    }

    /// What a document of `namespace` means by `text`: a name of its own namespace, or `namespace/name` of a document
    /// that is shared with it.
    ///
    /// # Errors
    /// [`Dangling`].
    pub fn resolve(
        &self,
        kind: Kind,
        text: &str,
        namespace: Option<&Namespace>,
    ) -> Result<&Document, Dangling> {
        let mut name: ResourceRef = text.parse().map_err(|_| Dangling::NotAName)?;
        if kind.is_namespaced() && name.namespace.is_none() {
            name.namespace = namespace.cloned();
        }
        if self.broken.contains(&(kind, name.clone())) {
            return Err(Dangling::Broken);
        }
        let document = self.get(kind, &name).ok_or(Dangling::Absent)?;
        let own = document.name.namespace.as_ref() == namespace;
        let shared = || {
            let with = document.spec.shared_with();
            with.iter()
                .any(|name| name == "*" || namespace.is_some_and(|namespace| name == namespace.as_str()))
        };
        if own || !kind.is_namespaced() || shared() { Ok(document) } else { Err(Dangling::NotShared) }
    }

    /// The documents that refer to this one.
    #[must_use]
    pub fn referrers(&self, kind: Kind, name: &ResourceRef) -> Vec<&Document> {
        let refers = |document: &&Document| {
            references(document).iter().any(|reference| {
                reference.kind == kind
                    && self
                        .resolve(kind, reference.text, document.name.namespace.as_ref())
                        .is_ok_and(|found| found.name == *name)
            })
        };
        self.iter().filter(refers).collect()
    }
}

/// A reference as a document writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference<'a> {
    /// The path of the value.
    pub path: String,
    /// The kind that is meant.
    pub kind: Kind,
    /// The text.
    pub text: &'a str,
}

/// All references of a document.
#[must_use]
pub fn references(document: &Document) -> Vec<Reference<'_>> {
    let mut found = Vec::new();
    let mut add = |path: String, kind, text| found.push(Reference { path, kind, text });
    match &document.spec {
        Spec::Workload(spec) => {
            for (i, text) in spec.destinations.iter().flatten().enumerate() {
                add(format!("/spec/destinations/{i}"), Kind::Destination, text);
            }
        }
        Spec::AccessPolicy(spec) => {
            add("/spec/workload".to_owned(), Kind::Workload, &spec.workload);
            add("/spec/destination".to_owned(), Kind::Destination, &spec.destination);
            if let Some(credential) = &spec.credential {
                add("/spec/credential".to_owned(), Kind::CredentialProvider, credential);
            }
            for (i, rule) in spec.allow.iter().enumerate() {
                if let Some(credential) = &rule.credential {
                    add(format!("/spec/allow/{i}/credential"), Kind::CredentialProvider, credential);
                }
            }
            for (i, text) in spec.conditions.iter().enumerate() {
                add(format!("/spec/conditions/{i}"), Kind::Condition, text);
            }
        }
        Spec::TrustProvider(_)
        | Spec::Destination(_)
        | Spec::CredentialProvider(_)
        | Spec::Condition(_)
        | Spec::Guardrail(_) => {}
    }
    found
}
