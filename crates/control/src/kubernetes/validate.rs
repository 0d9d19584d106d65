//! Answers reviews of our own kinds: what `apply` would refuse is refused, in the same words.
//!
//! Two things are told and not refused, because tools that bring a cluster to what a repository says do so in any order:
//! a reference to what is not there (yet), and what a change breaks elsewhere (until that is changed too). Both grant
//! nothing meanwhile: the controller sees to that.

use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, Operation};
use model::Code;
use policy::compile::EgressDefaults;
use resources::kind::Kind;
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
    let is_ours =
        request.kind.group == crd::GROUP && Kind::ALL.iter().any(|kind| kind.as_str() == request.kind.kind);
    if !is_ours || request.sub_resource.is_some() {
        return response;
    }
    match (&request.operation, &request.object, &request.old_object) {
        (Operation::Create, Some(object), _) => put(object, response, set),
        // Who takes a finalizer or a label off must not be stopped by a spec that was let in before.
        (Operation::Update, Some(object), Some(old)) if object.data["spec"] == old.data["spec"] => response,
        (Operation::Update, Some(object), _) => put(object, response, set),
        (Operation::Delete, _, Some(old)) => deleted(old, response, set, egress),
        _ => response,
    }
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
