//! CPU for each request, against other proxies on the same core in the same run.

use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use tests::daemon::{Daemon, Recipe};
use tests::sandbox::{As, HOME, PRIVATE};
use tests::workload::Workload;
use tests::world::{PAYMENTS, SERVICE_ROOT};

use crate::latency::version;
use crate::load::h2load;
use crate::measure::{self, PROXY_CPU};
use crate::stage::{self, Stage};
use crate::{median, quantile, say};

/// Connections of a row; each has one request at a time.
const CONNECTIONS: usize = 64;

/// Requests of a round.
const REQUESTS: usize = 40_000;

/// A proxy to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Debian's.
    Nginx,
    /// Debian's.
    Haproxy,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }
}

/// A proxy to compare with, and its application.
pub(crate) struct Rival {
    kind: Kind,
    workload: Workload,
    proxy: Daemon,
}

/// Where the redirect sends, as to our own proxy.
const PORT: u16 = 15001;

/// As long as a token of ours.
fn credential() -> String {
    format!("Bearer {}", "c".repeat(700))
}

/// The address of the upstream; the first that an application dials.
const UPSTREAM: &str = "[fd77::a]:443";

impl Rival {
    pub(crate) fn start(kind: Kind, workload: Workload) -> anyhow::Result<Self> {
        let (sandbox, uid) = (workload.sandbox().clone(), workload.proxy_uid());
        // Its certificate for the application is one file, ours is made at the first connection.
        let directory = format!("{HOME}/{}", kind.name());
        sandbox.private_directory(&directory, uid)?;
        let mut pem = String::new();
        for file in ["certificate.pem", "key.pem"] {
            let text = sandbox.read(format!("{PRIVATE}/{PAYMENTS}/{file}"))?;
            pem.push_str(&text);
            sandbox.write(format!("{directory}/{file}"), text)?;
            sandbox.give(format!("{directory}/{file}"), uid)?;
        }
        sandbox.write(format!("{directory}/both.pem"), pem)?;
        sandbox.give(format!("{directory}/both.pem"), uid)?;
        let client = Some(workload.name().to_owned());
        let (name, who) = (kind.name(), As::Proxy(uid));
        let mut proxy = match kind {
            Kind::Nginx => stage::nginx(&sandbox, name, client, who, &nginx(&directory))?,
            Kind::Haproxy => {
                let file = format!("{directory}/haproxy.cfg");
                sandbox.write(&file, haproxy(&directory))?;
                sandbox.give(&file, uid)?;
                let args = ["-f", &file].map(str::to_owned).to_vec();
                let recipe =
                    Recipe { name: name.to_owned(), client, who, program: "haproxy", args, probe: None };
                stage::start(&sandbox, recipe)?
            }
        };
        let pid = proxy.process().pid().context("it has ended")?;
        measure::pin(pid, PROXY_CPU)?;
        Ok(Self { kind, workload, proxy })
    }
}

/// TLS on both legs, the upstream verified and kept alive, a credential put in; no log, no limits.
fn nginx(directory: &str) -> String {
    let credential = credential();
    format!(
        "upstream api {{ server {UPSTREAM}; keepalive 1024; keepalive_requests 100000000; keepalive_timeout 300s; }}
         server {{
            listen 127.0.0.1:{PORT} ssl http2; listen [::1]:{PORT} ssl http2;
            ssl_certificate {directory}/certificate.pem; ssl_certificate_key {directory}/key.pem;
            ssl_protocols TLSv1.2 TLSv1.3;
            keepalive_requests 100000000; keepalive_timeout 300s;
            location / {{
                proxy_pass https://api; proxy_http_version 1.1; proxy_set_header Connection '';
                proxy_set_header Host {PAYMENTS}; proxy_set_header Authorization '{credential}';
                proxy_ssl_verify on; proxy_ssl_trusted_certificate {SERVICE_ROOT};
                proxy_ssl_server_name on; proxy_ssl_name {PAYMENTS}; proxy_ssl_protocols TLSv1.2 TLSv1.3;
                proxy_max_temp_file_size 0;
            }}
         }}"
    )
}

/// The same, with the application's version of HTTP on both sides.
fn haproxy(directory: &str) -> String {
    let credential = credential();
    let verified = format!("ssl verify required ca-file {SERVICE_ROOT} sni str({PAYMENTS})");
    format!(
        "global\n  nbthread 1\n  maxconn 8000\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 300s\n  timeout server 300s\n\
         \x20 http-reuse always\n\
         frontend in\n  bind 127.0.0.1:{PORT} ssl crt {directory}/both.pem alpn h2,http/1.1\n\
         \x20 http-request set-header authorization \"{credential}\"\n\
         \x20 use_backend two if {{ ssl_fc_alpn h2 }}\n  default_backend one\n\
         backend one\n  server api {UPSTREAM} {verified} alpn http/1.1 pool-max-conn 1024\n\
         backend two\n  server api {UPSTREAM} {verified} alpn h2 pool-max-conn 1024\n"
    )
}

/// One round of one proxy: CPU in µs for each request, and requests in a second.
struct Round {
    cpu: f64,
    rate: f64,
}

/// Prints the table.
pub(crate) fn rows(stage: &mut Stage, mut rivals: Vec<Rival>, rounds: usize) -> anyhow::Result<()> {
    say(&format!(
        "\nCPU for each request on one core (µs; {CONNECTIONS} connections, {rounds} rounds in turn, medians)\n"
    ));
    say("version   proxy          CPU/request   quartiles      req/s    ours is");
    for http2 in [false, true] {
        let mut ours = Vec::new();
        let mut theirs: Vec<Vec<Round>> = rivals.iter().map(|_| Vec::new()).collect();
        // Once before, so that nothing that is measured is the first of its kind.
        h2load(&stage.ours, http2, CONNECTIONS, REQUESTS / 8)?;
        for rival in &rivals {
            h2load(&rival.workload, http2, CONNECTIONS, REQUESTS / 8)?;
        }
        for _ in 0..rounds {
            ours.push(round_of_ours(stage, http2)?);
            for (rival, rounds) in rivals.iter_mut().zip(&mut theirs) {
                let pid = rival.proxy.process().pid().context("it has ended")?;
                rounds.push(round(&rival.workload, pid, http2)?);
            }
        }
        let mine = line(http2, "countersign", &ours, None);
        for (rival, rounds) in rivals.iter().zip(&theirs) {
            line(http2, rival.kind.name(), rounds, Some(mine));
        }
    }
    Ok(())
}

fn line(http2: bool, name: &str, rounds: &[Round], ours: Option<f64>) -> f64 {
    let cpu = || rounds.iter().map(|round| round.cpu);
    let median_cpu = median(cpu());
    let quartiles = format!("{:.1}–{:.1}", quantile(cpu(), 0.25), quantile(cpu(), 0.75));
    let ratio = ours.map_or_else(String::new, |ours| format!("{:.2} × {name}", ours / median_cpu));
    say(&format!(
        "{:<9} {name:<14} {median_cpu:>11.1}   {quartiles:<11} {:>8.0}    {ratio}",
        version(http2),
        median(rounds.iter().map(|round| round.rate)),
    ));
    median_cpu
}

/// Ours is measured until all that it has recorded is delivered, which is part of what a request costs.
fn round_of_ours(stage: &mut Stage, http2: bool) -> anyhow::Result<Round> {
    stage.settle()?;
    let pid = stage.our_pid()?;
    let workload = &stage.ours;
    let before = measure::cpu(pid)?;
    let seconds = h2load(workload, http2, CONNECTIONS, REQUESTS)?;
    stage.settle()?;
    Ok(rated(before, measure::cpu(pid)?, seconds))
}

fn round(workload: &Workload, pid: u32, http2: bool) -> anyhow::Result<Round> {
    let before = measure::cpu(pid)?;
    let seconds = h2load(workload, http2, CONNECTIONS, REQUESTS)?;
    Ok(rated(before, measure::cpu(pid)?, seconds))
}

fn rated(before: Duration, after: Duration, seconds: f64) -> Round {
    Round { cpu: (after - before).as_secs_f64() * 1e6 / REQUESTS as f64, rate: REQUESTS as f64 / seconds }
}

/// Keeps our proxy under load and says which process it is, for a profiler to look at.
pub(crate) fn hold(stage: &mut Stage, http2: bool, seconds: u64) -> anyhow::Result<()> {
    say(&format!("process {}", stage.our_pid()?));
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    while std::time::Instant::now() < end {
        round_of_ours(stage, http2)?;
    }
    // In order: a profiler under which it runs may have something to write.
    stage.ours.proxy().terminate().map(drop)
}
