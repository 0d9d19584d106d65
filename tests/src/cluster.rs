//! A real Kubernetes API server, as `.ci/kubernetes` builds it: etcd, kube-apiserver and kube-controller-manager.
//!
//! It has no nodes: no kubelet runs a pod, so a pod is what the API says that it is, and [`Namespace::pod`] says that it
//! runs. Its version is 1.20, which lacks policy/v1, native sidecars, CEL rules and Pod Security. Projected tokens
//! (`BoundServiceAccountTokenVolume`) and ephemeral containers are on, as they are in every newer one.
//!
//! ```text
//! // tests/cluster/something.rs, listed in tests/cluster/main.rs, whose tests share one cluster:
//! fn a_pod_has_a_name(cluster: &Cluster) {
//!     let shop = cluster.namespace("shop").unwrap();              // ends with its pods when dropped
//!     shop.service_account("till").unwrap();
//!     let pod = shop.pod("till-1", "till").unwrap();              // created, bound to a node, marked as running
//!     let token = shop.token_of(&pod, "https://countersign.example").unwrap();
//!     let pods = cluster.get(&format!("/api/v1/namespaces/{}/pods", shop.name())).unwrap();
//!     cluster.kubectl(&["get", "pods", "-n", shop.name()]).unwrap();
//!     let client = cluster.kubeconfig(Identity::Admin).unwrap();  // a file, for kube, helm and programs of ours
//! }
//!
//! // In a sandbox, beside proxies in their namespaces: https://kubernetes.default.svc there.
//! let cluster = Cluster::within(world.sandbox())?;
//! ```
//!
//! Services work as far as one without kube-proxy can: a ClusterIP of a cluster on loopback ([`Cluster::start`]) is an
//! address of loopback, so a webhook that listens on its Service's ClusterIP and port is reached by the API server.
//!
//! A cluster takes about five seconds to start, 450 MB of memory and 130 MB on a tmpfs. Everything ends with the process that started it,
//! however that ends.

mod namespace;

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::certificates::Certificates;
use crate::http::{Answer, Call};
use crate::sandbox::{As, HOME, Inside, Output, PRIVATE, Place, Process, Sandbox};

pub use namespace::{Namespace, Pod};

/// The issuer of service accounts' tokens, and the audience that the API server itself wants.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Users beside the administrator; they may do what a test's role bindings let them.
pub const USERS: [&str; 2] = ["alice", "bob"];

/// The API server's name, and its address among the hosts of a sandbox.
const API_NAME: &str = "kubernetes.default.svc";
const API_HOST: u8 = 14;

/// What kube-proxy does for the API server's Service: other servers of a sandbox listen on 443 of every address.
const SERVICE_PORT: &str = "nft -f - <<END
table inet kubernetes {
    chain output {
        type nat hook output priority -100;
        ip daddr 10.77.0.14 tcp dport 443 dnat ip to 10.77.0.14:6443
        ip6 daddr fd77::e tcp dport 443 dnat ip6 to [fd77::e]:6443
    }
    chain prerouting {
        type nat hook prerouting priority -100;
        ip daddr 10.77.0.14 tcp dport 443 dnat ip to 10.77.0.14:6443
        ip6 daddr fd77::e tcp dport 443 dnat ip6 to [fd77::e]:6443
    }
}
END
";

/// Time for becoming ready, on a machine that compiles beside.
const READY: Duration = Duration::from_secs(90);
/// Time for what a controller does: a namespace's service account, say.
const SOON: Duration = Duration::from_secs(30);
/// Time for a command.
const COMMAND: Duration = Duration::from_secs(60);

/// The controllers that run: those that need no node and no cloud.
const CONTROLLERS: &str = "serviceaccount,serviceaccount-token,root-ca-cert-publisher,namespace,garbagecollector,\
    job,cronjob,replicaset,deployment,daemonset,statefulset,endpoint,clusterrole-aggregation";

/// Runs a program until standard input ends, as it does when the test has.
const UNTIL_WE_END: &str = r#""$@" < /dev/null & cat > /dev/null; kill -9 $!; wait"#;

/// Removes what was written, when the test has ended; the programs may still be writing for a moment.
const CLEAN_UP: &str = r#"cat > /dev/null; n=0; while rm -rf "$1" 2> /dev/null; sleep 0.1; [ -e "$1" ] && [ $n -lt 50 ]
do n=$((n + 1)); done"#;

/// Whether a cluster can be started here; if not, why not.
///
/// # Errors
/// If `.ci/kubernetes` was not run, or was skipped.
pub fn built() -> anyhow::Result<PathBuf> {
    let directory = directory(&crate::sandbox::programs()?);
    if let Ok(why) = std::fs::read_to_string(directory.join("skipped")) {
        bail!(".ci/kubernetes was skipped: {}", why.trim());
    }
    let current = directory.join("current");
    anyhow::ensure!(current.join("kube-apiserver").exists(), "run .ci/kubernetes, which builds it once");
    Ok(current.canonicalize()?)
}

/// Where `.ci/kubernetes` builds it: beside our programs.
pub(crate) fn directory(programs: &Path) -> PathBuf {
    programs.join("../kubernetes")
}

/// As whom the API server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity<'a> {
    /// `admin`, of the group `system:masters`.
    Admin,
    /// One of [`USERS`].
    User(&'a str),
    /// A bearer token: a service account's.
    Bearer(&'a str),
    /// Nobody.
    Anonymous,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    site: Site,
    /// As the programs see it.
    directory: PathBuf,
    address: SocketAddrV4,
    etcd: Option<Process>,
    api: Option<Process>,
    controllers: Option<Process>,
    /// Ends last.
    cleaner: Option<Process>,
}

/// Where the programs run.
#[derive(Clone, Debug)]
enum Site {
    /// On this machine's loopback.
    Here {
        /// Where the programs lie.
        programs: PathBuf,
    },
    /// In a sandbox, in the services' network namespace.
    Inside(Arc<Sandbox>),
}

impl Cluster {
    /// Starts one on an address of loopback that is its own, and waits until it is ready.
    ///
    /// # Errors
    /// If it was not built, or does not become ready.
    pub fn start() -> anyhow::Result<Self> {
        let site = Site::Here { programs: built()? };
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let address = free_address()?;
        let directory = parent.join(format!("countersign-cluster-{}", address.ip()));
        let _ = std::fs::remove_dir_all(&directory);
        Self::launch(site, directory, address)
    }

    /// Starts one in a sandbox, at <https://kubernetes.default.svc> there.
    ///
    /// # Errors
    /// If it was not built, or does not become ready.
    pub fn within(sandbox: &Arc<Sandbox>) -> anyhow::Result<Self> {
        built()?;
        sandbox.add_host(API_NAME, API_HOST)?;
        sandbox.script(Place::Service, SERVICE_PORT).context("the port of the API server")?;
        let address = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, API_HOST), 6443);
        Self::launch(Site::Inside(sandbox.clone()), format!("{PRIVATE}/kubernetes").into(), address)
    }

    fn launch(site: Site, directory: PathBuf, address: SocketAddrV4) -> anyhow::Result<Self> {
        let mut cluster =
            Self { site, directory, address, etcd: None, api: None, controllers: None, cleaner: None };
        cluster.write_files()?;
        let directory = cluster.directory.display().to_string();
        let cleaner = cluster.site.command("sh").args(["-c", CLEAN_UP, "sh", &directory]);
        cluster.cleaner = Some(cleaner.start_with_lifeline("cleaner", &cluster.path("cleaner.log"))?);
        cluster.etcd = Some(cluster.run("etcd", &cluster.etcd_args())?);
        cluster.start_api()?;
        cluster.wait_until_ready()?;
        cluster.controllers = Some(cluster.run("kube-controller-manager", &cluster.controller_args())?);
        Ok(cluster)
    }

    /// Keys, certificates, users and their kubeconfigs.
    fn write_files(&self) -> anyhow::Result<()> {
        let authority = Certificates::new("kubernetes")?;
        let ip = self.address.ip().to_string();
        let names = [API_NAME, "kubernetes", "kubernetes.default.svc.cluster.local", "localhost", &ip];
        let server = authority.server(&names)?;
        let kubelet_client = authority.client("kube-apiserver-kubelet-client", "system:masters")?;
        let kubelet = authority.server(&[&ip])?;
        let signing = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?;
        let users: Vec<_> = std::iter::once("admin").chain(USERS).map(|user| (user, random())).collect();
        let lines = users.iter().map(|(user, token)| match *user {
            "admin" => format!("{token},{user},{user},system:masters\n"),
            _ => format!("{token},{user},{user}\n"),
        });
        for (name, content) in [
            ("ca.pem", authority.root()),
            ("server.pem", &server.certificate),
            ("server.key", &server.key),
            ("kubelet-client.pem", &kubelet_client.certificate),
            ("kubelet-client.key", &kubelet_client.key),
            ("kubelet.pem", &kubelet.certificate),
            ("kubelet.key", &kubelet.key),
            ("service-accounts.key", &signing.serialize_pem()),
            ("service-accounts.pub", &signing.public_key_pem()),
            ("tokens.csv", &lines.collect::<String>()),
        ] {
            self.write(name, content)?;
        }
        for (user, token) in &users {
            self.write(&format!("{user}.token"), token)?;
            self.write(&format!("{user}.kubeconfig"), &self.kubeconfig_of(user, token, "default")?)?;
        }
        Ok(())
    }

    /// The text of a kubeconfig for whoever has this bearer token, with this namespace in its context.
    ///
    /// # Errors
    /// If it can't be written down.
    pub fn kubeconfig_of(&self, user: &str, token: &str, namespace: &str) -> anyhow::Result<String> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": {
                "server": self.url(), "certificate-authority": self.directory.join("ca.pem") } }],
            "users": [{ "name": user, "user": { "token": token } }],
            "contexts": [{ "name": user, "context": { "cluster": "test", "user": user, "namespace": namespace } }],
            "current-context": user,
        });
        // JSON is YAML.
        Ok(serde_json::to_string_pretty(&config)?)
    }

    fn etcd_args(&self) -> Vec<String> {
        let (client, peer) = (self.etcd_url(2379), self.etcd_url(2380));
        [
            format!("--data-dir={}", self.directory.join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--log-level=warn".to_owned(),
            "--logger=zap".to_owned(),
        ]
        .into()
    }

    fn etcd_url(&self, port: u16) -> String {
        match self.site {
            // Loopback of its own, which its clients do not see.
            Site::Inside(_) => format!("http://127.0.0.1:{port}"),
            Site::Here { .. } => format!("http://{}:{port}", self.address.ip()),
        }
    }

    fn api_args(&self) -> Vec<String> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let [a, b, c, _] = self.address.ip().octets();
        let (services, bind) = match self.site {
            Site::Here { .. } => (format!("{a}.{b}.{c}.0/24"), self.address.ip().to_string()),
            // The sandbox gives its name an IPv6 address too.
            Site::Inside(_) => ("10.96.0.0/16".to_owned(), "::".to_owned()),
        };
        [
            format!("--etcd-servers={}", self.etcd_url(2379)),
            format!("--bind-address={bind}"),
            format!("--secure-port={}", self.address.port()),
            format!("--advertise-address={}", self.address.ip()),
            // It would publish its address, and loopback may not be published.
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--service-cluster-ip-range={services}"),
            format!("--tls-cert-file={}", file("server.pem")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--cert-dir={}", file("certificates")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--kubelet-certificate-authority={}", file("ca.pem")),
            format!("--kubelet-client-certificate={}", file("kubelet-client.pem")),
            format!("--kubelet-client-key={}", file("kubelet-client.key")),
            format!("--service-account-key-file={}", file("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", file("service-accounts.key")),
            format!("--service-account-issuer={ISSUER}"),
            format!("--api-audiences={ISSUER}"),
            "--authorization-mode=RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--feature-gates=BoundServiceAccountTokenVolume=true,EphemeralContainers=true".to_owned(),
            "--profiling=false".to_owned(),
        ]
        .into()
    }

    fn controller_args(&self) -> Vec<String> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        [
            format!("--kubeconfig={}", file("admin.kubeconfig")),
            format!("--root-ca-file={}", file("ca.pem")),
            format!("--service-account-private-key-file={}", file("service-accounts.key")),
            format!("--controllers={CONTROLLERS}"),
            "--leader-elect=false".to_owned(),
            "--port=0".to_owned(),
            "--secure-port=0".to_owned(),
        ]
        .into()
    }

    fn run(&self, program: &str, args: &[String]) -> anyhow::Result<Process> {
        let path = self.site.program(program);
        let command = self.site.command("sh").args(["-c", UNTIL_WE_END, "sh", &path]).args(args);
        command.start_with_lifeline(program, &self.path(&format!("{program}.log")))
    }

    /// Starts one of our programs where the cluster is; it ends with the test, however that ends.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_ours(
        &self,
        program: &str,
        args: &[String],
        environment: &[(&str, String)],
        log: &str,
    ) -> anyhow::Result<Process> {
        let path = match self.site {
            Site::Here { .. } => crate::sandbox::programs()?.join(program),
            Site::Inside(_) => Path::new(crate::sandbox::PROGRAMS).join(program),
        };
        let command = self.site.command("sh").args(["-c", UNTIL_WE_END, "sh"]).arg(path).args(args);
        let command = environment.iter().fold(command, |command, (name, value)| command.env(name, value));
        command.start_with_lifeline(log, &self.path(&format!("{log}.log")))
    }

    /// Starts the API server, after [`Cluster::stop_api`].
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_api(&mut self) -> anyhow::Result<()> {
        self.api = Some(self.run("kube-apiserver", &self.api_args())?);
        Ok(())
    }

    /// Ends the API server without a warning.
    pub fn stop_api(&mut self) {
        self.api = None;
    }

    /// Waits until the API server says that it is ready.
    ///
    /// # Errors
    /// If it is not in time; with the last lines of its log.
    pub fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            let answer = self.request(Identity::Admin, "GET", "/readyz", None)?;
            if answer.status == 200 {
                return Ok(());
            }
            if Instant::now() > deadline {
                let said: Vec<_> = [&self.etcd, &self.api].into_iter().flatten().map(Process::tail).collect();
                bail!("the API server is not ready ({}):\n{}", answer.shown(), said.join("\n---\n"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// <https://kubernetes.default.svc>, or its address on loopback.
    #[must_use]
    pub fn url(&self) -> String {
        match self.site {
            Site::Inside(_) => format!("https://{API_NAME}"),
            Site::Here { .. } => format!("https://{}", self.address),
        }
    }

    /// The root of its certificate: a file, as the programs see it.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A kubeconfig, as the programs see it.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn kubeconfig(&self, identity: Identity<'_>) -> anyhow::Result<PathBuf> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = match identity {
            Identity::Admin => "admin.kubeconfig".to_owned(),
            Identity::User(user) => format!("{user}.kubeconfig"),
            Identity::Bearer(token) => {
                let name = format!("bearer-{}.kubeconfig", NEXT.fetch_add(1, Ordering::Relaxed));
                self.write(&name, &self.kubeconfig_of("bearer", token, "default")?)?;
                name
            }
            Identity::Anonymous => bail!("nobody has a kubeconfig"),
        };
        Ok(self.directory.join(name))
    }

    /// The bearer token of the administrator, or of one of [`USERS`].
    ///
    /// # Errors
    /// If there is no such user.
    pub fn token_of(&self, user: &str) -> anyhow::Result<String> {
        std::fs::read_to_string(self.path(&format!("{user}.token")))
            .with_context(|| format!("no user {user}"))
    }

    /// Writes a file into the cluster's directory; the path is as the programs see it.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, content).with_context(|| path.display().to_string())?;
        Ok(self.directory.join(name))
    }

    /// A file of the cluster's directory, as the test can open it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.site.outside(&self.directory.join(name))
    }

    /// A program of the machine, where the cluster is; with nothing of this process's environment but PATH.
    #[must_use]
    pub fn command(&self, program: &str) -> Inside {
        self.site.command(program)
    }

    /// Asks the API server, whatever it answers.
    ///
    /// # Errors
    /// If curl can't be run.
    pub fn request(
        &self,
        identity: Identity<'_>,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let ca = self.ca().display().to_string();
        let mut call =
            Call::new(self.command("curl").args(["--cacert", &ca]), &format!("{}{path}", self.url()))
                .method(method)
                .header("accept: application/json, */*");
        let token = match identity {
            Identity::Admin => self.token_of("admin")?,
            Identity::User(user) => self.token_of(user)?,
            Identity::Bearer(token) => token.to_owned(),
            Identity::Anonymous => String::new(),
        };
        if !token.is_empty() {
            call = call.header(&format!("authorization: Bearer {token}"));
        }
        if let Some(body) = body {
            let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
            call = call.header(&format!("content-type: {kind}")).body(&body.to_string());
        }
        call.send()
    }

    /// What is there, as the administrator.
    ///
    /// # Errors
    /// If the answer is no success; it is part of the error.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.done("GET", path, None)
    }

    /// Creates an object in a collection, as the administrator.
    ///
    /// # Errors
    /// If the answer is no success; it is part of the error.
    pub fn create(&self, collection: &str, object: &Value) -> anyhow::Result<Value> {
        self.done("POST", collection, Some(object))
    }

    /// Changes an object by a JSON merge patch (RFC 7396), as the administrator.
    ///
    /// # Errors
    /// If the answer is no success; it is part of the error.
    pub fn patch(&self, path: &str, change: &Value) -> anyhow::Result<Value> {
        self.done("PATCH", path, Some(change))
    }

    /// Deletes an object at once: what has a grace period does not get it.
    ///
    /// # Errors
    /// If the answer is no success; it is part of the error.
    pub fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.done("DELETE", path, Some(&json!({ "gracePeriodSeconds": 0 })))
    }

    fn done(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let answer = self.request(Identity::Admin, method, path, body)?;
        if !(200..300).contains(&answer.status) {
            bail!("{method} {path}: {} {}", answer.shown(), answer.text());
        }
        answer.json()
    }

    /// Applies documents, as the administrator; they may be YAML.
    ///
    /// # Errors
    /// If `kubectl apply` fails, with what it said.
    pub fn apply(&self, documents: &str) -> anyhow::Result<()> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("documents-{}.yaml", NEXT.fetch_add(1, Ordering::Relaxed));
        let file = self.write(&name, documents)?.display().to_string();
        let output = self.kubectl(&["apply", "-f", &file])?;
        anyhow::ensure!(output.success(), "kubectl apply: {}", output.stderr.trim());
        Ok(())
    }

    /// Runs kubectl, as the administrator.
    ///
    /// # Errors
    /// If it can't be run or does not end; its exit code is part of the output.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<Output> {
        self.command(&self.site.program("kubectl"))
            .env("KUBECONFIG", self.kubeconfig(Identity::Admin)?)
            .env("HOME", self.directory.join("home"))
            .args(args)
            .output(COMMAND)
    }

    /// A namespace whose name begins so, with its default service account; it is deleted when it is dropped.
    ///
    /// # Errors
    /// If it can't be created, or the controllers do nothing for it.
    pub fn namespace(&self, prefix: &str) -> anyhow::Result<Namespace<'_>> {
        Namespace::create(self, prefix)
    }

    /// Waits until something is there.
    ///
    /// # Errors
    /// If it is not in time.
    pub fn wait_for<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let tails = [&self.api, &self.controllers].into_iter().flatten().map(Process::tail);
                bail!(
                    "{what} did not come in {} s\n{}",
                    SOON.as_secs(),
                    tails.collect::<Vec<_>>().join("\n---\n")
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.controllers = None;
        self.api = None;
        self.etcd = None;
        if let Some(mut cleaner) = self.cleaner.take() {
            let _ = cleaner.finish(Duration::from_secs(10));
        }
    }
}

impl Site {
    fn command(&self, program: &str) -> Inside {
        match self {
            Self::Here { .. } => Inside::here(program),
            Self::Inside(sandbox) => sandbox.command(Place::Service, As::Root, program),
        }
    }

    /// One of the cluster's own programs.
    fn program(&self, name: &str) -> String {
        match self {
            Self::Here { programs } => programs.join(name).display().to_string(),
            Self::Inside(_) => format!("{HOME}/kubernetes/{name}"),
        }
    }

    fn outside(&self, path: &Path) -> PathBuf {
        match self {
            Self::Here { .. } => path.to_owned(),
            Self::Inside(sandbox) => sandbox.outside(path),
        }
    }
}

/// An address of loopback that no other cluster has: its own ports are free there.
fn free_address() -> anyhow::Result<SocketAddrV4> {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(31).wrapping_add(STARTED.fetch_add(1, Ordering::Relaxed));
    for number in first..first.saturating_add(50) {
        let [_, _, high, low] = number.to_be_bytes();
        let ip = Ipv4Addr::new(127, 64 | (high >> 2), low.max(1), 1);
        if [2379, 2380, 6443].iter().all(|port| TcpListener::bind((ip, *port)).is_ok()) {
            return Ok(SocketAddrV4::new(ip, 6443));
        }
    }
    bail!("no address of loopback is free")
}

fn random() -> String {
    format!("{:032x}", rand::random::<u128>())
}
