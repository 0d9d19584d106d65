//! The chart, by the real helm in a real API server: installed, upgraded, rolled back and uninstalled, while the programs
//! run as it says: with its arguments, and with no more rights than its accounts have.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tests::cluster::Identity;
use tests::sandbox::{Inside, Output, programs};
use tests::{Cluster, Helm, Process};

use crate::Test;

pub(crate) const TESTS: &[Test] =
    crate::tests![a_release_is_installed_upgraded_rolled_back_and_leaves_nothing_broken];

/// Not the usual one, so that what is bound to that shows.
const NAMESPACE: &str = "security";

const WEBHOOK: &str = "security-countersign-webhook";

/// A release of the chart, and the programs that no kubelet starts here.
struct Release<'a> {
    helm: Helm,
    cluster: &'a Cluster,
    directory: PathBuf,
}

impl Release<'_> {
    /// Runs helm, which must do what it is told.
    fn helm(&self, words: &[&str]) -> String {
        let kubeconfig = self.cluster.kubeconfig(Identity::Admin).unwrap().display().to_string();
        let fixed = ["--kubeconfig", &kubeconfig, "--namespace", NAMESPACE];
        let output = self.helm.run(&[words, &fixed].concat()).unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn get(&self, path: &str) -> Value {
        self.cluster.get(path).unwrap()
    }

    fn status(&self, path: &str) -> u16 {
        self.cluster.request(Identity::Admin, "GET", path, None).unwrap().status
    }

    /// A kubeconfig of one of the chart's accounts: what its program may do is what the chart's roles say.
    fn kubeconfig(&self, account: &str) -> PathBuf {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token");
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "expirationSeconds": 3600, "audiences": [] } });
        let answer = self.cluster.create(&path, &request).unwrap();
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": { "server": self.cluster.url(), "certificate-authority": self.cluster.ca() } }],
            "users": [{ "name": account, "user": { "token": answer["status"]["token"] } }],
            "contexts": [{ "name": account, "context": { "cluster": "test", "user": account, "namespace": NAMESPACE } }],
            "current-context": account,
        });
        self.cluster.write(&format!("{account}.kubeconfig"), &config.to_string()).unwrap()
    }

    /// Starts the program of a workload as the chart says, but at its Service's address, where this API server looks, and
    /// with its files in a directory of ours.
    fn start(&self, workload: &str, name: &str, ports: &[(&str, u16)]) -> Process {
        let object = self.get(&format!("/apis/apps/v1/namespaces/{NAMESPACE}/{workload}/{name}"));
        let container = &object["spec"]["template"]["spec"]["containers"][0];
        let service = self.get(&format!("/api/v1/namespaces/{NAMESPACE}/services/{name}"));
        let address = service["spec"]["clusterIP"].as_str().unwrap();
        let directory = self.directory.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let mut words: Vec<String> = Vec::new();
        for word in container["args"].as_array().unwrap() {
            let word = word.as_str().unwrap();
            let flag = word.split('=').next().unwrap();
            words.push(match ports.iter().find(|(listener, _)| *listener == flag) {
                Some((_, port)) => format!("{flag}={address}:{port}"),
                None => word.replace("/var/lib/countersign", directory.to_str().unwrap()),
            });
        }
        if words[0] == "serve" {
            words.push(format!("--socket={}", directory.join("control.sock").display()));
        }
        let account = object["spec"]["template"]["spec"]["serviceAccountName"].as_str().unwrap();
        // Below a shell, as a `Process` is below what leads to it.
        Inside::here("sh")
            .args(["-c", r#""$@"; exit $?"#, name])
            .arg(programs().unwrap().join("countersign-control"))
            .env("KUBECONFIG", self.kubeconfig(account))
            .args(&words)
            .start(name, &directory.join("log"))
            .unwrap()
    }

    fn start_control(&self) -> Process {
        let ports = [("--listen", 8440), ("--discovery-listen", 8441), ("--health", 8442)];
        self.start("statefulsets", "countersign-control", &ports)
    }

    fn start_webhook(&self) -> Process {
        self.start("deployments", "countersign-webhook", &[("--listen", 443), ("--health", 8442)])
    }

    /// What `helm test` runs in a pod; here names are looked up in a hosts file instead of the cluster's DNS.
    fn check(&self) -> Output {
        let mut hosts = String::new();
        for name in ["countersign-control", "countersign-webhook"] {
            let service = self.get(&format!("/api/v1/namespaces/{NAMESPACE}/services/{name}"));
            let address = service["spec"]["clusterIP"].as_str().unwrap();
            hosts.push_str(&format!("{address} {name}.{NAMESPACE}.svc\n"));
        }
        let file = self.directory.join("hosts");
        std::fs::write(&file, hosts).unwrap();
        let rendered =
            self.helm.render(NAMESPACE, "1.20.0", &["--show-only", "templates/tests/check.yaml"]).unwrap();
        let pod = rendered.iter().find(|object| object["kind"] == "Pod").unwrap();
        let args = pod["spec"]["containers"][0]["args"].as_array().unwrap();
        // As the chart's test account: the hook's roles are there only while it runs, so they are put there.
        for object in rendered.iter().filter(|object| object["kind"] != "Pod") {
            self.cluster.apply(&object.to_string()).unwrap();
        }
        Inside::here("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c", r#"mount --bind "$0" /etc/hosts && exec "$@""#])
            .arg(&file)
            .arg(programs().unwrap().join("countersign-control"))
            .args(args.iter().map(|word| word.as_str().unwrap()))
            .env("KUBECONFIG", self.kubeconfig("countersign-check"))
            .output(Duration::from_secs(60))
            .unwrap()
    }

    fn mutating(&self) -> Value {
        self.get(&format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{WEBHOOK}"))["webhooks"][0].take()
    }

    /// Creates a pod in a namespace that opted in; what the API server made of it, or its refusal.
    fn pod(&self, namespace: &str, name: &str) -> Result<Value, String> {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name },
            "spec": { "containers": [{ "name": "app", "image": "registry.example/app:1" }] },
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let answer = self.cluster.request(Identity::Admin, "POST", &path, Some(&pod)).unwrap();
        if answer.status == 201 { Ok(answer.json().unwrap()) } else { Err(answer.text()) }
    }
}

fn has_proxy(pod: &Value) -> bool {
    let containers = pod["spec"]["containers"].as_array().unwrap();
    containers.iter().any(|container| container["name"] == "countersign-proxy")
}

fn a_release_is_installed_upgraded_rolled_back_and_leaves_nothing_broken(_: &Cluster) {
    let Some(helm) = Helm::found().unwrap() else { return };
    // Its own: the chart's definitions are for the whole of a cluster.
    let cluster = Cluster::start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let release = Release { helm, cluster: &cluster, directory: directory.path().to_owned() };
    let chart = release.helm.chart().display().to_string();

    let shop = cluster.namespace("shop").unwrap();
    cluster
        .patch(
            &format!("/api/v1/namespaces/{}", shop.name()),
            &json!({ "metadata": { "labels": { "countersign.dev/inject": "enabled" } } }),
        )
        .unwrap();

    let said = release.helm(&["install", "countersign", &chart, "--create-namespace"]);
    assert!(said.contains("kubectl label namespace NAMESPACE countersign.dev/inject=enabled"), "{said}");
    let definition = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/accesspolicies.countersign.dev";
    cluster
        .wait_for("the definitions", || {
            let conditions = release.get(definition)["status"]["conditions"].take();
            let established = conditions
                .as_array()
                .into_iter()
                .flatten()
                .any(|one| one["type"] == "Established" && one["status"] == "True");
            Ok(established.then_some(()))
        })
        .unwrap();
    let refused = release.pod(shop.name(), "early").unwrap_err();
    assert!(refused.contains("inject.countersign.dev"), "closed until a webhook answers: {refused}");

    let mut control = release.start_control();
    let roots = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/countersign-control-ca");
    let published =
        cluster.wait_for("the control plane's roots", || Ok((release.status(&roots) == 200).then_some(())));
    published.unwrap_or_else(|error| panic!("{error:#}\n{}", control.tail()));
    assert!(release.get(&roots)["data"]["ca.crt"].as_str().unwrap().contains("BEGIN CERTIFICATE"));

    let mut webhook = release.start_webhook();
    let injected = |name: &'static str| {
        let mut tried = 0;
        let found = cluster.wait_for("an injected pod", || {
            tried += 1;
            Ok(release.pod(shop.name(), &format!("{name}-{tried}")).ok())
        });
        found.unwrap_or_else(|error| {
            panic!("{error:#}\n{:?}\n{}", release.pod(shop.name(), name), webhook.tail())
        })
    };
    assert!(has_proxy(&injected("installed")));
    let bundle = release.mutating()["clientConfig"]["caBundle"].clone();
    assert!(bundle.as_str().is_some_and(|bundle| !bundle.is_empty()), "{bundle}");

    takes_documents(&cluster);
    let checked = release.check();
    assert!(checked.success(), "{}", checked.stderr);
    assert_eq!(checked.text().lines().count(), 2, "{}", checked.text());

    release.helm(&["upgrade", "countersign", &chart, "--set", "webhook.timeoutSeconds=7"]);
    assert_eq!(release.mutating()["timeoutSeconds"], 7);
    assert_eq!(release.mutating()["clientConfig"]["caBundle"], bundle, "an upgrade leaves it to the webhook");
    assert!(has_proxy(&injected("upgraded")));

    release.helm(&["rollback", "countersign", "1"]);
    assert_eq!(release.mutating()["timeoutSeconds"], 10);
    assert_eq!(release.mutating()["clientConfig"]["caBundle"], bundle);
    assert!(has_proxy(&injected("rolled-back")));

    // A second start with what the first has left: the CA is the same one.
    let first = release.get(&roots)["data"].clone();
    assert_eq!(control.terminate(Duration::from_secs(20)).unwrap(), 0, "{}", control.tail());
    control = release.start_control();
    let serves = || control.logs().matches("roots of the control plane").count() >= 2;
    cluster.wait_for("the control plane again", || Ok(serves().then_some(()))).unwrap();
    assert_eq!(release.get(&roots)["data"], first);

    // The worst order: who answers is gone before anything is uninstalled.
    webhook.kill9();
    release.pod(shop.name(), "late").unwrap_err();
    let checked = release.check();
    assert!(!checked.success() && checked.stderr.contains("the webhook"), "{}", checked.stderr);
    release.helm(&["uninstall", "countersign"]);
    assert!(!has_proxy(&release.pod(shop.name(), "after").unwrap()), "nothing stands in its way");
    for gone in [
        format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{WEBHOOK}"),
        format!("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{WEBHOOK}"),
        format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/countersign-webhook"),
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/security-countersign-webhook".to_owned(),
    ] {
        assert_eq!(release.status(&gone), 404, "{gone}");
    }
    assert_eq!(release.status(definition), 200, "documents outlive a release");
    control.terminate(Duration::from_secs(20)).unwrap();
    exists(&release.directory);
}

/// Custom resources are checked by the webhook, and taken into force by the control plane, with the accounts' rights.
fn takes_documents(cluster: &Cluster) {
    let workloads = "/apis/countersign.dev/v1alpha1/namespaces/default/workloads";
    let workload = |spec: Value| json!({ "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload", "metadata": { "name": "till" }, "spec": spec });
    let good = workload(json!({ "selector": { "kubernetes.serviceaccount": "till" } }));
    let misspelt = workload(json!({ "selector": { "kubernetes.serviceaccount": "till" }, "ownr": "team" }));
    let refused = cluster.request(Identity::Admin, "POST", workloads, Some(&misspelt)).unwrap();
    assert!(refused.text().contains("validate.countersign.dev"), "{}", refused.text());
    cluster.create(workloads, &good).unwrap();
    let accepted = || {
        let conditions = cluster.get(&format!("{workloads}/till"))?["status"]["conditions"].take();
        let mut conditions = conditions.as_array().cloned().unwrap_or_default().into_iter();
        Ok(conditions.any(|one| one["type"] == "Accepted" && one["status"] == "True").then_some(()))
    };
    cluster.wait_for("a document in force", accepted).unwrap();
}

/// What the control plane wrote is where the chart has a volume.
fn exists(directory: &Path) {
    assert!(directory.join("countersign-control/control/control.db").exists());
}
