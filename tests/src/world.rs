//! The whole: an issuer of evidence, a service, a control plane, and workloads, each with its proxy.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::certificates::Certificates;
use crate::daemon::{Daemon, Probe, Recipe};
use crate::http::Call;
use crate::sandbox::{As, HOME, Mode, Output, PRIVATE, PROGRAMS, Place, Sandbox};
use crate::workload::{Evidence, Workload};

/// The service's name.
pub const PAYMENTS: &str = "payments.demo.test";
/// The issuer of evidence.
pub const ISSUER: &str = "issuer.demo.test";
/// The control plane.
pub const CONTROL: &str = "control.demo.test";
/// The URL of the issuer of evidence.
pub const ISSUER_URL: &str = "https://issuer.demo.test:8443";
/// The URL of the control plane's own issuer, which the service trusts.
pub const CONTROL_ISSUER_URL: &str = "https://control.demo.test:8441";
/// The root of the service's and the issuer's certificates, a file inside.
pub const SERVICE_ROOT: &str = "/run/countersign/pki/service-ca.pem";
/// The control plane's root, a file inside.
pub const CONTROL_ROOT: &str = "/run/countersign/pki/control-ca.pem";
/// The control plane's socket for administration.
pub const SOCKET: &str = "/run/countersign/private/control/control.sock";

/// Time for a command of `countersign`.
pub(crate) const COMMAND: Duration = Duration::from_secs(120);

/// Documents that let billing do everything at one host, with a token for it.
pub(crate) fn covering(name: &str, host: &str, ports: &[u16]) -> String {
    format!(
        "apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: {{ name: billing, namespace: payments }}
spec:
  selector: {{ kubernetes.serviceaccount: billing }}
  egress: enforce
---
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: {{ name: {name}, namespace: payments }}
spec: {{ hosts: [{host}], ports: {ports:?} }}
---
apiVersion: countersign.dev/v1alpha1
kind: CredentialProvider
metadata: {{ name: {name}-token, namespace: payments }}
spec: {{ jwt: {{ audience: [https://{host}], ttl: 5m }} }}
---
apiVersion: countersign.dev/v1alpha1
kind: AccessPolicy
metadata: {{ name: billing-{name}, namespace: payments }}
spec:
  workload: billing
  destination: {name}
  credential: {name}-token
  allow: [{{}}]
"
    )
}

/// The programs of a test, in namespaces of their own.
#[derive(Debug)]
pub struct World {
    sandbox: Arc<Sandbox>,
    certificates: Certificates,
    issuer: Option<Daemon>,
    service: Option<Daemon>,
    control: Option<Daemon>,
    clients: u32,
}

/// What the control plane does with calls that no policy covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// They pass and are recorded.
    Observe,
    /// They are refused.
    Enforce,
}

impl World {
    /// Namespaces and certificates; nothing runs yet.
    ///
    /// # Errors
    /// If namespaces can't be made here.
    pub fn new() -> anyhow::Result<Self> {
        Self::within(Sandbox::new()?)
    }

    /// The same in a sandbox that was made before.
    ///
    /// # Errors
    /// If a file or an address can't be made.
    pub fn within(sandbox: Sandbox) -> anyhow::Result<Self> {
        let certificates = Certificates::new("Demo services")?;
        sandbox.write(SERVICE_ROOT, certificates.root())?;
        for (name, host) in [(PAYMENTS, 10), (ISSUER, 11), (CONTROL, 12)] {
            sandbox.add_host(name, host)?;
        }
        for name in [PAYMENTS, ISSUER, CONTROL] {
            let leaf = certificates.server(&[name])?;
            sandbox.private_directory(format!("{PRIVATE}/{name}"), 0)?;
            sandbox.write(format!("{PRIVATE}/{name}/certificate.pem"), leaf.certificate)?;
            sandbox.write(format!("{PRIVATE}/{name}/key.pem"), leaf.key)?;
        }
        Ok(Self {
            sandbox: Arc::new(sandbox),
            certificates,
            issuer: None,
            service: None,
            control: None,
            clients: 0,
        })
    }

    /// Everything but workloads: issuer, service, control plane in this egress mode, and the documents of
    /// `examples/quickstart`.
    ///
    /// # Errors
    /// If a program does not start or a document is refused.
    pub fn started(egress: Egress) -> anyhow::Result<Self> {
        let mut world = Self::new()?;
        world.start_issuer()?;
        world.start_service()?;
        world.start_control(egress)?;
        world.apply_quickstart()?;
        Ok(world)
    }

    /// Where everything runs.
    #[must_use]
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    /// The authority of the services' certificates.
    #[must_use]
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// The issuer of evidence.
    ///
    /// # Panics
    /// If it was not started.
    pub fn issuer(&mut self) -> &mut Daemon {
        self.issuer.as_mut().expect("the issuer was started")
    }

    /// The service.
    ///
    /// # Panics
    /// If it was not started.
    pub fn service(&mut self) -> &mut Daemon {
        self.service.as_mut().expect("the service was started")
    }

    /// The control plane.
    ///
    /// # Panics
    /// If it was not started.
    pub fn control(&mut self) -> &mut Daemon {
        self.control.as_mut().expect("the control plane was started")
    }

    /// Starts the issuer of evidence.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_issuer(&mut self) -> anyhow::Result<()> {
        let args = [
            vec!["serve", "--issuer", ISSUER_URL, "--listen", "[::]:8443"],
            vec!["--key-file", "/run/countersign/private/issuer.demo.test/signing.pem"],
        ];
        let mut args: Vec<String> = args.concat().into_iter().map(str::to_owned).collect();
        args.extend(certificate_of(ISSUER));
        self.issuer = Some(self.daemon(Recipe {
            name: "issuer".to_owned(),
            client: None,
            who: As::Root,
            program: "token-issuer",
            args,
            probe: Some(Probe {
                url: format!("{ISSUER_URL}/.well-known/openid-configuration"),
                root: Some(SERVICE_ROOT.to_owned()),
            }),
        })?);
        Ok(())
    }

    /// Starts the service.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_service(&mut self) -> anyhow::Result<()> {
        let args = [
            vec!["--issuer", CONTROL_ISSUER_URL, "--issuer-ca", SERVICE_ROOT],
            vec!["--audience", "https://payments.demo.test", "--listen", "[::]:443"],
            vec!["--greeter", "[::]:2525"],
        ];
        let mut args: Vec<String> = args.concat().into_iter().map(str::to_owned).collect();
        args.extend(certificate_of(PAYMENTS));
        self.service = Some(self.daemon(Recipe {
            name: "service".to_owned(),
            client: None,
            who: As::Root,
            program: "payments-api",
            args,
            probe: Some(Probe { url: "http://127.0.0.1:9090/__seen/count".to_owned(), root: None }),
        })?);
        Ok(())
    }

    /// Starts the control plane.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_control(&mut self, egress: Egress) -> anyhow::Result<()> {
        self.sandbox.private_directory(format!("{PRIVATE}/control"), 0)?;
        let egress = match egress {
            Egress::Observe => "observe",
            Egress::Enforce => "enforce",
        };
        let discovery_certificate = format!("{PRIVATE}/{CONTROL}/certificate.pem");
        let discovery_key = format!("{PRIVATE}/{CONTROL}/key.pem");
        let args = [
            vec!["serve", "--state", "/run/countersign/private/control/state"],
            vec!["--listen", "[::]:8440", "--discovery-listen", "[::]:8441"],
            vec!["--discovery-certificate", &discovery_certificate, "--discovery-key", &discovery_key],
            vec!["--issuer-url", CONTROL_ISSUER_URL, "--trust-domain", "demo", "--egress", egress],
            vec!["--roots", SERVICE_ROOT, "--socket", SOCKET, "--ca-out", CONTROL_ROOT],
            vec!["--token-file", "/run/countersign/private/control/admin-token"],
            vec!["--health", "127.0.0.1:8442"],
        ];
        self.control = Some(self.daemon(Recipe {
            name: "control".to_owned(),
            client: None,
            who: As::Root,
            program: "countersign-control",
            args: args.concat().into_iter().map(str::to_owned).collect(),
            probe: Some(Probe { url: "http://127.0.0.1:8442/readyz".to_owned(), root: None }),
        })?);
        Ok(())
    }

    fn daemon(&self, recipe: Recipe) -> anyhow::Result<Daemon> {
        let mut daemon = Daemon::start(&self.sandbox, recipe)?;
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    /// Applies the documents of `examples/quickstart`.
    ///
    /// # Errors
    /// If one is refused.
    pub fn apply_quickstart(&self) -> anyhow::Result<Output> {
        let path = quickstart().join("quickstart.yaml");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        // The example believes the issuer by its certificate; here that certificate is of our own making.
        self.apply(&text)
    }

    /// Applies documents.
    ///
    /// # Errors
    /// If one is refused, with what the command line says about it.
    pub fn apply(&self, documents: &str) -> anyhow::Result<Output> {
        let file = format!("{PRIVATE}/documents.yaml");
        self.sandbox.write(&file, documents)?;
        let output = self.countersign(&["apply", "-f", &file])?;
        if !output.success() {
            bail!("countersign apply ended with {}:\n{}{}", output.exit, output.text(), output.stderr);
        }
        // Each document that was applied is named: silence would mean that nothing was.
        ensure!(!output.stdout.is_empty(), "countersign apply named no document: {}", output.stderr);
        Ok(output)
    }

    /// Runs `countersign` as the administrator, over the socket.
    ///
    /// # Errors
    /// If it can't be run or does not end; its exit code is part of the output.
    pub fn countersign(&self, args: &[&str]) -> anyhow::Result<Output> {
        self.sandbox
            .command(Place::Service, As::Root, format!("{PROGRAMS}/countersign"))
            .args(args)
            .env("COUNTERSIGN_SOCKET", SOCKET)
            .output(COMMAND)
    }

    /// The same, and its standard output as JSON values, one for each document that it printed.
    ///
    /// # Errors
    /// If it fails, or does not print JSON.
    pub fn countersign_json(&self, args: &[&str]) -> anyhow::Result<Vec<Value>> {
        let output = self.countersign(&[args, &["-o", "json"]].concat())?;
        if !output.success() {
            bail!("countersign {} ended with {}: {}", args.join(" "), output.exit, output.stderr.trim());
        }
        let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
        values.collect::<Result<_, _>>().with_context(|| output.text())
    }

    /// A workload of its own namespace, with evidence, without a proxy yet.
    ///
    /// # Errors
    /// If the namespace can't be made or the evidence not be minted.
    pub fn workload(&mut self, name: &str, evidence: Evidence) -> anyhow::Result<Workload> {
        let number = self.clients;
        self.clients += 1;
        Workload::new(&self.sandbox, name, number, evidence)
    }

    /// The quickstart's workload, with its proxy ready and its calls redirected.
    ///
    /// # Errors
    /// If a part of that fails.
    pub fn billing(&mut self) -> anyhow::Result<Workload> {
        let mut billing = self.workload("billing", Evidence::billing())?;
        billing.start_proxy()?;
        Ok(billing)
    }

    /// The same with more settings for its proxy.
    ///
    /// # Errors
    /// If a part of that fails.
    pub fn billing_with(&mut self, settings: &[&str]) -> anyhow::Result<Workload> {
        let mut billing = self.workload("billing", Evidence::billing())?;
        billing.launch_proxy()?;
        let more = settings.iter().map(|setting| (*setting).to_owned());
        billing.proxy().restart_with(|args| args.extend(more))?;
        billing.redirect()?;
        billing.proxy().wait_until_ready()?;
        Ok(billing)
    }

    /// The quickstart's workload behind a proxy of this many workers, each with listeners of its own.
    ///
    /// # Errors
    /// If a part of that fails.
    pub fn billing_on_workers(&mut self, workers: usize) -> anyhow::Result<Workload> {
        let mut billing = self.workload("billing", Evidence::billing())?;
        billing.launch_proxy()?;
        let workers = workers.to_string();
        billing.proxy().restart_with(|args| {
            if let Some(at) = args.iter().position(|arg| arg == "--workers") {
                args[at + 1] = workers;
            }
        })?;
        billing.redirect()?;
        billing.proxy().wait_until_ready()?;
        Ok(billing)
    }

    /// What has reached the service.
    ///
    /// # Errors
    /// If the service can't be asked.
    pub fn seen(&self) -> anyhow::Result<Seen> {
        let curl = self.sandbox.command(Place::Service, As::Root, "curl");
        let answer = Call::new(curl, "http://127.0.0.1:9090/__seen").send()?;
        serde_json::from_slice(&answer.body).with_context(|| answer.shown())
    }

    /// With which rights everything runs.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.sandbox.mode()
    }
}

/// What has reached the service since it started.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Seen {
    /// All requests.
    pub count: u64,
    /// Those whose token was taken.
    pub authorised: u64,
    /// Connections to port 2525, where the service speaks first.
    pub greeted: u64,
    /// The requests, oldest first.
    pub requests: Vec<Arrival>,
}

/// A request that reached the service.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrival {
    /// From `x-request-id`.
    pub id: String,
    /// GET.
    pub method: String,
    /// With its query.
    pub path: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// The token's `sub`, if the token was taken.
    pub caller: Option<String>,
    /// How many `authorization` fields it had.
    pub authorizations: usize,
    /// The token's `jti`, which is the grant's id.
    pub grant: Option<String>,
    /// The token's signature.
    pub signature: Option<String>,
    /// Why the token was not taken.
    pub refused: Option<String>,
}

/// Where `examples/quickstart` is.
#[must_use]
pub fn quickstart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart")
}

fn certificate_of(name: &str) -> Vec<String> {
    vec![
        "--certificate".to_owned(),
        format!("{PRIVATE}/{name}/certificate.pem"),
        "--key".to_owned(),
        format!("{PRIVATE}/{name}/key.pem"),
    ]
}

/// Where logs are, for a message that says where to look.
#[must_use]
pub fn logs() -> String {
    format!("{HOME}/logs")
}
