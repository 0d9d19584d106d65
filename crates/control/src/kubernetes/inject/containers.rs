//! The containers and volumes that injection adds, as JSON in the shape of the pod they go into.

use model::slice::Egress;
use serde_json::{Value, json};

use super::settings::{Capture, NamespaceSettings, PodSettings, Settings};
use super::{names, trust};

/// The init container that installs the redirect: root with NET_ADMIN, and nothing else, and only here.
#[must_use]
pub fn capture(settings: &Settings, namespace: &NamespaceSettings, pod: &PodSettings) -> Value {
    let mut args = vec![
        "capture".to_owned(),
        "install".to_owned(),
        format!("--proxy-port={}", settings.redirect_port),
        format!("--proxy-uid={}", settings.uid),
    ];
    args.extend(settings.exclude_uids.iter().map(|uid| format!("--exclude-uid={uid}")));
    args.extend(pod.exclude_ports.iter().map(|port| format!("--exclude-port={port}")));
    args.extend(pod.exclude_networks.iter().map(|network| format!("--exclude-cidr={network}")));
    if namespace.egress == Egress::Enforce {
        args.push("--other=reject".to_owned());
    }
    json!({
        "name": names::CAPTURE_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "args": args,
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "resources": {
            "requests": { "cpu": "10m", "memory": "16Mi" },
            "limits": { "memory": "64Mi" },
        },
        "volumeMounts": [no_token()],
    })
}

/// The proxy's container: not root, no capability, nothing of its own file system to write to.
#[must_use]
pub fn proxy(settings: &Settings, namespace: &NamespaceSettings, pod: &PodSettings) -> Value {
    let mut container = json!({
        "name": names::PROXY_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "args": proxy_args(settings, namespace, pod),
        "ports": [{ "name": "cs-health", "containerPort": settings.health_port, "protocol": "TCP" }],
        "securityContext": {
            "runAsUser": settings.uid,
            "runAsGroup": settings.uid,
            "runAsNonRoot": true,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "resources": settings.resources,
        "readinessProbe": { "httpGet": { "path": "/readyz", "port": settings.health_port }, "periodSeconds": 5 },
        "livenessProbe": { "httpGet": { "path": "/livez", "port": settings.health_port }, "periodSeconds": 10, "failureThreshold": 6 },
        "volumeMounts": proxy_mounts(settings),
    });
    // It waits inside for readiness, so that nothing is lost to the period of a probe.
    let health = format!("--health=127.0.0.1:{}", settings.health_port);
    let wait = |seconds: u32| {
        let seconds = format!("--wait={seconds}");
        json!({ "command": ["/countersign-proxy", "ready", seconds, health] })
    };
    if settings.native_sidecars {
        container["restartPolicy"] = json!("Always");
        // What it has waited for in vain for ten seconds is an event; after half an hour it is started anew.
        container["startupProbe"] =
            json!({ "exec": wait(10), "timeoutSeconds": 15, "periodSeconds": 1, "failureThreshold": 180 });
    } else {
        // The kubelet starts the next container only when this one's hook has returned. Before its end it waits until
        // the application has gone: a plain container is stopped at the same moment.
        container["lifecycle"] = json!({
            "postStart": { "exec": wait(60) },
            "preStop": { "exec": { "command": ["/countersign-proxy", "quiet", health] } },
        });
    }
    container
}

fn proxy_args(settings: &Settings, namespace: &NamespaceSettings, pod: &PodSettings) -> Vec<String> {
    let mut args = vec![
        "serve".to_owned(),
        format!("--control={}", settings.control),
        format!("--control-fingerprint={}", settings.control_fingerprint),
        "--evidence-kind=kubernetes".to_owned(),
        format!("--evidence-token={}/token", names::TOKEN_PATH),
        format!("--state={}/proxy", names::STATE_PATH),
        format!("--spool={}/spool", names::SPOOL_PATH),
        format!("--bundle={}", trust::bundle_path()),
        format!("--health=[::]:{}", settings.health_port),
        format!("--trust-port={}", settings.health_port + 1),
        format!("--max-memory-mib={}", settings.max_memory_mib),
        "--log-format=json".to_owned(),
    ];
    match namespace.capture {
        Capture::Redirect => args.push(format!("--listen-port={}", settings.redirect_port)),
        Capture::Explicit => {
            args.extend([
                "--redirect=none".to_owned(),
                format!("--explicit-port={}", settings.explicit_port),
            ]);
        }
    }
    if settings.native_sidecars {
        // It is told to stop when the application has ended.
        args.push("--drain-quiet=0".to_owned());
    }
    if settings.roots_config_map.is_some() {
        // The directory: the ConfigMap may be missing in this namespace, and it is empty then.
        args.push(format!("--roots={}", names::ROOTS_PATH));
    }
    args.extend(pod.log.iter().map(|filter| format!("--log={filter}")));
    args.extend(settings.more_args.iter().cloned());
    args
}

/// The proxy's settings that injection gives by itself, in one way of capturing or another, or because a pod's annotation
/// says so.
const OWN_ARGS: [&str; 17] = [
    "--control",
    "--control-fingerprint",
    "--evidence-kind",
    "--evidence-token",
    "--state",
    "--spool",
    "--bundle",
    "--health",
    "--trust-port",
    "--max-memory-mib",
    "--log-format",
    "--listen-port",
    "--redirect",
    "--explicit-port",
    "--drain-quiet",
    "--roots",
    "--log",
];

/// Checks the arguments that are added to the proxy's own: the proxy refuses what is given twice, and then no pod starts.
///
/// # Errors
/// What is wrong with the first that can't be added.
pub fn check_more_args(more: &[String]) -> Result<(), String> {
    let name = |arg: &String| arg.split('=').next().unwrap_or_default().to_owned();
    for (index, arg) in more.iter().enumerate() {
        let name_of_it = name(arg);
        if name_of_it.len() < 3 || !name_of_it.starts_with("--") || !arg.contains('=') {
            return Err(format!("{arg:?} is not of the form --NAME=VALUE"));
        }
        if OWN_ARGS.contains(&name_of_it.as_str()) {
            return Err(format!(
                "{name_of_it} is set by injection itself, as are {}",
                OWN_ARGS.iter().filter(|own| **own != name_of_it).copied().collect::<Vec<_>>().join(", ")
            ));
        }
        if more[..index].iter().any(|before| name(before) == name_of_it) {
            return Err(format!("{name_of_it} is given twice: a list is one argument, with commas"));
        }
    }
    Ok(())
}

fn proxy_mounts(settings: &Settings) -> Vec<Value> {
    let mut mounts = vec![
        no_token(),
        json!({ "name": names::TOKEN_VOLUME, "mountPath": names::TOKEN_PATH, "readOnly": true }),
        json!({ "name": names::STATE_VOLUME, "mountPath": names::STATE_PATH }),
        json!({ "name": names::SPOOL_VOLUME, "mountPath": names::SPOOL_PATH }),
        json!({ "name": names::TRUST_VOLUME, "mountPath": names::TRUST_PATH }),
    ];
    if settings.roots_config_map.is_some() {
        mounts.push(json!({ "name": names::ROOTS_VOLUME, "mountPath": names::ROOTS_PATH, "readOnly": true }));
    }
    mounts
}

/// Something must be mounted where the API server mounts the pod's default token, or it will mount it.
fn no_token() -> Value {
    json!({ "name": names::NO_TOKEN_VOLUME, "mountPath": names::DEFAULT_TOKEN_PATH, "readOnly": true })
}

/// The mode that the API server gives files of a volume that says none. It is said here, so that a pod that comes a
/// second time is as we would make it.
const DEFAULT_MODE: u32 = 0o644;

/// The volumes. A token lives for an hour: the kubelet renews it at 80 %, and attestation is renewed by it.
#[must_use]
pub fn volumes(settings: &Settings) -> Vec<Value> {
    let memory = |name: &str, size: &str| json!({ "name": name, "emptyDir": { "medium": "Memory", "sizeLimit": size } });
    let mut volumes = vec![
        memory(names::STATE_VOLUME, "16Mi"),
        json!({ "name": names::SPOOL_VOLUME, "emptyDir": { "sizeLimit": settings.spool_size } }),
        memory(names::TRUST_VOLUME, "4Mi"),
        json!({ "name": names::TOKEN_VOLUME, "projected": { "defaultMode": DEFAULT_MODE, "sources": [
            { "serviceAccountToken": { "audience": settings.audience, "expirationSeconds": 3600, "path": "token" } },
        ] } }),
        memory(names::NO_TOKEN_VOLUME, "4Ki"),
    ];
    if let Some(name) = &settings.roots_config_map {
        volumes.push(json!({ "name": names::ROOTS_VOLUME, "configMap": { "name": name, "optional": true, "defaultMode": DEFAULT_MODE } }));
    }
    volumes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            version: String::new(),
            image: String::new(),
            pull_policy: String::new(),
            control: String::new(),
            control_fingerprint: String::new(),
            audience: String::new(),
            uid: 1,
            exclude_uids: Vec::new(),
            redirect_port: 1,
            explicit_port: 2,
            health_port: 3,
            roots_config_map: Some("roots".to_owned()),
            resources: json!({}),
            max_memory_mib: 96,
            more_args: Vec::new(),
            spool_size: String::new(),
            native_sidecars: true,
            egress: Egress::Observe,
        }
    }

    #[test]
    fn what_injection_gives_itself_is_refused_as_an_argument_more() {
        let pod = PodSettings { log: Some("debug".to_owned()), ..PodSettings::default() };
        let mut given = std::collections::BTreeSet::new();
        for capture in [Capture::Redirect, Capture::Explicit] {
            let namespace = NamespaceSettings {
                egress: Egress::Observe,
                capture,
                drop_capabilities: false,
                opt_out: true,
            };
            for arg in proxy_args(&settings(), &namespace, &pod).split_off(1) {
                let refused = check_more_args(std::slice::from_ref(&arg)).unwrap_err();
                assert!(refused.contains("is set by injection itself"), "{arg}: {refused}");
                given.insert(arg.split('=').next().unwrap().to_owned());
            }
        }
        assert_eq!(given, OWN_ARGS.map(str::to_owned).into(), "the list has no others");
    }

    #[test]
    fn what_is_no_argument_or_is_given_twice_is_refused() {
        let check =
            |args: &[&str]| check_more_args(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>());
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&["--max-header-kib=128", "--refuse-cidr=10.0.0.0/8,fd00::/8"]), Ok(()));
        for bad in ["", "--", "--=1", "-x=1", "max-headers=1", "serve", "--max-headers", "--max-headers 200"]
        {
            assert!(check(&[bad]).unwrap_err().contains("--NAME=VALUE"), "{bad}");
        }
        let twice = check(&["--max-headers=200", "--max-resets=5", "--max-headers=300"]).unwrap_err();
        assert!(twice.contains("--max-headers is given twice"), "{twice}");
    }
}
