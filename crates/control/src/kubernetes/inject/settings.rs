//! What injection puts into pods, as the platform team has configured it, and as a namespace and a pod may change it.

use std::collections::BTreeMap;

use ipnet::IpNet;
use model::slice::Egress;
use serde_json::Value;

use super::names;

/// What is the same for every pod.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Version that is written to [`names::INJECTED_BY`].
    pub version: String,
    /// The proxy's image, with `capture` in it.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub pull_policy: String,
    /// URL of the control plane.
    pub control: String,
    /// Fingerprints of the control plane's root keys, `sha256:HEX`; the first one signs.
    pub control_fingerprint: String,
    /// Audience of the projected token.
    pub audience: String,
    /// UID of the proxy: no other container may run as it.
    pub uid: i64,
    /// UIDs that are not redirected: proxies of a mesh in the same pod.
    pub exclude_uids: Vec<u32>,
    /// Port to which the redirect sends.
    pub redirect_port: u16,
    /// Port of the explicit proxy.
    pub explicit_port: u16,
    /// Port of health and metrics; at the next one runtimes are asked whether they trust the proxy.
    pub health_port: u16,
    /// ConfigMap with the operator's own roots under the key `ca.crt`, in the pod's namespace; it may be missing.
    pub roots_config_map: Option<String>,
    /// Resources of the proxy's container, in the shape of Kubernetes.
    pub resources: Value,
    /// The proxy's own cap on its memory, in MiB, which its container's limit leaves room for.
    pub max_memory_mib: u64,
    /// More arguments of the proxy, checked by [`super::containers::check_more_args`]. They are the platform team's: what
    /// a pod says must not loosen its proxy.
    pub more_args: Vec<String>,
    /// Size limit of the spool's volume, as a quantity.
    pub spool_size: String,
    /// Whether the cluster knows native sidecars (Kubernetes 1.29 and later).
    pub native_sidecars: bool,
    /// Egress mode of namespaces that say nothing.
    pub egress: Egress,
}

impl Settings {
    /// Whether connections of this UID are not captured.
    #[must_use]
    pub fn excludes(&self, uid: i64) -> bool {
        self.exclude_uids.iter().any(|excluded| i64::from(*excluded) == uid)
    }
}

/// How calls get to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// By a redirect that an init container with NET_ADMIN installs.
    Redirect,
    /// By the variables that clients read (`HTTPS_PROXY` and so on): no capability is needed, nobody is forced.
    Explicit,
}

/// What a namespace says by its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceSettings {
    /// What happens to calls that no policy covers, and how strictly a pod must be contained.
    pub egress: Egress,
    /// How calls get to the proxy.
    pub capture: Capture,
    /// Whether NET_RAW and SETUID are taken away instead of refused.
    pub drop_capabilities: bool,
    /// Whether pods may opt out.
    pub opt_out: bool,
}

impl NamespaceSettings {
    /// Reads a namespace's labels. Of two egress modes the stricter one counts.
    ///
    /// # Errors
    /// If a label of ours has a value that means nothing.
    pub fn of(labels: &BTreeMap<String, String>, settings: &Settings) -> Result<Self, String> {
        let value = |name: &str, allowed: [&'static str; 2], default: &'static str| match labels.get(name) {
            None => Ok(default),
            Some(value) => allowed.into_iter().find(|known| known == value).ok_or_else(|| {
                format!(
                    "label {name} of the namespace must be {} or {}, not {value:?}",
                    allowed[0], allowed[1]
                )
            }),
        };
        let named = value(names::EGRESS, ["observe", "enforce"], "observe")?;
        let enforce = named == "enforce" || settings.egress == Egress::Enforce;
        Ok(Self {
            egress: if enforce { Egress::Enforce } else { Egress::Observe },
            capture: match value(names::CAPTURE, ["redirect", "explicit"], "redirect")? {
                "explicit" => Capture::Explicit,
                _ => Capture::Redirect,
            },
            drop_capabilities: value(names::CAPABILITIES, ["drop", "keep"], "keep")? == "drop",
            opt_out: !enforce || value(names::OPT_OUT, ["allowed", "refused"], "refused")? == "allowed",
        })
    }
}

/// What a pod says by its annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSettings {
    /// Ports that are not redirected.
    pub exclude_ports: Vec<u16>,
    /// Networks that are not redirected.
    pub exclude_networks: Vec<IpNet>,
    /// What the proxy logs.
    pub log: Option<String>,
}

impl PodSettings {
    /// Reads a pod's annotations.
    ///
    /// # Errors
    /// If one of ours is unknown or has a value that means nothing; the message says what is allowed.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Self, String> {
        let unknown = annotations.keys().find(|name| {
            name.starts_with(names::ANNOTATION_PREFIX) && !names::ANNOTATIONS.contains(&name.as_str())
        });
        if let Some(name) = unknown {
            return Err(format!(
                "annotation {name} is not known; there are {}",
                names::ANNOTATIONS.join(", ")
            ));
        }
        Ok(Self {
            exclude_ports: list(annotations, names::EXCLUDE_PORTS, "ports such as 22,25")?,
            exclude_networks: list(
                annotations,
                names::EXCLUDE_NETWORKS,
                "networks such as 10.0.0.0/8,fd00::/8",
            )?,
            log: annotations.get(names::LOG).cloned(),
        })
    }
}

fn list<T: std::str::FromStr>(
    annotations: &BTreeMap<String, String>,
    name: &str,
    example: &str,
) -> Result<Vec<T>, String> {
    let Some(text) = annotations.get(name) else { return Ok(Vec::new()) };
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| {
            item.parse().map_err(|_| format!("annotation {name} must be {example}; {item:?} is neither"))
        })
        .collect()
}
