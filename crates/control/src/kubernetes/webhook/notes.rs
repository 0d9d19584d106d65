//! What injection has to say about a pod, as events on it.
//!
//! A pod has no UID yet when it is reviewed, and perhaps no name. So what is to be said is written into the pod itself,
//! and becomes events once the pod is there: whoever calls the webhook without being an API server writes nothing.

use std::num::NonZeroUsize;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use lru::LruCache;
use sha2::{Digest as _, Sha256};
use tokio_stream::StreamExt as _;

use crate::kubernetes::inject::{Note, names};

/// Who says it.
const COMPONENT: &str = "countersign-webhook";

/// API servers keep events for an hour by default; what is older was said.
const LIFE: SignedDuration = SignedDuration::from_hours(1);

/// Longest message of an event that API servers take.
const MESSAGE_MAX: usize = 1024;

/// Longest name of an object (RFC 1123, as Kubernetes has it), less a dot and 16 digits.
const NAME_MAX: usize = 253 - 17;

/// Pods that were told of are remembered, so that not every change of their status is answered by a request.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Tells for as long as the program runs. All replicas do; an event has the same name for each, so it is there once.
pub async fn keep_telling(client: Client) {
    let pods: Api<Pod> = Api::all(client.clone());
    let config = watcher::Config::default().labels(names::INJECTED);
    let stream = watcher(pods, config).default_backoff().applied_objects();
    tokio::pin!(stream);
    let mut told = LruCache::new(REMEMBERED);
    while let Some(pod) = stream.next().await {
        match pod {
            Ok(pod) => tell(&client, &pod, &mut told).await,
            Err(error) => tracing::warn!(%error, "pods can't be watched; their events come later"),
        }
    }
}

async fn tell(client: &Client, pod: &Pod, told: &mut LruCache<String, ()>) {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    if told.contains(&uid) {
        return;
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    for event in events(pod, Timestamp::now()) {
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            // It is tried again at the next change of the pod.
            Err(error) => return tracing::warn!(namespace, %error, "an event can't be written"),
        }
    }
    told.put(uid, ());
}

/// What is to be said of a pod now.
fn events(pod: &Pod, now: Timestamp) -> Vec<Event> {
    let created = pod.metadata.creation_timestamp.as_ref().map_or(now, |created| created.0);
    if now.duration_since(created) > LIFE {
        return Vec::new();
    }
    let annotations = pod.metadata.annotations.as_ref();
    let written =
        annotations.and_then(|annotations| annotations.get(names::NOTES)).map_or("", String::as_str);
    let notes = written.lines().filter_map(Note::parse).chain(ahead_of_capture(pod));
    notes.map(|note| event(pod, &note, now)).collect()
}

/// Another webhook may have put something ahead of what catches calls, after ours was asked for the last time.
fn ahead_of_capture(pod: &Pod) -> Option<Note> {
    let containers = pod.spec.as_ref()?.init_containers.as_ref()?;
    let first_of_ours = containers.iter().position(|container| names::is_injected(&container.name))?;
    let ahead: Vec<&str> = containers[..first_of_ours].iter().map(|container| &*container.name).collect();
    (!ahead.is_empty()).then(|| Note {
        reason: "RunsAheadOfCapture".into(),
        text: format!(
            "init container {} runs before {}: its calls are not seen; let the webhook that adds it come before \
             Countersign's, or have reinvocationPolicy IfNeeded",
            ahead.join(", "),
            containers[first_of_ours].name
        ),
    })
}

fn event(pod: &Pod, note: &Note, now: Timestamp) -> Event {
    let metadata = &pod.metadata;
    let (name, uid) = (metadata.name.clone().unwrap_or_default(), metadata.uid.clone().unwrap_or_default());
    let digest = Sha256::digest(format!("{uid}\n{}\n{}", note.reason, note.text));
    let digits: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let end = note.text.floor_char_boundary(MESSAGE_MAX);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{digits}", &name[..name.len().min(NAME_MAX)])),
            namespace: metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: metadata.namespace.clone(),
            name: Some(name),
            uid: Some(uid),
            resource_version: metadata.resource_version.clone(),
            ..ObjectReference::default()
        },
        reason: Some(note.reason.to_string()),
        message: Some(note.text[..end].to_owned()),
        type_: Some("Warning".to_owned()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), ..EventSource::default() }),
        reporting_component: Some(COMPONENT.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(init: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "web-1", "namespace": "shop", "uid": "u-1", "creationTimestamp": "2026-11-26T06:00:00Z",
                "annotations": { names::NOTES: "NotContained: it has NET_RAW\nnonsense\nTrustVariableSet: it sets X" },
            },
            "spec": { "containers": [], "initContainers": init },
        }))
        .unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn notes_become_events_that_are_the_same_for_every_replica() {
        let pod = pod(json!([{ "name": "countersign-capture" }, { "name": "setup" }]));
        let events_at = |moment| events(&pod, at(moment));
        let (first, second) = (events_at("2026-11-26T06:00:01Z"), events_at("2026-11-26T06:30:00Z"));
        let names = |events: &[Event]| -> Vec<_> {
            events.iter().map(|e| e.metadata.name.clone().unwrap()).collect()
        };
        assert_eq!(names(&first), names(&second));
        assert_eq!(first.len(), 2);
        assert_ne!(names(&first)[0], names(&first)[1]);
        assert_eq!(first[0].reason.as_deref(), Some("NotContained"));
        assert_eq!(first[0].message.as_deref(), Some("it has NET_RAW"));
        assert_eq!(first[0].involved_object.uid.as_deref(), Some("u-1"));
        assert!(events_at("2026-11-26T07:00:01Z").is_empty(), "it was said when the pod was new");
    }

    #[test]
    fn what_runs_ahead_of_capture_is_told() {
        let pod = pod(json!([{ "name": "early" }, { "name": "countersign-capture" }, { "name": "setup" }]));
        let events = events(&pod, at("2026-11-26T06:00:01Z"));
        let last = events.last().unwrap();
        assert_eq!(last.reason.as_deref(), Some("RunsAheadOfCapture"));
        assert!(last.message.as_deref().unwrap().contains("early runs before"), "{last:?}");
    }
}
