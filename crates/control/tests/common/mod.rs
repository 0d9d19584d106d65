//! What tests of injection have in common.

use control::kubernetes::inject::settings::Settings;
use model::slice::Egress;
use serde_json::json;

/// Settings as the chart gives them.
pub(crate) fn settings() -> Settings {
    Settings {
        version: "0.1.0".to_owned(),
        image: "registry.example/countersign-proxy:0.1.0".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        control: "https://countersign-control.countersign.svc:8440".to_owned(),
        control_fingerprint: "sha256:00".to_owned(),
        audience: "countersign".to_owned(),
        uid: 14014,
        exclude_uids: vec![1337, 2102],
        redirect_port: 14001,
        explicit_port: 14002,
        health_port: 14020,
        roots_config_map: None,
        resources: json!({ "requests": { "cpu": "10m", "memory": "24Mi" }, "limits": { "memory": "128Mi" } }),
        max_memory_mib: 96,
        more_args: Vec::new(),
        spool_size: "128Mi".to_owned(),
        native_sidecars: true,
        egress: Egress::Observe,
    }
}
