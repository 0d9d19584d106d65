//! Injection over admission requests that a Kubernetes 1.36 API server sent, and over pods that mean no good.
//!
//! Each request of `tests/golden/kubernetes/admissionreview` has a snapshot of what was answered and of the pod that
//! comes out; `INSTA_UPDATE=always` takes new ones.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use control::kubernetes::admission;
use control::kubernetes::inject::settings::Settings;
use control::kubernetes::inject::{Verdict, inject, names};
use control::kubernetes::webhook::review::render;
use json_patch::Patch;
use kube::core::DynamicObject;
use kube::core::admission::AdmissionReview;
use serde_json::{Value, json};

use common::settings;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/kubernetes")
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn review(folder: &str, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden().join(folder).join(name)).unwrap()).unwrap()
}

/// What the API server is answered, and the pod as it then is.
fn answered(review: &Value, labels: &BTreeMap<String, String>, settings: &Settings) -> (Value, Value) {
    let asked: AdmissionReview<DynamicObject> = serde_json::from_value(review.clone()).unwrap();
    let answer = admission::answer(&asked.try_into().unwrap(), labels, settings);
    let mut response: Value = serde_json::from_slice(&render(answer.response).unwrap()).unwrap();
    let mut response = response["response"].take();
    assert_eq!(response["uid"], review["request"]["uid"]);
    let mut pod = review["request"]["object"].clone();
    if let Some(patch) = response["patch"].as_str() {
        let bytes = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
        let patch: Patch = serde_json::from_slice(&bytes).unwrap();
        json_patch::patch(&mut pod, &patch).unwrap();
        let paths: Vec<String> = patch.0.iter().map(|operation| operation.path().to_string()).collect();
        response["patch"] = json!(paths);
    }
    (response, pod)
}

#[test]
fn requests_of_a_real_api_server() {
    let mut names: Vec<String> = std::fs::read_dir(golden().join("admissionreview"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect();
    names.sort();
    assert_eq!(names.len(), 16);
    for name in names {
        snapshot(&name, &review("admissionreview", &name), &[], &settings());
    }
    let bare = review("admissionreview", "002-CREATE-pods-bare-bare.json");
    snapshot("explicit-proxy", &bare, &[(names::CAPTURE, "explicit")], &settings());
    // A cluster before 1.29 has no native sidecars.
    let settings = Settings { native_sidecars: false, ..settings() };
    let replica = review("admissionreview", "005-CREATE-pods-ReplicaSet-web-5484f64bf5.json");
    snapshot("without-native-sidecars", &replica, &[], &settings);
}

/// What is answered, and the pod that comes out, without what the API server fills in and injection does not touch.
#[track_caller]
fn snapshot(name: &str, review: &Value, namespace: &[(&str, &str)], settings: &Settings) {
    let (response, pod) = answered(review, &labels(namespace), settings);
    let mut shown = json!({ "response": response });
    if !response["patch"].is_null() {
        let metadata = &pod["metadata"];
        shown["pod"] = json!({ "labels": metadata["labels"], "annotations": metadata["annotations"], "spec": pod["spec"] });
        for hidden in ["tolerations", "dnsPolicy", "schedulerName", "priority", "preemptionPolicy"] {
            shown["pod"]["spec"].as_object_mut().unwrap().remove(hidden);
        }
        let annotations = shown["pod"]["annotations"].as_object_mut().unwrap();
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    insta::with_settings!({
        snapshot_path => golden().join("injected"),
        prepend_module_to_snapshot => false,
        omit_expression => true
    }, {
        insta::assert_snapshot!(name.trim_end_matches(".json"), serde_json::to_string_pretty(&shown).unwrap());
    });
}

#[test]
fn a_second_call_changes_nothing_but_the_order() {
    let first = review("reinvocation", "001-CREATE-pods-bare-inj.json");
    for namespace in [&[][..], &[(names::CAPTURE, "explicit")][..]] {
        for native_sidecars in [true, false] {
            let settings = Settings { native_sidecars, ..settings() };
            let labels = labels(namespace);
            let (_, mut pod) = answered(&first, &labels, &settings);
            let Verdict::Inject { patch, .. } = inject(&pod, &labels, &settings) else { panic!("injected") };
            assert!(patch.0.is_empty(), "{patch:?}");
            // Another webhook has meanwhile put its container first and a mount into all.
            let containers = if native_sidecars { "initContainers" } else { "containers" };
            let list = pod["spec"][containers].as_array_mut().unwrap();
            for container in list.iter_mut() {
                let mount = json!({ "name": "vault-secrets", "mountPath": "/vault/secrets" });
                container["volumeMounts"].as_array_mut().unwrap().push(mount);
            }
            list.insert(0, json!({ "name": "vault-agent-init", "image": "vault:1" }));
            let Verdict::Inject { patch, .. } = inject(&pod, &labels, &settings) else { panic!("injected") };
            json_patch::patch(&mut pod, &patch).unwrap();
            let order: Vec<&str> = names_of(&pod["spec"][containers]);
            assert!(order[0].starts_with("countersign-"), "{order:?}");
            let mounts = pod["spec"][containers][0]["volumeMounts"].as_array().unwrap();
            assert!(mounts.iter().any(|mount| mount["name"] == "vault-secrets"), "what was added stays");
            let Verdict::Inject { patch, .. } = inject(&pod, &labels, &settings) else { panic!("injected") };
            assert!(patch.0.is_empty(), "{patch:?}");
        }
    }
}

fn names_of(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|container| container["name"].as_str().unwrap()).collect()
}

/// A pod that could neither read its proxy nor go round it.
fn contained() -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "app" }, "spec": { "containers": [{
        "name": "app",
        "image": "app:1",
        "securityContext": { "runAsNonRoot": true, "capabilities": { "drop": ["ALL"] } },
    }] } })
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = contained();
    change(&mut pod["spec"]);
    pod
}

fn with_container(change: impl FnOnce(&mut Value)) -> Value {
    with(|spec| change(&mut spec["containers"][0]))
}

#[track_caller]
fn refused(pod: &Value, namespace: &[(&str, &str)], because: &str) {
    refused_with(pod, namespace, because, &settings());
}

#[track_caller]
fn refused_with(pod: &Value, namespace: &[(&str, &str)], because: &str, settings: &Settings) {
    match inject(pod, &labels(namespace), settings) {
        Verdict::Refuse { reasons, .. } => {
            assert!(reasons.iter().any(|reason| reason.contains(because)), "{because}: {reasons:?}");
        }
        other => panic!("{because}: {other:?}"),
    }
}

#[test]
fn what_could_read_the_proxy_is_always_refused() {
    let adds = |capability: &str| {
        let added = json!([capability]);
        with_container(|c| c["securityContext"]["capabilities"]["add"] = added)
    };
    let mounts = |volume: &str| {
        let mounts = json!([{ "name": volume, "mountPath": "/x" }]);
        with_container(|c| c["volumeMounts"] = mounts)
    };
    let host_path = |path: &str| {
        let volumes = json!([{ "name": "node", "hostPath": { "path": path } }]);
        with(|spec| spec["volumes"] = volumes)
    };
    let pretends = json!([{ "name": "countersign-proxy", "image": "evil:1", "restartPolicy": "Always" }]);
    for (pod, because) in [
        (with(|spec| spec["hostPID"] = json!(true)), "hostPID"),
        (with(|spec| spec["shareProcessNamespace"] = json!(true)), "shareProcessNamespace"),
        (with(|spec| spec["securityContext"] = json!({ "runAsUser": 14014 })), "UID 14014"),
        (with_container(|c| c["securityContext"]["runAsUser"] = json!(14014)), "UID 14014"),
        (with_container(|c| c["securityContext"]["privileged"] = json!(true)), "privileged"),
        (adds("cap_sys_ptrace"), "SYS_PTRACE"),
        (adds("SYS_ADMIN"), "SYS_ADMIN"),
        (adds("ALL"), "adds ALL"),
        (with_container(|c| c["name"] = json!("countersign-helper")), "name of ours"),
        (with_container(|c| c["name"] = json!("countersign-proxy")), "name of ours"),
        (with(|spec| spec["initContainers"] = pretends), "name of ours"),
        (mounts("countersign-state"), "countersign-state"),
        (mounts("countersign-token"), "countersign-token"),
        (host_path("/var/lib/kubelet/pods"), "/var/lib/kubelet/pods"),
        (host_path("/"), "mounts / of the node"),
        (host_path("/var/run/docker.sock"), "docker.sock"),
    ] {
        refused(&pod, &[], because);
        refused(&pod, &[(names::EGRESS, "enforce")], because);
    }
}

#[test]
fn what_could_go_round_it_is_refused_in_enforce_and_told_in_observe() {
    let context = |context: Value| with_container(|c| c["securityContext"] = context);
    for (pod, because) in [
        (context(json!({ "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] } })), "NET_ADMIN"),
        (context(json!({ "runAsNonRoot": true })), "NET_RAW"),
        (context(json!({ "capabilities": { "drop": ["NET_RAW"] } })), "SETUID"),
        (with(|spec| spec["hostNetwork"] = json!(true)), "hostNetwork"),
    ] {
        refused(&pod, &[(names::EGRESS, "enforce")], because);
        match inject(&pod, &labels(&[]), &settings()) {
            Verdict::Inject { notes, .. } | Verdict::Skip { notes, .. } => {
                assert!(notes.iter().any(|note| note.text.contains(because)), "{because}: {notes:?}");
            }
            refused => panic!("{because}: {refused:?}"),
        }
    }
    let enforce = labels(&[(names::EGRESS, "enforce")]);
    assert!(matches!(inject(&contained(), &enforce, &settings()), Verdict::Inject { .. }));
}

#[test]
fn a_namespace_may_have_capabilities_taken_away_instead() {
    let keeps = with_container(|c| c["securityContext"] = json!({}));
    let namespace = [(names::EGRESS, "enforce"), (names::CAPABILITIES, "drop")];
    let changed = injected(&keeps, &namespace, &settings());
    let dropped = &changed["spec"]["containers"][0]["securityContext"]["capabilities"]["drop"];
    assert_eq!(dropped, &json!(["NET_RAW", "SETUID"]));
}

fn injected(pod: &Value, namespace: &[(&str, &str)], settings: &Settings) -> Value {
    match inject(pod, &labels(namespace), settings) {
        Verdict::Inject { patch, .. } => {
            let mut changed = pod.clone();
            json_patch::patch(&mut changed, &patch).unwrap();
            changed
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn pods_opt_out_where_their_namespace_lets_them() {
    let mut out = contained();
    out["metadata"]["labels"] = json!({ "countersign.dev/inject": "disabled" });
    let skipped = Verdict::Skip { because: "opted_out", patch: Patch::default(), notes: vec![] };
    assert_eq!(inject(&out, &labels(&[]), &settings()), skipped);
    refused(&out, &[(names::EGRESS, "enforce")], "opts out");
    let allowed = labels(&[(names::EGRESS, "enforce"), (names::OPT_OUT, "allowed")]);
    assert_eq!(inject(&out, &allowed, &settings()), skipped);
}

#[test]
fn what_the_platform_team_adds_to_the_proxy_s_arguments_no_pod_changes() {
    let more = "--max-header-kib=128".to_owned();
    let settings = Settings { more_args: vec![more.clone()], ..settings() };
    for namespace in [&[][..], &[(names::CAPTURE, "explicit")][..]] {
        let pod = injected(&contained(), namespace, &settings);
        let proxy = pod["spec"]["initContainers"].as_array().unwrap().last().unwrap();
        assert_eq!(proxy["name"], "countersign-proxy");
        assert_eq!(proxy["args"].as_array().unwrap().last().unwrap(), &json!(more));
    }
    // A pod that comes with a proxy of its own making is refused, and no annotation adds an argument.
    let mut pod = injected(&contained(), &[], &settings);
    let proxy = pod["spec"]["initContainers"].as_array_mut().unwrap().last_mut().unwrap();
    *proxy["args"].as_array_mut().unwrap().last_mut().unwrap() = json!("--max-header-kib=1024");
    refused_with(&pod, &[], "another args", &settings);
    let mut pod = contained();
    pod["metadata"]["annotations"] = json!({ "config.countersign.dev/args": "--max-header-kib=1024" });
    refused_with(&pod, &[], "is not known", &settings);
}

#[test]
fn a_misspelt_setting_is_told() {
    let mut pod = contained();
    pod["metadata"]["annotations"] = json!({ "config.countersign.dev/exclude-port": "22" });
    refused(&pod, &[], "exclude-ports");
    pod["metadata"]["annotations"] = json!({ "config.countersign.dev/exclude-ports": "ssh" });
    refused(&pod, &[], "such as 22,25");
    refused(&contained(), &[(names::EGRESS, "enfroce")], "must be observe or enforce");
}

#[test]
fn without_native_sidecars_what_can_t_work_is_refused() {
    let settings = Settings { native_sidecars: false, ..settings() };
    let job = with(|spec| spec["restartPolicy"] = json!("OnFailure"));
    let init = with(|spec| spec["initContainers"] = json!([{ "name": "setup", "image": "x" }]));
    for (pod, because) in [(job, "a pod that ends"), (init, "capture=explicit")] {
        let Verdict::Refuse { reasons, .. } = inject(&pod, &labels(&[]), &settings) else {
            panic!("{because}")
        };
        assert!(reasons[0].contains(because), "{reasons:?}");
    }
    let pod = injected(&contained(), &[], &settings);
    assert_eq!(names_of(&pod["spec"]["initContainers"]), ["countersign-capture"]);
    assert_eq!(names_of(&pod["spec"]["containers"]), ["countersign-proxy", "app"]);
}

#[test]
fn restricted_namespaces_get_an_explicit_proxy_without_any_capability() {
    let pod =
        injected(&contained(), &[(names::CAPTURE, "explicit"), (names::EGRESS, "enforce")], &settings());
    assert_eq!(names_of(&pod["spec"]["initContainers"]), ["countersign-proxy"]);
    // What Pod Security `restricted` asks for.
    let context = &pod["spec"]["initContainers"][0]["securityContext"];
    assert_eq!(context["runAsNonRoot"], true);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(env.iter().any(|v| v["name"] == "HTTPS_PROXY" && v["value"] == "http://127.0.0.1:14002"));
}

#[test]
fn a_value_that_the_pod_sets_itself_is_left_and_told() {
    let pod = with_container(|c| c["env"] = json!([{ "name": "SSL_CERT_FILE", "value": "/mine.pem" }]));
    let Verdict::Inject { notes, .. } = inject(&pod, &labels(&[]), &settings()) else { panic!("injected") };
    assert!(notes.iter().any(|note| note.text.contains("SSL_CERT_FILE")), "{notes:?}");
    let changed = injected(&pod, &[], &settings());
    assert_eq!(changed["spec"]["containers"][0]["env"][0]["value"], "/mine.pem");
}

#[test]
fn a_debug_container_must_not_see_the_proxy() {
    let running = review("admissionreview", "014-UPDATE-pods_ephemeralcontainers-bare-bare.json");
    let (response, _) = answered(&running, &labels(&[]), &settings());
    assert_eq!(response["allowed"], true, "the pod has no proxy");
    let mut injected = running;
    injected["request"]["object"]["spec"]["initContainers"] =
        json!([{ "name": "countersign-proxy", "image": "x" }]);
    let (response, _) = answered(&injected, &labels(&[]), &settings());
    assert_eq!(response["allowed"], false);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("SYS_PTRACE"), "{message}");
    let debugger = &mut injected["request"]["object"]["spec"]["ephemeralContainers"][0];
    debugger["securityContext"] = json!({});
    debugger["targetContainerName"] = json!("countersign-proxy");
    let (response, _) = answered(&injected, &labels(&[]), &settings());
    assert_eq!(response["allowed"], false);
}

/// A pod as other injectors leave it, after their public documentation; what they do not need here is left out.
fn injected_by(other: &str, pod: &Value) -> Value {
    let mut pod = pod.clone();
    let proxy_of_mesh = |name: &str, uid: u64| {
        json!({ "name": name, "image": "mesh:1", "args": ["proxy"], "securityContext": {
            "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
            "runAsNonRoot": true, "runAsUser": uid, "runAsGroup": uid, "capabilities": { "drop": ["ALL"] },
        } })
    };
    let redirect_of_mesh = |name: &str, uid: u64| {
        json!({ "name": name, "image": "mesh:1", "args": ["redirect"], "securityContext": {
            "allowPrivilegeEscalation": false, "privileged": false, "runAsUser": uid, "runAsNonRoot": uid != 0,
            "capabilities": { "add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"] },
        } })
    };
    let spec = &mut pod["spec"];
    let mut init = spec["initContainers"].as_array().cloned().unwrap_or_default();
    match other {
        // https://istio.io/latest/docs/setup/additional-setup/sidecar-injection/ and, for the probes,
        // https://istio.io/latest/docs/ops/configuration/mesh/app-health-check/
        "istio" => {
            init.push(redirect_of_mesh("istio-init", 0));
            for container in init.iter_mut().chain(spec["containers"].as_array_mut().unwrap()) {
                let name = container["name"].as_str().unwrap().to_owned();
                for (probe, path) in [("readinessProbe", "readyz"), ("livenessProbe", "livez")] {
                    if let Some(get) = container.get_mut(probe).and_then(|probe| probe.get_mut("httpGet")) {
                        *get = json!({ "path": format!("/app-health/{name}/{path}"), "port": 15020 });
                    }
                }
            }
            spec["containers"].as_array_mut().unwrap().push(proxy_of_mesh("istio-proxy", 1337));
        }
        // https://linkerd.io/2/reference/architecture/#linkerd-init-container: the proxy's container comes first.
        "linkerd" => {
            init.push(redirect_of_mesh("linkerd-init", 65534));
            spec["containers"].as_array_mut().unwrap().insert(0, proxy_of_mesh("linkerd-proxy", 2102));
        }
        // https://developer.hashicorp.com/vault/docs/platform/k8s/injector: secrets are mounted into every container.
        "vault" => {
            let agent = |name: &str| {
                json!({ "name": name, "image": "vault:1", "command": ["/bin/sh", "-ec"], "args": ["vault agent"],
                    "env": [{ "name": "VAULT_LOG_LEVEL", "value": "info" }],
                    "securityContext": { "runAsUser": 100, "runAsGroup": 1000, "runAsNonRoot": true,
                        "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                        "capabilities": { "drop": ["ALL"] } } })
            };
            init.insert(0, agent("vault-agent-init"));
            spec["containers"].as_array_mut().unwrap().push(agent("vault-agent"));
            for container in init.iter_mut().chain(spec["containers"].as_array_mut().unwrap()) {
                let mounts =
                    container.as_object_mut().unwrap().entry("volumeMounts").or_insert_with(|| json!([]));
                mounts
                    .as_array_mut()
                    .unwrap()
                    .push(json!({ "name": "vault-secrets", "mountPath": "/vault/secrets" }));
            }
            let volumes = spec.as_object_mut().unwrap().entry("volumes").or_insert_with(|| json!([]));
            let volume = json!({ "name": "vault-secrets", "emptyDir": { "medium": "Memory" } });
            volumes.as_array_mut().unwrap().push(volume);
        }
        other => panic!("{other}"),
    }
    pod["spec"]["initContainers"] = json!(init);
    pod
}

#[test]
fn other_injectors_may_come_before_or_after() {
    let pod = contained();
    for other in ["istio", "linkerd", "vault"] {
        let alone = injected_by(other, &pod);
        let after = injected(&alone, &[], &settings());
        // It comes after us: the API server has us look again (`reinvocationPolicy: IfNeeded`).
        let before = injected(&injected_by(other, &injected(&pod, &[], &settings())), &[], &settings());
        for (order, pod) in [("after", &after), ("before", &before)] {
            let init = names_of(&pod["spec"]["initContainers"]);
            assert_eq!(init[..2], ["countersign-capture", "countersign-proxy"], "{other} {order}");
            let again = inject(pod, &labels(&[]), &settings());
            let Verdict::Inject { patch, .. } = again else { panic!("{other} {order}: {again:?}") };
            assert!(patch.0.is_empty(), "{other} {order}: {patch:?}");
            for list in ["initContainers", "containers"] {
                for theirs in alone["spec"][list].as_array().unwrap() {
                    let here = pod["spec"][list].as_array().unwrap();
                    let here = here.iter().find(|container| container["name"] == theirs["name"]).unwrap();
                    for field in ["image", "command", "args", "securityContext"] {
                        assert_eq!(here.get(field), theirs.get(field), "{other} {order}");
                    }
                    let is_mesh =
                        ["istio-proxy", "linkerd-proxy"].contains(&theirs["name"].as_str().unwrap());
                    assert!(!is_mesh || here == theirs, "what is not captured is left alone: {here}");
                }
            }
        }
        // In `enforce` what leads round the proxy is refused, whoever has added it.
        let enforced = inject(&alone, &labels(&[(names::EGRESS, "enforce")]), &settings());
        assert_eq!(matches!(enforced, Verdict::Refuse { .. }), other != "vault", "{enforced:?}");
    }
}

#[test]
fn a_uid_that_is_not_captured_leads_round_the_proxy() {
    let pod = with_container(|c| c["securityContext"]["runAsUser"] = json!(1337));
    refused(&pod, &[(names::EGRESS, "enforce")], "UID that is not captured");
    let Verdict::Inject { notes, .. } = inject(&pod, &labels(&[]), &settings()) else { panic!("injected") };
    assert!(notes[0].text.contains("container app"), "{notes:?}");
}

#[test]
fn the_page_has_every_label_and_annotation() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kubernetes.md");
    let page = std::fs::read_to_string(page).unwrap();
    let of_namespaces = [names::INJECT, names::EGRESS, names::CAPTURE, names::CAPABILITIES, names::OPT_OUT];
    let written = [names::INJECTED, names::INJECTED_BY, names::CONTAINMENT, names::NOTES];
    for name in [&of_namespaces[..], &names::ANNOTATIONS, &written].concat() {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
}
