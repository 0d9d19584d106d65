//! Each object as its type: what Kubernetes does not know of it would be dropped without a word.

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Rendered, called, matrix, text};

/// Other projects' kinds, as far as the chart uses them; a field that is not here is refused.
mod foreign {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};
    use serde_json::Value;

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Object<S> {
        api_version: String,
        kind: String,
        metadata: Value,
        spec: S,
    }

    /// <https://prometheus-operator.dev/docs/api-reference/api/>
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct ServiceMonitor {
        job_label: String,
        selector: Selector,
        namespace_selector: BTreeMap<String, Value>,
        endpoints: Vec<Endpoint>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct PodMonitor {
        selector: BTreeMap<String, Value>,
        namespace_selector: BTreeMap<String, Value>,
        pod_metrics_endpoints: Vec<Endpoint>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Selector {
        match_labels: BTreeMap<String, String>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Endpoint {
        port: String,
        path: String,
        interval: String,
    }

    /// <https://cert-manager.io/docs/reference/api-docs/>
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Certificate {
        secret_name: String,
        dns_names: Vec<String>,
        private_key: PrivateKey,
        usages: Vec<String>,
        issuer_ref: IssuerRef,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct PrivateKey {
        algorithm: String,
        size: u32,
        rotation_policy: String,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct IssuerRef {
        name: String,
        kind: String,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(super) struct Issuer {
        self_signed: BTreeMap<String, Value>,
    }
}

#[test]
fn every_object_is_wholly_of_its_type() {
    for rendered in matrix() {
        for object in &rendered.objects {
            let name = format!("{}: {}", rendered.name, called(object));
            let known = as_its_type(object).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_kept(object, &known, &name);
        }
    }
}

#[test]
fn every_object_is_of_a_version_that_its_cluster_serves() {
    for Rendered { name, version, objects } in matrix() {
        let minor: u32 = version.split('.').nth(1).unwrap().parse().unwrap();
        for object in objects {
            let text = object.to_string();
            // https://kubernetes.io/docs/reference/using-api/deprecation-guide/ and the fields' own pages.
            for (word, since) in [
                ("\"policy/v1\"", 21),
                ("x-kubernetes-validations", 25),
                ("\"matchLabelKeys\"", 27),
                ("\"matchConditions\"", 28),
            ] {
                assert!(minor >= since || !text.contains(word), "{name}: {} says {word}", called(object));
            }
            assert!(minor < 25 || !text.contains("policy/v1beta1"), "{name}: {}", called(object));
        }
    }
}

/// Reads an object as its type and writes it again.
pub(super) fn as_its_type(object: &Value) -> anyhow::Result<Value> {
    match (text(object, "/apiVersion"), text(object, "/kind")) {
        ("v1", "ConfigMap") => again::<ConfigMap>(object),
        ("v1", "Namespace") => again::<Namespace>(object),
        ("v1", "Secret") => again::<Secret>(object),
        ("v1", "Pod") => again::<Pod>(object),
        ("v1", "Service") => again::<Service>(object),
        ("v1", "ServiceAccount") => again::<ServiceAccount>(object),
        ("apps/v1", "Deployment") => again::<Deployment>(object),
        ("apps/v1", "StatefulSet") => again::<StatefulSet>(object),
        ("batch/v1", "Job") => again::<Job>(object),
        ("policy/v1", "PodDisruptionBudget") => again::<PodDisruptionBudget>(object),
        ("policy/v1beta1", "PodDisruptionBudget") => {
            // What the chart says of it has the same shape in both.
            let mut newer = object.clone();
            newer["apiVersion"] = json!("policy/v1");
            let mut known = again::<PodDisruptionBudget>(&newer)?;
            known["apiVersion"] = json!("policy/v1beta1");
            Ok(known)
        }
        ("networking.k8s.io/v1", "NetworkPolicy") => again::<NetworkPolicy>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => again::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => again::<RoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => again::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => again::<ClusterRoleBinding>(object),
        ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration") => {
            again::<MutatingWebhookConfiguration>(object)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration") => {
            again::<ValidatingWebhookConfiguration>(object)
        }
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => again::<CustomResourceDefinition>(object),
        ("monitoring.coreos.com/v1", "ServiceMonitor") => {
            again::<foreign::Object<foreign::ServiceMonitor>>(object)
        }
        ("monitoring.coreos.com/v1", "PodMonitor") => again::<foreign::Object<foreign::PodMonitor>>(object),
        ("cert-manager.io/v1", "Certificate") => again::<foreign::Object<foreign::Certificate>>(object),
        ("cert-manager.io/v1", "Issuer") => again::<foreign::Object<foreign::Issuer>>(object),
        (version, kind) => anyhow::bail!("{version} {kind} is of no type that is known here"),
    }
}

fn again<T: Serialize + DeserializeOwned>(object: &Value) -> anyhow::Result<Value> {
    Ok(serde_json::to_value(serde_json::from_value::<T>(object.clone())?)?)
}

/// Everything that was rendered is there again.
pub(super) fn assert_kept(rendered: &Value, known: &Value, place: &str) {
    match (rendered, known) {
        (Value::Object(rendered), Value::Object(known)) => {
            for (key, value) in rendered {
                let place = format!("{place}.{key}");
                let known = known.get(key).unwrap_or_else(|| panic!("{place} is not known to Kubernetes"));
                assert_kept(value, known, &place);
            }
        }
        (Value::Array(rendered), Value::Array(known)) => {
            assert_eq!(rendered.len(), known.len(), "{place}");
            for (index, (rendered, known)) in rendered.iter().zip(known).enumerate() {
                assert_kept(rendered, known, &format!("{place}[{index}]"));
            }
        }
        // A bound of a schema is a number of any kind.
        (rendered, known) if rendered.is_number() => assert_eq!(rendered.as_f64(), known.as_f64(), "{place}"),
        (rendered, known) => assert_eq!(rendered, known, "{place}"),
    }
}
