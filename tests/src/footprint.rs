//! What a sandbox is on this machine, so that it can be shown that nothing of it stays.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::sandbox::Sandbox;

/// Time in which the kernel takes everything away.
const GONE: Duration = Duration::from_secs(5);

/// The machine as it was before, and the namespaces that were made.
#[derive(Debug)]
pub struct Footprint {
    before: Machine,
    namespaces: BTreeSet<PathBuf>,
}

#[derive(Debug, PartialEq, Eq)]
struct Machine {
    interfaces: BTreeSet<String>,
    /// None if this user may not look.
    tables: Option<String>,
    named: BTreeSet<String>,
}

impl Footprint {
    /// To be called before the sandbox is made.
    #[must_use]
    pub fn before() -> Self {
        Self { before: Machine::look(), namespaces: BTreeSet::new() }
    }

    /// Notes the sandbox's namespaces, while it is there.
    pub fn note(&mut self, sandbox: &Sandbox) {
        let own = namespaces(Path::new("/proc/self/ns"));
        for pid in std::iter::once(sandbox.init()).chain(sharing_mounts(sandbox.init())) {
            self.namespaces.extend(namespaces(Path::new(&format!("/proc/{pid}/ns"))));
        }
        self.namespaces.retain(|namespace| !own.contains(namespace));
    }

    /// What has stayed, for people; empty if nothing has. Waits a little: the kernel needs a moment.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let deadline = Instant::now() + GONE;
        loop {
            let left = self.look();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn look(&self) -> Vec<String> {
        let mut left: Vec<String> = processes()
            .into_iter()
            .filter(|pid| {
                namespaces(Path::new(&format!("/proc/{pid}/ns")))
                    .iter()
                    .any(|namespace| self.namespaces.contains(namespace))
            })
            .map(|pid| format!("process {pid}"))
            .collect();
        let now = Machine::look();
        left.extend(
            now.interfaces.difference(&self.before.interfaces).map(|name| format!("interface {name}")),
        );
        left.extend(now.named.difference(&self.before.named).map(|name| format!("namespace {name}")));
        if now.tables != self.before.tables {
            left.push("nftables' tables have changed".to_owned());
        }
        left
    }
}

impl Machine {
    fn look() -> Self {
        let tables = Command::new("nft").args(["list", "tables"]).output().ok();
        Self {
            interfaces: entries(Path::new("/sys/class/net")),
            tables: tables
                .filter(|output| output.status.success())
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned()),
            named: entries(Path::new("/run/netns")),
        }
    }
}

fn entries(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// `net:[4026531840]` and the like.
fn namespaces(directory: &Path) -> BTreeSet<PathBuf> {
    ["net", "mnt", "pid", "user"]
        .iter()
        .filter_map(|kind| std::fs::read_link(directory.join(kind)).ok())
        .collect()
}

fn processes() -> Vec<u32> {
    entries(Path::new("/proc")).iter().filter_map(|name| name.parse().ok()).collect()
}

fn sharing_mounts(pid: u32) -> Vec<u32> {
    // Daemons are children of `nsenter`, outside of the tree of the first process: look at all.
    let Ok(namespace) = std::fs::read_link(format!("/proc/{pid}/ns/mnt")) else { return Vec::new() };
    processes()
        .into_iter()
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|other| other == namespace))
        .collect()
}
