//! Servers that differ in their TLS (`tests/clients/tls-server.mjs`), with the documents that cover them.

use anyhow::Context as _;
use serde_json::Value;

use crate::certificates::Certificates;
use crate::daemon::{Daemon, Probe, Recipe};
use crate::edge::client;
use crate::http::Call;
use crate::sandbox::{As, PRIVATE, Place};
use crate::workload::Workload;
use crate::world::{COMMAND, CONTROL_ROOT, World};

/// The name of all of them; shown the workload's certificate.
pub const TLS: &str = "tls.demo.test";
/// The same servers by another name, which are shown nothing.
pub const BARE: &str = "bare.demo.test";
/// By a name that is not in their certificate; they are sent one that is.
pub const OUTER: &str = "outer.demo.test";
/// By a name that is in it; they are sent one that is not.
pub const WRONG: &str = "wrong.demo.test";
/// The one with a certificate of another authority, whose root its document has; by [`TLS`] it is nobody's.
pub const GIVEN: &str = "given.demo.test";
/// What [`OUTER`] sends.
pub const INSIDE: &str = "inside.demo.test";

const SEEN: &str = "http://127.0.0.1:9092/";

/// Covers the servers for billing.
const DOCUMENTS: &str = r"
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: { name: billing, namespace: payments }
spec:
  selector: { kubernetes.serviceaccount: billing }
  egress: enforce
---
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: { name: tls, namespace: payments }
spec: { hosts: [tls.demo.test], ports: [8450, 8451, 8452, 8453, 8454, 8455, 8456, 8457], clientCertificate: svid }
---
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: { name: bare, namespace: payments }
spec: { hosts: [bare.demo.test], ports: [8450, 8451] }
---
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: { name: outer, namespace: payments }
spec: { hosts: [outer.demo.test], ports: [8456], serverName: inside.demo.test }
---
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: { name: wrong, namespace: payments }
spec: { hosts: [wrong.demo.test], ports: [8456], serverName: elsewhere.demo.test }
---
apiVersion: countersign.dev/v1alpha1
kind: CredentialProvider
metadata: { name: tls-token, namespace: payments }
spec: { jwt: { audience: [https://tls.demo.test], ttl: 5m } }
";

impl World {
    /// Starts the servers and covers them.
    ///
    /// # Errors
    /// If Node or OpenSSL is not installed, or they do not become ready.
    pub fn start_tls_servers(&mut self) -> anyhow::Result<Daemon> {
        let sandbox = self.sandbox().clone();
        for name in [TLS, BARE, OUTER, WRONG, GIVEN] {
            sandbox.add_host(name, 21)?;
        }
        let other = Certificates::new("Another authority")?;
        let theirs = other.server(&[TLS, GIVEN])?;
        let leaf = self.certificates().server(&[TLS, BARE, WRONG, GIVEN, INSIDE])?;
        let directory = format!("{PRIVATE}/{TLS}");
        sandbox.private_directory(&directory, 0)?;
        sandbox.write(format!("{directory}/certificate.pem"), leaf.certificate)?;
        sandbox.write(format!("{directory}/key.pem"), leaf.key)?;
        sandbox.write(format!("{directory}/other-certificate.pem"), theirs.certificate)?;
        sandbox.write(format!("{directory}/other-key.pem"), theirs.key)?;
        let rsa = format!(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={TLS} \
             -keyout {directory}/rsa-key.pem -out {directory}/rsa-certificate.pem 2>/dev/null"
        );
        sandbox.script(Place::Service, &rsa).context("no RSA certificate: is openssl installed?")?;
        let script = client("tls-server.mjs");
        let mut servers = Daemon::start(
            &sandbox,
            Recipe {
                name: "tls-server".to_owned(),
                client: None,
                who: As::Root,
                program: "node",
                args: vec![script, directory, CONTROL_ROOT.to_owned()],
                probe: Some(Probe { url: SEEN.to_owned(), root: None }),
            },
        )?;
        servers.wait_until_ready()?;
        let root: String = other.root().lines().map(|line| format!("    {line}\n")).collect();
        let given = format!(
            "---\napiVersion: countersign.dev/v1alpha1\nkind: Destination\n\
             metadata: {{ name: given, namespace: payments }}\n\
             spec:\n  hosts: [{GIVEN}]\n  ports: [8456, 8457]\n  caBundle: |\n{root}"
        );
        let policies = ["tls", "bare", "outer", "wrong", "given"].map(|destination| {
            format!(
                "---\napiVersion: countersign.dev/v1alpha1\nkind: AccessPolicy\n\
                 metadata: {{ name: billing-{destination}, namespace: payments }}\n\
                 spec: {{ workload: billing, destination: {destination}, credential: tls-token, allow: [{{}}] }}\n"
            )
        });
        self.apply(&format!("{DOCUMENTS}{given}{}", policies.concat()))?;
        Ok(servers)
    }

    /// How many connections and requests the servers have had.
    ///
    /// # Errors
    /// If they do not answer.
    pub fn tls_servers_seen(&self) -> anyhow::Result<Value> {
        let curl = self.sandbox().command(Place::Service, As::Root, "curl").args(["-sS", SEEN]);
        let output = curl.output(COMMAND)?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {output:?}"))
    }
}

impl Workload {
    /// A call of one of the servers, by this name.
    #[must_use]
    pub fn tls_server(&self, name: &str, port: u16) -> Call {
        self.curl(&format!("https://{name}:{port}/"))
    }
}
