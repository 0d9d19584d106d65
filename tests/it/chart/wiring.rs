//! What the chart's objects say of each other, of our programs and of security holds.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;
use tests::sandbox::programs;

use super::{Rendered, called, is_hook, matrix, text};

/// What is there although the chart makes it not, by the end of its name: our programs write it, cert-manager does, or
/// the values name it.
const OTHERS: [&str; 8] = [
    "ConfigMap countersign-control-ca",
    "Secret countersign-webhook-tls",
    "Secret countersign-sealing",
    "Secret discovery-tls",
    "ConfigMap corporate-roots",
    "ServiceAccount admission",
    "ServiceAccount control",
    "ServiceAccount webhook",
];

fn list<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn map(value: Option<&Value>) -> BTreeMap<String, String> {
    let pairs = value.and_then(Value::as_object).into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// A pod of the chart: who makes it, its labels and its spec.
struct PodOf<'a> {
    owner: &'a Value,
    labels: BTreeMap<String, String>,
    spec: &'a Value,
}

impl Rendered {
    fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        let lasts = |object: &Value| text(object, "/metadata/annotations/helm.sh~1hook") != "pre-delete";
        self.objects.iter().filter(move |object| text(object, "/kind") == kind && lasts(object))
    }

    /// Every pod, those of hooks too.
    fn pods(&self) -> Vec<PodOf<'_>> {
        let mut pods = Vec::new();
        for object in &self.objects {
            if text(object, "/kind") == "Pod" {
                pods.push(PodOf {
                    owner: object,
                    labels: map(object.pointer("/metadata/labels")),
                    spec: &object["spec"],
                });
            } else if let Some(template) = object.pointer("/spec/template") {
                let labels = map(template.pointer("/metadata/labels"));
                pods.push(PodOf { owner: object, labels, spec: &template["spec"] });
            }
        }
        assert!(!pods.is_empty(), "{}", self.name);
        pods
    }

    /// The one pod template that a selector takes.
    fn selected(&self, selector: &BTreeMap<String, String>, by: &str) -> PodOf<'_> {
        assert!(!selector.is_empty(), "{by} selects everything");
        let mut found: Vec<_> =
            self.pods().into_iter().filter(|pod| selects(selector, &pod.labels)).collect();
        assert_eq!(found.len(), 1, "{}: {by} must select one kind of pod", self.name);
        found.remove(0)
    }

    fn has(&self, kind: &str, name: &str) -> bool {
        self.of_kind(kind).any(|object| text(object, "/metadata/name") == name)
            || OTHERS.contains(&format!("{kind} {name}").as_str())
    }
}

fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The names and numbers of a pod's ports.
fn ports(pod: &Value) -> BTreeMap<String, u64> {
    let ports = list(pod, "/containers").flat_map(|container| list(container, "/ports"));
    ports.map(|port| (text(port, "/name").to_owned(), port["containerPort"].as_u64().unwrap())).collect()
}

#[test]
fn selectors_select_and_ports_lead_to_containers() {
    for rendered in matrix() {
        for service in rendered.of_kind("Service") {
            let pod = rendered.selected(&map(service.pointer("/spec/selector")), &called(service));
            for port in list(service, "/spec/ports") {
                let target = port["targetPort"].as_str().unwrap();
                assert!(
                    ports(pod.spec).contains_key(target),
                    "{}: {} {target}",
                    rendered.name,
                    called(service)
                );
            }
        }
        for kind in ["Deployment", "StatefulSet"] {
            for owner in rendered.of_kind(kind) {
                let pod =
                    rendered.selected(&map(owner.pointer("/spec/selector/matchLabels")), &called(owner));
                assert_eq!(called(pod.owner), called(owner));
                for spread in list(pod.spec, "/topologySpreadConstraints") {
                    assert!(
                        selects(&map(spread.pointer("/labelSelector/matchLabels")), &pod.labels),
                        "{}",
                        rendered.name
                    );
                }
            }
        }
        for stateful in rendered.of_kind("StatefulSet") {
            assert!(rendered.has("Service", text(stateful, "/spec/serviceName")), "{}", rendered.name);
        }
        for budget in rendered.of_kind("PodDisruptionBudget") {
            rendered.selected(&map(budget.pointer("/spec/selector/matchLabels")), &called(budget));
        }
        for policy in rendered.of_kind("NetworkPolicy") {
            let pod =
                rendered.selected(&map(policy.pointer("/spec/podSelector/matchLabels")), &called(policy));
            for port in list(policy, "/spec/ingress").flat_map(|rule| list(rule, "/ports")) {
                let name = port["port"].as_str().unwrap();
                assert!(ports(pod.spec).contains_key(name), "{}: {} {name}", rendered.name, called(policy));
            }
        }
        for monitor in rendered.of_kind("ServiceMonitor") {
            let selector = map(monitor.pointer("/spec/selector/matchLabels"));
            let services: Vec<_> = rendered
                .of_kind("Service")
                .filter(|service| selects(&selector, &map(service.pointer("/metadata/labels"))))
                .collect();
            assert!(!services.is_empty(), "{}", rendered.name);
            for service in services {
                let named = |name| list(service, "/spec/ports").any(|port| port["name"] == name);
                assert!(
                    list(monitor, "/spec/endpoints")
                        .all(|endpoint| named(endpoint["port"].as_str().unwrap()))
                );
            }
        }
    }
}

#[test]
fn what_pods_refer_to_is_there() {
    for rendered in matrix() {
        for pod in rendered.pods() {
            let place = format!("{}: {}", rendered.name, called(pod.owner));
            let account = text(pod.spec, "/serviceAccountName");
            assert!(rendered.has("ServiceAccount", account), "{place}: ServiceAccount {account}");
            let mut volumes = BTreeSet::new();
            for volume in list(pod.spec, "/volumes") {
                volumes.insert(text(volume, "/name").to_owned());
                for (kind, pointer) in [("ConfigMap", "/configMap/name"), ("Secret", "/secret/secretName")] {
                    let name = text(volume, pointer);
                    assert!(name.is_empty() || rendered.has(kind, name), "{place}: {kind} {name}");
                }
                for source in list(volume, "/projected/sources") {
                    let name = text(source, "/configMap/name");
                    assert!(name.is_empty() || rendered.has("ConfigMap", name), "{place}: ConfigMap {name}");
                }
            }
            volumes.extend(
                list(pod.owner, "/spec/volumeClaimTemplates")
                    .map(|claim| text(claim, "/metadata/name").to_owned()),
            );
            let containers = list(pod.spec, "/containers");
            let mounted: BTreeSet<_> = containers
                .flat_map(|container| list(container, "/volumeMounts"))
                .map(|mount| text(mount, "/name").to_owned())
                .collect();
            assert_eq!(mounted, volumes, "{place}: left what is mounted, right what is there");
            for container in list(pod.spec, "/containers") {
                for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                    if let Some(port) = container[probe].pointer("/httpGet/port") {
                        assert!(ports(pod.spec).contains_key(port.as_str().unwrap()), "{place}: {probe}");
                    }
                }
            }
        }
    }
}

#[test]
fn arguments_and_variables_are_those_of_the_programs() {
    let programs = programs().unwrap();
    let mut commands = BTreeSet::new();
    let mut variables = BTreeSet::new();
    for rendered in matrix() {
        for pod in rendered.pods() {
            for container in list(pod.spec, "/containers") {
                let command = list(container, "/command").chain(list(container, "/args"));
                let mut words: Vec<_> = command.map(|word| word.as_str().unwrap().to_owned()).collect();
                if container["command"].is_null() {
                    words.insert(0, "/countersign-control".to_owned());
                }
                commands.insert(words);
                variables.extend(list(container, "/env").map(|variable| text(variable, "/name").to_owned()));
                listens_where_it_says(container, &rendered.name);
            }
        }
    }
    // What the webhook gives to the proxy of every pod is the proxy's.
    let more: Vec<_> = commands
        .iter()
        .flatten()
        .filter_map(|word| word.strip_prefix("--proxy-arg="))
        .map(|arg| vec!["/countersign-proxy".to_owned(), "serve".to_owned(), arg.to_owned()])
        .collect();
    assert!(more.len() >= 2 || matrix().is_empty(), "{more:?}");
    commands.extend(more);
    for mut words in commands {
        let program = programs.join(words.remove(0).trim_start_matches('/'));
        // Help is printed only once everything before it has been understood.
        words.push("--help".to_owned());
        let output = Command::new(program).args(&words).env_clear().output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let reference = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference");
    let pages = ["countersign-control.md", "countersign-webhook.md", "countersign.md"]
        .map(|page| std::fs::read_to_string(reference.join(page)).unwrap());
    for name in variables.iter().filter(|name| name.starts_with("COUNTERSIGN_")) {
        assert!(pages.iter().any(|page| page.contains(&format!("`{name}`"))), "{name}");
    }
}

/// Every port that a server says it has is one that its arguments tell it to listen on.
fn listens_where_it_says(container: &Value, place: &str) {
    let args: Vec<_> = list(container, "/args").filter_map(Value::as_str).collect();
    for port in list(container, "/ports") {
        let suffix = format!(":{}", port["containerPort"]);
        let listens = args.iter().any(|arg| {
            let listen =
                ["--listen=", "--discovery-listen=", "--health="].iter().any(|flag| arg.starts_with(flag));
            listen && arg.ends_with(&suffix)
        });
        assert!(listens, "{place}: {} has port {port} but {args:?}", container["name"]);
    }
}

#[test]
fn the_webhook_is_asked_where_it_listens_and_only_about_what_opted_in() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../crates/control/src/kubernetes/webhook/mod.rs");
    let served = std::fs::read_to_string(source).unwrap();
    for rendered in matrix() {
        let configurations = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];
        let configurations: Vec<_> = configurations.iter().flat_map(|kind| rendered.of_kind(kind)).collect();
        let has_webhook = rendered.of_kind("Deployment").next().is_some();
        assert_eq!(configurations.len(), if has_webhook { 2 } else { 0 }, "{}", rendered.name);
        for configuration in configurations {
            for webhook in list(configuration, "/webhooks") {
                let place = format!("{}: {}", rendered.name, text(webhook, "/name"));
                let service = text(webhook, "/clientConfig/service/name");
                let service =
                    rendered.of_kind("Service").find(|object| text(object, "/metadata/name") == service);
                let service = service.unwrap_or_else(|| panic!("{place}"));
                assert_eq!(
                    text(service, "/metadata/namespace"),
                    text(webhook, "/clientConfig/service/namespace")
                );
                assert!(
                    list(service, "/spec/ports")
                        .any(|port| port["port"] == webhook["clientConfig"]["service"]["port"])
                );
                let path = text(webhook, "/clientConfig/service/path");
                assert!(served.contains(&format!("\"{path}\"")), "{place}: no program serves {path}");
                assert!(
                    webhook.pointer("/clientConfig/caBundle").is_none(),
                    "{place}: an upgrade would set it back"
                );
                assert_eq!(text(webhook, "/sideEffects"), "None");
                // Everything of the chart is named alike, so that `caBundle` is kept current by whoever has to.
                let pods = rendered.pods();
                let webhooks = pods.iter().filter(|pod| text(pod.owner, "/kind") == "Deployment");
                let args: Vec<_> = webhooks
                    .flat_map(|pod| list(pod.spec, "/containers"))
                    .flat_map(|container| list(container, "/args"))
                    .collect();
                let said = format!("--webhook-configuration={}", text(configuration, "/metadata/name"));
                let annotation =
                    configuration.pointer("/metadata/annotations/cert-manager.io~1inject-ca-from");
                assert!(args.iter().any(|arg| **arg == *said) != annotation.is_some(), "{place}");
            }
        }
        for configuration in rendered.of_kind("MutatingWebhookConfiguration") {
            let [webhook] = configuration["webhooks"].as_array().unwrap().as_slice() else {
                panic!("one webhook")
            };
            let selector: Vec<_> = list(webhook, "/namespaceSelector/matchExpressions").collect();
            let opted_in = serde_json::json!({ "key": "countersign.dev/inject", "operator": "In", "values": ["enabled"] });
            assert!(selector.contains(&&opted_in), "{}", rendered.name);
            let left_alone = selector.iter().find(|part| part["operator"] == "NotIn").unwrap();
            for namespace in ["kube-system", text(webhook, "/clientConfig/service/namespace")] {
                assert!(
                    list(left_alone, "/values").any(|value| value == namespace),
                    "{}: {namespace}",
                    rendered.name
                );
            }
        }
    }
}

#[test]
fn a_hook_takes_both_configurations_away_before_anything_else_is_removed() {
    for rendered in matrix() {
        let name = |object: &Value| called(object);
        let installed: BTreeSet<_> = rendered
            .objects
            .iter()
            .filter(|object| !is_hook(object) && called(object).contains("WebhookConfiguration "))
            .map(name)
            .collect();
        let hooks: Vec<_> = rendered
            .objects
            .iter()
            .filter(|object| text(object, "/metadata/annotations/helm.sh~1hook") == "pre-delete")
            .collect();
        assert_eq!(
            hooks.iter().map(|hook| called(hook)).collect::<BTreeSet<_>>(),
            installed,
            "{}",
            rendered.name
        );
        for hook in hooks {
            assert_eq!(hook["webhooks"], serde_json::json!([]), "it stops nothing");
            let policy = text(hook, "/metadata/annotations/helm.sh~1hook-delete-policy");
            assert_eq!(policy, "before-hook-creation,hook-succeeded");
        }
    }
}

#[test]
fn every_container_of_ours_is_as_the_strictest_pod_security_wants_it() {
    for rendered in matrix() {
        for pod in rendered.pods() {
            let place = format!("{}: {}", rendered.name, called(pod.owner));
            // https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
            assert_eq!(pod.spec["securityContext"]["runAsNonRoot"], true, "{place}");
            for field in ["hostPID", "hostIPC", "shareProcessNamespace"] {
                assert!(pod.spec.get(field).is_none(), "{place}: {field}");
            }
            for volume in list(pod.spec, "/volumes") {
                assert!(volume.get("hostPath").is_none(), "{place}");
            }
            for container in list(pod.spec, "/containers") {
                let security = &container["securityContext"];
                for (field, value) in [
                    ("allowPrivilegeEscalation", false),
                    ("privileged", false),
                    ("readOnlyRootFilesystem", true),
                    ("runAsNonRoot", true),
                ] {
                    assert_eq!(security[field], value, "{place}: {field}");
                }
                assert_eq!(security["capabilities"], serde_json::json!({ "drop": ["ALL"] }), "{place}");
                assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{place}");
                for pointer in ["/requests/cpu", "/requests/memory", "/limits/memory"] {
                    assert!(!text(&container["resources"], pointer).is_empty(), "{place}: {pointer}");
                }
                let image = text(container, "/image");
                let tag = image.rsplit_once('/').map_or(image, |(_, name)| name);
                assert!(tag.contains(':') && !tag.ends_with(":latest"), "{place}: {image}");
                assert!(!text(container, "/imagePullPolicy").is_empty(), "{place}");
            }
        }
    }
}

#[test]
fn roles_are_bound_and_give_no_more_than_is_named() {
    for rendered in matrix() {
        for kind in ["RoleBinding", "ClusterRoleBinding"] {
            for binding in rendered.of_kind(kind) {
                let place = format!("{}: {}", rendered.name, called(binding));
                assert!(
                    rendered.has(text(binding, "/roleRef/kind"), text(binding, "/roleRef/name")),
                    "{place}"
                );
                let accounts =
                    list(binding, "/subjects").filter(|subject| text(subject, "/kind") == "ServiceAccount");
                for subject in accounts {
                    assert!(rendered.has(text(subject, "/kind"), text(subject, "/name")), "{place}");
                    assert!(!text(subject, "/namespace").is_empty(), "{place}");
                }
            }
        }
        for kind in ["Role", "ClusterRole"] {
            for role in rendered.of_kind(kind) {
                for rule in list(role, "/rules") {
                    let place = format!("{}: {}: {rule}", rendered.name, called(role));
                    assert!(!rule.to_string().contains('*'), "{place}");
                    let grants = |verb: &str| list(rule, "/verbs").any(|given| given == verb);
                    let on = |resource: &str| list(rule, "/resources").any(|given| given == resource);
                    let named = list(rule, "/resourceNames").next().is_some();
                    // What is created has no name yet, so that is the one thing that no name can narrow.
                    if on("secrets") || on("configmaps") || on("leases") || on("serviceaccounts/token") {
                        let narrow = ["get", "list", "watch", "update", "patch", "delete"]
                            .iter()
                            .any(|verb| grants(verb));
                        assert!(named || !narrow, "{place}");
                        assert_eq!(kind, "Role", "{place}");
                    }
                    for refused in ["bind", "escalate", "impersonate", "deletecollection"] {
                        assert!(!grants(refused), "{place}");
                    }
                    for refused in
                        ["pods/exec", "nodes", "clusterroles", "clusterrolebindings", "pods/attach"]
                    {
                        assert!(!on(refused), "{place}");
                    }
                }
            }
        }
    }
}

#[test]
fn names_fit_and_everything_is_labelled_and_in_its_namespace() {
    for rendered in matrix() {
        let mut names = BTreeSet::new();
        for object in &rendered.objects {
            let place = format!("{}: {}", rendered.name, called(object));
            assert!(text(object, "/metadata/name").len() <= 63, "{place}");
            assert!(names.insert((called(object), is_hook(object))), "{place} is there twice");
            let cluster = ["ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"];
            let kind = text(object, "/kind");
            let is_cluster = cluster.contains(&kind) || kind.ends_with("WebhookConfiguration");
            assert_eq!(is_cluster, text(object, "/metadata/namespace").is_empty(), "{place}");
            let extra = text(object, "/metadata/name").ends_with("-more");
            assert!(
                extra || text(object, "/metadata/labels/app.kubernetes.io~1part-of") == "countersign",
                "{place}"
            );
        }
    }
}
