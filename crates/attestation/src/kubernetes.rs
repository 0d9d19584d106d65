//! What a Kubernetes API server is asked: its keys and its issuer, whether a pod is still there, and what it thinks of a
//! token.
//!
//! A signature says that a pod was there when the token was made. Whether it still is only the API server knows, so that
//! is asked for each attestation, and again while the session lasts ([`Verifier::still_there`](crate::Verifier)).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use http::StatusCode;
use model::{Code, Failure, Secret, UnixMillis};
use resources::kind::KubernetesSpec;
use rustls::RootCertStore;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::fetch::{self, Ask};
use crate::gather;

/// The API server as each pod reaches it, and what a pod is given for it (documented in "Accessing the Kubernetes API
/// from a Pod").
const IN_CLUSTER: &str = "https://kubernetes.default.svc";
const IN_CLUSTER_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
const IN_CLUSTER_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// A pod that is deleted may work on until its grace period ends, and this much longer, in seconds: API servers go on
/// believing its tokens for as long (`pkg/serviceaccount/claims.go`, where clocks may differ by it).
const LEEWAY_SECS: i64 = 60;

/// An API server, and as whom it is asked.
#[derive(Clone, Debug)]
pub struct ApiServer {
    url: String,
    /// PEM.
    pub(crate) ca: Option<String>,
    token_file: PathBuf,
    roots: Arc<RootCertStore>,
}

/// What a token of a service account says of the pod that it is bound to; each is also in the attested attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: of two pods of one name at two times, which.
    pub uid: String,
    /// Its service account.
    pub service_account: String,
}

/// What the API server says of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    /// `system:serviceaccount:NAMESPACE:NAME`
    pub username: String,
    /// The pod that the token is bound to, if it is.
    pub pod_uid: Option<String>,
    /// The token's id (`jti`), from 1.29 on.
    pub credential_id: Option<String>,
}

impl Review {
    /// Namespace and name, if it is a service account's.
    #[must_use]
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.username.strip_prefix("system:serviceaccount:")?.split_once(':')
    }
}

impl ApiServer {
    /// The API server of the cluster in which this program runs.
    ///
    /// # Errors
    /// If the root that each pod is given can't be read.
    pub fn of_this_cluster() -> Result<Self, Failure> {
        let ca = std::fs::read_to_string(IN_CLUSTER_CA).map_err(|error| {
            let detail = format!("{IN_CLUSTER_CA} can't be read: this is no pod; name the `server`");
            Failure::new(Code::IssuerUnreachable, detail).because(error)
        })?;
        let roots = roots_of(&ca)?;
        Ok(Self { url: IN_CLUSTER.to_owned(), ca: Some(ca), token_file: IN_CLUSTER_TOKEN.into(), roots })
    }

    /// The API server that a document names; `roots` are for one whose document has none.
    pub(crate) fn of(spec: &KubernetesSpec, roots: &Arc<RootCertStore>) -> Result<Self, Failure> {
        let Some(server) = &spec.server else { return Self::of_this_cluster() };
        let roots = match &server.ca_bundle {
            Some(pem) => roots_of(pem)?,
            None => roots.clone(),
        };
        Ok(Self {
            url: server.url.clone(),
            ca: server.ca_bundle.clone(),
            token_file: server.bearer_token_file.clone().into(),
            roots,
        })
    }

    /// Where its keys are (KEP-1393). Never where its discovery document says: our own token goes along.
    pub(crate) fn jwks_uri(&self) -> String {
        format!("{}/openid/v1/jwks", self.url)
    }

    pub(crate) fn token_file(&self) -> String {
        self.token_file.display().to_string()
    }

    /// The `iss` of the tokens that it signs.
    pub(crate) async fn issuer(&self) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
        }
        let (status, body) = self.ask("/.well-known/openid-configuration", None).await?;
        self.expect(status, StatusCode::OK, "get its discovery document")?;
        serde_json::from_slice::<Discovery>(&body).map(|document| document.issuer).map_err(|error| {
            Failure::new(Code::IssuerUnreachable, format!("{} has no discovery document", self.url))
                .because(error)
        })
    }

    /// Whether a pod is still there and may still work; with what of it is proved beyond its token.
    ///
    /// # Errors
    /// [`Code::WorkloadGone`] if it is not, [`Code::IssuerUnreachable`] if the API server can't be asked.
    pub async fn pod(&self, pod: &BoundPod, now: UnixMillis) -> Result<BTreeMap<String, String>, Failure> {
        // What comes from a token has been verified; that it makes one segment of a path each is for here.
        for part in [&pod.namespace, &pod.name] {
            let fits =
                part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
            if !fits || part.is_empty() {
                return Err(Failure::new(Code::EvidenceInvalid, "the token names a pod that can't be one"));
            }
        }
        let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
        let (status, body) = self.ask(&path, None).await?;
        if status == StatusCode::NOT_FOUND {
            return Err(gone(pod, "there is no such pod any more"));
        }
        self.expect(status, StatusCode::OK, "get pods")?;
        let found: Pod = serde_json::from_slice(&body).map_err(|error| {
            Failure::new(Code::IssuerUnreachable, format!("{} answers with what is no pod", self.url))
                .because(error)
        })?;
        found.is_still(pod, now)?;
        let node = found.spec.node_name.map(|node| ("kubernetes.node.name".to_owned(), node));
        Ok(node.into_iter().collect())
    }

    /// What the API server thinks of a token, if it must be for this audience.
    ///
    /// # Errors
    /// [`Code::EvidenceInvalid`] if it does not believe it, [`Code::IssuerUnreachable`] if it can't be asked.
    pub async fn review(&self, token: &Secret, audience: &str) -> Result<Review, Failure> {
        let text = std::str::from_utf8(token.expose()).map_err(|_| invalid("the token is not text"))?;
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": text, "audiences": [audience] },
        });
        let document = Secret::new(review.to_string().into_bytes());
        let (status, body) = self.ask("/apis/authentication.k8s.io/v1/tokenreviews", Some(&document)).await?;
        self.expect(status, StatusCode::CREATED, "create tokenreviews")?;
        let answer: Value = serde_json::from_slice(&body).map_err(|error| {
            Failure::new(Code::IssuerUnreachable, format!("{} answers with no review", self.url))
                .because(error)
        })?;
        reviewed(&answer["status"], audience)
    }

    async fn ask(&self, path: &str, post: Option<&Secret>) -> Result<(StatusCode, bytes::Bytes), Failure> {
        let bearer = gather::token(&self.token_file)?;
        let url = format!("{}{path}", self.url);
        let asked = Ask { url: &url, roots: &self.roots, bearer: Some(&bearer), post };
        match fetch::ask(asked).await {
            Ok((status, fetched)) => Ok((status, fetched.body)),
            Err(error) => {
                let detail = format!("the API server {} can't be asked", self.url);
                Err(Failure::new(Code::IssuerUnreachable, detail).because(error.into_boxed_dyn_error()))
            }
        }
    }

    fn expect(&self, status: StatusCode, wanted: StatusCode, may: &str) -> Result<(), Failure> {
        if status == wanted {
            return Ok(());
        }
        let detail = match status {
            StatusCode::FORBIDDEN => {
                format!("{} does not let the control plane's service account {may}", self.url)
            }
            StatusCode::UNAUTHORIZED => {
                format!("{} does not take the token in {}", self.url, self.token_file.display())
            }
            status => format!("{} answers {status} to the wish to {may}", self.url),
        };
        Err(Failure::new(Code::IssuerUnreachable, detail))
    }
}

/// What of a pod decides whether it may still work.
#[derive(Debug, Deserialize)]
struct Pod {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    uid: String,
    /// When its grace period ends, once it is deleted.
    deletion_timestamp: Option<jiff::Timestamp>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    service_account_name: Option<String>,
    node_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
    phase: Option<String>,
}

impl Pod {
    fn is_still(&self, bound: &BoundPod, now: UnixMillis) -> Result<(), Failure> {
        if self.metadata.uid != bound.uid {
            return Err(gone(bound, "another pod has its name by now"));
        }
        if self.spec.service_account_name.as_deref() != Some(&bound.service_account) {
            return Err(gone(bound, "it runs as another service account"));
        }
        if let Some(phase @ ("Succeeded" | "Failed")) = self.status.phase.as_deref() {
            return Err(gone(bound, &format!("all its containers have ended ({phase})")));
        }
        let ends = self.metadata.deletion_timestamp.map(|end| UnixMillis(end.as_millisecond()));
        if ends.is_some_and(|ends| now > ends.plus_secs(LEEWAY_SECS)) {
            return Err(gone(bound, "it was deleted, and its grace period has ended"));
        }
        Ok(())
    }
}

/// A review counts if it says so: a status without `authenticated` is a no, and an audience that was asked for and is not
/// among those that are answered was ignored by a server that knows none.
fn reviewed(status: &Value, audience: &str) -> Result<Review, Failure> {
    if status["authenticated"] != true {
        // What it says may quote the token's own words.
        let why: String = status["error"].as_str().unwrap_or("not authenticated").chars().take(200).collect();
        return Err(invalid(&format!("the API server does not believe the token: {why}")));
    }
    let audiences = status["audiences"].as_array();
    if !audiences.is_some_and(|all| all.iter().any(|one| one == audience)) {
        return Err(invalid("the API server has not confirmed the token's audience"));
    }
    let user = &status["user"];
    let extra = |name: &str| {
        let values = &user["extra"][format!("authentication.kubernetes.io/{name}")];
        values[0].as_str().map(str::to_owned)
    };
    Ok(Review {
        username: user["username"].as_str().unwrap_or_default().to_owned(),
        pod_uid: extra("pod-uid"),
        credential_id: extra("credential-id"),
    })
}

fn roots_of(pem: &str) -> Result<Arc<RootCertStore>, Failure> {
    crate::oidc::parse_roots(pem).map(Arc::new).map_err(|error| {
        let detail = "the API server's root certificate can't be read";
        Failure::new(Code::IssuerUnreachable, detail).because(error.into_boxed_dyn_error())
    })
}

fn gone(pod: &BoundPod, why: &str) -> Failure {
    Failure::new(Code::WorkloadGone, format!("the pod {}/{} is gone: {why}", pod.namespace, pod.name))
}

fn invalid(detail: &str) -> Failure {
    Failure::new(Code::EvidenceInvalid, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUDIENCE: &str = "https://broker.example.test";

    /// As an API server of 1.36 answered, with its own words.
    fn answered(text: &str) -> Result<Review, Failure> {
        reviewed(&serde_json::from_str(text).unwrap(), AUDIENCE)
    }

    #[test]
    fn a_review_counts_only_if_it_says_so() {
        let good = answered(
            r#"{ "authenticated": true, "audiences": ["https://broker.example.test"], "user": {
                "username": "system:serviceaccount:probe:worker",
                "extra": { "authentication.kubernetes.io/pod-uid": ["e85af0d8"],
                           "authentication.kubernetes.io/credential-id": ["JTI=ddd38cb6"] } } }"#,
        )
        .unwrap();
        assert_eq!(good.service_account(), Some(("probe", "worker")));
        assert_eq!(
            (good.pod_uid.as_deref(), good.credential_id.as_deref()),
            (Some("e85af0d8"), Some("JTI=ddd38cb6"))
        );
        for refused in [
            // A wrong audience, a wrong signature, a deleted pod: there is no `authenticated`, and absent means false.
            r#"{ "user": {}, "error": "[invalid bearer token, token audiences [\"a\"] is invalid for the target audiences]" }"#,
            r#"{ "user": {}, "error": "[invalid bearer token, service account token has been invalidated]" }"#,
            r#"{ "authenticated": "true", "audiences": ["https://broker.example.test"] }"#,
            r#"{ "authenticated": false, "audiences": ["https://broker.example.test"] }"#,
            // The intersection lacks what was asked for; or the server knows no audiences at all.
            r#"{ "authenticated": true, "audiences": ["https://kubernetes.default.svc"], "user": {} }"#,
            r#"{ "authenticated": true, "user": {} }"#,
        ] {
            assert_eq!(answered(refused).unwrap_err().code, Code::EvidenceInvalid, "{refused}");
        }
    }

    #[test]
    fn a_pod_works_until_its_grace_period_ends() {
        let bound = BoundPod {
            namespace: "payments".into(),
            name: "billing-1".into(),
            uid: "u-1".into(),
            service_account: "billing".into(),
        };
        let now = UnixMillis(1_795_514_400_000);
        let check = |change: &dyn Fn(&mut Value)| {
            let mut pod = json!({
                "metadata": { "uid": "u-1" },
                "spec": { "serviceAccountName": "billing", "nodeName": "node1" },
                "status": { "phase": "Running" },
            });
            change(&mut pod);
            serde_json::from_value::<Pod>(pod).unwrap().is_still(&bound, now)
        };
        let at =
            |secs: i64| json!(jiff::Timestamp::from_millisecond(now.plus_secs(secs).0).unwrap().to_string());
        assert!(check(&|_| ()).is_ok());
        assert!(check(&|pod| pod["status"] = json!({})).is_ok(), "it need not run yet");
        assert!(check(&|pod| pod["metadata"]["deletionTimestamp"] = at(30)).is_ok(), "it ends");
        assert!(check(&|pod| pod["metadata"]["deletionTimestamp"] = at(-60)).is_ok());
        for (why, refused) in [
            ("grace", check(&|pod| pod["metadata"]["deletionTimestamp"] = at(-61))),
            ("another pod", check(&|pod| pod["metadata"]["uid"] = json!("u-2"))),
            ("another account", check(&|pod| pod["spec"]["serviceAccountName"] = json!("other"))),
            ("ended", check(&|pod| pod["status"]["phase"] = json!("Succeeded"))),
            ("failed", check(&|pod| pod["status"]["phase"] = json!("Failed"))),
        ] {
            assert_eq!(refused.unwrap_err().code, Code::WorkloadGone, "{why}");
        }
    }
}
