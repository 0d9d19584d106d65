//! What the proxy adds to a direct call: latency, and its CPU for each request.

use tests::world::SERVICE_ROOT;

use crate::load::timed;
use crate::stage::Stage;
use crate::{measure, median, say};

/// Connections, and requests over all of them.
const ROWS: [(usize, usize); 2] = [(1, 4_000), (64, 40_000)];

/// Each row is measured this often; the median counts.
const ROUNDS: usize = 3;

/// Prints the table.
pub(crate) fn rows(stage: &mut Stage) -> anyhow::Result<()> {
    say("\nAdded to a direct call (µs; CPU of the proxy, all threads)\n");
    say("version   conns  direct p50   p99     through p50   p99     added p50   req/s   CPU/request");
    for http2 in [false, true] {
        for (connections, requests) in ROWS {
            row(stage, http2, connections, requests)?;
        }
    }
    Ok(())
}

fn row(stage: &mut Stage, http2: bool, connections: usize, requests: usize) -> anyhow::Result<()> {
    let (mut plain, mut carried, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    let pid = stage.our_pid()?;
    // Once before, so that nothing that is measured is the first of its kind.
    timed(&stage.ours, http2, connections, connections * 20, None)?;
    for _ in 0..ROUNDS {
        plain.push(timed(&stage.direct, http2, connections, requests, Some(SERVICE_ROOT))?);
        stage.settle()?;
        let before = measure::cpu(pid)?;
        let made = timed(&stage.ours, http2, connections, requests, None)?;
        stage.settle()?;
        let spent = measure::cpu(pid)? - before;
        cpu.push(spent.as_secs_f64() * 1e6 / made.requests as f64);
        carried.push(made);
    }
    let (d50, d99) = (median(plain.iter().map(|l| l.p50_us)), median(plain.iter().map(|l| l.p99_us)));
    let (t50, t99) = (median(carried.iter().map(|l| l.p50_us)), median(carried.iter().map(|l| l.p99_us)));
    let rate = median(carried.iter().map(|l| l.requests as f64 / l.seconds));
    let version = version(http2);
    say(&format!(
        "{version:<9} {connections:>5} {d50:>10.0} {d99:>7.0} {t50:>12.0} {t99:>7.0} {:>11.0} {rate:>9.0} {:>10.1}",
        t50 - d50,
        median(cpu),
    ));
    Ok(())
}

pub(crate) fn version(http2: bool) -> &'static str {
    if http2 { "HTTP/2" } else { "HTTP/1.1" }
}
