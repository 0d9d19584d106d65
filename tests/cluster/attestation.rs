//! Attestation of pods, by what a real API server signs and says.

use attestation::Verified;
use attestation::oidc::{Provider, Verifier};
use model::{Code, Failure, Secret, UnixMillis};
use resources::kind::{ApiServerSpec, CallerSpec, KubernetesSpec, TrustProviderSpec};
use rustls::RootCertStore;
use serde_json::json;
use tests::Cluster;
use tests::cluster::{ISSUER, Identity, Namespace, Pod};

use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_pod_is_attested_by_its_token_and_by_being_there,
    a_token_for_anything_else_proves_nothing,
    a_pod_that_is_gone_is_refused_at_once,
    a_pod_that_is_being_deleted_works_on_for_its_grace,
    without_its_rights_the_control_plane_says_which_it_lacks,
];

const AUDIENCE: &str = "https://countersign.example";

/// A control plane's verifier, with the rights that docs/decisions/0033 lists and no others.
struct Control<'a> {
    cluster: &'a Cluster,
    home: Namespace<'a>,
    providers: Vec<Provider>,
    verifier: Verifier,
    runtime: tokio::runtime::Runtime,
}

impl<'a> Control<'a> {
    fn verifying_by(cluster: &'a Cluster, verify: &str) -> Self {
        let control = Self::without_rights(cluster, verify);
        let home = control.home.name();
        cluster
            .apply(&format!(
                "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{ name: {home} }}
rules:
- {{ apiGroups: [''], resources: [pods], verbs: [get] }}
- {{ apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create] }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{ name: {home} }}
roleRef: {{ apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {home} }}
subjects: [{{ kind: ServiceAccount, name: countersign-control, namespace: {home} }}]
"
            ))
            .unwrap();
        // The authorizer reads roles from a watch of its own.
        cluster.wait_for("the role", || Ok(control.may_get_pods().then_some(()))).unwrap();
        control
    }

    fn without_rights(cluster: &'a Cluster, verify: &str) -> Self {
        service::tls_provider::install();
        let home = cluster.namespace("control").unwrap();
        home.service_account("countersign-control").unwrap();
        let token = home.token(Identity::Admin, "countersign-control", &json!({ "audiences": [ISSUER] }));
        let token_file = cluster.write(&format!("{}/token", home.name()), &token.unwrap()).unwrap();
        let server = ApiServerSpec {
            url: cluster.url(),
            ca_bundle: Some(std::fs::read_to_string(cluster.ca()).unwrap()),
            bearer_token_file: token_file.display().to_string(),
        };
        let spec = TrustProviderSpec {
            oidc: None,
            kubernetes: Some(KubernetesSpec {
                audience: AUDIENCE.to_owned(),
                verify: Some(verify.to_owned()),
                server: Some(server),
            }),
            caller: CallerSpec {
                path: "ns/{kubernetes.namespace}/sa/{kubernetes.serviceaccount}".to_owned(),
                namespace: "{kubernetes.namespace}".to_owned(),
                instance: "kubernetes.pod.uid".to_owned(),
            },
        };
        Self {
            cluster,
            home,
            providers: vec![Provider { name: "cluster".to_owned(), spec }],
            verifier: Verifier::new("demo", RootCertStore::empty()),
            runtime: tokio::runtime::Runtime::new().unwrap(),
        }
    }

    fn may_get_pods(&self) -> bool {
        let token =
            std::fs::read_to_string(self.cluster.path(&format!("{}/token", self.home.name()))).unwrap();
        let path = self.home.path("pods/none");
        self.cluster.request(Identity::Bearer(&token), "GET", &path, None).unwrap().status == 404
    }

    fn verify(&self, token: &str) -> Result<Verified, Failure> {
        let token = Secret::new(token.as_bytes().to_vec());
        self.runtime.block_on(self.verifier.verify(&token, &self.providers, now()))
    }

    fn still_there(&self, verified: &Verified, at: UnixMillis) -> Result<(), Failure> {
        self.runtime.block_on(self.verifier.still_there(&verified.caller, &self.providers, at))
    }
}

fn now() -> UnixMillis {
    UnixMillis::from_system(std::time::SystemTime::now())
}

fn payments<'a>(cluster: &'a Cluster) -> (Namespace<'a>, Pod) {
    let payments = cluster.namespace("payments").unwrap();
    payments.service_account("billing").unwrap();
    let pod = payments.pod("billing-1", "billing").unwrap();
    (payments, pod)
}

fn a_pod_is_attested_by_its_token_and_by_being_there(cluster: &Cluster) {
    for verify in ["jwks", "tokenReview"] {
        let control = Control::verifying_by(cluster, verify);
        let (payments, pod) = payments(cluster);
        let verified = control.verify(&payments.token_of(&pod, AUDIENCE).unwrap()).unwrap();
        let id = format!("spiffe://demo/ns/{}/sa/billing", payments.name());
        assert_eq!(verified.caller.id.as_str(), id, "{verify}");
        assert_eq!(verified.caller.namespace.as_str(), payments.name());
        assert_eq!(&*verified.instance.0, pod.uid);
        assert_eq!(&*verified.caller.attestation.kind, "kubernetes");
        // The token of this API server names no node; the pod does.
        assert_eq!(verified.caller.attributes["kubernetes.node.name"], "node1");
        control.still_there(&verified, now()).unwrap();
    }
}

fn a_token_for_anything_else_proves_nothing(cluster: &Cluster) {
    for verify in ["jwks", "tokenReview"] {
        let control = Control::verifying_by(cluster, verify);
        let (payments, pod) = payments(cluster);
        let bound = json!({ "kind": "Pod", "apiVersion": "v1", "name": pod.name, "uid": pod.uid });
        let token = |spec| payments.token(Identity::Admin, "billing", &spec).unwrap();
        let refused = |token: &str| control.verify(token).unwrap_err();
        let for_pod = |audience: &str| json!({ "audiences": [audience], "boundObjectRef": bound });

        let other = refused(&token(for_pod("https://other.example")));
        assert_eq!(other.code, Code::EvidenceInvalid, "{verify}: {other}");
        assert!(other.detail.contains(AUDIENCE), "{}", other.detail);
        // What lies in every pod for the API server: an hour's worth here, a year's where tokens are extended.
        let default =
            token(json!({ "audiences": [ISSUER], "boundObjectRef": bound, "expirationSeconds": 31_536_000 }));
        assert_eq!(refused(&default).code, Code::EvidenceInvalid, "{verify}");
        // `kubectl create token`: of the account, of no pod.
        let unbound = refused(&token(json!({ "audiences": [AUDIENCE] })));
        assert_eq!(unbound.code, Code::EvidenceInvalid, "{verify}");
        assert!(unbound.detail.contains("not bound to a pod"), "{}", unbound.detail);
        // One letter of the signature; one of the claims.
        let good = token(for_pod(AUDIENCE));
        for at in [good.len() - 10, good.find('.').unwrap() + 20] {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(bytes).unwrap();
            assert!(
                [Code::EvidenceInvalid, Code::NoTrustProvider].contains(&refused(&forged).code),
                "{verify}: byte {at}"
            );
        }
        // A secret of the old kind, which lives for ever and is bound to nothing.
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": { "name": "old", "annotations": { "kubernetes.io/service-account.name": "billing" } } });
        cluster.create(&payments.path("secrets"), &secret).unwrap();
        let old = cluster
            .wait_for("the old token", || {
                Ok(cluster.get(&payments.path("secrets/old"))?["data"]["token"].as_str().map(str::to_owned))
            })
            .unwrap();
        use base64::Engine as _;
        let old = base64::engine::general_purpose::STANDARD.decode(old).unwrap();
        assert_eq!(refused(std::str::from_utf8(&old).unwrap()).code, Code::NoTrustProvider, "{verify}");
        control.verify(&good).unwrap();
    }
}

fn a_pod_that_is_gone_is_refused_at_once(cluster: &Cluster) {
    let control = Control::verifying_by(cluster, "jwks");
    let (payments, pod) = payments(cluster);
    let token = payments.token_of(&pod, AUDIENCE).unwrap();
    let verified = control.verify(&token).unwrap();
    payments.remove_pod(&pod).unwrap();
    // The API server itself goes on believing the token for some seconds; this does not.
    assert_eq!(control.verify(&token).unwrap_err().code, Code::WorkloadGone);
    assert_eq!(control.still_there(&verified, now()).unwrap_err().code, Code::WorkloadGone);
    // Another pod of the same name is another instance.
    let next = payments.pod("billing-1", "billing").unwrap();
    assert_ne!(next.uid, pod.uid);
    let gone = control.verify(&token).unwrap_err();
    assert_eq!(gone.code, Code::WorkloadGone);
    assert!(gone.detail.contains("another pod has its name"), "{}", gone.detail);
    assert_eq!(control.still_there(&verified, now()).unwrap_err().code, Code::WorkloadGone);
    // A Job's pod that has done its work stays, and proves nothing any more.
    let token = payments.token_of(&next, AUDIENCE).unwrap();
    control.verify(&token).unwrap();
    payments.pod_status(&next.name, &json!({ "phase": "Succeeded" })).unwrap();
    assert_eq!(control.verify(&token).unwrap_err().code, Code::WorkloadGone);
}

fn a_pod_that_is_being_deleted_works_on_for_its_grace(cluster: &Cluster) {
    let control = Control::verifying_by(cluster, "jwks");
    let (payments, pod) = payments(cluster);
    let verified = control.verify(&payments.token_of(&pod, AUDIENCE).unwrap()).unwrap();
    let asked = now();
    payments.delete_pod(&pod, 300).unwrap();
    control.verify(&payments.token_of(&pod, AUDIENCE).unwrap()).unwrap();
    control.still_there(&verified, asked.plus_secs(300)).unwrap();
    // Its grace, and a minute, in which API servers believe its tokens too.
    let after = now().plus_secs(300 + 61);
    assert_eq!(control.still_there(&verified, after).unwrap_err().code, Code::WorkloadGone);
}

fn without_its_rights_the_control_plane_says_which_it_lacks(cluster: &Cluster) {
    let (payments, pod) = payments(cluster);
    let token = payments.token_of(&pod, AUDIENCE).unwrap();
    for (verify, lacks) in [("jwks", "get pods"), ("tokenReview", "create tokenreviews")] {
        let refused = Control::without_rights(cluster, verify).verify(&token).unwrap_err();
        assert_eq!(refused.code, Code::IssuerUnreachable);
        assert!(refused.detail.contains(lacks), "{}", refused.detail);
    }
}
