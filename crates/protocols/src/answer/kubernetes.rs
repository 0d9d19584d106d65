//! `metav1.Status` (Kubernetes API conventions, "Response Status Kind"): kubectl and client-go show its message. While they
//! discover what an API has they don't read it, but show text as it is (client-go's `rest/request.go`).

use http::request::Parts;
use http::{StatusCode, header};
use serde_json::json;

use super::{Form, Said};

/// Which form of a Kubernetes API's errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubernetesForm {
    /// `metav1.Status`.
    Status,
    /// Text, for discovery.
    Text,
}

/// What a client of the Kubernetes API accepts, and nobody else.
const TYPES: [&str; 4] = [
    "application/vnd.kubernetes.",
    ";as=Table",
    "g=apidiscovery.k8s.io",
    "application/com.github.proto-openapi",
];

/// The core API's resources; `/api/v1` alone is the root of many another API.
const CORE: [&str; 18] = [
    "bindings",
    "componentstatuses",
    "configmaps",
    "endpoints",
    "events",
    "limitranges",
    "namespaces",
    "nodes",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "serviceaccounts",
    "services",
    "watch",
];

/// API groups of Kubernetes whose names have no dot.
const GROUPS: [&str; 5] = ["apps", "autoscaling", "batch", "extensions", "policy"];

/// The form of a call of a Kubernetes API; `None` if it is none.
pub(super) fn form_of(parts: &Parts, host: Option<&str>) -> Option<KubernetesForm> {
    let path = parts.uri.path();
    let is_one = is_path(path)
        || is_discovery(path, parts.uri.query().unwrap_or_default())
        || accepts(parts)
        || host.is_some_and(is_api_server);
    is_one.then(|| if names_resource(path) { KubernetesForm::Status } else { KubernetesForm::Text })
}

fn accepts(parts: &Parts) -> bool {
    let accept = parts.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| TYPES.iter().any(|kind| accept.contains(kind)))
}

fn is_path(path: &str) -> bool {
    if !path.starts_with("/api") {
        return false;
    }
    let mut segments = path.split('/').skip(1);
    match (segments.next(), segments.next(), segments.next()) {
        (Some("api"), Some("v1"), Some(resource)) => CORE.contains(&resource),
        (Some("apis"), None, None) => true,
        (Some("apis"), Some(group), version) => {
            (group.contains('.') || GROUPS.contains(&group)) && version.is_none_or(is_version)
        }
        _ => false,
    }
}

/// How client-go asks what there is, also where its `Accept` says nothing: with a time-out of whole seconds.
fn is_discovery(path: &str, query: &str) -> bool {
    let seconds = query.strip_prefix("timeout=").and_then(|rest| rest.strip_suffix('s'));
    matches!(path, "/api" | "/api/v1" | "/version" | "/openapi/v2" | "/openapi/v3")
        && seconds.is_some_and(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `v1`, `v2beta1` (Kubernetes API conventions, "API versioning").
fn is_version(text: &str) -> bool {
    text.strip_prefix('v').is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

/// Beyond the version of a group, there are resources; all else is discovery.
fn names_resource(path: &str) -> bool {
    let mut segments = path.trim_end_matches('/').split('/').skip(1);
    match segments.next() {
        Some("api") => segments.count() > 1,
        Some("apis") => segments.count() > 2,
        _ => false,
    }
}

/// The API server as a pod knows it.
fn is_api_server(host: &str) -> bool {
    host == "kubernetes" || host == "kubernetes.default" || host.starts_with("kubernetes.default.svc")
}

pub(super) fn form(form: KubernetesForm, said: &Said<'_>) -> Form {
    match form {
        KubernetesForm::Status => status(said),
        KubernetesForm::Text => text(said),
    }
}

/// client-go has words of its own for three statuses, and drops the server's; 502 it quotes.
fn text(said: &Said<'_>) -> Form {
    let form = Form::new("text/plain", said.line());
    match said.status().as_u16() {
        429 | 503 | 504 => form.status(StatusCode::BAD_GATEWAY),
        _ => form,
    }
}

fn status(said: &Said<'_>) -> Form {
    let status = said.status();
    let entry = said.code.entry();
    // Without `retryAfterSeconds`: client-go would wait and ask again, ten times.
    let document = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": said.line(),
        "reason": reason(status),
        "details": {
            "causes": [
                { "reason": said.code.as_str(), "message": entry.title },
                { "reason": "CountersignDecision", "message": said.decision.to_string() },
            ],
        },
        "code": status.as_u16(),
    });
    Form::new("application/json", document.to_string())
}

/// The words that client-go's `apierrors` knows; the empty one is "unknown".
fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "BadRequest",
        403 => "Forbidden",
        405 => "MethodNotAllowed",
        413 => "RequestEntityTooLarge",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use model::{Code, DecisionId};

    use super::*;

    #[test]
    fn it_is_a_status_that_failed() {
        let said = Said {
            code: Code::NoPolicyAllows,
            detail: "a \"quoted\" <name>",
            decision: DecisionId(7),
            nearest: &[],
        };
        let made = form(KubernetesForm::Status, &said);
        let document: serde_json::Value = serde_json::from_slice(&made.body).unwrap();
        assert_eq!((&document["kind"], &document["status"]), (&"Status".into(), &"Failure".into()));
        assert_eq!((&document["reason"], &document["code"]), (&"Forbidden".into(), &403.into()));
        assert!(
            document["message"]
                .as_str()
                .unwrap()
                .starts_with("CS5001 Denied by policy: a \"quoted\" <name>.")
        );
        assert!(document["details"].get("retryAfterSeconds").is_none());
    }
}
