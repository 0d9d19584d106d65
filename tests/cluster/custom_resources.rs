//! Custom resources in a cluster of their own: what the API server takes, what the control plane makes of it, and who
//! writes when there are two of it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::cluster::{Identity, Namespace};
use tests::sandbox::{Process, programs};
use tests::{Certificates, Cluster, Output};

use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![
    resources_come_into_force_and_say_so,
    the_webhook_refuses_what_the_command_line_refuses,
    one_replica_writes_and_another_takes_over,
];

/// What docs/decisions/0032-custom-resources.md says that the control plane may do, and nothing else.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: countersign-control }
rules:
  - apiGroups: [countersign.dev]
    resources: [workloads, trustproviders, destinations, credentialproviders, accesspolicies, conditions, guardrails]
    verbs: [get, list, watch]
  - apiGroups: [countersign.dev]
    resources: [workloads/status, trustproviders/status, destinations/status, credentialproviders/status,
      accesspolicies/status, conditions/status, guardrails/status]
    verbs: [update]
  - { apiGroups: [""], resources: [namespaces], verbs: [get, list, watch] }
  - { apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: countersign-control }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: countersign-control }
subjects: [{ kind: ServiceAccount, name: default, namespace: default }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: countersign-control, namespace: default }
rules:
  - { apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create] }
  - { apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [countersign-control], verbs: [get, update] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: countersign-control, namespace: default }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: countersign-control }
subjects: [{ kind: ServiceAccount, name: default, namespace: default }]
"#;

const WORKLOAD: &str = "kind: Workload\nmetadata: { name: billing }\nspec: { selector: { a: b } }\n";
const DESTINATION: &str =
    "kind: Destination\nmetadata: { name: stripe }\nspec: { hosts: [api.stripe.com] }\n";
const CREDENTIAL: &str =
    "kind: CredentialProvider\nmetadata: { name: token }\nspec: { jwt: { audience: [stripe] } }\n";
const POLICY: &str = "kind: AccessPolicy\nmetadata: { name: charges }\nspec: { workload: billing, destination: stripe, \
                      credential: token, ttl: 5m, allow: [{ methods: [GET] }] }\n";
const GUARDRAIL: &str = "kind: Guardrail\nmetadata: { name: office }\nspec: { when: 'false' }\n";

/// A cluster with our definitions, and the control plane's rights.
fn cluster() -> Cluster {
    let cluster = Cluster::start().unwrap();
    let crds = cluster.command(program("countersign-control").to_str().unwrap());
    let crds = crds.args(["crds", "--without-rules"]).output(Duration::from_secs(30)).unwrap();
    cluster.apply(&crds.text()).unwrap();
    cluster.apply(RIGHTS).unwrap();
    for name in ["accesspolicies", "workloads", "destinations", "credentialproviders", "guardrails"] {
        let path = format!("/apis/countersign.dev/v1alpha1/{name}");
        let served =
            || Ok((cluster.request(Identity::Admin, "GET", &path, None)?.status == 200).then_some(()));
        cluster.wait_for(name, served).unwrap();
    }
    cluster
}

fn program(name: &str) -> PathBuf {
    programs().unwrap().join(name)
}

/// Applies documents to a namespace, as people do.
fn apply(cluster: &Cluster, namespace: &Namespace<'_>, documents: &[&str]) {
    let head = "apiVersion: countersign.dev/v1alpha1\n";
    let place = format!("metadata: {{ namespace: {},", namespace.name());
    let text: Vec<String> = documents
        .iter()
        .map(|document| match document.contains("Guardrail") {
            true => format!("{head}{document}"),
            false => format!("{head}{}", document.replace("metadata: {", &place)),
        })
        .collect();
    cluster.apply(&text.join("---\n")).unwrap();
}

fn path(namespace: &Namespace<'_>, plural: &str, name: &str) -> String {
    format!("/apis/countersign.dev/v1alpha1/namespaces/{}/{plural}/{name}", namespace.name())
}

/// Waits until a condition of a resource is as it should be, for its newest generation; says its message.
fn condition(cluster: &Cluster, path: &str, wanted: &str) -> String {
    let (name, status) = wanted.split_once('=').unwrap();
    let mut last = Value::Null;
    let found = cluster.wait_for(wanted, || {
        let object = cluster.get(path)?;
        last = object.clone();
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let holds = |condition: &&Value| {
            condition["type"] == name
                && condition["status"] == status
                && condition["observedGeneration"] == object["metadata"]["generation"]
        };
        Ok(conditions.iter().find(holds).map(|condition| condition["message"].as_str().unwrap().to_owned()))
    });
    found.unwrap_or_else(|error| panic!("{path}: {error}\n{last:#}"))
}

/// The address of loopback that the cluster has for itself.
fn address(cluster: &Cluster) -> Ipv4Addr {
    cluster.url().trim_start_matches("https://").split(':').next().unwrap().parse().unwrap()
}

/// For a program with the rights of the control plane.
fn kubeconfig(cluster: &Cluster) -> PathBuf {
    let spec = json!({ "audiences": [tests::cluster::ISSUER], "expirationSeconds": 3600 });
    let object = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    cluster.wait_for("the service account", || Ok(cluster.get(account).ok())).unwrap();
    let token = cluster.create(&format!("{account}/token"), &object).unwrap();
    cluster.kubeconfig(Identity::Bearer(token["status"]["token"].as_str().unwrap())).unwrap()
}

/// Waits until a program of ours says that it is ready.
fn ready(cluster: &Cluster, health: &str, process: &Process) {
    let url = format!("http://{health}/readyz");
    let asked = || {
        let asked = cluster.command("curl").args(["-sf", &url]).output(Duration::from_secs(10))?;
        Ok(asked.success().then_some(()))
    };
    cluster.wait_for("readiness", asked).unwrap_or_else(|error| panic!("{error}\n{}", process.tail()));
}

/// A replica of the control plane.
struct Control<'a> {
    cluster: &'a Cluster,
    process: Process,
    socket: String,
}

impl<'a> Control<'a> {
    /// Starts one, over a state directory that may be another's too.
    fn start(cluster: &'a Cluster, number: u16, state: &str) -> Self {
        let directory = cluster.write("control/made", "").unwrap().parent().unwrap().to_owned();
        let ip = address(cluster);
        let at = |port: u16| format!("{ip}:{}", port + 10 * number);
        let file = |name: &str| directory.join(name).display().to_string();
        let (state, socket) = (file(state), file(&format!("{number}.sock")));
        let kubeconfig = kubeconfig(cluster);
        let arguments = [
            ["--state", &state],
            ["--listen", &at(8440)],
            ["--discovery-listen", &at(8441)],
            ["--health", &at(8442)],
            ["--socket", &socket],
            ["--issuer-url", "https://issuer.example"],
            ["--trust-domain", "demo"],
        ];
        let command = cluster
            .command(program("countersign-control").to_str().unwrap())
            .env("KUBECONFIG", kubeconfig)
            .args(["serve", "--kubernetes"])
            .args(arguments.concat());
        let log = directory.join(format!("{number}.log"));
        let process = command.start("countersign-control", &log).unwrap();
        let control = Self { cluster, process, socket };
        ready(cluster, &at(8442), &control.process);
        control
    }

    fn countersign(&self, args: &[&str]) -> Output {
        let command = self.cluster.command(program("countersign").to_str().unwrap());
        command.env("COUNTERSIGN_SOCKET", &self.socket).args(args).output(Duration::from_secs(30)).unwrap()
    }

    /// The documents of a kind in its store.
    fn stored(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let output = self.countersign(&["get", kind, "-n", namespace, "-o", "json"]);
        assert!(output.success(), "{}", output.stderr);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        list["items"].as_array().unwrap_or_else(|| panic!("{list}")).clone()
    }

    fn waits_for(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.cluster
            .wait_for(what, || Ok(holds(self).then_some(())))
            .unwrap_or_else(|error| panic!("{error}\n{}", self.process.tail()));
    }

    fn end(mut self) {
        assert_eq!(self.process.terminate(Duration::from_secs(30)).unwrap(), 0, "{}", self.process.tail());
    }
}

fn holder(cluster: &Cluster) -> (String, i64) {
    let lease = cluster.get("/apis/coordination.k8s.io/v1/namespaces/default/leases/countersign-control");
    let spec = lease.map(|lease| lease["spec"].clone()).unwrap_or_default();
    (
        spec["holderIdentity"].as_str().unwrap_or_default().to_owned(),
        spec["leaseTransitions"].as_i64().unwrap_or_default(),
    )
}

fn resources_come_into_force_and_say_so(_: &Cluster) {
    let cluster = &cluster();
    let shop = cluster.namespace("shop").unwrap();
    let control = Control::start(cluster, 0, "state");
    let policy = path(&shop, "accesspolicies", "charges");

    // In the wrong order: it is taken, says what it waits for, and grants nothing.
    apply(cluster, &shop, &[POLICY]);
    let message = condition(cluster, &policy, "ResolvedRefs=False");
    assert!(message.contains("CS0104 spec.workload: there is no Workload `billing`"), "{message}");
    condition(cluster, &policy, "Programmed=False");
    assert!(control.stored("accesspolicies", shop.name()).is_empty());
    apply(cluster, &shop, &[WORKLOAD, DESTINATION, CREDENTIAL, GUARDRAIL]);
    condition(cluster, &policy, "Programmed=True");
    condition(cluster, &policy, "ResolvedRefs=True");
    assert_eq!(control.stored("accesspolicies", shop.name()).len(), 1, "it is in force when it says so");
    let shown = cluster.kubectl(&["get", "countersign", "-n", shop.name()]).unwrap().text();
    for column in ["IN FORCE", "ACCEPTED", "DESTINATION", "HOSTS"] {
        assert!(shown.contains(column), "{shown}");
    }

    // An edit that is not valid changes nothing, and says so in its status and by an event.
    cluster.patch(&policy, &json!({ "spec": { "ttl": "2h" } })).unwrap();
    let message = condition(cluster, &policy, "Accepted=False");
    assert_eq!(message, "CS0103 spec.ttl: `2h` must be between `30s` and `1h`");
    let message = condition(cluster, &policy, "Programmed=False");
    assert_eq!(message, "it is not valid; generation 1 stays in force until it is, or is deleted");
    assert_eq!(control.stored("accesspolicies", shop.name())[0]["spec"]["ttl"], "5m");
    cluster
        .wait_for("the event", || {
            let events = cluster.kubectl(&["get", "events", "-n", shop.name()])?.text();
            Ok((events.contains("InvalidValue") && events.contains("spec.ttl: `2h` must be")).then_some(()))
        })
        .unwrap();

    // A field that nobody knows reaches us, and is not dropped on the way.
    cluster.patch(&policy, &json!({ "spec": { "ttl": "5m", "condtions": ["business-hours"] } })).unwrap();
    let message = condition(cluster, &policy, "Accepted=False");
    assert!(
        message.contains("CS0102 spec.condtions: unknown field `condtions` (did you mean `conditions`?)"),
        "{message}"
    );
    cluster.patch(&policy, &json!({ "spec": { "condtions": null } })).unwrap();
    condition(cluster, &policy, "Programmed=True");

    // What the schema says is refused without us.
    let wrong =
        cluster.patch(&path(&shop, "workloads", "billing"), &json!({ "spec": { "egress": "enforec" } }));
    assert!(
        format!("{:#}", wrong.unwrap_err()).contains("supported values: \\\"observe\\\", \\\"enforce\\\"")
    );

    // What is synchronised is changed by kubectl alone.
    let refused = control.countersign(&["delete", "accesspolicy/charges", "-n", shop.name(), "--yes"]);
    let kubectl = format!("`kubectl -n {} delete accesspolicies.countersign.dev charges`", shop.name());
    assert!(refused.stderr.contains("CS0109") && refused.stderr.contains(&kubectl), "{}", refused.stderr);
    assert!(refused.stderr.contains("(egress mode `observe`)"), "{}", refused.stderr);
    let namespace = format!("/api/v1/namespaces/{}", shop.name());
    let label = |mode: Value| json!({ "metadata": { "labels": { "countersign.dev/egress": mode } } });
    cluster.patch(&namespace, &label("enforce".into())).unwrap();
    control.waits_for("the namespace's egress mode", |control| {
        let refused = control.countersign(&["delete", "accesspolicy/charges", "-n", shop.name(), "--yes"]);
        refused.stderr.contains("(egress mode `enforce`)")
    });

    // What vanishes while nobody looks is gone when somebody does again.
    let lease = holder(cluster);
    control.end();
    assert_eq!(holder(cluster), (String::new(), lease.1), "the lease was given back");
    cluster.delete(&path(&shop, "destinations", "stripe")).unwrap();
    cluster.delete("/apis/countersign.dev/v1alpha1/guardrails/office").unwrap();
    let control = Control::start(cluster, 0, "state");
    condition(cluster, &policy, "ResolvedRefs=False");
    for kind in ["accesspolicies", "destinations", "guardrails"] {
        assert!(control.stored(kind, shop.name()).is_empty(), "{kind}");
    }
    assert_eq!(control.stored("workloads", shop.name()).len(), 1);
    let audit = control.countersign(&["audit", "-o", "json"]).text();
    assert!(
        audit.contains(&format!("accesspolicy/{}/charges", shop.name())) && audit.contains("\"kubernetes\"")
    );
    control.end();
}

fn the_webhook_refuses_what_the_command_line_refuses(_: &Cluster) {
    let cluster = &cluster();
    let shop = cluster.namespace("shop").unwrap();
    let _webhook = webhook(cluster);
    let kubectl = |documents: &str| {
        let text = documents.replace("metadata: {", &format!("metadata: {{ namespace: {},", shop.name()));
        let text = format!("apiVersion: countersign.dev/v1alpha1\n{text}");
        let file = cluster.write("document.yaml", &text).unwrap().display().to_string();
        cluster.kubectl(&["apply", "-f", &file]).unwrap()
    };

    // It takes a moment until the API server knows whom to ask.
    let bad = POLICY.replace("allow:", "condtions: [business-hours], allow:");
    let mut said = String::new();
    let asked = cluster.wait_for("the webhook", || {
        said = kubectl(&bad).stderr;
        Ok(said.contains("validate.countersign.dev").then_some(()))
    });
    asked.unwrap();
    let refusal =
        "denied the request: CS0102 spec.condtions: unknown field `condtions` (did you mean `conditions`?)";
    assert!(said.contains(refusal), "{said}");
    let dangling = kubectl(POLICY);
    assert!(dangling.success(), "{}", dangling.stderr);
    let warning = "Warning: CS0104 spec.workload: there is no Workload `billing`";
    assert!(dangling.stderr.contains(warning), "{}", dangling.stderr);

    // A workload that permits only another destination.
    for document in [
        &DESTINATION.replace("stripe", "other"),
        &WORKLOAD.replace("selector", "destinations: [other], selector"),
        DESTINATION,
        CREDENTIAL,
    ] {
        let taken = kubectl(document);
        assert!(taken.success(), "{}", taken.stderr);
    }
    let second = POLICY.replace("charges", "second");
    let refused = || {
        let said = kubectl(&second).stderr;
        Ok(said.contains("CS0107 spec.destination: workload `billing` is not permitted").then_some(()))
    };
    cluster.wait_for("the refusal", refused).unwrap();
    // What was changed just before counts, whether the watch has told of it or not.
    assert!(kubectl(WORKLOAD).success());
    let taken = kubectl(&second);
    assert!(taken.success(), "{}", taken.stderr);

    // And what one file makes just before is there: whoever applies it in a good order is not warned.
    for attempt in 0..5 {
        let made = [WORKLOAD, DESTINATION, CREDENTIAL, POLICY];
        let made = made.map(|document| {
            let named = ["billing", "stripe", "charges", "token"];
            named
                .iter()
                .fold(document.to_owned(), |text, name| text.replace(name, &format!("{name}-{attempt}")))
        });
        let head = "---\napiVersion: countersign.dev/v1alpha1\n";
        let taken = kubectl(&made.join(head));
        assert!(taken.success() && taken.stderr.is_empty(), "{}", taken.stderr);
    }

    // Who can mend it is told of an egress mode that means nothing.
    let label = json!({ "metadata": { "labels": { "countersign.dev/egress": "enforec" } } });
    cluster.patch(&format!("/api/v1/namespaces/{}", shop.name()), &label).unwrap();
    let mut turn = 0;
    let warned = || {
        turn += 1;
        let said = kubectl(&WORKLOAD.replace("billing", &format!("turn-{turn}"))).stderr;
        Ok(said.contains("must be observe or enforce, not \"enforec\"; enforce is taken").then_some(()))
    };
    cluster.wait_for("the warning", warned).unwrap();

    let deleted = cluster.kubectl(&["delete", "csdest", "stripe", "-n", shop.name()]).unwrap();
    assert!(
        deleted.success() && deleted.stderr.contains("Warning: CS0110: destination/"),
        "{}",
        deleted.stderr
    );
}

/// The webhook, and the API server's knowledge of it.
fn webhook(cluster: &Cluster) -> Process {
    let certificates = Certificates::new("webhook").unwrap();
    let ip = address(cluster);
    let server = certificates.server(&[&ip.to_string()]).unwrap();
    let file = |name, content| cluster.write(name, content).unwrap().display().to_string();
    let certificate = file("webhook/tls.crt", &server.certificate);
    let key = file("webhook/tls.key", &server.key);
    let (listen, health) = (format!("{ip}:9443"), format!("{ip}:9442"));
    let process = cluster
        .command(program("countersign-control").to_str().unwrap())
        .env("KUBECONFIG", kubeconfig(cluster))
        .args(["webhook", "--listen", &listen, "--health", &health, "--tls-cert", &certificate])
        .args(["--tls-key", &key, "--proxy-image", "proxy:1", "--control", "https://control.example:8440"])
        .args(["--control-fingerprint", &format!("sha256:{:064}", 0)])
        .start("webhook", &cluster.path("webhook/log"))
        .unwrap();
    ready(cluster, &health, &process);
    let root = base64::engine::general_purpose::STANDARD.encode(certificates.root());
    let rule = json!({ "apiGroups": ["countersign.dev"], "apiVersions": ["*"], "resources": ["*"], "scope": "*",
        "operations": ["CREATE", "UPDATE", "DELETE"] });
    let configuration = json!({
        "metadata": { "name": "countersign-validate" },
        "webhooks": [{
            "name": "validate.countersign.dev",
            "admissionReviewVersions": ["v1"],
            "clientConfig": { "url": format!("https://{listen}/validate"), "caBundle": root },
            "rules": [rule],
            "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 10,
        }],
    });
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    cluster.create(path, &configuration).unwrap();
    process
}

fn one_replica_writes_and_another_takes_over(_: &Cluster) {
    let cluster = &cluster();
    let shop = cluster.namespace("shop").unwrap();
    let first = Control::start(cluster, 0, "state");
    apply(cluster, &shop, &[WORKLOAD]);
    let workload = path(&shop, "workloads", "billing");
    condition(cluster, &workload, "Programmed=True");
    let (leader, _) = holder(cluster);
    // They share a store, as replicas do.
    let second = Control::start(cluster, 1, "state");

    // The first one freezes, as a machine does that swaps or is moved; its lease runs out.
    first.process.signal(Signal::STOP);
    second.waits_for("the other replica", |_| holder(cluster).0 != leader);
    cluster.patch(&workload, &json!({ "spec": { "owner": "second" } })).unwrap();
    condition(cluster, &workload, "Programmed=True");
    assert_eq!(second.stored("workloads", shop.name())[0]["spec"]["owner"], "second");
    assert_eq!(holder(cluster).1, 1, "one transition");

    // It wakes up believing that it still holds the lease, and learns that it does not.
    first.process.signal(Signal::CONT);
    cluster.patch(&workload, &json!({ "spec": { "owner": "third" } })).unwrap();
    first.waits_for("the end of its term", |first| {
        let log = first.process.logs();
        log.contains("the lease is lost") || log.contains("a later term")
    });
    condition(cluster, &workload, "Programmed=True");
    assert_eq!(second.stored("workloads", shop.name())[0]["spec"]["owner"], "third");
    assert_ne!(holder(cluster).0, leader);
    second.end();
    // And takes over again when the lease is given back.
    first.waits_for("the first replica", |_| holder(cluster).0 == leader);
    first.end();
}
