//! Names that stand in pods: labels and annotations that people write, and what we add.

/// Label on a namespace (opts in) and on a pod (`disabled` opts out). A label, so that webhook selectors see it.
pub const INJECT: &str = "countersign.dev/inject";
/// Label on a namespace: `enforce` or `observe`, for its pods.
pub const EGRESS: &str = "countersign.dev/egress";
/// Label on a namespace: `redirect` (the default) or `explicit`, where pods may not have NET_ADMIN.
pub const CAPTURE: &str = "countersign.dev/capture";
/// Label on a namespace: `drop` has NET_RAW and SETUID taken from its pods' containers instead of refusing them.
pub const CAPABILITIES: &str = "countersign.dev/capabilities";
/// Label on a namespace in `enforce`: `allowed` lets its pods opt out.
pub const OPT_OUT: &str = "countersign.dev/opt-out";

/// Annotation on a pod: ports that are not redirected, separated by commas.
pub const EXCLUDE_PORTS: &str = "config.countersign.dev/exclude-ports";
/// Annotation on a pod: networks that are not redirected, separated by commas.
pub const EXCLUDE_NETWORKS: &str = "config.countersign.dev/exclude-networks";
/// Annotation on a pod: what the proxy logs.
pub const LOG: &str = "config.countersign.dev/log";
/// Annotations that may stand on a pod; another one under our prefix is a mistake that is told.
pub const ANNOTATIONS: [&str; 3] = [EXCLUDE_PORTS, EXCLUDE_NETWORKS, LOG];
/// What begins the names of all our annotations that people write.
pub const ANNOTATION_PREFIX: &str = "config.countersign.dev/";

/// Annotation that injection writes: by which version.
pub const INJECTED_BY: &str = "countersign.dev/injected-by";
/// Annotation that injection writes: `contained`, or `not contained` if the pod could go round its proxy.
pub const CONTAINMENT: &str = "countersign.dev/containment";
/// Annotation that injection writes: what the pod's author should know, a line each; events are made of it.
pub const NOTES: &str = "countersign.dev/notes";
/// Label that injection sets: `true` on pods that have a proxy, `false` on those that can't have one.
pub const INJECTED: &str = "countersign.dev/injected";

/// The init container that installs the redirect.
pub const CAPTURE_CONTAINER: &str = "countersign-capture";
/// The container of the proxy.
pub const PROXY_CONTAINER: &str = "countersign-proxy";
/// What begins the names of all containers and volumes of ours.
pub const OWN_PREFIX: &str = "countersign-";

/// The proxy's keys and last policy, in memory; mounted by its container alone.
pub const STATE_VOLUME: &str = "countersign-state";
/// Events that wait for delivery, on disk; mounted by the proxy's container alone.
pub const SPOOL_VOLUME: &str = "countersign-spool";
/// The trust bundle: written by the proxy, read by everyone. No key is in it.
pub const TRUST_VOLUME: &str = "countersign-trust";
/// The projected token that proves the pod; mounted by the proxy's container alone.
pub const TOKEN_VOLUME: &str = "countersign-token";
/// Nothing: mounted where the API server would otherwise mount the pod's default token in our containers.
pub const NO_TOKEN_VOLUME: &str = "countersign-no-token";
/// The operator's own roots.
pub const ROOTS_VOLUME: &str = "countersign-roots";
/// Volumes that no container but the proxy's may mount.
pub const PRIVATE_VOLUMES: [&str; 3] = [STATE_VOLUME, SPOOL_VOLUME, TOKEN_VOLUME];

/// Where the API server mounts a pod's default token.
pub const DEFAULT_TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where the trust bundle is mounted in every container.
pub const TRUST_PATH: &str = "/run/countersign/trust";
/// Where the proxy's directory is mounted; the proxy makes its own, which nobody else can open, below it.
pub const STATE_PATH: &str = "/run/countersign/private";
/// Where the spool is mounted.
pub const SPOOL_PATH: &str = "/var/lib/countersign";
/// Where the token is mounted.
pub const TOKEN_PATH: &str = "/run/countersign/token";
/// Where the operator's roots are mounted.
pub const ROOTS_PATH: &str = "/run/countersign/roots";

/// Whether a container of this name is one that injection adds.
#[must_use]
pub fn is_injected(container: &str) -> bool {
    [CAPTURE_CONTAINER, PROXY_CONTAINER].contains(&container)
}

/// Whether a path is a folder or something in it.
#[must_use]
pub fn is_within(path: &str, folder: &str) -> bool {
    path == folder || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}
