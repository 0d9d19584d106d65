//! What the kernel knows of a process: its time and its memory. And where it runs.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// The core of the proxy that is measured.
pub(crate) const PROXY_CPU: usize = 0;
/// The core of everything else: application, upstream, control plane.
pub(crate) const OTHER_CPU: usize = 1;

/// Highest precedence, so that a machine's other work disturbs little.
const NICE: i32 = -20;

/// Puts this program, and with it all that it starts, on the core of everything else, with precedence.
pub(crate) fn take_precedence() -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    anyhow::ensure!(cores > 1, "the bench needs two cores: one for the proxy, one for everything else");
    rustix::process::setpriority_process(None, NICE).context("the bench needs to be root")?;
    // Where the kernel gives each session its share first (sched(7), "The autogroup feature"), the session's too.
    let autogroup = "/proc/self/autogroup";
    if Path::new(autogroup).exists() {
        std::fs::write(autogroup, NICE.to_string()).context(autogroup)?;
    }
    on_cpu(None, OTHER_CPU)
}

/// Gives a process, all of its threads, the precedence of any other program.
pub(crate) fn give_way(pid: u32) -> anyhow::Result<()> {
    for thread in threads(pid)? {
        let thread = Pid::from_raw(i32::try_from(thread)?);
        rustix::process::setpriority_process(thread, 0).context("the bench needs to be root")?;
    }
    Ok(())
}

/// Moves a process, all of its threads, to a core.
pub(crate) fn pin(pid: u32, cpu: usize) -> anyhow::Result<()> {
    threads(pid)?.into_iter().try_for_each(|thread| on_cpu(Some(thread), cpu))
}

fn on_cpu(thread: Option<u32>, cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    let thread = thread.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    sched_setaffinity(thread, &set).with_context(|| format!("could not be moved to CPU {cpu}"))
}

fn threads(pid: u32) -> anyhow::Result<Vec<u32>> {
    let directory = std::fs::read_dir(format!("/proc/{pid}/task")).context("the process has ended")?;
    Ok(directory.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// CPU time of a process so far, user and kernel mode, all threads that there are: the first field of their
/// `schedstat`, in nanoseconds (Documentation/scheduler/sched-stats.rst).
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let of_thread = |thread: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    Ok(Duration::from_nanos(threads(pid)?.iter().filter_map(of_thread).sum()))
}

/// Memory of a process, in kilobytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident: with the pages of its program's file, which all instances on a machine share.
    pub(crate) resident: u64,
    /// Anonymous: its own.
    pub(crate) anonymous: u64,
}

/// Reads `smaps_rollup` (proc(5)).
pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(Path::new(&path)).with_context(|| path)?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).context("smaps_rollup")
    };
    Ok(Memory { resident: field("Rss:")?, anonymous: field("Anonymous:")? })
}
