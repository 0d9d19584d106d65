//! Services under names that a policy covers in one way or another, or not at all (`tests/clients/names-server.mjs`), and
//! calls to them through the explicit proxy.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use serde_json::Value;

use crate::Daemon;
use crate::daemon::{Probe, Recipe};
use crate::edge::client;
use crate::http::Call;
use crate::sandbox::{As, HOME, PRIVATE, Place, Sandbox};
use crate::workload::Workload;
use crate::world::{COMMAND, World};

/// Covered, with a credential: 9443 with TLS, 9080 in the clear although it must not be.
pub const COVERED: &str = "covered.demo.test";
/// Covered, with a credential, and said to be `insecure`: 9080.
pub const PLAIN: &str = "plain.demo.test";
/// Covered, with a credential; only the application knows its address: 9443.
pub const MEMBER: &str = "member.demo.test";
/// Covered by nothing.
pub const OTHER: &str = "other.demo.test";

/// Port of the explicit proxy.
pub const EXPLICIT: &str = "15002";

/// The names, and the hosts (10.77.0.x, fd77::x) that they have.
pub const NAMES: [(&str, u8); 4] = [(COVERED, 40), (PLAIN, 41), (MEMBER, 42), (OTHER, 43)];

/// Host of the name server.
const SERVER: u8 = 53;
/// What the name server reads its names from.
const ZONE: &str = "/run/countersign/private/zone";
/// How long its answers may be kept.
pub const TTL: Duration = Duration::from_secs(5);

/// What it has seen, on loopback.
const SEEN: &str = "http://127.0.0.1:9092/";

const DOCUMENTS: &str = r"
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: { name: billing, namespace: payments }
spec:
  selector: { kubernetes.serviceaccount: billing }
  egress: EGRESS
---
apiVersion: countersign.dev/v1alpha1
kind: CredentialProvider
metadata: { name: names-token, namespace: payments }
spec: { jwt: { audience: [https://names.demo.test], ttl: 5m } }
";

/// A destination, and the policy that covers it for billing with a credential.
#[must_use]
pub fn covering(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: countersign.dev/v1alpha1\nkind: Destination\nmetadata: {{ name: {name}, namespace: payments }}\n\
         spec: {{ {spec} }}\n---\napiVersion: countersign.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{ name: billing-{name}, \
         namespace: payments }}\nspec:\n  workload: billing\n  destination: {name}\n  credential: names-token\n  allow: [{{}}]\n"
    )
}

/// The services, and the name server that knows them.
#[derive(Debug)]
pub struct Names {
    sandbox: Arc<Sandbox>,
    server: Daemon,
    /// Kept running.
    _services: Daemon,
}

impl Names {
    /// Has the name server know exactly these names, by lines as in a hosts file.
    ///
    /// # Errors
    /// If it can't be told.
    pub fn set_zone(&mut self, lines: &str) -> anyhow::Result<()> {
        self.sandbox.write(ZONE, lines)?;
        self.server.process().signal(Signal::HUP);
        Ok(())
    }

    /// What the name server was asked for this name so far.
    #[must_use]
    pub fn queries(&self, name: &str) -> usize {
        let asked = format!(" {name} from ");
        self.server.logs().lines().filter(|line| line.contains("query[A]") && line.contains(&asked)).count()
    }
}

/// The zone that knows the services by their own addresses.
#[must_use]
pub fn zone() -> String {
    NAMES.iter().map(|(name, host)| format!("10.77.0.{host} {name}\nfd77::{host:x} {name}\n")).collect()
}

impl World {
    /// Starts the services and a name server, and covers them, in this egress mode.
    ///
    /// # Errors
    /// If Node or dnsmasq is not installed, or they do not become ready.
    pub fn start_names(&mut self, egress: &str) -> anyhow::Result<Names> {
        let sandbox = self.sandbox().clone();
        let server = self.start_name_server()?;
        for (name, host) in NAMES {
            sandbox.add_host(name, host)?;
        }
        let leaf = self.certificates().server(&NAMES.map(|(name, _)| name))?;
        let directory = format!("{PRIVATE}/names");
        sandbox.private_directory(&directory, 0)?;
        sandbox.write(format!("{directory}/certificate.pem"), leaf.certificate)?;
        sandbox.write(format!("{directory}/key.pem"), leaf.key)?;
        let mut names = Daemon::start(
            &sandbox,
            Recipe {
                name: "names".to_owned(),
                client: None,
                who: As::Root,
                program: "node",
                args: vec![client("names-server.mjs"), directory],
                probe: Some(Probe { url: SEEN.to_owned(), root: None }),
            },
        )?;
        names.wait_until_ready()?;
        self.cover_names(egress)?;
        Ok(Names { sandbox, server, _services: names })
    }

    /// dnsmasq, asked by whoever has no answer in the hosts file; its search list is `demo.test`.
    fn start_name_server(&self) -> anyhow::Result<Daemon> {
        let sandbox = self.sandbox();
        sandbox.add_host("ns.demo.test", SERVER)?;
        sandbox.write(ZONE, zone())?;
        let (address, ttl) = (format!("--listen-address=10.77.0.{SERVER}"), TTL.as_secs());
        let (zone, ttl) = (format!("--addn-hosts={ZONE}"), format!("--local-ttl={ttl}"));
        let fixed = "--keep-in-foreground --conf-file=/dev/null --pid-file= --user=root --group=root --bind-interfaces \
            --no-resolv --no-hosts --local=/demo.test/ --log-queries --log-facility=-";
        let server = Daemon::start(
            sandbox,
            Recipe {
                name: "dnsmasq".to_owned(),
                client: None,
                who: As::Root,
                program: "dnsmasq",
                args: fixed.split_whitespace().map(str::to_owned).chain([address, zone, ttl]).collect(),
                probe: None,
            },
        )?;
        let lines = format!("nameserver 10.77.0.{SERVER}\nsearch demo.test\noptions timeout:2 attempts:2\n");
        sandbox.write(format!("{HOME}/etc/resolv.conf"), lines)?;
        Ok(server)
    }

    /// Applies the documents that cover the services, in this egress mode.
    ///
    /// # Errors
    /// If one is refused.
    pub fn cover_names(&self, egress: &str) -> anyhow::Result<()> {
        let mut documents = DOCUMENTS.replace("EGRESS", egress);
        for (name, spec) in [
            ("covered", "hosts: [covered.demo.test], ports: [9443, 9080]"),
            ("plain", "hosts: [plain.demo.test], ports: [9080], insecure: true"),
            ("member", "hosts: [member.demo.test], ports: [9443], resolve: application"),
        ] {
            documents += &covering(name, spec);
        }
        self.apply(&documents).map(drop)
    }

    /// What the services have seen since they were asked last.
    ///
    /// # Errors
    /// If they do not answer.
    pub fn names_seen(&self) -> anyhow::Result<Vec<Value>> {
        let curl =
            self.sandbox().command(Place::Service, As::Root, "curl").args(["-sS", "-X", "DELETE", SEEN]);
        let output = curl.output(COMMAND)?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {output:?}"))
    }
}

impl Workload {
    /// Starts its proxy with the explicit port, and with these arguments more.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_explicit(&mut self, more: &[&str]) -> anyhow::Result<()> {
        let more: Vec<String> =
            ["--explicit-port", EXPLICIT].iter().chain(more).map(ToString::to_string).collect();
        self.proxy().restart_with(|args| args.extend(more))?;
        self.proxy().wait_until_ready()
    }

    /// A call by curl that asks the explicit proxy. What the proxy says to CONNECT is in the answer's `error`.
    #[must_use]
    pub fn explicit(&self, url: &str) -> Call {
        let call = self.curl(url).args(["--proxy", &format!("http://127.0.0.1:{EXPLICIT}")]);
        call.args(["--suppress-connect-headers", "-v"])
    }

    /// Sends bytes to the explicit proxy, and gives what comes back until it ends or says nothing more.
    ///
    /// # Errors
    /// If that can't be done.
    pub fn say_to_explicit(&self, bytes: &str) -> anyhow::Result<String> {
        self.say_all_to_explicit(&[bytes.to_owned()])?.pop().context("nothing was said")
    }

    /// The same for several connections at once.
    ///
    /// # Errors
    /// If that can't be done.
    pub fn say_all_to_explicit(&self, all: &[String]) -> anyhow::Result<Vec<String>> {
        let args: Vec<&str> =
            ["127.0.0.1", EXPLICIT].into_iter().chain(all.iter().map(String::as_str)).collect();
        Ok(serde_json::from_value(self.script("say.py", &args)?)?)
    }
}
