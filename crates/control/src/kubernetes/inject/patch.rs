//! The pod as injection makes it, and the JSON Patch (RFC 6902) that leads there.
//!
//! The pod is changed as JSON, never through types: a field that this version does not know must come out as it went
//! in.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, ReplaceOperation};
use serde_json::{Map, Value, json};

use super::settings::{Capture, NamespaceSettings, PodSettings, Settings};
use super::{Note, containers, names, own, trust};

/// What injection does to a pod.
pub struct Injected {
    /// The change.
    pub patch: Patch,
    /// What the author of the pod should know.
    pub notes: Vec<Note>,
}

/// Makes the patch; it is empty for a pod that is as it should be.
///
/// # Errors
/// If the pod has a container with a name of ours that is not ours.
pub fn patch(
    pod: &Value,
    settings: &Settings,
    namespace: &NamespaceSettings,
    own_settings: &PodSettings,
    containment: &str,
    mut notes: Vec<Note>,
) -> Result<Injected, String> {
    let mut changed = pod.clone();
    upsert(&mut changed["spec"], "volumes", containers::volumes(settings));
    let of_pod = pod["spec"]["securityContext"]["runAsUser"].as_i64();
    for list in ["initContainers", "containers"] {
        for container in changed["spec"][list].as_array_mut().into_iter().flatten() {
            // What a mesh's proxy calls is not captured, so it needs to trust nobody else.
            let uid = container["securityContext"]["runAsUser"].as_i64().or(of_pod);
            if is_ours(container) || uid.is_some_and(|uid| settings.excludes(uid)) {
                continue;
            }
            prepare(container, settings, namespace, &mut notes);
        }
    }
    place(&mut changed["spec"], settings, namespace, own_settings)?;
    annotate(&mut changed, settings, true, containment, &notes);
    Ok(Injected { patch: difference(pod, &changed), notes })
}

/// Makes the patch that shows of a pod without a proxy that it is not contained.
#[must_use]
pub fn mark(pod: &Value, settings: &Settings, notes: &[Note]) -> Patch {
    let mut changed = pod.clone();
    annotate(&mut changed, settings, false, "not contained", notes);
    difference(pod, &changed)
}

fn is_ours(container: &Value) -> bool {
    container["name"].as_str().is_some_and(names::is_injected)
}

/// The variables and the bundle that a container's runtimes need, and what the namespace wants taken from it.
fn prepare(container: &mut Value, settings: &Settings, namespace: &NamespaceSettings, notes: &mut Vec<Note>) {
    let name = container["name"].as_str().unwrap_or_default().to_owned();
    let mut wanted = trust::variables();
    if namespace.capture == Capture::Explicit {
        wanted.extend(trust::proxy_variables(settings.explicit_port));
    }
    let env = array(container, "env");
    for (variable, value) in wanted {
        match env.iter().find(|there| there["name"] == variable.as_str()) {
            None => env.push(json!({ "name": variable, "value": value })),
            Some(there) if there["value"] == value.as_str() => {}
            Some(_) => {
                let text = format!(
                    "container {name} sets {variable} itself, so it was left: its runtimes must trust {} too",
                    trust::bundle_path()
                );
                notes.push(Note::new("TrustVariableSet", text));
            }
        }
    }
    let mounts = array(container, "volumeMounts");
    let mount = json!({ "name": names::TRUST_VOLUME, "mountPath": names::TRUST_PATH, "readOnly": true });
    if !mounts.iter().any(|there| there["mountPath"] == names::TRUST_PATH) {
        mounts.push(mount);
    }
    if namespace.drop_capabilities && namespace.capture == Capture::Redirect {
        drop_capabilities(container);
    }
}

fn drop_capabilities(container: &mut Value) {
    let context = object(object_of(container), "securityContext");
    let capabilities = object(context, "capabilities");
    if let Some(added) = capabilities.get_mut("add").and_then(Value::as_array_mut) {
        added.retain(|capability| !is_dropped(capability));
    }
    let dropped = capabilities.entry("drop").or_insert_with(|| json!([]));
    if let Some(dropped) = dropped.as_array_mut() {
        for capability in ["NET_RAW", "SETUID"] {
            let there = dropped.iter().any(|there| there == capability || there == "ALL");
            if !there {
                dropped.push(json!(capability));
            }
        }
    }
}

fn is_dropped(capability: &Value) -> bool {
    let name = capability.as_str().unwrap_or_default().to_ascii_uppercase();
    ["NET_RAW", "SETUID"].contains(&name.strip_prefix("CAP_").unwrap_or(&name))
}

/// Our containers, ahead of all others, also when another webhook has put its own before them meanwhile.
fn place(
    spec: &mut Value,
    settings: &Settings,
    namespace: &NamespaceSettings,
    pod: &PodSettings,
) -> Result<(), String> {
    let proxy = containers::proxy(settings, namespace, pod);
    let mut init = Vec::new();
    if namespace.capture == Capture::Redirect {
        init.push(containers::capture(settings, namespace, pod));
    }
    let plain = if settings.native_sidecars {
        init.push(proxy);
        Vec::new()
    } else {
        vec![proxy]
    };
    if !init.is_empty() || spec.get("initContainers").is_some() {
        to_front(array(spec, "initContainers"), init)?;
    }
    to_front(array(spec, "containers"), plain)
}

/// A container with a name of ours that does not belong into this list is refused, as is one that is not as we make it.
fn to_front(list: &mut Vec<Value>, ours: Vec<Value>) -> Result<(), String> {
    let mut front = Vec::with_capacity(list.len() + ours.len());
    for container in ours {
        match list.iter().position(|there| there["name"] == container["name"]) {
            Some(position) => {
                own::compare(&list[position], &container)?;
                front.push(list.remove(position));
            }
            None => front.push(container),
        }
    }
    if let Some(impostor) = list.iter().find(|container| is_ours(container)) {
        let name = impostor["name"].as_str().unwrap_or_default();
        return Err(format!("container {name} has a name of ours: rename or remove it"));
    }
    front.append(list);
    *list = front;
    Ok(())
}

fn annotate(pod: &mut Value, settings: &Settings, injected: bool, containment: &str, notes: &[Note]) {
    let metadata = object(object_of(pod), "metadata");
    object(metadata, "labels").insert(names::INJECTED.to_owned(), json!(injected.to_string()));
    let annotations = object(metadata, "annotations");
    annotations.insert(names::INJECTED_BY.to_owned(), json!(settings.version));
    annotations.insert(names::CONTAINMENT.to_owned(), json!(containment));
    let lines: Vec<String> = notes.iter().map(ToString::to_string).collect();
    match lines.is_empty() {
        true => drop(annotations.remove(names::NOTES)),
        false => drop(annotations.insert(names::NOTES.to_owned(), json!(lines.join("\n")))),
    }
}

/// Puts each item in place of the one with its name, or at the end.
fn upsert(parent: &mut Value, field: &str, items: Vec<Value>) {
    let list = array(parent, field);
    for item in items {
        match list.iter_mut().find(|there| there["name"] == item["name"]) {
            Some(there) => *there = item,
            None => list.push(item),
        }
    }
}

fn array<'a>(parent: &'a mut Value, field: &str) -> &'a mut Vec<Value> {
    let value = object_of(parent).entry(field).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().unwrap_or_else(|| unreachable!("it was made one"))
}

fn object<'a>(parent: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    object_of(parent.entry(field).or_insert_with(|| json!({})))
}

fn object_of(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().unwrap_or_else(|| unreachable!("it was made one"))
}

/// The places where injection changes pods, each replaced as a whole if anything in it has changed.
fn difference(before: &Value, after: &Value) -> Patch {
    let mut operations = Vec::new();
    let places = [
        ("metadata", "labels"),
        ("metadata", "annotations"),
        ("spec", "volumes"),
        ("spec", "initContainers"),
    ];
    for (parent, field) in places {
        let path = PointerBuf::from_tokens([parent, field]);
        operations.extend(operation(path, before[parent].get(field), &after[parent][field]));
    }
    let list = |pod: &Value| pod["spec"]["containers"].as_array().cloned().unwrap_or_default();
    let (old, new) = (list(before), list(after));
    if old.len() == new.len() {
        for (index, (old, new)) in old.iter().zip(&new).enumerate() {
            let path = PointerBuf::from_tokens(["spec", "containers", &index.to_string()]);
            operations.extend(operation(path, Some(old), new));
        }
    } else {
        operations.extend(operation(
            PointerBuf::from_tokens(["spec", "containers"]),
            Some(&json!(old)),
            &json!(new),
        ));
    }
    Patch(operations)
}

fn operation(path: PointerBuf, before: Option<&Value>, after: &Value) -> Option<PatchOperation> {
    match before {
        Some(before) if before == after => None,
        None if after.is_null() => None,
        Some(_) => Some(PatchOperation::Replace(ReplaceOperation { path, value: after.clone() })),
        None => Some(PatchOperation::Add(AddOperation { path, value: after.clone() })),
    }
}
