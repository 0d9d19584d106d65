//! Pods that are about to be created.

use std::sync::Arc;

use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse};
use tokio::sync::watch;
use tokio::time::Instant;

use super::metrics::Metrics;
use super::namespaces::Namespaces;
use crate::kubernetes::admission::{self, Answer, Outcome};
use crate::kubernetes::inject::settings::Settings;

/// Answers the reviews of `POST /inject`. It changes nothing anywhere, so a dry run is as any other.
#[derive(Clone)]
pub struct Injection {
    /// What is put into pods, as of this moment.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// What namespaces say.
    pub namespaces: Namespaces,
    /// What is counted.
    pub metrics: Metrics,
}

impl Injection {
    /// Answers one.
    pub async fn answer(self, request: AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let begun = Instant::now();
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let Answer { response, outcome } = match self.namespaces.labels(namespace).await {
            Ok(labels) => admission::answer(&request, &labels, &self.settings.borrow().clone()),
            Err(error) => {
                tracing::error!(namespace, "the labels of a namespace are not known: {error:#}");
                Answer::refuse(
                    &request,
                    Outcome::Refused("namespace"),
                    &["the labels of its namespace are not known"],
                )
            }
        };
        self.metrics.decided(outcome, request.dry_run, begun.elapsed());
        record(&request, &response, outcome);
        response
    }
}

/// One line for each decision: who asked for what, what was decided and why.
fn record(request: &AdmissionRequest<DynamicObject>, response: &AdmissionResponse, outcome: Outcome) {
    let namespace = request.namespace.as_deref().unwrap_or_default();
    let name = name_of(request);
    let user = request.user_info.username.as_deref().unwrap_or_default();
    let (decision, reason) = (outcome.decision(), outcome.reason());
    let message = &response.result.message;
    let dry_run = request.dry_run;
    match outcome {
        Outcome::Ignored => tracing::debug!(namespace, name, "not a pod that is created"),
        Outcome::Refused(_) => {
            tracing::warn!(
                namespace,
                name,
                user,
                decision,
                reason,
                message,
                dry_run,
                uid = request.uid,
                "a pod"
            );
        }
        _ => tracing::info!(namespace, name, user, decision, reason, dry_run, uid = request.uid, "a pod"),
    }
}

/// The pod's name, or what its name will begin with: the API server makes the rest of it later.
fn name_of(request: &AdmissionRequest<DynamicObject>) -> &str {
    let metadata = request.object.as_ref().map(|object| &object.metadata);
    let generated = metadata.and_then(|metadata| metadata.generate_name.as_deref());
    match request.name.as_str() {
        "" => generated.unwrap_or_default(),
        name => name,
    }
}
