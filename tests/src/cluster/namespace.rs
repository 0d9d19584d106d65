//! A namespace of a cluster: service accounts, their tokens, and pods that no node runs.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Cluster, Identity};
use crate::http::Answer;

/// A namespace, until it is dropped.
#[derive(Debug)]
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

/// A pod that is there: nothing of it runs.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its service account.
    pub service_account: String,
}

impl<'a> Namespace<'a> {
    pub(super) fn create(cluster: &'a Cluster, prefix: &str) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        cluster.create("/api/v1/namespaces", &object)?;
        let namespace = Self { cluster, name };
        // Without it no pod is admitted.
        cluster.wait_for("the default service account", || {
            let path = namespace.path("serviceaccounts/default");
            Ok((cluster.request(Identity::Admin, "GET", &path, None)?.status == 200).then_some(()))
        })?;
        Ok(namespace)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path of a thing of the core API in it: `pods/billing-1`.
    #[must_use]
    pub fn path(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/{rest}", self.name)
    }

    /// Creates a service account; says its UID.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn service_account(&self, name: &str) -> anyhow::Result<String> {
        let object = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } });
        let created = self.cluster.create(&self.path("serviceaccounts"), &object)?;
        uid(&created)
    }

    /// Creates a pod with one container, bound to a node, and marks it as running.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn pod(&self, name: &str, service_account: &str) -> anyhow::Result<Pod> {
        self.pod_of(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "labels": { "app": name } },
            "spec": {
                "serviceAccountName": service_account,
                "nodeName": "node1",
                "containers": [{ "name": "app", "image": "registry.example/app:1" }],
            }
        }))
    }

    /// Creates a pod as the object says, and marks it as running.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn pod_of(&self, object: Value) -> anyhow::Result<Pod> {
        let created = self.cluster.create(&self.path("pods"), &object)?;
        let name = created["metadata"]["name"].as_str().context("a pod without a name")?.to_owned();
        let conditions = json!([{ "type": "Ready", "status": "True" }]);
        self.pod_status(&name, &json!({ "phase": "Running", "conditions": conditions }))?;
        let service_account = created["spec"]["serviceAccountName"].as_str().unwrap_or_default().to_owned();
        Ok(Pod { name, uid: uid(&created)?, service_account })
    }

    /// Says of a pod what its kubelet would.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn pod_status(&self, name: &str, status: &Value) -> anyhow::Result<Value> {
        self.cluster.patch(&self.path(&format!("pods/{name}/status")), &json!({ "status": status }))
    }

    /// Deletes a pod as a user does: it is marked, and stays for its grace period until a kubelet has stopped it; there
    /// is none, so it stays until [`Namespace::remove_pod`].
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn delete_pod(&self, pod: &Pod, grace_secs: u32) -> anyhow::Result<()> {
        let path = self.path(&format!("pods/{}", pod.name));
        let options = json!({ "gracePeriodSeconds": grace_secs });
        let answer = self.cluster.request(Identity::Admin, "DELETE", &path, Some(&options))?;
        anyhow::ensure!(answer.status == 200, "{}", answer.text());
        Ok(())
    }

    /// Removes a pod at once, as its kubelet does when its containers have ended.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn remove_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        self.cluster.delete(&self.path(&format!("pods/{}", pod.name))).map(drop)
    }

    /// A token of a pod's service account, bound to the pod, as the kubelet gets it for a projected volume.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn token_of(&self, pod: &Pod, audience: &str) -> anyhow::Result<String> {
        let bound = json!({ "kind": "Pod", "apiVersion": "v1", "name": pod.name, "uid": pod.uid });
        let spec = json!({ "audiences": [audience], "expirationSeconds": 600, "boundObjectRef": bound });
        self.token(Identity::Admin, &pod.service_account, &spec)
    }

    /// A token of a service account, as a `TokenRequest` with this spec asks for it.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn token(
        &self,
        identity: Identity<'_>,
        service_account: &str,
        spec: &Value,
    ) -> anyhow::Result<String> {
        let answer = self.token_request(identity, service_account, spec)?;
        anyhow::ensure!(answer.status == 201, "{}", answer.text());
        Ok(answer.json()?["status"]["token"].as_str().context("no token")?.to_owned())
    }

    /// The same, whatever the answer.
    ///
    /// # Errors
    /// If curl can't be run.
    pub fn token_request(
        &self,
        identity: Identity<'_>,
        service_account: &str,
        spec: &Value,
    ) -> anyhow::Result<Answer> {
        let path = self.path(&format!("serviceaccounts/{service_account}/token"));
        let object =
            json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        self.cluster.request(identity, "POST", &path, Some(&object))
    }
}

impl Drop for Namespace<'_> {
    /// The namespace controller takes its time; nobody waits for it.
    fn drop(&mut self) {
        let path = format!("/api/v1/namespaces/{}", self.name);
        let _ = self.cluster.request(Identity::Admin, "DELETE", &path, None);
    }
}

fn uid(object: &Value) -> anyhow::Result<String> {
    Ok(object["metadata"]["uid"].as_str().context("an object without a UID")?.to_owned())
}
