//! The webhook behind a real API server, with the rights of docs/decisions/0031-webhook.md and no more.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tests::cluster::{Cluster, ISSUER, Identity, Namespace};
use tests::{Answer, Certificates, Process};

use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![
    pods_of_opted_in_namespaces_get_their_proxy,
    what_a_pod_s_author_should_know_becomes_events_once,
    its_certificate_is_its_own_and_the_api_server_knows_it,
    a_changed_label_or_root_counts_at_once,
    the_control_plane_writes_its_roots_into_a_config_map,
];

/// What injection is told apart from what a test is about.
const SETTINGS: [&str; 4] = [
    "--proxy-image=registry.example/countersign-proxy:1",
    "--control=https://control.example:8440",
    "--log=info,control=debug",
    "--log-format=text",
];

/// A webhook with two replicas, installed as a chart does it.
struct Webhook<'a> {
    cluster: &'a Cluster,
    home: Namespace<'a>,
    kubeconfig: PathBuf,
    replicas: Vec<Process>,
}

impl<'a> Webhook<'a> {
    fn install(cluster: &'a Cluster) -> Self {
        let home = cluster.namespace("hook").unwrap();
        let name = home.name().to_owned();
        home.service_account("webhook").unwrap();
        let own = |rest: &str| format!("/apis/rbac.authorization.k8s.io/v1/{rest}");
        let subject = json!([{ "kind": "ServiceAccount", "name": "webhook", "namespace": name }]);
        let rule = |group: &str, resource: &[&str], names: &[&str], verbs: &[&str]| json!({ "apiGroups": [group], "resources": resource, "resourceNames": names, "verbs": verbs });
        let configurations = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];
        let roles = [
            (
                "ClusterRole",
                own("clusterroles"),
                own("clusterrolebindings"),
                json!([
                    rule("", &["namespaces"], &[], &["get", "list", "watch"]),
                    rule("", &["pods"], &[], &["list", "watch"]),
                    rule("", &["events"], &[], &["create"]),
                    rule("admissionregistration.k8s.io", &configurations, &[&name], &["get", "patch"]),
                ]),
            ),
            (
                "Role",
                own(&format!("namespaces/{name}/roles")),
                own(&format!("namespaces/{name}/rolebindings")),
                json!([
                    rule("", &["secrets"], &["countersign-webhook-tls"], &["get", "update"]),
                    rule("", &["secrets"], &[], &["create"]),
                    rule("", &["configmaps"], &["countersign-ca"], &["get", "list", "watch"]),
                ]),
            ),
        ];
        for (kind, roles, bindings, rules) in roles {
            let metadata = json!({ "name": name });
            let role = json!({ "kind": kind, "metadata": metadata, "rules": rules });
            cluster.create(&roles, &role).unwrap();
            let reference = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name });
            let binding = json!({ "metadata": metadata, "roleRef": reference, "subjects": subject });
            cluster.create(&bindings, &binding).unwrap();
        }
        let certificates = Certificates::new("control plane").unwrap();
        let root = certificates.root();
        let map = json!({ "metadata": { "name": "countersign-ca" }, "data": { "ca.crt": root } });
        cluster.create(&home.path("configmaps"), &map).unwrap();
        // Its address is one of loopback, where the first replica can listen.
        let service =
            json!({ "metadata": { "name": "countersign-webhook" }, "spec": { "ports": [{ "port": 443 }] } });
        cluster.create(&home.path("services"), &service).unwrap();
        let token = home.token(Identity::Admin, "webhook", &json!({ "audiences": [ISSUER] })).unwrap();
        let kubeconfig = cluster.kubeconfig(Identity::Bearer(&token)).unwrap();
        let mut webhook = Self { cluster, home, kubeconfig, replicas: Vec::new() };
        webhook.configure();
        let address = webhook.address();
        webhook.start(&format!("{address}:443"), &format!("{address}:8442"));
        webhook.start(&format!("{address}:8443"), &format!("{address}:8444"));
        webhook
    }

    fn address(&self) -> String {
        let service = self.cluster.get(&self.home.path("services/countersign-webhook")).unwrap();
        service["spec"]["clusterIP"].as_str().unwrap().to_owned()
    }

    fn configuration(&self) -> String {
        let name = self.home.name();
        format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}")
    }

    /// As docs/decisions/0031-webhook.md has it; for namespaces of this test alone.
    fn configure(&self) {
        let name = self.home.name();
        let rule = |operation: &str, resource: &str| {
            json!({ "apiGroups": [""], "apiVersions": ["v1"], "operations": [operation], "resources": [resource],
                "scope": "Namespaced" })
        };
        let service =
            json!({ "name": "countersign-webhook", "namespace": name, "path": "/inject", "port": 443 });
        let configuration = json!({
            "metadata": { "name": name },
            "webhooks": [{
                "name": "inject.countersign.dev",
                "admissionReviewVersions": ["v1"],
                "clientConfig": { "service": service },
                "rules": [rule("CREATE", "pods"), rule("UPDATE", "pods/ephemeralcontainers")],
                "namespaceSelector": { "matchLabels": { "countersign.dev/inject": "enabled", "test": name } },
                "failurePolicy": "Fail", "matchPolicy": "Equivalent", "reinvocationPolicy": "IfNeeded",
                "sideEffects": "None", "timeoutSeconds": 10,
            }],
        });
        let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
        self.cluster.create(path, &configuration).unwrap();
    }

    fn start(&mut self, listen: &str, health: &str) {
        let name = self.home.name().to_owned();
        let mut args: Vec<String> = SETTINGS.map(str::to_owned).to_vec();
        args.extend([
            format!("--listen={listen}"),
            format!("--health={health}"),
            format!("--namespace={name}"),
            format!("--webhook-configuration={name}"),
            "--control-ca-config-map=countersign-ca".to_owned(),
        ]);
        let words = [&["webhook".to_owned()], &args[..]].concat();
        let environment = [("KUBECONFIG", self.kubeconfig.display().to_string())];
        let log = format!("webhook-{name}-{}", self.replicas.len());
        let process = self.cluster.start_ours("countersign-control", &words, &environment, &log).unwrap();
        let url = format!("http://{health}/readyz");
        let ready = self.cluster.wait_for("a ready webhook", || {
            let curl =
                self.cluster.command("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]);
            Ok((curl.output(Duration::from_secs(10))?.text() == "200").then_some(()))
        });
        assert!(ready.is_ok(), "{ready:?}\n{}", process.tail());
        self.replicas.push(process);
    }

    /// A namespace of this test with these labels of ours.
    fn namespace(&self, labels: &[(&str, &str)]) -> Namespace<'a> {
        let namespace = self.cluster.namespace("apps").unwrap();
        self.label(&namespace, &[labels, &[("test", self.home.name())]].concat());
        namespace
    }

    fn label(&self, namespace: &Namespace<'_>, labels: &[(&str, &str)]) {
        let labels: Value = labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let path = format!("/api/v1/namespaces/{}", namespace.name());
        self.cluster.patch(&path, &json!({ "metadata": { "labels": labels } })).unwrap();
    }

    fn create(&self, namespace: &Namespace<'_>, pod: &Value) -> Answer {
        self.cluster.request(Identity::Admin, "POST", &namespace.path("pods"), Some(pod)).unwrap()
    }
}

impl Drop for Webhook<'_> {
    fn drop(&mut self) {
        let name = self.home.name();
        let _ = self.cluster.delete(&self.configuration());
        let _ = self.cluster.delete(&format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}"));
        let _ =
            self.cluster.delete(&format!("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{name}"));
    }
}

const ENABLED: (&str, &str) = ("countersign.dev/inject", "enabled");

fn pod(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": { "containers": [
        { "name": "app", "image": "registry.example/app:1", "env": [{ "name": "SSL_CERT_FILE", "value": "/mine" }] },
    ] } })
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str()).collect()
}

fn pods_of_opted_in_namespaces_get_their_proxy(cluster: &Cluster) {
    let webhook = Webhook::install(cluster);
    let shop = webhook.namespace(&[ENABLED]);
    let created = webhook.create(&shop, &pod("web-1"));
    assert_eq!(created.status, 201, "{}", created.text());
    assert!(created.header("warning").contains("countersign: "), "{created:?}");
    let injected = created.json().unwrap();
    // This API server is older than native sidecars.
    assert_eq!(names(&injected["spec"]["initContainers"]), ["countersign-capture"]);
    assert_eq!(names(&injected["spec"]["containers"]), ["countersign-proxy", "app"]);
    assert!(injected["spec"]["containers"][0]["lifecycle"]["preStop"].is_object());
    assert_eq!(injected["metadata"]["labels"]["countersign.dev/injected"], "true");
    // Fact of the API server: it would mount the pod's default token into our containers too.
    for container in [&injected["spec"]["initContainers"][0], &injected["spec"]["containers"][0]] {
        let default = container["volumeMounts"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|mount| mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount");
        assert_eq!(default.map(|mount| &mount["name"]).collect::<Vec<_>>(), ["countersign-no-token"]);
    }

    // A dry run is answered alike, and leaves nothing.
    let path = format!("{}?dryRun=All", shop.path("pods"));
    let dry = cluster.request(Identity::Admin, "POST", &path, Some(&pod("dry"))).unwrap();
    assert_eq!(names(&dry.json().unwrap()["spec"]["containers"]), ["countersign-proxy", "app"]);
    assert!(cluster.request(Identity::Admin, "GET", &shop.path("pods/dry"), None).unwrap().status == 404);

    // A replica of a deployment has no name yet when it is reviewed.
    let template = json!({ "metadata": { "labels": { "app": "web" } }, "spec": pod("x")["spec"] });
    let spec =
        json!({ "replicas": 1, "selector": { "matchLabels": { "app": "web" } }, "template": template });
    let deployment = json!({ "metadata": { "name": "web" }, "spec": spec });
    cluster.create(&format!("/apis/apps/v1/namespaces/{}/deployments", shop.name()), &deployment).unwrap();
    let replica = cluster
        .wait_for("the deployment's pod", || {
            let pods = cluster.get(&format!("{}?labelSelector=app%3Dweb", shop.path("pods")))?;
            Ok(pods["items"].get(0).cloned())
        })
        .unwrap();
    assert_eq!(names(&replica["spec"]["containers"]), ["countersign-proxy", "app"]);

    // What could read the proxy is refused, with what to change.
    let mut bad = pod("bad");
    bad["spec"]["hostPID"] = json!(true);
    let refused = webhook.create(&shop, &bad);
    assert_eq!(refused.status, 403, "{}", refused.text());
    let message = refused.json().unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("denied the request: countersign: hostPID"), "{message}");
    let mut job = pod("job");
    job["spec"]["restartPolicy"] = json!("Never");
    assert!(webhook.create(&shop, &job).text().contains("1.29"), "a job's pod would never end");
    // An API server as old as this one does not show what a debug container joins.
    let debugger = json!([{ "name": "debug", "image": "registry.example/debug:1" }]);
    let list = json!({ "apiVersion": "v1", "kind": "EphemeralContainers", "metadata": { "name": "web-1" },
        "ephemeralContainers": debugger });
    let path = shop.path("pods/web-1/ephemeralcontainers");
    let refused = cluster.request(Identity::Admin, "PUT", &path, Some(&list)).unwrap();
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert!(refused.text().contains("debug containers need"), "{}", refused.text());
    // A pod that opts out, and a namespace that did not opt in.
    let mut out = pod("out");
    out["metadata"]["labels"] = json!({ "countersign.dev/inject": "disabled" });
    assert_eq!(names(&webhook.create(&shop, &out).json().unwrap()["spec"]["containers"]), ["app"]);
    let other = webhook.namespace(&[]);
    assert_eq!(names(&webhook.create(&other, &bad).json().unwrap()["spec"]["containers"]), ["app"]);
}

fn what_a_pod_s_author_should_know_becomes_events_once(cluster: &Cluster) {
    let webhook = Webhook::install(cluster);
    let shop = webhook.namespace(&[ENABLED]);
    let created = webhook.create(&shop, &pod("web-1")).json().unwrap();
    let uid = created["metadata"]["uid"].as_str().unwrap();
    let notes = created["metadata"]["annotations"]["countersign.dev/notes"].as_str().unwrap();
    assert!(notes.contains("SSL_CERT_FILE"), "{notes}");
    let events = || {
        let path = format!("{}?fieldSelector=involvedObject.uid%3D{uid}", shop.path("events"));
        cluster.get(&path).unwrap()["items"].as_array().unwrap().clone()
    };
    let wanted = notes.lines().count();
    cluster.wait_for("its events", || Ok((events().len() >= wanted).then_some(()))).unwrap();
    let events = events();
    assert_eq!(events.len(), wanted, "two replicas, each event once: {events:?}");
    let reasons: Vec<_> = events.iter().map(|event| event["reason"].as_str().unwrap()).collect();
    assert!(reasons.contains(&"TrustVariableSet") && reasons.contains(&"NotContained"), "{reasons:?}");
    let described = cluster.kubectl(&["describe", "pod", "web-1", "-n", shop.name()]).unwrap().text();
    assert!(
        described.contains("TrustVariableSet") && described.contains("countersign-webhook"),
        "{described}"
    );
}

fn its_certificate_is_its_own_and_the_api_server_knows_it(cluster: &Cluster) {
    let webhook = Webhook::install(cluster);
    let shop = webhook.namespace(&[ENABLED]);
    let bundle = || {
        let configuration = cluster.get(&webhook.configuration()).unwrap();
        configuration["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned()
    };
    let secret = webhook.home.path("secrets/countersign-webhook-tls");
    let stored = cluster.get(&secret).unwrap();
    assert_eq!(stored["type"], "kubernetes.io/tls");
    assert_eq!(stored["data"]["ca.crt"].as_str().unwrap(), bundle());
    assert_eq!(webhook.create(&shop, &pod("one")).status, 201);
    let metrics = cluster.command("curl").args(["-s", &format!("http://{}:8442/metrics", webhook.address())]);
    let metrics = metrics.output(Duration::from_secs(10)).unwrap().text();
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{metrics}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let left = value("countersign_webhook_certificate_expires_seconds") - now;
    assert!(left > 10.0 * 86_400.0 && left < 31.0 * 86_400.0, "{left} s are left");
    assert_eq!(value("countersign_webhook_admissions_total{decision=\"injected\""), 1.0);
    let made = |log: &str| log.matches("the webhook's certificate was renewed").count();
    let makers: usize = webhook.replicas.iter().map(|replica| made(&replica.logs())).sum();
    assert_eq!(makers, 1, "one replica has made it, the other reads it");

    // Somebody installs the configuration anew, without a bundle.
    let emptied = json!([{ "op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": "" }]);
    let output = cluster.kubectl(&[
        "patch",
        "mutatingwebhookconfiguration",
        webhook.home.name(),
        "--type=json",
        "-p",
        &emptied.to_string(),
    ]);
    assert!(output.as_ref().unwrap().success(), "{output:?}");
    cluster.wait_for("the bundle", || Ok((stored["data"]["ca.crt"] == bundle()).then_some(()))).unwrap();

    // Somebody deletes the Secret, because its key is no longer a secret.
    cluster.delete(&secret).unwrap();
    cluster.wait_for("another CA", || Ok((stored["data"]["ca.crt"] != bundle()).then_some(()))).unwrap();
    let again = cluster.wait_for("the certificate of that", || {
        Ok((webhook.create(&shop, &pod("two")).status != 500).then_some(()))
    });
    again.unwrap();
    assert_eq!(cluster.get(&secret).unwrap()["data"]["ca.crt"], json!(bundle()));
}

fn a_changed_label_or_root_counts_at_once(cluster: &Cluster) {
    let webhook = Webhook::install(cluster);
    let shop = webhook.namespace(&[ENABLED]);
    let attempt = std::cell::Cell::new(0);
    let create = || {
        attempt.set(attempt.get() + 1);
        webhook.create(&shop, &pod(&format!("web-{}", attempt.get())))
    };
    assert_eq!(create().status, 201);
    webhook.label(&shop, &[("countersign.dev/egress", "enforce")]);
    let refused = cluster.wait_for("the label", || Ok(Some(create()).filter(|answer| answer.status == 403)));
    assert!(refused.unwrap().text().contains("NET_RAW"), "what a runtime gives leads round the proxy");
    webhook.label(&shop, &[("countersign.dev/egress", "observe")]);
    let fingerprint = |answer: &Answer| {
        let text = answer.text();
        let (_, rest) = text.split_once("--control-fingerprint=")?;
        Some(rest[..71].to_owned())
    };
    let first = cluster.wait_for("the label", || Ok(fingerprint(&create()))).unwrap();
    // The control plane's next root signs.
    let certificates = Certificates::new("control plane").unwrap();
    let next = certificates.root();
    let change = json!({ "data": { "ca.crt": next } });
    cluster.patch(&webhook.home.path("configmaps/countersign-ca"), &change).unwrap();
    let changed = cluster
        .wait_for("the next root", || Ok(fingerprint(&create()).filter(|fingerprint| *fingerprint != first)));
    assert!(changed.unwrap().starts_with("sha256:"));
}

fn the_control_plane_writes_its_roots_into_a_config_map(cluster: &Cluster) {
    let home = cluster.namespace("control").unwrap();
    home.service_account("control").unwrap();
    let service = json!({ "metadata": { "name": "control" }, "spec": { "ports": [{ "port": 8440 }] } });
    let created = cluster.create(&home.path("services"), &service).unwrap();
    let address = created["spec"]["clusterIP"].as_str().unwrap();
    // Outside of a cluster it is the namespace `default`.
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let (name, map) = (home.name(), format!("roots-of-{}", home.name()));
    let rules = json!([
        { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"] },
        { "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [map], "verbs": ["get", "patch"] },
    ]);
    let metadata = json!({ "name": name });
    cluster.create(&format!("{roles}/roles"), &json!({ "metadata": metadata, "rules": rules })).unwrap();
    let binding = json!({
        "metadata": metadata,
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": "control", "namespace": name }],
    });
    cluster.create(&format!("{roles}/rolebindings"), &binding).unwrap();
    let token = home.token(Identity::Admin, "control", &json!({ "audiences": [ISSUER] })).unwrap();
    let kubeconfig = cluster.kubeconfig(Identity::Bearer(&token)).unwrap().display().to_string();
    let directory =
        cluster.write(&format!("{name}/made"), "").unwrap().parent().unwrap().display().to_string();
    let args = [
        "serve".to_owned(),
        format!("--state={directory}/state"),
        format!("--socket={directory}/control.sock"),
        format!("--listen={address}:8440"),
        format!("--discovery-listen={address}:8441"),
        format!("--health={address}:8442"),
        "--issuer-url=https://issuer.example".to_owned(),
        "--trust-domain=example.org".to_owned(),
        format!("--ca-out={directory}/ca.pem"),
        format!("--ca-config-map={map}"),
    ];
    let environment = [("KUBECONFIG", kubeconfig)];
    let process = cluster.start_ours("countersign-control", &args, &environment, name).unwrap();
    let path = format!("/api/v1/namespaces/default/configmaps/{map}");
    let written = cluster.wait_for("the ConfigMap", || {
        let answer = cluster.request(Identity::Admin, "GET", &path, None)?;
        Ok(if answer.status == 200 { Some(answer.json()?) } else { None })
    });
    let written = written.unwrap_or_else(|error| panic!("{error:#}\n{}", process.tail()));
    let roots = std::fs::read_to_string(cluster.path(&format!("{name}/ca.pem"))).unwrap();
    assert_eq!(written["data"]["ca.crt"], json!(roots));
    cluster.delete(&path).unwrap();
    for kind in ["roles", "rolebindings"] {
        cluster.delete(&format!("{roles}/{kind}/{name}")).unwrap();
    }
}
