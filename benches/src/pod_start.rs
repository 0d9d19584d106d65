//! By how much injection delays a pod: from the start of its first container of ours until its application may start.

use std::time::{Duration, Instant};

use tests::pod::{self, Pod, golden};
use tests::{Egress, Evidence};

use crate::{median, quantile, say};

/// Pods that are started, one after another.
const PODS: usize = 21;

/// What we promise, at the median.
const DELAY_MAX_MS: f64 = 300.0;

/// The pod that is started.
const GOLDEN: &str = "injected/002-CREATE-pods-bare-bare.snap";

/// Prints the table.
pub(crate) fn rows() -> anyhow::Result<()> {
    say("\nStart of a pod as injected (ms), the proxy's policy fetched from a control plane\n");
    say("             capture   proxy ready   together   p90      bound");
    let (mut world, fingerprint) = pod::world(Egress::Enforce)?;
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    let (mut captured, mut ready, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..PODS {
        let billing = world.workload(&format!("pod{number}"), Evidence::billing())?;
        let pod = Pod::new(&billing, golden(GOLDEN, &fingerprint)?)?;
        let begun = Instant::now();
        anyhow::ensure!(pod.run("countersign-capture")?.success(), "the redirect was not installed");
        captured.push(milliseconds(begun.elapsed()));
        let begun = Instant::now();
        let mut proxy = pod.start("countersign-proxy")?;
        let probe = pod.exec("countersign-proxy", &proxy, &["startupProbe"])?;
        anyhow::ensure!(probe.success(), "{}\n{}", probe.stderr, proxy.tail());
        ready.push(milliseconds(begun.elapsed()));
        let begun = Instant::now();
        anyhow::ensure!(
            pod.debugger("true").output(Duration::from_secs(20))?.success(),
            "an empty container"
        );
        empty.push(milliseconds(begun.elapsed()));
        proxy.terminate(Duration::from_secs(40))?;
    }
    let together: Vec<f64> = captured.iter().zip(&ready).map(|(captured, ready)| captured + ready).collect();
    say(&format!(
        "injection    {:<9.0} {:<13.0} {:<10.0} {:<8.0} {DELAY_MAX_MS:.0} at the median",
        median(captured),
        median(ready),
        median(together.iter().copied()),
        quantile(together.iter().copied(), 0.9),
    ));
    say(&format!(
        "of which the harness itself needs {:.0} for each of the two containers, as for one with nothing in it",
        median(empty)
    ));
    Ok(())
}
