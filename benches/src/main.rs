//! What the proxy adds: latency and CPU for each request, against the direct call, with everything on.
//!
//! Two workloads in namespaces of their own call the same upstream: one directly, one through its proxy, with policy,
//! credential, audit and metrics. See README.md for the method.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use tests::daemon::{Daemon, Recipe};
use tests::sandbox::{As, PRIVATE, PROGRAMS};
use tests::workload::{Evidence, Workload};
use tests::world::{Egress, PAYMENTS, SERVICE_ROOT, World};

/// Connections, and requests over all of them.
const ROWS: [(usize, usize); 2] = [(1, 4_000), (64, 40_000)];

/// Each row is measured this often; the median counts.
const ROUNDS: usize = 3;

const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, Deserialize)]
struct Load {
    requests: usize,
    seconds: f64,
    p50_us: f64,
    p99_us: f64,
}

fn main() -> anyhow::Result<()> {
    let mut world = World::new()?;
    world.start_issuer()?;
    let _upstream = upstream(&world)?;
    world.start_control(Egress::Enforce)?;
    world.apply_quickstart()?;
    let mut billing = world.billing()?;
    let direct = world.workload("direct", Evidence::pod("payments", "direct"))?;
    say("version   conns  direct p50   p99     through p50   p99     added p50   req/s   CPU/request");
    for http2 in [false, true] {
        for (connections, requests) in ROWS {
            row(&direct, &mut billing, http2, connections, requests)?;
        }
    }
    say(
        "µs; CPU of the proxy in user and kernel mode, all threads; medians of three rounds, direct and through in turn",
    );
    Ok(())
}

fn upstream(world: &World) -> anyhow::Result<Daemon> {
    let file = |name: &str| format!("{PRIVATE}/{PAYMENTS}/{name}.pem");
    let args = [
        "--listen".to_owned(),
        "[::]:443".to_owned(),
        "--certificate".to_owned(),
        file("certificate"),
        "--key".to_owned(),
        file("key"),
    ];
    let recipe = Recipe {
        name: "upstream".to_owned(),
        client: None,
        who: As::Root,
        program: "bench-upstream",
        args: args.to_vec(),
        probe: None,
    };
    let daemon = Daemon::start(world.sandbox(), recipe)?;
    std::thread::sleep(Duration::from_millis(300));
    Ok(daemon)
}

fn row(
    direct: &Workload,
    through: &mut Workload,
    http2: bool,
    connections: usize,
    requests: usize,
) -> anyhow::Result<()> {
    let (mut plain, mut carried, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    // Once before, so that nothing that is measured is the first of its kind.
    load(through, http2, connections, connections * 20, None)?;
    for _ in 0..ROUNDS {
        plain.push(load(direct, http2, connections, requests, Some(SERVICE_ROOT))?);
        let before = cpu_of(through)?;
        let made = load(through, http2, connections, requests, None)?;
        let spent = cpu_of(through)? - before;
        cpu.push(spent.as_secs_f64() * 1e6 / made.requests as f64);
        carried.push(made);
    }
    let median = |values: &mut dyn Iterator<Item = f64>| {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (d50, d99) =
        (median(&mut plain.iter().map(|l| l.p50_us)), median(&mut plain.iter().map(|l| l.p99_us)));
    let (t50, t99) =
        (median(&mut carried.iter().map(|l| l.p50_us)), median(&mut carried.iter().map(|l| l.p99_us)));
    let rate = median(&mut carried.iter().map(|l| l.requests as f64 / l.seconds));
    let version = if http2 { "HTTP/2" } else { "HTTP/1.1" };
    say(&format!(
        "{version:<9} {connections:>5} {d50:>10.0} {d99:>7.0} {t50:>12.0} {t99:>7.0} {:>11.0} {rate:>9.0} {:>10.1}",
        t50 - d50,
        median(&mut cpu.into_iter()),
    ));
    Ok(())
}

fn load(
    workload: &Workload,
    http2: bool,
    connections: usize,
    requests: usize,
    root: Option<&str>,
) -> anyhow::Result<Load> {
    let url = format!("https://{PAYMENTS}/v1/charges/42");
    let mut command = workload.application(&format!("{PROGRAMS}/bench-load")).args([
        "--url",
        &url,
        "--connections",
        &connections.to_string(),
        "--requests",
        &requests.to_string(),
    ]);
    if http2 {
        command = command.arg("--http2");
    }
    if let Some(root) = root {
        command = command.env("SSL_CERT_FILE", root);
    }
    let output = command.output(PATIENCE)?;
    ensure!(output.success(), "bench-load: {}{}", output.text(), output.stderr);
    serde_json::from_str(output.text().trim()).with_context(|| output.text())
}

/// CPU time of the proxy so far: fields 14 and 15 of its `stat` (proc(5)), in ticks of 10 ms.
fn cpu_of(workload: &mut Workload) -> anyhow::Result<Duration> {
    let pid = workload.proxy().process().pid().context("the proxy has ended")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("stat")?.1;
    let field = |n: usize| after_name.split_whitespace().nth(n - 3).and_then(|text| text.parse::<u64>().ok());
    let ticks = field(14).context("utime")? + field(15).context("stime")?;
    Ok(Duration::from_millis(ticks * 10))
}

#[expect(clippy::print_stdout, reason = "the answer of the program")]
fn say(line: &str) {
    println!("{line}");
}
