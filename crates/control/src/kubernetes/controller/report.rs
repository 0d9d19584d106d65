//! Tells people what became of their custom resources: in each one's status, and by an event where something is wrong.

use futures_util::StreamExt as _;
use futures_util::stream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::DynamicObject;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Api, Client, Resource as _};
use serde_json::json;

use super::plan::Verdict;
use super::resource::{Resource, api_resource};
use super::status;

/// Statuses that are written at a time.
const AT_ONCE: usize = 8;

/// Longest note of an event (Kubernetes API, `events.k8s.io/v1`).
const NOTE_MAX: usize = 1024;

/// Writes statuses and events.
pub struct Reporter {
    client: Client,
    events: Recorder,
}

impl Reporter {
    /// Reports under the name of this replica.
    #[must_use]
    pub fn new(client: Client, me: String) -> Self {
        let reporter = kube::runtime::events::Reporter {
            controller: "countersign.dev/control".to_owned(),
            instance: Some(me),
        };
        Self { events: Recorder::new(client.clone(), reporter), client }
    }

    /// Writes the statuses that differ from what they say. One that can't be written is written the next time that
    /// something changes, which it has if somebody else was faster.
    pub async fn report(&self, resources: &[&Resource], verdicts: &[Verdict]) {
        let now = Time(Timestamp::now());
        let due = resources.iter().zip(verdicts).filter_map(|(resource, verdict)| {
            let conditions = status::conditions(verdict, resource.generation, &resource.conditions, &now);
            let current = resource.observed_generation == Some(resource.generation)
                && resource.conditions == conditions;
            (!current).then_some((*resource, conditions))
        });
        stream::iter(due)
            .for_each_concurrent(AT_ONCE, |(resource, conditions)| async move {
                match self.write(resource, &conditions).await {
                    Ok(object) => self.complain(resource, &object, &conditions).await,
                    Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
                    Err(error) => {
                        let (kind, name) = (resource.kind, &resource.name);
                        tracing::warn!(%kind, %name, %error, "a status could not be written");
                    }
                }
            })
            .await;
    }

    async fn write(&self, resource: &Resource, conditions: &[Condition]) -> kube::Result<DynamicObject> {
        let kind = api_resource(resource.kind);
        let name = &*resource.name.name;
        let api: Api<DynamicObject> = match &resource.name.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace.as_str(), &kind),
            None => Api::all_with(self.client.clone(), &kind),
        };
        let mut object = DynamicObject::new(name, &kind);
        object.metadata.namespace = resource.name.namespace.as_ref().map(ToString::to_string);
        // Refused if there has been a change since.
        object.metadata.resource_version.clone_from(&resource.version);
        object.metadata.uid = Some(resource.uid.clone());
        object.data = json!({
            "status": { "observedGeneration": resource.generation, "conditions": conditions },
        });
        api.replace_status(name, &PostParams::default(), &object).await
    }

    /// Somebody who only looks at events is told too, once for each thing that is wrong.
    async fn complain(&self, resource: &Resource, object: &DynamicObject, conditions: &[Condition]) {
        let Some(complaint) = status::complaint(conditions) else { return };
        let said_before = |known: &Condition| {
            (&known.type_, &known.status, &known.message)
                == (&complaint.type_, &complaint.status, &complaint.message)
        };
        if resource.conditions.iter().any(said_before) {
            return;
        }
        let event = Event {
            type_: EventType::Warning,
            reason: complaint.reason.clone(),
            note: Some(status::cut(complaint.message.clone(), NOTE_MAX)),
            action: "Synchronise".to_owned(),
            secondary: None,
        };
        let about = object.object_ref(&api_resource(resource.kind));
        if let Err(error) = self.events.publish(&event, &about).await {
            tracing::warn!(kind = %resource.kind, name = %resource.name, %error, "an event could not be written");
        }
    }
}
