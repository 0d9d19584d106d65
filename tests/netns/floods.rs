//! Floods (case 28): the proxy stays under its memory cap, and other calls go on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tests::{Egress, Workload, World};

const SOON: Duration = Duration::from_secs(20);
/// The cap, in MiB: a tenth of what the floods would take.
const CAP: &str = "64";

/// The most that a process had for itself while something went on, in KiB.
fn most_of<T>(pid: u32, meanwhile: impl FnOnce() -> T) -> (T, u64) {
    let (most, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(anonymous(pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let done = meanwhile();
        over.store(true, Ordering::Relaxed);
        done
    });
    (done, most.into_inner())
}

fn anonymous(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn flooded(world: &mut World, floods: &[(&[&str], &str)]) -> Workload {
    let settings = [
        "--max-memory-mib",
        CAP,
        "--max-resets",
        "100",
        "--header-timeout",
        "5",
        "--body-timeout",
        "5",
        "--idle-timeout",
        "5",
    ];
    let mut billing = world.billing_with(&settings).unwrap();
    let args = ["--pause-ms", "10"];
    let mut http1 = billing.steady("h1", "/v1/charges/{id}", &args).unwrap();
    let mut http2 = billing.steady("h2", "/v1/charges/{id}", &[&args[..], &["--http2"]].concat()).unwrap();
    http1.wait_for(200, 5, SOON).unwrap();
    http2.wait_for(200, 5, SOON).unwrap();
    let pid = billing.proxy().process().pid().unwrap();
    for (args, end) in floods {
        let (became, most) = most_of(pid, || billing.flood(args).unwrap());
        assert!(became.keys().all(|what| what.starts_with(end)), "{args:?}: {became:?}");
        assert!(most < 64 * 1024, "{args:?}: {most} KiB");
    }
    for steady in [http1, http2] {
        let calls = steady.finish().unwrap();
        let tally = tests::workload::tally(&calls);
        let others: Vec<_> = calls.iter().filter(|made| made.status != 200).collect();
        assert!(calls.len() > 50 && others.is_empty(), "{tally:?} {others:?}");
    }
    billing
}

#[test]
fn floods_stay_under_the_cap_while_other_calls_go_on() {
    let mut world = World::started(Egress::Enforce).unwrap();
    // ENHANCE_YOUR_CALM is 11 (RFC 9113 §7).
    let mut billing = flooded(
        &mut world,
        &[
            (&["resets", "--count", "20000"], "GOAWAY 11"),
            (&["continuation", "--count", "8"], "GOAWAY 11"),
            (&["fields", "--count", "8"], "an answer"),
            (&["header", "--count", "100000"], "HTTP/1.1 431"),
            // 64 MiB that the service does not read for a while.
            (&["body", "--count", "1024"], "HTTP/1.1"),
            // 200 answers of 20 MB, of which nobody takes anything.
            (&["windowless", "--count", "200"], "given up"),
            (&["heads", "--count", "300"], "HTTP/1.1 408"),
            (&["hellos", "--count", "300"], "closed"),
        ],
    );
    assert!(billing.proxy().metric("countersign_http2_floods_total", "").unwrap() >= 9.0);
    crate::eventually(SOON, || {
        crate::events(&world, "refusal").iter().any(|event| event["code"] == "CS3022")
    });
}

#[test]
fn a_hundred_thousand_names_stay_under_the_cap_while_other_calls_go_on() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let names: &[&str] = &["names", "--count", "100000", "--seconds", "500"];
    let mut world_billing = flooded(&mut world, &[(names, "")]);
    let refused = world_billing.proxy().metric("countersign_failures_total", "CS5005").unwrap();
    assert!(refused >= 1000.0, "those that finished their handshake were told: {refused}");
}
