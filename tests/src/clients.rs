//! The real clients that `tests/clients/setup` installs, as programs of a workload's application, and what they call.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::Daemon;
use crate::daemon::{Probe, Recipe};
use crate::http::Call;
use crate::sandbox::{As, Inside, Output, PRIVATE, Place, programs};
use crate::workload::Workload;
use crate::world::{World, covering};

/// The name of what they call; its ports are those of `tests/clients/server.py`.
pub const CLIENTS_HOST: &str = "clients.demo.test";
/// gRPC.
pub const GRPC: u16 = 8451;
/// WebSockets.
pub const WEBSOCKET: u16 = 8452;

/// Where they are, inside, and the programs that use them.
const INSTALLED: &str = "/run/countersign/clients";
pub(crate) const SOURCE: &str = "/run/countersign/clients/source";
const PYTHON: &str = "/run/countersign/clients/venv/bin/python";
/// What the server has seen, on loopback.
const SEEN: &str = "http://127.0.0.1:9092/";
/// Time for a client: some ask several times before they give up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where `tests/clients/setup` installs them: beside our programs.
pub(crate) fn directory(programs: &Path) -> PathBuf {
    programs.join("../clients")
}

/// The programs that use them.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// Which clients are installed.
#[derive(Clone, Debug)]
pub struct Clients {
    versions: BTreeMap<String, String>,
}

impl Clients {
    /// Reads the list that `tests/clients/setup` wrote.
    ///
    /// # Errors
    /// If it was never run.
    pub fn installed() -> anyhow::Result<Self> {
        let directory = directory(&programs()?);
        let list = std::fs::read_to_string(directory.join("installed"))
            .context("no clients are installed: run `tests/clients/setup`")?;
        let pair =
            |line: &str| line.split_once(' ').map(|(name, version)| (name.to_owned(), version.to_owned()));
        Ok(Self { versions: list.lines().filter_map(pair).collect() })
    }

    /// Whether every client was installed that can be, and not those of a CI run alone.
    #[must_use]
    pub fn are_all(&self) -> bool {
        self.versions.get("set").is_some_and(|set| set == "all")
    }

    /// Whether a client is there; says so if it is not, since its part of a test is left out then.
    #[must_use]
    #[allow(clippy::print_stderr, reason = "what is not tested is told")]
    pub fn has(&self, name: &str) -> bool {
        let there = self.versions.contains_key(name);
        if !there {
            eprintln!("left out: {name} is not installed (`make test-clients` installs what it can)");
        }
        there
    }

    /// Whether a client's version is this one or a later one.
    #[must_use]
    pub fn is_at_least(&self, name: &str, major: u32, minor: u32) -> bool {
        let version = self.versions.get(name).map_or("", String::as_str);
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
    }
}

impl World {
    /// Starts the server that speaks gRPC and WebSockets, and covers it.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_clients_server(&mut self) -> anyhow::Result<Daemon> {
        let sandbox = self.sandbox().clone();
        sandbox.add_host(CLIENTS_HOST, 21)?;
        let leaf = self.certificates().server(&[CLIENTS_HOST])?;
        let directory = format!("{PRIVATE}/{CLIENTS_HOST}");
        sandbox.private_directory(&directory, 0)?;
        sandbox.write(format!("{directory}/certificate.pem"), leaf.certificate)?;
        sandbox.write(format!("{directory}/key.pem"), leaf.key)?;
        let mut server = Daemon::start(
            &sandbox,
            Recipe {
                name: "clients-server".to_owned(),
                client: None,
                who: As::Root,
                program: PYTHON,
                args: vec![format!("{SOURCE}/server.py"), directory],
                probe: Some(Probe { url: SEEN.to_owned(), root: None }),
            },
        )?;
        server.wait_until_ready()?;
        self.apply(&covering("clients", CLIENTS_HOST, &[GRPC, WEBSOCKET]))?;
        Ok(server)
    }

    /// The calls that reached it, oldest first.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn clients_seen(&self) -> anyhow::Result<Vec<Value>> {
        let curl = self.sandbox().command(Place::Service, As::Root, "curl");
        let answer = Call::new(curl, SEEN).send()?;
        match answer.json()? {
            Value::Array(calls) => Ok(calls),
            other => bail!("no list: {other}"),
        }
    }
}

/// A client, as the words that start it.
#[derive(Clone, Copy, Debug)]
pub enum Program<'a> {
    /// One of `tests/clients`, in Python.
    Python(&'a str),
    /// A module of an installed package.
    Module(&'a str),
    /// One of `tests/clients`, for Node.
    Node(&'a str),
    /// One of `tests/clients`, for Java.
    Java(&'a str),
    /// The Go client.
    Go,
    /// A program of the machine.
    Installed(&'a str),
}

impl Workload {
    /// A client as this workload's application.
    #[must_use]
    pub fn client(&self, program: Program<'_>) -> Inside {
        match program {
            Program::Python(script) => self.application(PYTHON).arg(format!("{SOURCE}/{script}")),
            Program::Module(module) => self.application(PYTHON).args(["-m", module]),
            Program::Node(script) => self.application("node").arg(format!("{SOURCE}/{script}")),
            Program::Java(script) => self.application("java").arg(format!("{SOURCE}/{script}")),
            Program::Go => self.application(&format!("{INSTALLED}/go-client")),
            Program::Installed(name) => self.application(name),
        }
    }

    /// Runs a client to its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn run(&self, program: Program<'_>, args: &[&str]) -> anyhow::Result<Output> {
        self.client(program).args(args).output(PATIENCE)
    }

    /// The same for one that tells what it did as JSON lines.
    ///
    /// # Errors
    /// If it fails.
    pub fn told(&self, program: Program<'_>, args: &[&str]) -> anyhow::Result<Vec<Value>> {
        let output = self.run(program, args)?;
        if !output.success() {
            bail!("{program:?} {args:?} ended with {}: {}{}", output.exit, output.text(), output.stderr);
        }
        let lines = output.text();
        lines.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }
}
