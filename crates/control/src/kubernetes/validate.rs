//! Answers reviews of our own kinds: what `apply` would refuse is refused, in the same words.
//!
//! Two things are told and not refused, because tools that bring a cluster to what a repository says do so in any order:
//! a reference to what is not there (yet), and what a change breaks elsewhere (until that is changed too). Both grant
//! nothing meanwhile: the controller sees to that.

use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, Operation};
use model::{Code, ResourceRef};
use policy::compile::EgressDefaults;
use resources::kind::Kind;
use resources::set::{Dangling, Reference, references};
use resources::{Diagnostic, Document, Set, crd, diagnostic};

use super::controller::resource;
use super::controller::status::cut;
use crate::proposal;

/// An API server cuts a warning at so many characters (Kubernetes documentation, "Dynamic Admission Control").
const WARNING_MAX: usize = 256;

/// Answers one. `set` is what the cluster has, `egress` what namespaces and the configuration say.
#[must_use]
pub fn answer(
    request: &AdmissionRequest<DynamicObject>,
    set: &Set,
    egress: &EgressDefaults,
) -> AdmissionResponse {
    let response = AdmissionResponse::from(request);
    if !is_ours(request) || leaves_spec(request) {
        return response;
    }
    match (&request.operation, &request.object, &request.old_object) {
        (Operation::Create, Some(object), _) => put(object, response, set),
        (Operation::Update, Some(object), _) => put(object, response, set),
        (Operation::Delete, _, Some(old)) => deleted(old, response, set, egress),
        _ => response,
    }
}

fn is_ours(request: &AdmissionRequest<DynamicObject>) -> bool {
    let is_kind = || Kind::ALL.iter().any(|kind| kind.as_str() == request.kind.kind);
    request.kind.group == crd::GROUP && request.sub_resource.is_none() && is_kind()
}

/// Whether a change leaves the spec as it is: whoever takes a finalizer or a label off must not be stopped by one that was
/// let in before.
fn leaves_spec(request: &AdmissionRequest<DynamicObject>) -> bool {
    let spec = |object: &Option<DynamicObject>| object.as_ref().map(|object| object.data["spec"].clone());
    request.operation == Operation::Update && spec(&request.object) == spec(&request.old_object)
}

/// What the object of a review names and the set does not have.
#[must_use]
pub fn missing(request: &AdmissionRequest<DynamicObject>, set: &Set) -> Vec<(Kind, ResourceRef)> {
    let Some(document) = request.object.as_ref().filter(|_| is_ours(request) && !leaves_spec(request)) else {
        return Vec::new();
    };
    let Ok(document) = resource::document(document) else { return Vec::new() };
    let own = document.name.namespace.as_ref();
    let named = |reference: Reference<'_>| {
        let absent = set.resolve(reference.kind, reference.text, own).err() == Some(Dangling::Absent);
        let mut name: ResourceRef = reference.text.parse().ok().filter(|_| absent)?;
        if reference.kind.is_namespaced() && name.namespace.is_none() {
            name.namespace = own.cloned();
        }
        Some((reference.kind, name))
    };
    let mut missing: Vec<_> = references(&document).into_iter().filter_map(named).collect();
    missing.sort();
    missing.dedup();
    missing
}

fn put(object: &DynamicObject, response: AdmissionResponse, set: &Set) -> AdmissionResponse {
    let document = match resource::document(object) {
        Ok(document) => document,
        Err(wrong) => return response.deny(diagnostic::sentences(&wrong)),
    };
    let before = set.get(document.kind(), &document.name).cloned();
    let (after, found) = proposal::put(std::slice::from_ref(&document), Vec::new(), set);
    let own = resources::validate(std::slice::from_ref(&document), &after);
    let refuses = |found: &&Diagnostic| {
        found.is_error() && found.code != Code::DanglingReference && own.contains(found)
    };
    let refused: Vec<Diagnostic> = found.iter().filter(refuses).cloned().collect();
    if !refused.is_empty() {
        return response.deny(diagnostic::sentences(&refused));
    }
    let mut warnings: Vec<String> = found.iter().map(diagnostic::sentence).collect();
    if found.iter().any(|found| found.code == Code::DanglingReference && own.contains(found)) {
        warnings.push(awaits(&document, before.is_some()));
    }
    warned(response, warnings)
}

/// What a reference to nothing means meanwhile.
fn awaits(document: &Document, was_there: bool) -> String {
    let label = document.label();
    match (document.kind(), was_there) {
        (Kind::Workload, _) => format!("{label} permits nothing that is not there"),
        (_, true) => format!("{label} grants nothing any more, until all that it names is there"),
        (_, false) => format!("{label} grants nothing until all that it names is there"),
    }
}

fn deleted(
    old: &DynamicObject,
    response: AdmissionResponse,
    set: &Set,
    egress: &EgressDefaults,
) -> AdmissionResponse {
    // One that was never in force takes nothing with it.
    let Ok(document) = resource::document(old) else { return response };
    let mut before = set.clone();
    before.insert(document.clone());
    let found = proposal::delete(std::slice::from_ref(&document), &before, egress);
    warned(response, found.iter().map(diagnostic::sentence).collect())
}

fn warned(mut response: AdmissionResponse, warnings: Vec<String>) -> AdmissionResponse {
    if !warnings.is_empty() {
        response.warnings = Some(warnings.into_iter().map(|text| cut(text, WARNING_MAX)).collect());
    }
    response
}
