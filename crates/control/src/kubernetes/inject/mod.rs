//! Injection as a pure function: a pod, what its namespace says and what the platform team has configured go in; a
//! patch, or a refusal that says what to change, comes out.

pub mod containers;
pub mod containment;
pub mod names;
pub mod own;
pub mod patch;
pub mod settings;
pub mod trust;

use std::borrow::Cow;
use std::collections::BTreeMap;

use json_patch::Patch;
use k8s_openapi::api::core::v1::Pod;
use model::slice::Egress;
use serde_json::Value;

use settings::{Capture, NamespaceSettings, PodSettings, Settings};

/// What is done with a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It gets its proxy, by this patch.
    Inject {
        /// RFC 6902; empty if it has it already.
        patch: Patch,
        /// What its author should know.
        notes: Vec<Note>,
    },
    /// It is admitted as it is, without a proxy.
    Skip {
        /// Why: `opted_out` or `host_network`.
        because: &'static str,
        /// RFC 6902: what shows that it is not contained; empty if it has opted out.
        patch: Patch,
        /// What its author should know, if anything.
        notes: Vec<Note>,
    },
    /// It is not admitted.
    Refuse {
        /// Why, the gravest first: `reads_proxy`, `goes_round`, `unsupported`, `opted_out`, `misconfigured` or
        /// `unreadable`.
        because: &'static str,
        /// What to change.
        reasons: Vec<String>,
    },
}

/// Something that a pod's author should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// In a word, as events have it.
    pub reason: Cow<'static, str>,
    /// In a sentence, with what to do.
    pub text: String,
}

impl Note {
    fn new(reason: &'static str, text: impl Into<String>) -> Self {
        Self { reason: reason.into(), text: text.into() }
    }

    /// The other way round than it is shown.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (reason, text) = line.split_once(": ")?;
        Some(Self { reason: reason.to_owned().into(), text: text.to_owned() })
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason, self.text)
    }
}

/// Decides about a pod that is about to be created.
#[must_use]
pub fn inject(pod: &Value, namespace_labels: &BTreeMap<String, String>, settings: &Settings) -> Verdict {
    match decide(pod, namespace_labels, settings) {
        Ok(verdict) => verdict,
        Err((because, reason)) => Verdict::Refuse { because, reasons: vec![reason] },
    }
}

fn decide(pod: &Value, labels: &BTreeMap<String, String>, settings: &Settings) -> Result<Verdict, Refusal> {
    let typed: Pod = serde_json::from_value(pod.clone())
        .map_err(|error| ("unreadable", format!("the pod can't be read as one: {error}")))?;
    let namespace = NamespaceSettings::of(labels, settings).map_err(misconfigured)?;
    if let Some(skipped) = opted_out(&typed, &namespace)? {
        return Ok(skipped);
    }
    let annotations = typed.metadata.annotations.clone().unwrap_or_default();
    let own = PodSettings::of(&annotations).map_err(misconfigured)?;
    let found = containment::examine(&typed, &namespace, settings);
    let forced = if namespace.egress == Egress::Enforce { found.goes_round.clone() } else { Vec::new() };
    let refusals = [
        ("reads_proxy", found.reads),
        ("goes_round", forced),
        ("unsupported", unsupported(&typed, &namespace, settings)),
    ];
    if let Some((because, _)) = refusals.iter().find(|(_, reasons)| !reasons.is_empty()) {
        let reasons = refusals.iter().flat_map(|(_, reasons)| reasons.clone()).collect();
        return Ok(Verdict::Refuse { because, reasons });
    }
    let told = [found.goes_round, found.chosen].concat();
    let contained = told.is_empty();
    let notes: Vec<Note> = told
        .into_iter()
        .map(|reason| Note::new("NotContained", format!("not contained: {reason}")))
        .collect();
    // A redirect there would be the node's.
    if is_host_network(&typed) {
        return Ok(Verdict::Skip {
            because: "host_network",
            patch: patch::mark(pod, settings, &notes),
            notes,
        });
    }
    let containment = if contained { "contained" } else { "not contained" };
    let patched = patch::patch(pod, settings, &namespace, &own, containment, notes)
        .map_err(|reason| ("reads_proxy", reason))?;
    Ok(Verdict::Inject { patch: patched.patch, notes: patched.notes })
}

type Refusal = (&'static str, String);

fn misconfigured(reason: String) -> Refusal {
    ("misconfigured", reason)
}

/// A pod that says it wants no proxy gets none, where its namespace lets it say so.
fn opted_out(pod: &Pod, namespace: &NamespaceSettings) -> Result<Option<Verdict>, Refusal> {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::INJECT));
    match label.map(String::as_str) {
        None | Some("enabled") => Ok(None),
        Some("disabled") if namespace.opt_out => {
            Ok(Some(Verdict::Skip { because: "opted_out", patch: Patch::default(), notes: Vec::new() }))
        }
        Some("disabled") => {
            let text = format!(
                "the pod opts out by {}=disabled, which its namespace does not allow in egress mode enforce: remove \
                 the label, or label the namespace {}=allowed",
                names::INJECT,
                names::OPT_OUT
            );
            Err(("opted_out", text))
        }
        Some(other) => {
            Err(misconfigured(format!("label {} must be enabled or disabled, not {other:?}", names::INJECT)))
        }
    }
}

/// What can't work on a cluster without native sidecars.
fn unsupported(pod: &Pod, namespace: &NamespaceSettings, settings: &Settings) -> Vec<String> {
    let Some(spec) = pod.spec.as_ref().filter(|_| !settings.native_sidecars) else { return Vec::new() };
    let mut reasons = Vec::new();
    if spec.restart_policy.as_deref().is_some_and(|policy| policy != "Always") {
        let text = "before Kubernetes 1.29 a pod that ends can't have a sidecar, which would run on: label the pod \
                    countersign.dev/inject=disabled, or run it on a newer cluster";
        reasons.push(text.to_owned());
    }
    let others =
        spec.init_containers.iter().flatten().any(|container| container.name != names::CAPTURE_CONTAINER);
    if others && namespace.capture == Capture::Redirect {
        let text = "before Kubernetes 1.29 init containers run ahead of the proxy and would have no network: label \
                    the namespace countersign.dev/capture=explicit";
        reasons.push(text.to_owned());
    }
    reasons
}

fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true))
}
