//! What a sandbox is on this machine, so that it can be shown that nothing of it stays.

use std::collections::BTreeSet;
use std::fs::File;
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
    /// The same, held open: the kernel gives the number of a namespace that is gone to the next one that is made.
    held: Vec<File>,
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
        Self { before: Machine::look(), namespaces: BTreeSet::new(), held: Vec::new() }
    }

    /// Notes the sandbox's namespaces, while it is there.
    pub fn note(&mut self, sandbox: &Sandbox) {
        self.note_process(sandbox.init());
    }

    /// The same by the sandbox's first process.
    pub fn note_process(&mut self, init: u32) {
        let own = namespaces(Path::new("/proc/self/ns"));
        for pid in std::iter::once(init).chain(sharing_mounts(init)) {
            let directory = PathBuf::from(format!("/proc/{pid}/ns"));
            self.held.extend(KINDS.iter().filter_map(|kind| File::open(directory.join(kind)).ok()));
            self.namespaces.extend(namespaces(&directory));
        }
        self.namespaces.retain(|namespace| !own.contains(namespace));
    }

    /// What has stayed, for people; empty if nothing has. Waits a little: the kernel needs a moment.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        until_empty(|| [self.processes(), self.before.changes()].concat())
    }

    /// The processes that have stayed; for tests, beside which others change the machine.
    #[must_use]
    pub fn processes_left(&self) -> Vec<String> {
        until_empty(|| self.processes())
    }

    fn processes(&self) -> Vec<String> {
        let is_ours = |pid: &u32| {
            let of = namespaces(Path::new(&format!("/proc/{pid}/ns")));
            of.iter().any(|namespace| self.namespaces.contains(namespace))
        };
        processes().into_iter().filter(is_ours).map(|pid| format!("process {pid}")).collect()
    }
}

fn until_empty(look: impl Fn() -> Vec<String>) -> Vec<String> {
    let deadline = Instant::now() + GONE;
    loop {
        let left = look();
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Machine {
    /// What is there now and was not then.
    fn changes(&self) -> Vec<String> {
        let now = Self::look();
        let interfaces = now.interfaces.difference(&self.interfaces).map(|name| format!("interface {name}"));
        let named = now.named.difference(&self.named).map(|name| format!("namespace {name}"));
        let tables = (now.tables != self.tables).then(|| "nftables' tables have changed".to_owned());
        interfaces.chain(named).chain(tables).collect()
    }

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

const KINDS: [&str; 4] = ["net", "mnt", "pid", "user"];

/// `net:[4026531840]` and the like.
fn namespaces(directory: &Path) -> BTreeSet<PathBuf> {
    KINDS.iter().filter_map(|kind| std::fs::read_link(directory.join(kind)).ok()).collect()
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
