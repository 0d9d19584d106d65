//! Memory of the proxy: idle, and with connections that lie idle.

use std::time::Duration;

use crate::latency::version;
use crate::load::idle;
use crate::stage::Stage;
use crate::{measure, say};

/// Connections that lie idle.
const CONNECTIONS: usize = 1000;

/// What we promise, in MiB.
const ANONYMOUS_MAX: f64 = 4.0;
const RESIDENT_MAX: f64 = 16.0;
const ADDED_MAX: f64 = 40.0;

/// Prints the table.
pub(crate) fn rows(stage: &mut Stage) -> anyhow::Result<()> {
    let mib = |kilobytes: u64| kilobytes as f64 / 1024.0;
    say("\nMemory of the proxy with one worker (MiB), with ten policies in its slice\n");
    say("                                  anonymous  resident   bound");
    let mut pid = stage.our_pid()?;
    for http2 in [false, true] {
        // Each is added to a proxy that has carried nothing yet. What its start needs once has been given back by then.
        stage.restart_ours()?;
        pid = stage.our_pid()?;
        std::thread::sleep(Duration::from_secs(2));
        let before = measure::memory(pid)?;
        if !http2 {
            say(&format!(
                "idle                              {:>9.1} {:>9.1}   {ANONYMOUS_MAX:.0} anonymous, {RESIDENT_MAX:.0} resident",
                mib(before.anonymous),
                mib(before.resident),
            ));
        }
        let held = idle(&stage.ours, http2, CONNECTIONS)?;
        std::thread::sleep(Duration::from_secs(1));
        let with = measure::memory(pid)?;
        say(&format!(
            "added by {CONNECTIONS} idle, {:<9}       {:>9.1} {:>9.1}   {ADDED_MAX:.0} resident",
            version(http2),
            mib(with.anonymous.saturating_sub(before.anonymous)),
            mib(with.resident.saturating_sub(before.resident)),
        ));
        drop(held);
        // What the allocator keeps in reserve has gone back by then.
        std::thread::sleep(Duration::from_secs(8));
    }
    let after = measure::memory(pid)?;
    say(&format!(
        "idle again                        {:>9.1} {:>9.1}",
        mib(after.anonymous),
        mib(after.resident)
    ));
    Ok(())
}
