//! A control plane in a Kubernetes cluster, reached as kubectl users expect: by the current context.
//!
//! The user's own credential goes to the API server and nowhere else: for a look at what there is, for a port-forward,
//! and for a token of a service account, which is all that the control plane gets (docs/decisions/0033).

use std::path::PathBuf;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use model::{Code, Secret};
use tokio::io::DuplexStream;

use crate::arguments::{Cli, Command};
use crate::exit::{Exit, Refusal};

/// What the control plane's Service is found by.
const CONTROL_PLANE: &str = "app.kubernetes.io/part-of=countersign,app.kubernetes.io/component=control";

/// Where the control plane writes its roots, and under which key.
const ROOTS: &str = "countersign-control-ca";
const ROOTS_KEY: &str = "ca.crt";

/// The port for proxies and administrators, by its name in the Service; else by its number.
const PORT_NAME: &str = "grpc";
const PORT: i32 = 8440;

/// Audience of administrators' tokens, unless `countersign-control serve --admin-audience` says otherwise.
const AUDIENCE: &str = "countersign-administration";

/// How long a token lives, in seconds: the least that an API server gives.
const TOKEN_SECS: i64 = 600;

/// Whose token a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It changes nothing.
    Viewer,
    /// It may.
    Administrator,
}

impl Role {
    /// The least that a command can do with.
    #[must_use]
    pub fn of(command: &Command) -> Self {
        let only_looks = match command {
            Command::Apply(asked) => asked.dry_run,
            Command::Delete(asked) => asked.dry_run,
            Command::Revoke(asked) => asked.dry_run,
            Command::Bypass(_) => false,
            _ => true,
        };
        if only_looks { Self::Viewer } else { Self::Administrator }
    }

    const fn account(self) -> &'static str {
        match self {
            Self::Viewer => "countersign-viewer",
            Self::Administrator => "countersign-admin",
        }
    }
}

/// A cluster, as the user reaches it.
pub struct Cluster {
    client: Client,
    /// `context prod`, for messages.
    place: String,
    /// The control plane's.
    namespace: String,
}

/// Whether a cluster is meant: it is said, or nothing else is and there is one.
#[must_use]
pub fn is_meant(cli: &Cli) -> bool {
    let elsewhere = cli.server.is_some() || cli.socket.is_some();
    let said = cli.kubernetes
        || cli.context.is_some()
        || cli.kubeconfig.is_some()
        || cli.control_plane_namespace.is_some();
    !elsewhere && (said || (!cli.socket_path().exists() && has_kubeconfig()))
}

fn has_kubeconfig() -> bool {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
    std::env::var_os("KUBECONFIG").is_some_and(|files| !files.is_empty())
        || home.is_some_and(|file| file.exists())
}

/// Where a command could have a namespace and has none, that of the context is meant.
///
/// # Errors
/// If there is no such context.
pub async fn fill_namespace(cli: &mut Cli) -> Result<(), Refusal> {
    // Most commands know none, and then no kubeconfig is needed yet.
    if namespace_of(&mut cli.command).is_some() {
        let (_, config) = config(cli).await?;
        if let Some(fill) = namespace_of(&mut cli.command) {
            fill(config.default_namespace);
        }
    }
    Ok(())
}

/// Takes the namespace that a command lacks.
type Fill<'a> = Box<dyn FnOnce(String) + 'a>;

fn namespace_of(command: &mut Command) -> Option<Fill<'_>> {
    // KIND/NAMESPACE/NAME, or NAMESPACE/NAME behind a kind.
    let named = |thing: &str| thing.split('/').count() > 2;
    let of_kind = |name: &Option<String>| name.as_ref().is_some_and(|name| name.contains('/'));
    let text = match command {
        Command::Apply(asked) => &mut asked.namespace,
        Command::Delete(asked) if !asked.kind.as_deref().is_some_and(named) && !of_kind(&asked.name) => {
            &mut asked.namespace
        }
        Command::Revoke(asked) if !named(&asked.target) => &mut asked.namespace,
        Command::Bypass(asked) if !named(&asked.target) => &mut asked.namespace,
        Command::Get(asked) if asked.namespace.is_none() && !asked.all_namespaces => {
            let all = named(&asked.kind) || of_kind(&asked.name);
            return (!all).then_some(Box::new(|namespace| asked.namespace = Some(namespace)));
        }
        Command::Explain(asked) if asked.namespace.is_none() => {
            let bare = asked.workload.as_ref().is_some_and(|workload| !workload.contains('/'));
            return bare.then_some(Box::new(|namespace| asked.namespace = Some(namespace)));
        }
        _ => return None,
    };
    text.is_empty().then_some(Box::new(|namespace| *text = namespace))
}

async fn config(cli: &Cli) -> Result<(String, Config), Refusal> {
    let unusable = |error: &dyn std::fmt::Display| {
        let help = "`kubectl config get-contexts` lists what there is; --server or --socket reach a control plane without \
            a cluster";
        Refusal { help: help.to_owned(), ..Refusal::plain(Exit::Error, format!("kubeconfig: {error}")) }
    };
    let kubeconfig = match &cli.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let kubeconfig = kubeconfig.map_err(|error| unusable(&error))?;
    let context = cli.context.clone().or_else(|| kubeconfig.current_context.clone());
    let Some(context) = context.filter(|context| !context.is_empty()) else {
        return Err(unusable(&"no context is current: choose one with --context"));
    };
    let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| unusable(&error))?;
    Ok((context, config))
}

impl Cluster {
    /// The cluster that is meant; nothing has been asked of it yet.
    ///
    /// # Errors
    /// If the kubeconfig can't be used.
    pub async fn open(cli: &Cli) -> Result<Self, Refusal> {
        service::tls_provider::install();
        let (context, config) = config(cli).await?;
        let client = Client::try_from(config)
            .map_err(|error| Refusal::plain(Exit::Error, format!("context {context}: {error}")))?;
        let namespace =
            cli.control_plane_namespace.clone().unwrap_or_else(|| "countersign-system".to_owned());
        Ok(Self { client, place: format!("context {context}"), namespace })
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        format!("{}, namespace {}", self.place, self.namespace)
    }

    /// The control plane's root certificates (PEM).
    ///
    /// # Errors
    /// If they can't be had.
    pub async fn roots(&self) -> Result<String, Refusal> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let map = maps.get(ROOTS).await.map_err(|error| self.refused("its roots", &error))?;
        map.data.and_then(|mut data| data.remove(ROOTS_KEY)).ok_or_else(|| {
            let message = format!("{}: ConfigMap {ROOTS} has no {ROOTS_KEY}", self.shown());
            Refusal::coded(Code::ControlPlaneAway, message)
        })
    }

    /// A token for the control plane alone.
    ///
    /// # Errors
    /// If the user may not have one.
    pub async fn token(&self, role: Role) -> Result<Secret, Refusal> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                expiration_seconds: Some(TOKEN_SECS),
                bound_object_ref: None,
            }),
            ..TokenRequest::default()
        };
        let what = format!("a token of {}", role.account());
        let answer = accounts.create_token_request(role.account(), &PostParams::default(), &request).await;
        let answer = answer.map_err(|error| self.refused(&what, &error))?;
        let token = answer.status.and_then(|status| status.token);
        token
            .map(|token| Secret::new(token.into_bytes()))
            .ok_or_else(|| self.absent(&format!("{what} is empty")))
    }

    /// A connection to the control plane through the API server; not yet TLS.
    ///
    /// # Errors
    /// If there is no control plane, or the API server does not forward to it.
    pub async fn connect(&self) -> Result<DuplexStream, Refusal> {
        let (pod, port) = self.pod().await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let what = format!("a port-forward to pod {pod}");
        let forward = pods.portforward(&pod, &[port]).await;
        let mut forward = forward.map_err(|error| self.refused(&what, &error))?;
        forward.take_stream(port).ok_or_else(|| Refusal::plain(Exit::Error, format!("no {what}")))
    }

    /// A ready pod behind the control plane's Service, and the port there.
    async fn pod(&self) -> Result<(String, u16), Refusal> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = services.list(&ListParams::default().labels(CONTROL_PLANE)).await;
        let found = found.map_err(|error| self.refused("its Service", &error))?;
        let spec = found.items.into_iter().find_map(|service| service.spec);
        let (selector, ports) = match spec {
            Some(spec) => (spec.selector.unwrap_or_default(), spec.ports.unwrap_or_default()),
            None => return Err(self.absent("no Service there is a control plane's")),
        };
        let port = ports.iter().find(|port| port.name.as_deref() == Some(PORT_NAME));
        let target = port.and_then(|port| port.target_port.clone()).unwrap_or(IntOrString::Int(PORT));
        let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        if labels.is_empty() {
            return Err(self.absent("its Service selects no pods"));
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = pods.list(&ListParams::default().labels(&labels.join(","))).await;
        let found = found.map_err(|error| self.refused("its pods", &error))?;
        let ready = found.items.iter().find(|pod| is_ready(pod));
        let ready = ready.ok_or_else(|| self.absent("none of its pods is ready"))?;
        let port = port_of(ready, &target).ok_or_else(|| self.absent("its pod has no such port"))?;
        Ok((ready.metadata.name.clone().unwrap_or_default(), port))
    }

    fn absent(&self, why: &str) -> Refusal {
        Refusal {
            help: "name the control plane's namespace with --control-plane-namespace, or its cluster with --context"
                .to_owned(),
            ..Refusal::coded(Code::ControlPlaneAway, format!("{}: {why}", self.shown()))
        }
    }

    /// What an API server that says no, or nothing, means for whoever asked.
    fn refused(&self, what: &str, error: &kube::Error) -> Refusal {
        let status = match error {
            kube::Error::Api(status) => Some(status.code),
            kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(status)) => {
                Some(status.as_u16())
            }
            _ => None,
        };
        // Of what an API server answers, the sentence; kube shows the whole object.
        let said = match error {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        };
        let message = format!("{}: {what} can't be had: {said}", self.shown());
        match status {
            Some(401 | 403) => Refusal {
                help: "ask for the Role countersign-viewer or countersign-admin of the control plane's namespace"
                    .to_owned(),
                ..Refusal::coded(Code::NotAuthorised, message)
            },
            Some(404) => self.absent(&format!("{what} is not there")),
            _ => Refusal { help: String::new(), ..Refusal::coded(Code::ControlPlaneAway, message) },
        }
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready =
        conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"));
    ready && pod.metadata.deletion_timestamp.is_none()
}

fn port_of(pod: &Pod, target: &IntOrString) -> Option<u16> {
    let number = match target {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports.find(|port| port.name.as_deref() == Some(name))?.container_port
        }
    };
    u16::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_command_asks_for_the_least_that_it_needs() {
        for (words, role) in [
            (&["get", "workloads"][..], Role::Viewer),
            (&["status"], Role::Viewer),
            (&["apply", "-f", "x", "--dry-run"], Role::Viewer),
            (&["apply", "-f", "x"], Role::Administrator),
            (&["delete", "workload", "a"], Role::Administrator),
            (&["revoke", "everything", "--dry-run"], Role::Viewer),
            (&["revoke", "everything"], Role::Administrator),
            (&["bypass", "workload/a", "--lift"], Role::Administrator),
        ] {
            let cli = Cli::try_parse_from([&["countersign"], words].concat()).unwrap();
            assert_eq!(Role::of(&cli.command), role, "{words:?}");
        }
    }

    #[test]
    fn a_command_without_a_namespace_takes_the_context_s() {
        let lacks = |words: &[&str]| {
            let mut cli = Cli::try_parse_from([&["countersign"], words].concat()).unwrap();
            namespace_of(&mut cli.command).is_some()
        };
        for words in [
            &["get", "workloads"][..],
            &["apply", "-f", "x"],
            &["delete", "workload/billing"],
            &["revoke", "workload/billing"],
            &["explain", "--workload", "billing", "GET", "https://x/"],
        ] {
            assert!(lacks(words), "{words:?}");
        }
        for words in [
            &["get", "workloads", "-A"][..],
            &["get", "workloads", "-n", "a"],
            &["get", "workload/a/billing"],
            &["delete", "workload", "a/billing"],
            &["revoke", "workload/a/billing"],
            &["explain", "--workload", "a/billing", "GET", "https://x/"],
            &["explain", "last"],
            &["status"],
        ] {
            assert!(!lacks(words), "{words:?}");
        }
    }

    #[test]
    fn a_cluster_is_meant_where_one_is_named_and_nothing_else_is() {
        let meant = |words: &[&str]| {
            let cli = Cli::try_parse_from([&["countersign"], words, &["status"]].concat()).unwrap();
            is_meant(&cli)
        };
        for words in [
            &["--kubernetes"][..],
            &["--context", "prod"],
            &["--kubeconfig", "/x"],
            &["--control-plane-namespace", "cs"],
        ] {
            assert!(meant(words), "{words:?}");
        }
        assert!(!meant(&["--socket", "/x"]));
        assert!(!meant(&["--server", "https://x", "--token-file", "/t", "--ca-file", "/c"]));
        for words in [&["--socket", "/x"][..], &["--server", "https://x"]] {
            let both = [&["countersign", "--kubernetes"], words, &["status"]].concat();
            assert!(Cli::try_parse_from(both).is_err(), "{words:?}");
        }
    }
}
