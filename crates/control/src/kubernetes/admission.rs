//! Admission reviews (`admission.k8s.io/v1`): from what the API server asks to what it is told.
//!
//! Pure: what the namespace's labels are comes in, what is answered goes out.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use serde_json::Value;

use super::inject::settings::Settings;
use super::inject::{Verdict, containment, inject, names};

/// Answers a review whose namespace has these labels.
#[must_use]
pub fn answer(
    review: AdmissionReview<DynamicObject>,
    labels: &BTreeMap<String, String>,
    settings: &Settings,
) -> AdmissionReview<DynamicObject> {
    let request: AdmissionRequest<DynamicObject> = match review.try_into() {
        Ok(request) => request,
        Err(_) => return AdmissionResponse::invalid("the review holds no request").into_review(),
    };
    let response = AdmissionResponse::from(&request);
    decide(&request, response, labels, settings).into_review()
}

fn decide(
    request: &AdmissionRequest<DynamicObject>,
    response: AdmissionResponse,
    labels: &BTreeMap<String, String>,
    settings: &Settings,
) -> AdmissionResponse {
    let is_pod = request.resource.group.is_empty() && request.resource.resource == "pods";
    let Some(pod) = request.object.as_ref().filter(|_| is_pod).and_then(|pod| serde_json::to_value(pod).ok())
    else {
        return response;
    };
    match (&request.operation, request.sub_resource.as_deref()) {
        (Operation::Create, None) => created(&pod, response, labels, settings),
        (Operation::Update, Some("ephemeralcontainers")) => debugged(pod, response, settings),
        _ => response,
    }
}

fn created(
    pod: &Value,
    response: AdmissionResponse,
    labels: &BTreeMap<String, String>,
    settings: &Settings,
) -> AdmissionResponse {
    match inject(pod, labels, settings) {
        Verdict::Skip { warnings } => warned(response, warnings),
        Verdict::Refuse(reasons) => response.deny(message(&reasons)),
        Verdict::Inject { patch, warnings } if patch.0.is_empty() => warned(response, warnings),
        Verdict::Inject { patch, warnings } => match response.with_patch(patch) {
            Ok(response) => warned(response, warnings),
            Err(error) => {
                AdmissionResponse::invalid(format!("countersign could not write its patch: {error}"))
            }
        },
    }
}

/// A debug container joins a running pod: it must not see the proxy.
fn debugged(pod: Value, response: AdmissionResponse, settings: &Settings) -> AdmissionResponse {
    let Ok(pod) = serde_json::from_value::<Pod>(pod) else {
        return response.deny("countersign: the pod can't be read as one");
    };
    if !has_proxy(&pod) {
        return response;
    }
    let found = containment::examine_ephemeral(&pod, settings);
    if found.reads.is_empty() { response } else { response.deny(message(&found.reads)) }
}

fn has_proxy(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        containers.into_iter().any(|container| container.name == names::PROXY_CONTAINER)
    })
}

fn message(reasons: &[String]) -> String {
    format!("countersign: {}", reasons.join("; "))
}

/// The API server cuts a warning at 256 characters and warns about it, so each is a sentence.
fn warned(mut response: AdmissionResponse, warnings: Vec<String>) -> AdmissionResponse {
    if !warnings.is_empty() {
        response.warnings =
            Some(warnings.into_iter().map(|warning| format!("countersign: {warning}")).collect());
    }
    response
}
