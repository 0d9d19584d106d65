//! A workload: an application's namespace, the evidence of what it is, its proxy, and the calls that it makes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use service::trust::{Bundle, Form, VARIABLES};

use crate::daemon::{Daemon, Probe, Recipe};
use crate::http::{Answer, Call};
use crate::sandbox::{As, HOME, Inside, Mode, PRIVATE, PROGRAMS, Place, Process, Sandbox};
use crate::world::{CONTROL_ROOT, ISSUER_URL, PAYMENTS, SERVICE_ROOT};

/// Port of a proxy in its own namespace.
const PROXY_PORT: &str = "15001";
/// UIDs, as root: of the first proxy and the first application.
const PROXY_UID: u32 = 1337;
const APPLICATION_UID: u32 = 10_001;
/// Mark of a proxy's sockets, rootless.
const MARK: &str = "4919";
/// Time for a command that sets something up.
const COMMAND: Duration = Duration::from_secs(60);
/// Time for a flood.
const FLOOD: Duration = Duration::from_secs(520);

/// What the workload can prove about itself.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Arguments of `token-issuer mint`.
    mint: Vec<String>,
    kind: &'static str,
    /// Signed by the issuer's key, or by another.
    genuine: bool,
}

impl Evidence {
    /// A projected service-account token.
    #[must_use]
    pub fn pod(namespace: &str, serviceaccount: &str) -> Self {
        let mint = ["--like", "kubernetes", "--namespace", namespace, "--serviceaccount", serviceaccount];
        Self { mint: mint.map(str::to_owned).to_vec(), kind: "kubernetes", genuine: true }
    }

    /// The quickstart's workload's.
    #[must_use]
    pub fn billing() -> Self {
        Self::pod("payments", "billing")
    }

    /// A CI job's token.
    #[must_use]
    pub fn job(repository: &str) -> Self {
        let mint = ["--like", "github", "--repository", repository];
        Self { mint: mint.map(str::to_owned).to_vec(), kind: "oidc", genuine: true }
    }

    /// The same claims, signed by a key that is not the issuer's.
    #[must_use]
    pub fn forged(mut self) -> Self {
        self.genuine = false;
        self
    }

    /// With more arguments of `token-issuer mint`.
    #[must_use]
    pub fn with(mut self, args: &[&str]) -> Self {
        self.mint.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }
}

/// An application's namespace, its evidence, and its proxy.
#[derive(Debug)]
pub struct Workload {
    sandbox: Arc<Sandbox>,
    name: String,
    number: u32,
    evidence: Evidence,
    pod_uid: String,
    proxy: Option<Daemon>,
}

impl Workload {
    pub(crate) fn new(
        sandbox: &Arc<Sandbox>,
        name: &str,
        number: u32,
        evidence: Evidence,
    ) -> anyhow::Result<Self> {
        sandbox.add_client(name)?;
        let pod_uid = uuid(rand::random());
        let workload =
            Self { sandbox: sandbox.clone(), name: name.to_owned(), number, evidence, pod_uid, proxy: None };
        let uid = workload.proxy_uid();
        sandbox.private_directory(workload.directory(), uid)?;
        sandbox.private_directory(format!("{}/state", workload.directory()), uid)?;
        sandbox.private_directory(format!("{}/spool", workload.directory()), uid)?;
        sandbox.directory(format!("{HOME}/trust/{name}"), uid, 0o755)?;
        workload.mint()?;
        Ok(workload)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it runs.
    #[must_use]
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    /// Its network namespace.
    #[must_use]
    pub fn place(&self) -> Place<'_> {
        Place::Client(&self.name)
    }

    /// As whom its proxy runs, as root.
    #[must_use]
    pub fn proxy_uid(&self) -> u32 {
        PROXY_UID + self.number
    }

    /// The proxy's own directory, which no application sees.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("{PRIVATE}/proxy-{}", self.name)
    }

    /// The trust bundle that the proxy writes for the application.
    #[must_use]
    pub fn bundle(&self) -> String {
        format!("{HOME}/trust/{}/ca-bundle.pem", self.name)
    }

    /// Writes new evidence for the same instance, as a platform renews a projected token.
    ///
    /// # Errors
    /// If it can't be minted.
    pub fn mint(&self) -> anyhow::Result<()> {
        let key = if self.evidence.genuine { "issuer.demo.test/signing.pem" } else { "forged.pem" };
        let (key, out) = (format!("{PRIVATE}/{key}"), format!("{}/token", self.directory()));
        let mut command = self
            .sandbox
            .command(Place::Service, As::Root, format!("{PROGRAMS}/token-issuer"))
            .args(["mint", "--issuer", ISSUER_URL, "--key-file", &key, "--out", &out])
            .args(["--pod-uid", &self.pod_uid])
            .args(&self.evidence.mint);
        if self.sandbox.mode() == Mode::Root {
            command = command.args(["--owner", &self.proxy_uid().to_string()]);
        }
        let output = command.output(COMMAND)?;
        if !output.success() {
            bail!("token-issuer mint: {}", output.stderr.trim());
        }
        Ok(())
    }

    /// The evidence that it has.
    ///
    /// # Errors
    /// If there is none.
    pub fn token(&self) -> anyhow::Result<String> {
        self.sandbox.read(format!("{}/token", self.directory()))
    }

    /// Installs the redirect, starts its proxy and waits until that is ready: the order of a pod.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_proxy(&mut self) -> anyhow::Result<()> {
        self.redirect()?;
        self.launch_proxy()?;
        self.proxy().wait_until_ready()
    }

    /// Starts its proxy; it may never become ready, and does not as long as nothing is redirected to it.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn launch_proxy(&mut self) -> anyhow::Result<()> {
        let (directory, bundle) = (self.directory(), self.bundle());
        let (state, spool, token) =
            (format!("{directory}/state"), format!("{directory}/spool"), format!("{directory}/token"));
        let args = [
            vec!["serve", "--state", &state, "--spool", &spool, "--bundle", &bundle],
            vec!["--control", "https://control.demo.test:8440", "--control-ca", CONTROL_ROOT],
            vec!["--evidence-token", &token, "--evidence-kind", self.evidence.kind],
            vec!["--listen-port", PROXY_PORT, "--roots", SERVICE_ROOT, "--health", "127.0.0.1:15020"],
            // Limits are each worker's, and so are connections to upstreams: what a test counts is in one place.
            vec!["--workers", "1"],
        ];
        let mut args: Vec<String> = args.concat().into_iter().map(str::to_owned).collect();
        if self.sandbox.mode() == Mode::Rootless {
            args.extend(["--mark".to_owned(), MARK.to_owned()]);
        }
        self.proxy = Some(Daemon::start(
            &self.sandbox,
            Recipe {
                name: format!("proxy-{}", self.name),
                client: Some(self.name.clone()),
                who: As::Proxy(self.proxy_uid()),
                program: "countersign-proxy",
                args,
                probe: Some(Probe { url: "http://127.0.0.1:15020/readyz".to_owned(), root: None }),
            },
        )?);
        Ok(())
    }

    /// Its proxy.
    ///
    /// # Panics
    /// If it was not started.
    pub fn proxy(&mut self) -> &mut Daemon {
        self.proxy.as_mut().expect("the proxy was started")
    }

    /// Installs the redirect; says what `capture install` printed.
    ///
    /// # Errors
    /// If it fails.
    pub fn redirect(&self) -> anyhow::Result<String> {
        self.redirect_with(&[])
    }

    /// The same with more arguments of `capture install`.
    ///
    /// # Errors
    /// If it fails.
    pub fn redirect_with(&self, more: &[&str]) -> anyhow::Result<String> {
        let uid = self.proxy_uid().to_string();
        let exempt = match self.sandbox.mode() {
            Mode::Root => ["--proxy-uid", &uid],
            Mode::Rootless => ["--proxy-mark", MARK],
        };
        self.capture(&[&["install", "--proxy-port", PROXY_PORT], &exempt[..], more].concat())
    }

    /// Runs `countersign-proxy capture`.
    ///
    /// # Errors
    /// If it fails.
    pub fn capture(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self
            .sandbox
            .command(self.place(), As::Root, format!("{PROGRAMS}/countersign-proxy"))
            .arg("capture")
            .args(args)
            .output(COMMAND)?;
        if !output.success() {
            bail!("countersign-proxy capture {}: {}", args.join(" "), output.stderr.trim());
        }
        Ok(format!("{}{}", output.text(), output.stderr))
    }

    /// A program of the application's, which trusts whom an injector would let it trust.
    #[must_use]
    pub fn application(&self, program: &str) -> Inside {
        let mut bundle = Bundle::at(&self.bundle());
        if !self.sandbox.outside(&bundle.pem).exists() {
            bundle.pem = SERVICE_ROOT.to_owned();
        }
        let command = self.bare_application(program);
        let pem = VARIABLES.iter().filter(|variable| variable.form == Form::Pem);
        pem.fold(command, |command, variable| command.env(variable.name, variable.value(&bundle)))
    }

    /// A program of the application's that nobody has told whom to trust.
    #[must_use]
    pub fn bare_application(&self, program: &str) -> Inside {
        self.sandbox.command(self.place(), As::Application(APPLICATION_UID + self.number), program)
    }

    /// A call by curl.
    #[must_use]
    pub fn curl(&self, url: &str) -> Call {
        Call::new(self.application("curl"), url)
    }

    /// A call by curl of a path of the payments service.
    #[must_use]
    pub fn payments(&self, path: &str) -> Call {
        self.curl(&format!("https://{PAYMENTS}{path}"))
    }

    /// Repeats a call until the answer is as wanted. A call counts by when it was made, however long its program takes.
    ///
    /// # Errors
    /// If one that was made later than this was not answered so; with its answer.
    pub fn eventually(
        &self,
        within: Duration,
        call: impl Fn(&Self) -> Call,
        wanted: impl Fn(&Answer) -> bool,
    ) -> anyhow::Result<(Duration, Answer)> {
        let begun = Instant::now();
        loop {
            let sent = begun.elapsed();
            let answer = call(self).send()?;
            if wanted(&answer) {
                return Ok((sent, answer));
            }
            if sent > within {
                bail!("not within {} ms; the last answer was {answer:?}", within.as_millis());
            }
        }
    }

    /// An application that goes on calling a path of the payments service (`steady-client`).
    ///
    /// # Errors
    /// If it can't be started.
    pub fn steady(&self, name: &str, path: &str, args: &[&str]) -> anyhow::Result<Steady> {
        let program = format!("{PROGRAMS}/steady-client");
        let log = self.sandbox.outside(format!("{HOME}/logs/{}-{name}.log", self.name));
        let process = self
            .application(&program)
            .args(["--url", &format!("https://{PAYMENTS}{path}"), "--name", name])
            .args(args)
            .start_with_lifeline(name, &log)?;
        Ok(Steady::of(process))
    }
}

impl Workload {
    /// An application that means ill, or is broken (`flood-client`); what became of its connections, and how often.
    ///
    /// # Errors
    /// If it does not end.
    pub fn flood(&self, args: &[&str]) -> anyhow::Result<BTreeMap<String, usize>> {
        let program = format!("{PROGRAMS}/flood-client");
        let output = self.application(&program).args(args).output(FLOOD)?;
        let value: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("flood-client {}: {output:?}", args.join(" ")))?;
        serde_json::from_value(value["became"].clone()).context("what became of it")
    }
}

/// An application that goes on calling.
#[derive(Debug)]
pub struct Steady {
    process: Process,
}

/// A line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// As sent in `x-request-id`.
    pub id: String,
    /// 0 if there was no answer.
    pub status: u16,
    /// When it was sent, in milliseconds since 1970.
    pub sent: u128,
    /// Our code, or what failed.
    pub note: String,
}

impl Steady {
    pub(crate) fn of(process: Process) -> Self {
        Self { process }
    }

    /// The calls that it has made.
    #[must_use]
    pub fn calls(&self) -> Vec<Made> {
        self.process.logs().lines().filter_map(made).collect()
    }

    /// Waits until it has made this many calls with this status.
    ///
    /// # Errors
    /// If it has not within this time.
    pub fn wait_for(&mut self, status: u16, calls: usize, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        while self.calls().iter().filter(|made| made.status == status).count() < calls {
            if Instant::now() > deadline || !self.process.is_alive() {
                bail!("no {calls} calls with {status}: {:?}", tally(&self.calls()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Lets it finish, and says which calls it made.
    ///
    /// # Errors
    /// If it does not end.
    pub fn finish(mut self) -> anyhow::Result<Vec<Made>> {
        self.process.finish(Duration::from_secs(20)).context("steady-client")?;
        Ok(self.calls())
    }
}

/// How many calls had which status.
#[must_use]
pub fn tally(calls: &[Made]) -> BTreeMap<u16, usize> {
    let mut tally = BTreeMap::new();
    for call in calls {
        *tally.entry(call.status).or_default() += 1;
    }
    tally
}

fn made(line: &str) -> Option<Made> {
    let mut words = line.splitn(4, ' ');
    Some(Made {
        id: words.next()?.to_owned(),
        status: words.next()?.parse().ok()?,
        sent: words.next()?.parse().ok()?,
        note: words.next()?.to_owned(),
    })
}

/// RFC 9562 §5.4: a random UUID.
fn uuid(random: u128) -> String {
    let bits = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_says_its_version_and_variant() {
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn a_line_is_read() {
        let line = made("r-1 403 17 CS5001").unwrap();
        assert_eq!(
            (line.id.as_str(), line.status, line.sent, line.note.as_str()),
            ("r-1", 403, 17, "CS5001")
        );
        assert_eq!(made("thread 'main' panicked"), None);
    }
}
