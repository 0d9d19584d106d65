//! What the tokens say: the claims of the real ones, in the same form.

use serde_json::{Map, Value, json};

/// A Kubernetes service account's pod, whose token is to be minted.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) serviceaccount: String,
    pub(crate) serviceaccount_uid: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: String,
    pub(crate) node_uid: String,
}

/// A CI job whose token is to be minted.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// `owner/name`.
    pub(crate) repository: String,
    /// `refs/heads/main`.
    pub(crate) reference: String,
    pub(crate) workflow: String,
    pub(crate) run_id: u64,
    pub(crate) environment: Option<String>,
}

/// Issuer, audience and times.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) issuer: String,
    pub(crate) audience: String,
    /// Seconds since the epoch.
    pub(crate) now: u64,
    /// Seconds.
    pub(crate) ttl: u64,
}

impl Pod {
    /// As the API server writes them for a projected volume (Kubernetes 1.30 and later: `node`, `jti`).
    pub(crate) fn claims(&self, frame: &Frame) -> Value {
        let mut claims = common(frame);
        claims.insert("aud".to_owned(), json!([frame.audience]));
        claims.insert("sub".to_owned(), json!(self.subject()));
        claims.insert(
            "kubernetes.io".to_owned(),
            json!({
                "namespace": self.namespace,
                "node": { "name": self.node, "uid": self.node_uid },
                "pod": { "name": self.name, "uid": self.uid },
                "serviceaccount": { "name": self.serviceaccount, "uid": self.serviceaccount_uid },
            }),
        );
        Value::Object(claims)
    }

    fn subject(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.serviceaccount)
    }
}

impl Job {
    /// As GitHub Actions documents them ("OpenID Connect reference", claims of the token).
    pub(crate) fn claims(&self, frame: &Frame) -> Value {
        let owner = self.repository.split('/').next().unwrap_or_default();
        let context = match &self.environment {
            Some(environment) => format!("environment:{environment}"),
            None => format!("ref:{}", self.reference),
        };
        let mut claims = common(frame);
        claims.insert("aud".to_owned(), json!(frame.audience));
        claims.insert("sub".to_owned(), json!(format!("repo:{}:{context}", self.repository)));
        for (name, value) in [
            ("repository", json!(self.repository)),
            ("repository_owner", json!(owner)),
            ("repository_visibility", json!("private")),
            ("ref", json!(self.reference)),
            ("ref_type", json!("branch")),
            ("workflow", json!(self.workflow)),
            ("event_name", json!("push")),
            ("actor", json!("octocat")),
            ("run_id", json!(self.run_id.to_string())),
            ("run_number", json!("10")),
            ("run_attempt", json!("1")),
            ("runner_environment", json!("github-hosted")),
        ] {
            claims.insert(name.to_owned(), value);
        }
        let file = format!("{}/.github/workflows/{}.yml@{}", self.repository, self.workflow, self.reference);
        claims.insert("job_workflow_ref".to_owned(), json!(file));
        if let Some(environment) = &self.environment {
            claims.insert("environment".to_owned(), json!(environment));
        }
        Value::Object(claims)
    }
}

fn common(frame: &Frame) -> Map<String, Value> {
    let mut claims = Map::new();
    claims.insert("iss".to_owned(), json!(frame.issuer));
    claims.insert("iat".to_owned(), json!(frame.now));
    claims.insert("nbf".to_owned(), json!(frame.now));
    claims.insert("exp".to_owned(), json!(frame.now + frame.ttl));
    claims.insert("jti".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
    claims
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        Frame { issuer: "https://issuer.test".into(), audience: "countersign".into(), now: 1_000, ttl: 600 }
    }

    #[test]
    fn a_pod_s_token_has_the_claims_of_a_projected_one() {
        let pod = Pod {
            namespace: "payments".into(),
            serviceaccount: "billing".into(),
            serviceaccount_uid: "sa-uid".into(),
            name: "billing-1".into(),
            uid: "pod-uid".into(),
            node: "node1".into(),
            node_uid: "node-uid".into(),
        };
        let claims = pod.claims(&frame());
        assert_eq!(claims["aud"], json!(["countersign"]));
        assert_eq!(claims["sub"], "system:serviceaccount:payments:billing");
        assert_eq!(claims["exp"], 1_600);
        assert_eq!(
            claims["kubernetes.io"],
            json!({
                "namespace": "payments",
                "node": { "name": "node1", "uid": "node-uid" },
                "pod": { "name": "billing-1", "uid": "pod-uid" },
                "serviceaccount": { "name": "billing", "uid": "sa-uid" },
            })
        );
    }

    #[test]
    fn a_job_s_subject_names_its_environment_or_its_branch() {
        let mut job = Job {
            repository: "acme/billing".into(),
            reference: "refs/heads/main".into(),
            workflow: "deploy".into(),
            run_id: 7,
            environment: None,
        };
        assert_eq!(job.claims(&frame())["sub"], "repo:acme/billing:ref:refs/heads/main");
        job.environment = Some("production".into());
        let claims = job.claims(&frame());
        assert_eq!(claims["sub"], "repo:acme/billing:environment:production");
        assert_eq!(claims["run_id"], "7");
        assert_eq!(claims["repository_owner"], "acme");
    }
}
