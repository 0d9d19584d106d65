//! The applications: `h2load`, which is fast, and `bench-load`, which times each call.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use tests::sandbox::{HOME, PROGRAMS, Process};
use tests::workload::Workload;
use tests::world::PAYMENTS;

const PATIENCE: Duration = Duration::from_secs(300);

/// What is asked for.
pub(crate) fn url() -> String {
    format!("https://{PAYMENTS}/v1/charges/42")
}

/// So many requests over so many connections, one at a time on each, by `h2load`; all must be answered with 2xx.
/// Says how many seconds it took.
pub(crate) fn h2load(
    workload: &Workload,
    http2: bool,
    connections: usize,
    requests: usize,
) -> anyhow::Result<f64> {
    let mut command = workload.application("h2load");
    if !http2 {
        command = command.arg("--h1");
    }
    let (connections, requests) = (connections.to_string(), requests.to_string());
    let output = command
        .args(["-n", &requests, "-c", &connections, "-m", "1", &url()])
        .output(PATIENCE)
        .context("h2load")?;
    let text = output.text();
    let answered = format!("status codes: {requests} 2xx");
    ensure!(output.success() && text.contains(&answered), "h2load: {text}{}", output.stderr);
    let seconds = text.lines().find_map(|line| line.strip_prefix("finished in ")?.split(',').next());
    seconds.and_then(seconds_of).with_context(|| text.clone())
}

/// `1.31s`, `980.11ms`
fn seconds_of(text: &str) -> Option<f64> {
    match text.strip_suffix("ms") {
        Some(millis) => millis.parse::<f64>().ok().map(|millis| millis / 1e3),
        None => text.strip_suffix('s')?.parse().ok(),
    }
}

/// What `bench-load` found.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Timed {
    pub(crate) requests: usize,
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// The same by `bench-load`, which trusts `root`, or whom the environment names.
pub(crate) fn timed(
    workload: &Workload,
    http2: bool,
    connections: usize,
    requests: usize,
    root: Option<&str>,
) -> anyhow::Result<Timed> {
    let mut command = bench_load(workload, http2, connections, requests);
    if let Some(root) = root {
        command = command.env("SSL_CERT_FILE", root);
    }
    let output = command.output(PATIENCE)?;
    ensure!(output.success(), "bench-load: {}{}", output.text(), output.stderr);
    serde_json::from_str(output.text().trim()).with_context(|| output.text())
}

/// Connections that have made one request each and then lie idle, until this is dropped.
pub(crate) fn idle(workload: &Workload, http2: bool, connections: usize) -> anyhow::Result<Process> {
    let log = workload.sandbox().outside(format!("{HOME}/logs/idle-{http2}.log"));
    let mut process = bench_load(workload, http2, connections, connections)
        .arg("--hold")
        .start_with_lifeline("bench-load", &log)?;
    let deadline = std::time::Instant::now() + PATIENCE;
    while !process.logs().contains("requests") {
        ensure!(process.is_alive() && std::time::Instant::now() < deadline, "bench-load: {}", process.logs());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(process)
}

fn bench_load(
    workload: &Workload,
    http2: bool,
    connections: usize,
    requests: usize,
) -> tests::sandbox::Inside {
    let (connections, requests) = (connections.to_string(), requests.to_string());
    let command = workload.application(&format!("{PROGRAMS}/bench-load")).args([
        "--url",
        &url(),
        "--connections",
        &connections,
        "--requests",
        &requests,
    ]);
    if http2 { command.arg("--http2") } else { command }
}
