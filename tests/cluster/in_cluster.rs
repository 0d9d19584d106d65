//! A control plane as it is in a cluster: pods prove themselves to it, and the command line reaches it by a kubeconfig.
//!
//! It runs in a sandbox beside an API server of its own, with what a pod is given for that. What no API server can show
//! without nodes, the last step of a port-forward, a stand-in for a kubelet does.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::{ISSUER, Identity};
use tests::sandbox::PROGRAMS;
use tests::world::CONTROL;
use tests::{As, Certificates, Cluster, Egress, Evidence, Output, Place, Process, World};

use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_pod_has_credentials_for_as_long_as_it_is_there,
    the_command_line_needs_a_kubeconfig_and_a_role,
    the_user_s_own_credential_never_reaches_the_control_plane,
    only_an_administrator_s_token_opens_the_door,
];

const SYSTEM: &str = "countersign-system";
const AUDIENCE: &str = "countersign-administration";
const COMMAND: Duration = Duration::from_secs(60);

/// Of docs/decisions/0033: the control plane's rights, and those of the two roles for users.
const ROLES: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: countersign-control }
rules:
- { apiGroups: [''], resources: [pods], verbs: [get] }
- { apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: countersign-control }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: countersign-control }
subjects: [{ kind: ServiceAccount, name: countersign-control, namespace: countersign-system }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: countersign-control, namespace: countersign-system }
rules:
- { apiGroups: [''], resources: [configmaps], verbs: [create] }
- { apiGroups: [''], resources: [configmaps], resourceNames: [countersign-control-ca], verbs: [get, update, patch] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: countersign-control, namespace: countersign-system }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: countersign-control }
subjects: [{ kind: ServiceAccount, name: countersign-control, namespace: countersign-system }]
";

/// A role for users in a namespace, and who has it.
fn user_role(namespace: &str, name: &str, accounts: &str, user: &str) -> String {
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{ name: {name}, namespace: {namespace} }}
rules:
- {{ apiGroups: [''], resources: [services, pods], verbs: [get, list] }}
- {{ apiGroups: [''], resources: [pods/portforward], verbs: [get, create] }}
- {{ apiGroups: [''], resources: [configmaps], resourceNames: [countersign-control-ca], verbs: [get] }}
- {{ apiGroups: [''], resources: [serviceaccounts/token], resourceNames: [{accounts}], verbs: [create] }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{ name: {name}-{user}, namespace: {namespace} }}
roleRef: {{ apiGroup: rbac.authorization.k8s.io, kind: Role, name: {name} }}
subjects: [{{ kind: User, apiGroup: rbac.authorization.k8s.io, name: {user} }}]
"
    )
}

const VIEWER: &str = "countersign-viewer";
const BOTH: &str = "countersign-viewer, countersign-admin";

/// A control plane, its cluster, and the end of port-forwards.
struct InCluster {
    world: World,
    cluster: Cluster,
    _kubelet: Process,
}

impl InCluster {
    fn started() -> Self {
        let mut world = World::new().unwrap();
        world.start_issuer().unwrap();
        world.start_service().unwrap();
        let cluster = Cluster::within(world.sandbox()).unwrap();
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node1" } });
        cluster.create("/api/v1/nodes", &node).unwrap();
        let status = json!({ "status": {
            "addresses": [{ "type": "InternalIP", "address": "10.77.0.14" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } } } });
        cluster.patch("/api/v1/nodes/node1/status", &status).unwrap();
        let log = cluster.path("kubelet.log");
        let files = ["kubelet.pem", "kubelet.key"].map(|name| cluster.ca().with_file_name(name));
        let kubelet = cluster
            .command(&format!("{PROGRAMS}/kubelet-stand-in"))
            .args(["--listen", "10.77.0.14:10250"])
            .arg("--certificate")
            .arg(&files[0])
            .arg("--key")
            .arg(&files[1])
            .start("kubelet-stand-in", &log)
            .unwrap();
        let mut all = Self { world, cluster, _kubelet: kubelet };
        all.install(SYSTEM, 8440);
        all.start_control();
        all
    }

    /// What a chart makes in a namespace: accounts, the Service, and a pod behind it.
    fn install(&self, namespace: &str, port: u16) {
        let named = |kind: &str, name: &str| json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name } });
        self.cluster.create("/api/v1/namespaces", &named("Namespace", namespace)).unwrap();
        let path = |rest: &str| format!("/api/v1/namespaces/{namespace}/{rest}");
        for name in ["countersign-control", "countersign-viewer", "countersign-admin"] {
            self.cluster.create(&path("serviceaccounts"), &named("ServiceAccount", name)).unwrap();
        }
        let labels =
            json!({ "app.kubernetes.io/part-of": "countersign", "app.kubernetes.io/component": "control" });
        let mut service = named("Service", "countersign-control");
        service["metadata"]["labels"] = labels.clone();
        service["spec"] = json!({ "selector": labels,
            "ports": [{ "name": "grpc", "port": 8440, "targetPort": "grpc" }] });
        self.cluster.create(&path("services"), &service).unwrap();
        let mut pod = named("Pod", "countersign-control-0");
        pod["metadata"]["labels"] = labels;
        pod["spec"] = json!({ "serviceAccountName": "countersign-control", "nodeName": "node1", "containers": [{
            "name": "control", "image": "x", "ports": [{ "name": "grpc", "containerPort": port }] }] });
        self.cluster
            .wait_for("the pod's admission", || {
                let answer = self.cluster.request(Identity::Admin, "POST", &path("pods"), Some(&pod))?;
                Ok((answer.status == 201).then_some(()))
            })
            .unwrap();
        let ready = json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] } });
        self.cluster.patch(&path("pods/countersign-control-0/status"), &ready).unwrap();
    }

    fn token(&self, namespace: &str, account: &str, spec: &Value) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request =
            json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let answer = self.cluster.create(&path, &request).unwrap();
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    /// With what each pod is given, and the settings that a chart makes.
    fn start_control(&mut self) {
        self.cluster.apply(ROLES).unwrap();
        let sandbox = self.world.sandbox().clone();
        let token = self.token(SYSTEM, "countersign-control", &json!({ "audiences": [ISSUER] }));
        let ca = std::fs::read_to_string(self.cluster.path("ca.pem")).unwrap();
        for (name, content) in [("token", token.as_str()), ("ca.crt", &ca), ("namespace", SYSTEM)] {
            let file = format!("/run/secrets/kubernetes.io/serviceaccount/{name}");
            sandbox.write(file, content).unwrap();
        }
        // Where a pod has variables for it, a program here has a kubeconfig.
        let config = self.cluster.kubeconfig_of("control", &token, SYSTEM).unwrap();
        sandbox.write("/run/countersign/home/.kube/config", config).unwrap();
        self.world.start_control(Egress::Enforce).unwrap();
        let account = |name: &str| format!("{SYSTEM}/{name}");
        let more = [
            ("--admin-service-account", account("countersign-admin")),
            ("--viewer-service-account", account("countersign-viewer")),
            ("--ca-config-map", "countersign-control-ca".to_owned()),
        ];
        let more = more.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        self.world.control().restart_with(|args| args.extend(more)).unwrap();
        self.world.control().wait_until_ready().unwrap();
        let map = format!("/api/v1/namespaces/{SYSTEM}/configmaps/countersign-control-ca");
        self.cluster
            .wait_for("the ConfigMap with the roots", || {
                Ok((self.cluster.request(Identity::Admin, "GET", &map, None)?.status == 200).then_some(()))
            })
            .unwrap();
    }

    /// The command line of one of the cluster's users, who has a kubeconfig and nothing else.
    fn countersign(&self, user: &str, args: &[&str]) -> Output {
        let kubeconfig = self.cluster.kubeconfig(Identity::User(user)).unwrap();
        self.cluster
            .command(&format!("{PROGRAMS}/countersign"))
            .env("KUBECONFIG", kubeconfig)
            .args(args)
            .output(COMMAND)
            .unwrap()
    }

    /// The same until it ends so: roles come into force when the API server's own watch has brought them.
    fn countersign_until(&self, user: &str, args: &[&str], exit: i32) -> Output {
        self.cluster
            .wait_for(&format!("exit code {exit} of {args:?}"), || {
                let output = self.countersign(user, args);
                Ok((output.exit == exit).then_some(output))
            })
            .unwrap()
    }

    /// The command line with a token of this kind, by the control plane's address.
    fn with_token(&self, token: &str, args: &[&str]) -> Output {
        let sandbox = self.world.sandbox();
        sandbox.write("/run/countersign/private/some-token", token).unwrap();
        let server = format!("https://{CONTROL}:8440");
        let given = ["--server", &server, "--ca-file", tests::world::CONTROL_ROOT];
        sandbox
            .command(Place::Service, As::Root, format!("{PROGRAMS}/countersign"))
            .args(given)
            .args(["--token-file", "/run/countersign/private/some-token"])
            .args(args)
            .output(COMMAND)
            .unwrap()
    }
}

const TRUST: &str = "apiVersion: countersign.dev/v1alpha1
kind: TrustProvider
metadata: { name: this-cluster }
spec:
  kubernetes: { audience: countersign-pods }
  caller:
    path: ns/{kubernetes.namespace}/sa/{kubernetes.serviceaccount}
    namespace: '{kubernetes.namespace}'
    instance: kubernetes.pod.uid
";

/// Longer than the bound, for machines that compile beside.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn a_pod_has_credentials_for_as_long_as_it_is_there(_: &Cluster) {
    let mut all = InCluster::started();
    all.world.apply_quickstart().unwrap();
    all.world.apply(TRUST).unwrap();
    for (kind, path, name) in [
        ("Namespace", "/api/v1/namespaces", "payments"),
        ("ServiceAccount", "/api/v1/namespaces/payments/serviceaccounts", "billing"),
    ] {
        let object = json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name } });
        all.cluster.create(path, &object).unwrap();
    }
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "billing-1" }, "spec": {
        "serviceAccountName": "billing", "nodeName": "node1", "containers": [{ "name": "a", "image": "x" }] } });
    let pod = all.cluster.create("/api/v1/namespaces/payments/pods", &pod).unwrap();
    let bound =
        json!({ "kind": "Pod", "apiVersion": "v1", "name": "billing-1", "uid": pod["metadata"]["uid"] });
    let token = all.token(
        "payments",
        "billing",
        &json!({ "audiences": ["countersign-pods"], "boundObjectRef": bound }),
    );

    let mut billing = all.world.workload("billing", Evidence::billing()).unwrap();
    let file = format!("{}/token", billing.directory());
    all.world.sandbox().write(&file, &token).unwrap();
    all.world.sandbox().give(&file, billing.proxy_uid()).unwrap();
    billing.start_proxy().unwrap();
    assert_eq!(billing.payments("/v1/charges/42").send().unwrap().status, 200);
    let callers = all.world.countersign_json(&["get", "callers"]).unwrap();
    assert!(callers[0].to_string().contains("this-cluster"), "{callers:?}");

    // Its session ends within 65 s of it; and whoever tries to begin another is refused, and audit shows it.
    all.cluster.delete("/api/v1/namespaces/payments/pods/billing-1").unwrap();
    until("the session's end", || billing.proxy().logs().contains("CS4009"));
    billing.proxy().kill9();
    billing.proxy().restart().unwrap();
    until("a refusal in the audit", || {
        let denied = all.world.countersign(&["audit", "--denied", "-o", "jsonl"]).unwrap().text();
        denied.contains("CS4009")
    });
}

fn the_command_line_needs_a_kubeconfig_and_a_role(_: &Cluster) {
    let all = InCluster::started();
    let refused = all.countersign("alice", &["status"]);
    assert_eq!(refused.exit, 4, "{}", refused.stderr);
    assert!(refused.stderr.contains("countersign-viewer"), "{}", refused.stderr);

    all.cluster.apply(&user_role(SYSTEM, VIEWER, VIEWER, "alice")).unwrap();
    let looked = all.countersign_until("alice", &["status"], 0);
    assert!(looked.stderr.is_empty(), "{}", looked.stderr);
    // Neither does her role let her ask for the other token, nor has she changed anything.
    let quickstart = tests::world::quickstart().join("quickstart.yaml");
    let documents = std::fs::read_to_string(quickstart).unwrap();
    let file = all.cluster.write("quickstart.yaml", &documents).unwrap().display().to_string();
    let refused = all.countersign("alice", &["apply", "-f", &file]);
    assert_eq!(refused.exit, 4, "{}", refused.stderr);
    assert_eq!(all.countersign("alice", &["apply", "-f", &file, "--dry-run"]).exit, 0);
    assert_eq!(all.countersign("alice", &["get", "workloads", "-A"]).text(), "");

    all.cluster.apply(&user_role(SYSTEM, "countersign-admin", BOTH, "bob")).unwrap();
    all.countersign_until("bob", &["apply", "-f", &file], 0);
    // The context names no namespace, so kubectl's default is meant; with one it is that one.
    assert_eq!(all.countersign("bob", &["get", "workloads"]).text(), "");
    let token = all.cluster.token_of("bob").unwrap();
    let config = all.cluster.kubeconfig_of("bob", &token, "payments").unwrap();
    let other = all.cluster.write("payments.kubeconfig", &config).unwrap().display().to_string();
    let found = all.countersign("bob", &["--kubeconfig", &other, "get", "workloads", "-o", "name"]);
    assert_eq!(found.text(), "workload/payments/billing\n", "{}", found.stderr);

    let nowhere = all.countersign("bob", &["--context", "nowhere", "status"]);
    assert_eq!(nowhere.exit, 1, "{}", nowhere.stderr);
    assert!(nowhere.stderr.contains("get-contexts"), "{}", nowhere.stderr);
    let empty = all.countersign("bob", &["--control-plane-namespace", "default", "status"]);
    assert_ne!(empty.exit, 0);

    // Who it was, as far as a token says it.
    let audit = all.world.countersign(&["audit", "-o", "jsonl"]).unwrap().text();
    assert!(audit.contains("serviceaccount:countersign-system/countersign-admin"), "{audit}");
    assert!(!audit.contains("bob"), "a name that nobody has proved");
}

fn the_user_s_own_credential_never_reaches_the_control_plane(_: &Cluster) {
    let all = InCluster::started();
    // Somebody else in the control plane's place, who writes down what is said to them.
    all.install("impostor", 9440);
    let authority = Certificates::new("impostor").unwrap();
    let leaf = authority.server(&["countersign-control"]).unwrap();
    let files = [("impostor.pem", &leaf.certificate), ("impostor.key", &leaf.key)]
        .map(|(name, content)| all.cluster.write(name, content).unwrap());
    let heard = all.cluster.write("heard", "").unwrap();
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "countersign-control-ca" },
        "data": { "ca.crt": authority.root() } });
    all.cluster.create("/api/v1/namespaces/impostor/configmaps", &map).unwrap();
    let _recorder = all
        .cluster
        .command(&format!("{PROGRAMS}/header-recorder"))
        .args(["--listen", "127.0.0.1:9440", "--certificate"])
        .arg(&files[0])
        .arg("--key")
        .arg(&files[1])
        .arg("--out")
        .arg(&heard)
        .start("header-recorder", &all.cluster.path("recorder.log"))
        .unwrap();
    all.cluster.apply(&user_role("impostor", VIEWER, VIEWER, "alice")).unwrap();
    let heard = all
        .cluster
        .wait_for("what the command line says", || {
            all.countersign("alice", &["--control-plane-namespace", "impostor", "status"]);
            let heard = std::fs::read_to_string(all.cluster.path("heard"))?;
            Ok(heard.contains("authorization").then_some(heard))
        })
        .unwrap();
    let own = all.cluster.token_of("alice").unwrap();
    assert!(!heard.contains(&own), "{heard}");
    assert!(!heard.contains("alice"), "{heard}");
    let token = heard.lines().find_map(|line| line.strip_prefix("authorization: Bearer ")).unwrap();
    use base64::Engine as _;
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["aud"], json!([AUDIENCE]));
    assert_eq!(claims["sub"], "system:serviceaccount:impostor:countersign-viewer");
    // And with what was heard nobody does anything: not here, where that account is no administrator's, nor at the API
    // server, whose audience it is not for.
    assert_eq!(all.with_token(token, &["status"]).exit, 4);
    assert_eq!(all.cluster.request(Identity::Bearer(token), "GET", "/api", None).unwrap().status, 401);
}

fn only_an_administrator_s_token_opens_the_door(_: &Cluster) {
    let all = InCluster::started();
    let unbound = json!({ "audiences": [AUDIENCE] });
    let of = |account: &str, spec: &Value| all.token(SYSTEM, account, spec);
    let (viewer, admin) = (of("countersign-viewer", &unbound), of("countersign-admin", &unbound));
    assert_eq!(all.with_token(&viewer, &["status"]).exit, 0);
    let refused = all.with_token(&viewer, &["revoke", "everything", "--yes", "--reason", "test"]);
    assert_eq!(refused.exit, 4, "{}", refused.stderr);
    assert!(refused.stderr.contains("may look"), "{}", refused.stderr);
    assert_eq!(all.with_token(&admin, &["revoke", "everything", "--yes", "--reason", "test"]).exit, 0);
    assert_eq!(all.with_token(&admin, &["revoke", "everything", "--lift"]).exit, 0);
    let pod = all.cluster.get(&format!("/api/v1/namespaces/{SYSTEM}/pods/countersign-control-0")).unwrap();
    let bound = json!({ "kind": "Pod", "apiVersion": "v1", "name": "countersign-control-0", "uid": pod["metadata"]["uid"] });
    for (what, token) in [
        ("another audience", of("countersign-admin", &json!({ "audiences": ["countersign-pods"] }))),
        ("the API server's audience", of("countersign-admin", &json!({ "audiences": [ISSUER] }))),
        ("a pod's", of("countersign-control", &json!({ "audiences": [AUDIENCE], "boundObjectRef": bound }))),
        ("another account", of("default", &unbound)),
        ("a user's own", all.cluster.token_of("admin").unwrap()),
        ("forged", format!("{}AAAA", &admin[..admin.len() - 4])),
        ("nothing", "a.b.c".to_owned()),
    ] {
        let refused = all.with_token(&token, &["status"]);
        assert_eq!(refused.exit, 4, "{what}: {}", refused.stderr);
    }
}
