//! A server with the corners of HTTP that the payments service does not have (`tests/clients/edge-server.mjs`), with the
//! documents that cover it.

use anyhow::Context as _;
use serde_json::Value;

use crate::Daemon;
use crate::clients::SOURCE;
use crate::daemon::{Probe, Recipe};
use crate::sandbox::{As, PRIVATE, Place};
use crate::workload::Workload;
use crate::world::{COMMAND, World, covering};

/// Its name.
pub const EDGE: &str = "edge.demo.test";

/// What it has seen, on loopback.
const SEEN: &str = "http://127.0.0.1:9091/";

impl World {
    /// Starts the server and covers it.
    ///
    /// # Errors
    /// If Node is not installed, or the server does not become ready.
    pub fn start_edge(&mut self) -> anyhow::Result<Daemon> {
        let sandbox = self.sandbox().clone();
        let directory = self.edge_certificate()?;
        let mut edge = Daemon::start(
            &sandbox,
            Recipe {
                name: "edge".to_owned(),
                client: None,
                who: As::Root,
                program: "node",
                args: vec![client("edge-server.mjs"), directory],
                probe: Some(Probe { url: SEEN.to_owned(), root: None }),
            },
        )?;
        edge.wait_until_ready()?;
        self.apply(&covering("edge", EDGE, &[8446, 8447, 8448, 8449]))?;
        Ok(edge)
    }

    /// Gives the server its address and its certificate; says where that lies.
    pub(crate) fn edge_certificate(&self) -> anyhow::Result<String> {
        let sandbox = self.sandbox();
        sandbox.add_host(EDGE, 20)?;
        let leaf = self.certificates().server(&[EDGE])?;
        let directory = format!("{PRIVATE}/{EDGE}");
        sandbox.private_directory(&directory, 0)?;
        sandbox.write(format!("{directory}/certificate.pem"), leaf.certificate)?;
        sandbox.write(format!("{directory}/key.pem"), leaf.key)?;
        Ok(directory)
    }

    /// What the edge server has seen.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn edge_seen(&self) -> anyhow::Result<Value> {
        let curl = self.sandbox().command(Place::Service, As::Root, "curl").args(["-sS", SEEN]);
        let output = curl.output(COMMAND)?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {output:?}"))
    }
}

impl Workload {
    /// A call to the edge server, at one of its ports.
    #[must_use]
    pub fn edge(&self, port: u16, path: &str) -> crate::http::Call {
        self.curl(&format!("https://{EDGE}:{port}{path}"))
    }

    /// Runs one of `tests/clients` as the application; its last line is JSON.
    ///
    /// # Errors
    /// If it does not end, or says something else.
    pub fn script(&self, name: &str, args: &[&str]) -> anyhow::Result<Value> {
        let program = if name.ends_with(".py") { python() } else { "node" };
        let output = self.application(program).arg(client(name)).args(args).output(COMMAND)?;
        let text = output.text();
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("{name} said: {text} {}", output.stderr))
    }
}

/// The system's Python: one that the path names first may be in somebody's home, which an application can't enter.
#[must_use]
pub fn python() -> &'static str {
    let system = "/usr/bin/python3";
    if std::path::Path::new(system).exists() { system } else { "python3" }
}

/// A file of `tests/clients`, inside: where the checkout is does not matter there, as little as who may read it.
pub(crate) fn client(name: &str) -> String {
    format!("{SOURCE}/{name}")
}
