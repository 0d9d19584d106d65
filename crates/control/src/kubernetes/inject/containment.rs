//! What in a pod could read its proxy, and what could go round it.
//!
//! What could read the proxy is always refused: it would have the credentials. What could only go round it is refused
//! in `enforce`; in `observe` it is admitted with a warning and shown as not contained.

use k8s_openapi::api::core::v1::{Pod, PodSecurityContext, PodSpec, SecurityContext, Volume, VolumeMount};

use super::names;
use super::settings::{Capture, NamespaceSettings, Settings};

/// What was found in a pod, each with what to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Ways to read the proxy.
    pub reads: Vec<String>,
    /// Ways to go round the proxy.
    pub goes_round: Vec<String>,
    /// What follows from the namespace's own choice: told, and never refused.
    pub chosen: Vec<String>,
}

/// Capabilities that let a container look into another's processes or files (capabilities(7)).
const READING: [&str; 5] = ["SYS_PTRACE", "SYS_ADMIN", "SYS_MODULE", "DAC_READ_SEARCH", "BPF"];

/// Folders of a node under which other pods' volumes, processes or runtime sockets are. A hostPath to one of them, to
/// something in it or to something above it reaches them.
const REACHING: [&str; 7] = [
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/containers",
    "/run/containerd",
    "/run/crio",
    "/proc",
];

/// Looks at a whole pod, as it will be after injection has taken away what the namespace wants taken away.
#[must_use]
pub fn examine(pod: &Pod, namespace: &NamespaceSettings, settings: &Settings) -> Findings {
    let mut findings = Findings::default();
    let Some(spec) = &pod.spec else { return findings };
    examine_pod(spec, &mut findings);
    spec.volumes.iter().flatten().for_each(|volume| examine_volume(volume, &mut findings));
    let parts = parts(spec);
    parts.iter().for_each(|part| part.examine_reading(settings, &mut findings));
    if namespace.capture == Capture::Redirect {
        examine_going_round(&parts, namespace, settings, &mut findings);
    }
    if namespace.capture == Capture::Explicit {
        let text = "with an explicit proxy nothing forces a call through it: use a network policy, or label the \
                    namespace countersign.dev/capture=redirect";
        findings.chosen.push(text.to_owned());
    }
    findings
}

/// Looks at what an update of a running pod's ephemeral containers adds.
#[must_use]
pub fn examine_ephemeral(pod: &Pod, settings: &Settings) -> Findings {
    let mut findings = Findings::default();
    let Some(spec) = &pod.spec else { return findings };
    for part in parts(spec).into_iter().filter(|part| part.kind == EPHEMERAL) {
        part.examine_reading(settings, &mut findings);
        if part.target == Some(names::PROXY_CONTAINER) {
            let text = format!(
                "{} may not target {}: it would see the proxy's process",
                part,
                names::PROXY_CONTAINER
            );
            findings.reads.push(text);
        }
    }
    findings
}

fn examine_pod(spec: &PodSpec, findings: &mut Findings) {
    if spec.host_pid == Some(true) {
        findings.reads.push("hostPID shows every process of the node: remove spec.hostPID".to_owned());
    }
    if spec.share_process_namespace == Some(true) {
        let text = "a shared process namespace shows the proxy's process: remove spec.shareProcessNamespace";
        findings.reads.push(text.to_owned());
    }
    if spec.host_network == Some(true) {
        let text = "hostNetwork leaves no network of the pod's own to redirect: remove spec.hostNetwork";
        findings.goes_round.push(text.to_owned());
    }
}

fn examine_volume(volume: &Volume, findings: &mut Findings) {
    let Some(host) = &volume.host_path else { return };
    if reaches_other_pods(&host.path) {
        let text = format!(
            "volume {} mounts {} of the node, from where other pods' files can be reached: remove it",
            volume.name, host.path
        );
        findings.reads.push(text);
    }
}

fn reaches_other_pods(path: &str) -> bool {
    let path = normalised(path);
    let is_above = |folder: &str| path == "/" || names::is_within(folder, &path);
    path.ends_with(".sock")
        || REACHING.iter().any(|folder| names::is_within(&path, folder) || is_above(folder))
}

/// Without `//`, `.`, `..` and a slash at the end. `/var/run` is `/run` on every system that nodes run.
fn normalised(path: &str) -> String {
    let mut steps: Vec<&str> = Vec::new();
    for step in path.split('/') {
        match step {
            "" | "." => {}
            ".." => drop(steps.pop()),
            step => steps.push(step),
        }
    }
    if steps.starts_with(&["var", "run"]) {
        steps.remove(0);
    }
    format!("/{}", steps.join("/"))
}

/// One line for each way, with all containers that have it: most pods keep what runtimes give.
fn examine_going_round(
    parts: &[Part<'_>],
    namespace: &NamespaceSettings,
    settings: &Settings,
    findings: &mut Findings,
) {
    let mut tell = |has: &dyn Fn(&Part<'_>) -> bool, what: &str, so_that: &str| {
        let names: Vec<String> = parts.iter().filter(|part| has(part)).map(ToString::to_string).collect();
        if !names.is_empty() {
            findings.goes_round.push(format!("{what} {}, {so_that}", names.join(", ")));
        }
    };
    let adds = |part: &Part<'_>| part.added().any(|capability| capability == "NET_ADMIN");
    tell(
        &adds,
        "NET_ADMIN is added by",
        "which could remove the redirect: remove it from securityContext.capabilities",
    );
    let is_excluded = |part: &Part<'_>| part.run_as_user().is_some_and(|uid| settings.excludes(uid));
    tell(
        &is_excluded,
        "a UID that is not captured is that of",
        "as a mesh's proxy has it: give anything else another runAsUser",
    );
    // An ephemeral container can't be changed, so nothing is taken from it.
    let is_left = |part: &Part<'_>| !namespace.drop_capabilities || part.kind == EPHEMERAL;
    let raw = |part: &Part<'_>| is_left(part) && part.keeps("NET_RAW");
    tell(
        &raw,
        "NET_RAW is kept by",
        "which could send past the redirect: drop it in securityContext.capabilities",
    );
    let setuid = |part: &Part<'_>| is_left(part) && part.keeps("SETUID") && part.may_be_root();
    tell(
        &setuid,
        "SETUID is kept, perhaps by root, in",
        "which could become the proxy's UID: drop it in securityContext.capabilities, or set runAsNonRoot",
    );
}

const EPHEMERAL: &str = "ephemeral container";

/// What containers of all three kinds have in common.
struct Part<'a> {
    kind: &'static str,
    name: &'a str,
    pod: Option<&'a PodSecurityContext>,
    context: Option<&'a SecurityContext>,
    mounts: &'a [VolumeMount],
    target: Option<&'a str>,
}

impl std::fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// All containers but ours. An ephemeral container is never ours, whatever its name.
fn parts(spec: &PodSpec) -> Vec<Part<'_>> {
    let pod = spec.security_context.as_ref();
    let init = spec.init_containers.iter().flatten().map(|container| ("init container", container));
    let plain = spec.containers.iter().map(|container| ("container", container));
    let lasting = init.chain(plain).filter(|(_, container)| !names::is_injected(&container.name)).map(
        |(kind, container)| Part {
            kind,
            name: &container.name,
            pod,
            context: container.security_context.as_ref(),
            mounts: container.volume_mounts.as_deref().unwrap_or_default(),
            target: None,
        },
    );
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| Part {
        kind: EPHEMERAL,
        name: &container.name,
        pod,
        context: container.security_context.as_ref(),
        mounts: container.volume_mounts.as_deref().unwrap_or_default(),
        target: container.target_container_name.as_deref(),
    });
    lasting.chain(ephemeral).collect()
}

impl Part<'_> {
    fn examine_reading(&self, settings: &Settings, findings: &mut Findings) {
        let reads = &mut findings.reads;
        if self.name.starts_with(names::OWN_PREFIX) {
            reads.push(format!(
                "{self} has a name of ours: call it something that does not begin with {}",
                names::OWN_PREFIX
            ));
        }
        if self.run_as_user() == Some(settings.uid) {
            reads.push(format!(
                "{self} runs as UID {}, the proxy's own: give it another runAsUser",
                settings.uid
            ));
        }
        if self.context.and_then(|context| context.privileged) == Some(true) {
            reads.push(format!("{self} is privileged: remove securityContext.privileged"));
        }
        for capability in
            self.added().filter(|capability| READING.contains(&capability.as_str()) || capability == "ALL")
        {
            reads.push(format!("{self} adds {capability}, which reads other containers: remove it"));
        }
        for mount in self.mounts.iter().filter(|mount| names::PRIVATE_VOLUMES.contains(&mount.name.as_str()))
        {
            reads.push(format!("{self} mounts {}, which is the proxy's alone: remove the mount", mount.name));
        }
    }

    fn run_as_user(&self) -> Option<i64> {
        self.context.and_then(|c| c.run_as_user).or_else(|| self.pod.and_then(|pod| pod.run_as_user))
    }

    /// Whether nothing says that it is not root: the image may say so, which can't be seen.
    fn may_be_root(&self) -> bool {
        let non_root = self
            .context
            .and_then(|c| c.run_as_non_root)
            .or_else(|| self.pod.and_then(|pod| pod.run_as_non_root));
        match self.run_as_user() {
            Some(uid) => uid == 0,
            None => non_root != Some(true),
        }
    }

    fn added(&self) -> impl Iterator<Item = String> {
        listed(self.context.and_then(|c| c.capabilities.as_ref()).and_then(|c| c.add.as_deref()))
    }

    /// Whether it has one of the capabilities that a runtime gives unless told otherwise. Dropping ALL drops them.
    fn keeps(&self, capability: &str) -> bool {
        let dropped = |wanted: &str| {
            listed(self.context.and_then(|c| c.capabilities.as_ref()).and_then(|c| c.drop.as_deref()))
                .any(|d| d == wanted)
        };
        let added = self.added().any(|added| added == capability || added == "ALL");
        added || !(dropped(capability) || dropped("ALL"))
    }
}

/// Capabilities by their bare name: `CAP_` before it and the case mean nothing to runtimes.
fn listed(capabilities: Option<&[String]>) -> impl Iterator<Item = String> {
    capabilities.unwrap_or_default().iter().map(|capability| {
        let upper = capability.to_ascii_uppercase();
        upper.strip_prefix("CAP_").map_or(upper.clone(), str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reaches_other_pods() {
        for path in [
            "/",
            "/var",
            "/var/lib",
            "/var/lib/kubelet",
            "/var/lib/kubelet/pods/x",
            "/var//lib/./kubelet/",
            "/var/lib/x/../kubelet",
            "/var/run/containerd",
            "/run",
            "/var/run/docker.sock",
            "/run/crio/crio.sock",
            "/proc",
            "/proc/1/root",
        ] {
            assert!(reaches_other_pods(path), "{path}");
        }
        for path in ["/var/log", "/data", "/var/lib/kubelets", "/etc/ssl", "/sys/fs/cgroup", "/procedures"] {
            assert!(!reaches_other_pods(path), "{path}");
        }
    }
}
