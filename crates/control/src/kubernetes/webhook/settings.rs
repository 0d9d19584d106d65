//! Settings of the webhook, each declared once.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use service::telemetry::Format;

use crate::config::Egress;
use crate::kubernetes::inject;

/// Settings of `webhook`.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Configuration file (YAML); its keys are the names of these flags.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Address for the API server: HTTPS.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_LISTEN", value_name = "ADDR", default_value = "[::]:8443")]
    pub listen: SocketAddr,

    /// Address of health and metrics: /livez, /readyz, /metrics.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_HEALTH", value_name = "ADDR", default_value = "127.0.0.1:8442")]
    pub health: SocketAddr,

    /// Secret of the webhook's own CA and certificate, in its own namespace; made by the replica that comes first.
    #[arg(
        long,
        env = "COUNTERSIGN_WEBHOOK_SECRET",
        value_name = "NAME",
        default_value = "countersign-webhook-tls"
    )]
    pub secret: String,

    /// Namespace of the webhook; the one that it runs in unless given.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,

    /// Service by which the API server reaches the webhook: its own certificate is for SERVICE.NAMESPACE.svc.
    #[arg(
        long,
        env = "COUNTERSIGN_WEBHOOK_SERVICE",
        value_name = "NAME",
        default_value = "countersign-webhook"
    )]
    pub service: String,

    /// More names and addresses that its own certificate is for, where the API server calls a URL instead.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_SERVER_NAME", value_name = "NAME", value_delimiter = ',')]
    pub server_name: Vec<String>,

    /// Name of the MutatingWebhookConfiguration and of the ValidatingWebhookConfiguration whose caBundle is kept current.
    #[arg(
        long,
        env = "COUNTERSIGN_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        default_value = "countersign-webhook"
    )]
    pub webhook_configuration: String,

    /// Certificate chain (PEM) by which to serve instead, for instance of cert-manager; read again when it changes. Then
    /// neither Secret nor caBundle is touched.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key (PEM) of the certificate.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Roots (PEM) of client certificates, for API servers that are configured to show one; who shows none is then
    /// refused.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_CLIENT_CA", value_name = "FILE")]
    pub client_ca: Option<PathBuf>,

    /// The proxy's image, with `capture` in it.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_PROXY_IMAGE", value_name = "IMAGE")]
    pub proxy_image: String,

    /// When the kubelet pulls it.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_PROXY_PULL_POLICY", value_enum, default_value_t = PullPolicy::IfNotPresent)]
    pub proxy_pull_policy: PullPolicy,

    /// URL of the control plane, as pods reach it.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_CONTROL", value_name = "URL")]
    pub control: String,

    /// Fingerprint of the control plane's root key, by which pods know it.
    #[arg(
        long,
        env = "COUNTERSIGN_WEBHOOK_CONTROL_FINGERPRINT",
        value_name = "sha256:HEX",
        value_parser = fingerprint,
        required_unless_present = "control_ca_config_map",
        conflicts_with = "control_ca_config_map"
    )]
    pub control_fingerprint: Option<String>,

    /// ConfigMap in the webhook's namespace that the control plane writes its roots into (`serve --ca-config-map`);
    /// the fingerprint is that of the one that signs, now and after a rotation.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_CONTROL_CA_CONFIG_MAP", value_name = "NAME")]
    pub control_ca_config_map: Option<String>,

    /// Audience of the token that proves a pod.
    #[arg(
        long,
        env = "COUNTERSIGN_WEBHOOK_AUDIENCE",
        value_name = "AUDIENCE",
        default_value = "countersign"
    )]
    pub audience: String,

    /// UID of the proxy: no other container of a pod may run as it.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_PROXY_UID", value_name = "UID", default_value_t = 14014,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub proxy_uid: u32,

    /// UIDs whose connections are not captured: proxies of a mesh in the same pod (Istio's and Linkerd's).
    #[arg(
        long,
        env = "COUNTERSIGN_WEBHOOK_EXCLUDE_UID",
        value_name = "UID",
        value_delimiter = ',',
        default_value = "1337,2102"
    )]
    pub exclude_uid: Vec<u32>,

    /// Port to which the redirect sends.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_REDIRECT_PORT", value_name = "PORT", default_value_t = 14001,
        value_parser = clap::value_parser!(u16).range(1..))]
    pub redirect_port: u16,

    /// Port of the explicit proxy.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_EXPLICIT_PORT", value_name = "PORT", default_value_t = 14002,
        value_parser = clap::value_parser!(u16).range(1..))]
    pub explicit_port: u16,

    /// Port of the proxy's health and metrics; the next one is the proxy's too (`countersign doctor`).
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_PROXY_HEALTH_PORT", value_name = "PORT", default_value_t = 14020,
        value_parser = clap::value_parser!(u16).range(1..65_535))]
    pub proxy_health_port: u16,

    /// ConfigMap with the operator's own roots under the key `ca.crt`, in each pod's namespace; it may be missing.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_ROOTS_CONFIG_MAP", value_name = "NAME")]
    pub roots_config_map: Option<String>,

    /// CPU that the proxy asks for.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_PROXY_CPU", value_name = "QUANTITY", default_value = "10m", value_parser = quantity)]
    pub proxy_cpu: String,

    /// Memory that the proxy asks for.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_PROXY_MEMORY", value_name = "QUANTITY", default_value = "24Mi", value_parser = quantity)]
    pub proxy_memory: String,

    /// Most memory that the proxy's container may take; three quarters of it are the proxy's own cap (its
    /// `--max-memory-mib`).
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_PROXY_MEMORY_LIMIT", value_name = "QUANTITY", default_value = "128Mi", value_parser = quantity)]
    pub proxy_memory_limit: String,

    /// Most CPU that the proxy may take; no limit if absent.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_PROXY_CPU_LIMIT", value_name = "QUANTITY", value_parser = quantity)]
    pub proxy_cpu_limit: Option<String>,

    /// One more argument of the proxy in every pod, as --NAME=VALUE of `countersign-proxy serve`; can be given more than
    /// once. What injection sets itself is refused.
    #[arg(
        long,
        env = "COUNTERSIGN_WEBHOOK_PROXY_ARG",
        value_name = "--NAME=VALUE",
        allow_hyphen_values = true
    )]
    pub proxy_arg: Vec<String>,

    /// Size limit of the volume of a proxy's audit spool.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_SPOOL_SIZE", value_name = "QUANTITY", default_value = "128Mi", value_parser = quantity)]
    pub spool_size: String,

    /// Whether the proxy is a native sidecar (an init container that goes on running); `auto` asks the API server whether
    /// it is 1.29 or newer. Say `never` while nodes older than that are left.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_NATIVE_SIDECARS", value_enum, default_value_t = NativeSidecars::Auto)]
    pub native_sidecars: NativeSidecars,

    /// Egress mode of namespaces that say nothing.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_EGRESS", value_enum, default_value_t = Egress::Observe)]
    pub egress: Egress,

    /// What is logged: a level, or directives such as `info,control::kubernetes=debug`.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// How it is logged.
    #[arg(long, env = "COUNTERSIGN_WEBHOOK_LOG_FORMAT", value_enum, default_value_t = Format::Auto)]
    pub log_format: Format,
}

/// When the kubelet pulls an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "verbatim")]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// If the node has it not.
    IfNotPresent,
    /// Never.
    Never,
}

/// Whether the proxy is a native sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NativeSidecars {
    /// If the API server knows them.
    Auto,
    /// Yes.
    Always,
    /// No.
    Never,
}

impl Settings {
    /// What injection puts into pods, on a cluster that knows native sidecars or does not, with a control plane that has
    /// this fingerprint.
    #[must_use]
    pub fn injection(
        &self,
        cluster_knows_native_sidecars: bool,
        control_fingerprint: &str,
    ) -> inject::settings::Settings {
        inject::settings::Settings {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            image: self.proxy_image.clone(),
            pull_policy: format!("{:?}", self.proxy_pull_policy),
            control: self.control.clone(),
            control_fingerprint: control_fingerprint.to_owned(),
            audience: self.audience.clone(),
            uid: i64::from(self.proxy_uid),
            exclude_uids: self.exclude_uid.clone(),
            redirect_port: self.redirect_port,
            explicit_port: self.explicit_port,
            health_port: self.proxy_health_port,
            roots_config_map: self.roots_config_map.clone(),
            resources: self.resources(),
            max_memory_mib: memory_cap_mib(&self.proxy_memory_limit),
            more_args: self.proxy_arg.clone(),
            spool_size: self.spool_size.clone(),
            native_sidecars: match self.native_sidecars {
                NativeSidecars::Auto => cluster_knows_native_sidecars,
                NativeSidecars::Always => true,
                NativeSidecars::Never => false,
            },
            egress: self.egress_mode(),
        }
    }

    /// Egress mode of namespaces that say nothing.
    #[must_use]
    pub fn egress_mode(&self) -> model::slice::Egress {
        self.egress.into()
    }

    fn resources(&self) -> Value {
        let mut limits = json!({ "memory": self.proxy_memory_limit });
        if let Some(cpu) = &self.proxy_cpu_limit {
            limits["cpu"] = json!(cpu);
        }
        json!({ "requests": { "cpu": self.proxy_cpu, "memory": self.proxy_memory }, "limits": limits })
    }
}

/// The proxy's own cap for a container that may take so much, in MiB: three quarters of it, as far as the proxy takes
/// such a cap.
///
/// A container is killed for more than the proxy counts, which is its anonymous memory: beside that there are the pages of
/// the program's file (12 MiB), its state and the trust bundle, which lie in memory too, what the kernel keeps for
/// sockets, and the allocator's reserve; and the cap is looked at ten times a second, so that it can be passed in between.
fn memory_cap_mib(limit: &str) -> u64 {
    /// What `countersign-proxy serve --max-memory-mib` takes.
    const TAKEN: std::ops::RangeInclusive<f64> = 8.0..=1_048_576.0;
    let mib = amount(limit).unwrap_or_default() / f64::from(1 << 20);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within what is taken")]
    let cap = (mib * 0.75).clamp(*TAKEN.start(), *TAKEN.end()) as u64;
    cap
}

/// A mistake here would be told by the API server, for every pod.
fn quantity(text: &str) -> Result<String, String> {
    match amount(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("must be a quantity such as 100m, 0.5, 128Mi or 1Gi".to_owned()),
    }
}

/// How much a quantity is; `None` if it is none, or nothing.
fn amount(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    // https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    let unit = match &text[digits.len()..] {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => f64::from(1 << 10),
        "Mi" => f64::from(1 << 20),
        "Gi" => f64::from(1 << 30),
        "Ti" => f64::from(1 << 30) * 1024.0,
        _ => return None,
    };
    let number: f64 =
        digits.starts_with(|first: char| first.is_ascii_digit()).then(|| digits.parse().ok())??;
    (number > 0.0).then_some(number * unit)
}

fn fingerprint(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    match digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("must be sha256: and 64 hexadecimal digits, as the control plane logs it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for good in ["100m", "1", "0.5", "128Mi", "1Gi", "500k"] {
            assert_eq!(quantity(good).as_deref(), Ok(good));
        }
        for bad in ["", "Mi", "128MB", "128 Mi", "-1", "0", "1e3x", "inf", "0x10"] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_proxy_s_cap_leaves_room_in_its_container() {
        for (limit, cap) in [
            ("128Mi", 96),
            ("256Mi", 192),
            ("1Gi", 768),
            ("134217728", 96),
            ("100M", 71),
            // Less than the proxy takes as its cap, and more.
            ("4Mi", 8),
            ("100m", 8),
            ("100Ti", 1_048_576),
        ] {
            assert_eq!(memory_cap_mib(limit), cap, "{limit}");
        }
    }

    #[test]
    fn fingerprints() {
        assert!(fingerprint(&format!("sha256:{}", "0a".repeat(32))).is_ok());
        for bad in ["", "sha256:00", &"0a".repeat(32), &format!("sha256:{}", "0g".repeat(32))] {
            assert!(fingerprint(bad).is_err(), "{bad}");
        }
    }
}
