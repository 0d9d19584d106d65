//! Whether a container with our name is ours: with `reinvocationPolicy: IfNeeded` the webhook sees its own work again,
//! perhaps with additions of others, and nothing in the request tells that from a pod that only pretends.
//!
//! It is ours if everything that we say about it is as we say it, and what was added can neither run nor replace
//! anything in it.

use serde_json::Value;

use super::names;

/// Fields that the API server or other webhooks add, and that run nothing.
const HARMLESS: [&str; 4] = ["terminationMessagePath", "terminationMessagePolicy", "env", "volumeMounts"];

/// Where our containers have their program and what it reads: nothing may be mounted over it, above it or below it.
const OWN_PATHS: [&str; 11] = [
    "/countersign-proxy",
    "/run/countersign",
    "/var/lib/countersign",
    "/var/run/secrets/kubernetes.io/serviceaccount",
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/sbin",
    "/etc",
    "/proc",
];

/// Variables that our programs, the loader or the C library read.
const OWN_VARIABLES: [&str; 5] = ["COUNTERSIGN_", "LD_", "MALLOC_", "GLIBC_", "RUST_"];

/// Compares a container of a pod with the one that we would make.
///
/// # Errors
/// What differs.
pub fn compare(there: &Value, ours: &Value) -> Result<(), String> {
    let name = ours["name"].as_str().unwrap_or_default();
    let differs = |what: &str| {
        Err(format!("container {name} has a name of ours but another {what}: rename or remove it"))
    };
    let (Some(there), Some(ours)) = (there.as_object(), ours.as_object()) else { return differs("shape") };
    for field in there.keys() {
        if !ours.contains_key(field) && !HARMLESS.contains(&field.as_str()) {
            return differs(field);
        }
    }
    for (field, value) in ours {
        let same = match field.as_str() {
            "volumeMounts" => there.get(field).is_some_and(|mounts| mounts_are_ours(mounts, value)),
            "readinessProbe" | "livenessProbe" => there.get(field).is_some_and(runs_nothing),
            // Whose capabilities, UID and profile these are is said exactly.
            "securityContext" | "args" | "command" => there.get(field) == Some(value),
            _ => there.get(field).is_some_and(|there| holds(there, value)),
        };
        if !same {
            return differs(field);
        }
    }
    match there.get("env").is_none_or(variables_are_harmless) {
        true => Ok(()),
        false => differs("env"),
    }
}

/// Whether everything in `wanted` is in `there`; the API server adds defaults to what we say.
fn holds(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| there.get(key).is_some_and(|there| holds(there, value)))
        }
        (Value::Array(there), Value::Array(wanted)) => {
            there.len() == wanted.len()
                && there.iter().zip(wanted).all(|(there, wanted)| holds(there, wanted))
        }
        _ => there == wanted,
    }
}

/// Istio has HTTP probes sent to its own proxy, which passes them on; a command would run beside the proxy's keys.
fn runs_nothing(probe: &Value) -> bool {
    probe.is_object() && probe.get("exec").is_none()
}

fn mounts_are_ours(there: &Value, ours: &Value) -> bool {
    let (Some(there), Some(ours)) = (there.as_array(), ours.as_array()) else { return false };
    let missing = ours.iter().any(|mount| !there.contains(mount));
    let replaces = there.iter().filter(|mount| !ours.contains(mount)).any(|mount| {
        let path = mount["mountPath"].as_str().unwrap_or("/").trim_end_matches('/');
        let odd = path.contains("..") || path.contains("//") || path.contains("/./");
        odd || OWN_PATHS.iter().any(|own| names::is_within(path, own) || names::is_within(own, path))
    });
    !missing && !replaces
}

fn variables_are_harmless(env: &Value) -> bool {
    let named = |variable: &Value| variable["name"].as_str().map(str::to_owned);
    env.as_array().is_some_and(|variables| {
        variables.iter().all(|variable| {
            named(variable).is_some_and(|name| !OWN_VARIABLES.iter().any(|own| name.starts_with(own)))
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ours() -> Value {
        json!({
            "name": "countersign-proxy", "image": "proxy:1", "args": ["serve"],
            "securityContext": { "runAsUser": 1 },
            "readinessProbe": { "httpGet": { "path": "/readyz", "port": 1 } },
            "volumeMounts": [{ "name": "countersign-state", "mountPath": "/run/countersign/private" }],
        })
    }

    fn with(change: impl FnOnce(&mut Value)) -> Result<(), String> {
        let mut there = ours();
        change(&mut there);
        compare(&there, &ours())
    }

    #[test]
    fn what_others_add_stays() {
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(with(|c| c["terminationMessagePath"] = json!("/dev/termination-log")), Ok(()));
        assert_eq!(with(|c| c["readinessProbe"]["httpGet"]["scheme"] = json!("HTTP")), Ok(()));
        assert_eq!(with(|c| c["env"] = json!([{ "name": "VAULT_ADDR", "value": "x" }])), Ok(()));
        let probe = json!({ "httpGet": { "path": "/app-health/countersign-proxy/readyz", "port": 15020 } });
        assert_eq!(with(|c| c["readinessProbe"] = probe), Ok(()));
        let mount = json!({ "name": "vault", "mountPath": "/vault/secrets" });
        assert_eq!(with(|c| c["volumeMounts"].as_array_mut().unwrap().push(mount)), Ok(()));
    }

    #[test]
    fn what_could_run_or_replace_something_is_not_ours() {
        let cases: [(&str, Box<dyn FnOnce(&mut Value)>); 10] = [
            ("readinessProbe", Box::new(|c| c["readinessProbe"] = json!({ "exec": { "command": ["sh"] } }))),
            ("image", Box::new(|c| c["image"] = json!("other:1"))),
            ("args", Box::new(|c| c["args"] = json!(["serve", "--log=trace"]))),
            ("command", Box::new(|c| c["command"] = json!(["/bin/sh"]))),
            ("lifecycle", Box::new(|c| c["lifecycle"] = json!({}))),
            ("envFrom", Box::new(|c| c["envFrom"] = json!([]))),
            ("securityContext", Box::new(|c| c["securityContext"]["privileged"] = json!(true))),
            ("env", Box::new(|c| c["env"] = json!([{ "name": "LD_PRELOAD", "value": "/x.so" }]))),
            (
                "volumeMounts",
                Box::new(|c| {
                    let mount =
                        json!({ "name": "mine", "mountPath": "/countersign-proxy", "subPath": "evil" });
                    c["volumeMounts"].as_array_mut().unwrap().push(mount);
                }),
            ),
            ("volumeMounts", Box::new(|c| c["volumeMounts"] = json!([]))),
        ];
        for (what, change) in cases {
            let refused = with(change).unwrap_err();
            assert!(refused.contains(&format!("another {what}")), "{what}: {refused}");
        }
    }
}
