//! Both ends as bytes: an application that sends what it is told (`tests/clients/raw-client.mjs`), and a server that notes
//! what it gets as it came and answers what it is told (`tests/clients/raw-server.mjs`).

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::Daemon;
use crate::daemon::{Probe, Recipe};
use crate::edge::{EDGE, client};
use crate::sandbox::{As, Place};
use crate::workload::Workload;
use crate::world::{COMMAND, World, covering};

/// Ports of the server: TLS with HTTP/1.1, and TLS with HTTP/2.
pub const RAW_HTTP1: u16 = 8461;
/// See [`RAW_HTTP1`].
pub const RAW_HTTP2: u16 = 8462;

/// What it has seen, on loopback.
const SEEN: &str = "http://127.0.0.1:9092/";

impl World {
    /// Starts the server and covers it.
    ///
    /// # Errors
    /// If Node is not installed, or the server does not become ready.
    pub fn start_raw(&mut self) -> anyhow::Result<Daemon> {
        let directory = self.edge_certificate()?;
        let mut raw = Daemon::start(
            self.sandbox(),
            Recipe {
                name: "raw".to_owned(),
                client: None,
                who: As::Root,
                program: "node",
                args: vec![client("raw-server.mjs"), directory],
                probe: Some(Probe { url: SEEN.to_owned(), root: None }),
            },
        )?;
        raw.wait_until_ready()?;
        self.apply(&covering("raw", EDGE, &[RAW_HTTP1, RAW_HTTP2]))?;
        Ok(raw)
    }

    /// What the raw server has seen.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn raw_seen(&self) -> anyhow::Result<Value> {
        self.ask_raw(&[])
    }

    /// Forgets what it has seen.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn forget_raw(&self) -> anyhow::Result<Value> {
        self.ask_raw(&["-X", "DELETE"])
    }

    /// Says how the next streams of HTTP/2 are answered, in order.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn plan_raw(&self, plans: &Value) -> anyhow::Result<Value> {
        self.ask_raw(&["-X", "PUT", "--data-binary", &plans.to_string()])
    }

    fn ask_raw(&self, args: &[&str]) -> anyhow::Result<Value> {
        let curl = self.sandbox().command(Place::Service, As::Root, "curl").args(["-sS", SEEN]).args(args);
        let output = curl.output(COMMAND)?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {output:?}"))
    }
}

impl Workload {
    /// Sends these cases as the application, all at once; says what came back on each.
    ///
    /// # Errors
    /// If the client does not end.
    pub fn raw(&self, cases: &[Value]) -> anyhow::Result<Vec<Value>> {
        let file = "/tmp/raw-cases.json";
        self.sandbox().write(file, Value::from(cases).to_string())?;
        let told = self.script("raw-client.mjs", &[file])?;
        told.as_array().cloned().context("no list")
    }
}

/// One case of HTTP/1.1 over TLS: these bytes, each a character.
#[must_use]
pub fn http1(port: u16, bytes: &str) -> Value {
    json!({ "port": port, "bytes": bytes })
}

/// One case of HTTP/2: the fields of a request as they are.
#[must_use]
pub fn http2(port: u16, fields: &[(&str, &str)]) -> Value {
    json!({ "port": port, "fields": fields })
}

/// The fields of an ordinary request of HTTP/2.
#[must_use]
pub fn get<'a>(authority: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", "GET"), (":scheme", "https"), (":authority", authority), (":path", path)]
}

/// The path that the server answers with these bytes, and then ends the connection, or keeps it.
#[must_use]
pub fn answered(how: &str, bytes: &str) -> String {
    use base64::Engine as _;
    let latin: Vec<u8> = bytes.chars().map(|character| character as u8).collect();
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(latin);
    format!("/answer/{how}/{encoded}")
}

/// The host of the raw server with this port.
#[must_use]
pub fn host(port: u16) -> String {
    format!("{EDGE}:{port}")
}
