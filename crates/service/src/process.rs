//! What a process that holds keys does about itself.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Makes the process unreadable for others of its UID (`/proc/<pid>/mem`, ptrace) and keeps it from leaving a core.
///
/// # Errors
/// If the kernel refuses; a program that holds keys must then not go on.
pub fn harden() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}
