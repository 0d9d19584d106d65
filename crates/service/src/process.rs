//! What a process that holds keys does about itself.

use std::io;

use rustix::mm::{Advice, madvise};
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

/// Gives back the pages of the program's code that are resident because its start went through them. What is needed
/// again comes back from the page cache at its first use.
///
/// It is a hint: where the mappings can't be read nothing happens.
pub fn give_back_code() {
    let Ok(program) = std::env::current_exe() else { return };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (begin, end) in maps.lines().filter_map(|line| code_of(line, &program.to_string_lossy())) {
        #[expect(
            unsafe_code,
            reason = "advice about memory is unsafe; nothing that was written is touched by it"
        )]
        // SAFETY: the range is a private mapping of the program's file that is executable and not writable: nobody has
        // written to it, so that what the kernel reads there again is what was there.
        let _ = unsafe { madvise(begin as *mut _, end - begin, Advice::LinuxDontNeed) };
    }
}

/// The range of a line of `/proc/self/maps` (proc(5)), if it is the program's code.
fn code_of(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (begin, end) = words.next()?.split_once('-')?;
    let code = words.next()? == "r-xp" && words.nth(3)? == program;
    let address = |text| usize::from_str_radix(text, 16).ok();
    code.then_some((address(begin)?, address(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_code_is_given_back_and_the_program_goes_on() {
        let line = "55d0a000-55d0f000 r-xp 0000a000 fe:01 1234   /usr/bin/program";
        assert_eq!(code_of(line, "/usr/bin/program"), Some((0x55d0_a000, 0x55d0_f000)));
        assert_eq!(code_of(line, "/usr/bin/other"), None);
        assert_eq!(code_of(&line.replace("r-xp", "r--p"), "/usr/bin/program"), None);
        give_back_code();
        assert_eq!("a b".split(' ').count(), 2);
    }
}
