//! Admission reviews (`admission.k8s.io/v1`): from what the API server asks to what it is told.
//!
//! Pure: what the namespace's labels are comes in, what is answered goes out.

use std::collections::BTreeMap;

use json_patch::Patch;
use k8s_openapi::api::core::v1::Pod;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, Operation};
use serde_json::Value;

use super::inject::settings::Settings;
use super::inject::{Note, Verdict, containment, inject, names};

/// What was decided, for counters and logs; reasons come from a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The pod gets its proxy.
    Injected,
    /// The pod has it already.
    Unchanged,
    /// The pod is admitted without a proxy, and why.
    Skipped(&'static str),
    /// The pod, or a debug container, is not admitted, and why.
    Refused(&'static str),
    /// A debug container that sees nothing of the proxy.
    Debugged,
    /// Nothing that injection is about.
    Ignored,
}

impl Outcome {
    /// In a word.
    #[must_use]
    pub fn decision(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Unchanged => "unchanged",
            Self::Skipped(_) => "skipped",
            Self::Refused(_) => "refused",
            Self::Debugged => "debugged",
            Self::Ignored => "ignored",
        }
    }

    /// Why; empty where the decision says it.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Skipped(reason) | Self::Refused(reason) => reason,
            _ => "",
        }
    }
}

/// What the API server is told, and what was decided.
#[derive(Clone, Debug)]
pub struct Answer {
    /// For the API server.
    pub response: AdmissionResponse,
    /// For us.
    pub outcome: Outcome,
}

impl Answer {
    /// Refuses, with what to change.
    #[must_use]
    pub fn refuse(
        request: &AdmissionRequest<DynamicObject>,
        outcome: Outcome,
        reasons: &[impl AsRef<str>],
    ) -> Self {
        let reasons: Vec<&str> = reasons.iter().map(AsRef::as_ref).collect();
        let message = format!("countersign: {}", reasons.join("; "));
        let mut response = AdmissionResponse::from(request).deny(message);
        // Without a code the API server says 400, as if the request could not be read.
        response.result.code = 403;
        response.result.reason = "Forbidden".to_owned();
        Self { response, outcome }
    }

    fn allow(request: &AdmissionRequest<DynamicObject>, outcome: Outcome) -> Self {
        Self { response: AdmissionResponse::from(request), outcome }
    }

    /// The API server cuts a warning at 256 characters and warns about it, so each is a sentence.
    fn warn(mut self, notes: &[Note]) -> Self {
        if !notes.is_empty() {
            let told = notes.iter().map(|note| format!("countersign: {}", note.text));
            self.response.warnings = Some(told.collect());
        }
        self
    }

    /// Has the API server's own audit log say what was decided, beside who asked.
    fn audited(mut self) -> Self {
        let (decision, reason) = (self.outcome.decision(), self.outcome.reason());
        let said = [decision, reason].iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>();
        self.response.audit_annotations.insert("decision".to_owned(), said.join(" "));
        self
    }
}

/// Answers a request in a namespace that has these labels.
#[must_use]
pub fn answer(
    request: &AdmissionRequest<DynamicObject>,
    labels: &BTreeMap<String, String>,
    settings: &Settings,
) -> Answer {
    if !request.resource.group.is_empty() || request.resource.resource != "pods" {
        return Answer::allow(request, Outcome::Ignored);
    }
    let answer: fn(&_, Value, &_, &_) -> _ = match (&request.operation, request.sub_resource.as_deref()) {
        (Operation::Create, None) => created,
        (Operation::Update, Some("ephemeralcontainers")) => debugged,
        _ => return Answer::allow(request, Outcome::Ignored),
    };
    let answer = match request.object.as_ref().and_then(|pod| serde_json::to_value(pod).ok()) {
        Some(pod) => answer(request, pod, labels, settings),
        None => Answer::refuse(request, Outcome::Refused("unreadable"), &["the review holds no pod"]),
    };
    answer.audited()
}

fn created(
    request: &AdmissionRequest<DynamicObject>,
    pod: Value,
    labels: &BTreeMap<String, String>,
    settings: &Settings,
) -> Answer {
    match inject(&pod, labels, settings) {
        Verdict::Skip { because, patch, notes } => {
            patched(request, Outcome::Skipped(because), patch).warn(&notes)
        }
        Verdict::Refuse { because, reasons } => Answer::refuse(request, Outcome::Refused(because), &reasons),
        Verdict::Inject { patch, notes } if patch.0.is_empty() => {
            Answer::allow(request, Outcome::Unchanged).warn(&notes)
        }
        Verdict::Inject { patch, notes } => patched(request, Outcome::Injected, patch).warn(&notes),
    }
}

fn patched(request: &AdmissionRequest<DynamicObject>, outcome: Outcome, patch: Patch) -> Answer {
    if patch.0.is_empty() {
        return Answer::allow(request, outcome);
    }
    match AdmissionResponse::from(request).with_patch(patch) {
        Ok(response) => Answer { response, outcome },
        Err(error) => {
            let reason = format!("the patch can't be written: {error}");
            Answer::refuse(request, Outcome::Refused("unreadable"), &[reason])
        }
    }
}

/// A debug container joins a running pod: it must not see the proxy.
fn debugged(
    request: &AdmissionRequest<DynamicObject>,
    pod: Value,
    _: &BTreeMap<String, String>,
    settings: &Settings,
) -> Answer {
    // Before 1.22 the API server sends the list of them alone: what they join can't be seen.
    if request.kind.kind != "Pod" {
        let text = "debug containers need Kubernetes 1.22 or newer, which shows the pod that they join";
        return Answer::refuse(request, Outcome::Refused("unsupported"), &[text]);
    }
    let Ok(pod) = serde_json::from_value::<Pod>(pod) else {
        return Answer::refuse(request, Outcome::Refused("unreadable"), &["the pod can't be read as one"]);
    };
    if !has_proxy(&pod) {
        return Answer::allow(request, Outcome::Ignored);
    }
    let found = containment::examine_ephemeral(&pod, settings);
    match found.reads.is_empty() {
        true => Answer::allow(request, Outcome::Debugged),
        false => Answer::refuse(request, Outcome::Refused("reads_proxy"), &found.reads),
    }
}

fn has_proxy(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        containers.into_iter().any(|container| container.name == names::PROXY_CONTAINER)
    })
}
