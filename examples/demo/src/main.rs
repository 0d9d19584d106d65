//! `make demo`: the main job from end to end, with the real programs, in namespaces of its own.

mod report;
mod steps;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use tests::{Footprint, Mode, Sandbox, World};

use crate::report::Report;

/// Shows the main job: a client without a key calls a service that wants one.
#[derive(Debug, Parser)]
struct Settings {
    /// In a user namespace even if we are root.
    #[arg(long)]
    rootless: bool,
}

fn main() -> ExitCode {
    let settings = Settings::parse();
    let mut report = Report::new();
    report.say(
        "Countersign demo: a client without a key calls a service that wants one.\n\
         Everything runs in namespaces of its own and is removed at the end.\n",
    );
    let ran = run(&settings, &mut report);
    wait_if_interrupted();
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report.failed(&error);
            ExitCode::FAILURE
        }
    }
}

/// Whether all steps went well; an error is of what comes before and after them.
fn run(settings: &Settings, report: &mut Report) -> anyhow::Result<bool> {
    let mut footprint = Footprint::before();
    let sandbox = if settings.rootless { Sandbox::rootless()? } else { Sandbox::new()? };
    end_at_interrupt(sandbox.init())?;
    let rights = match sandbox.mode() {
        Mode::Root => "as root: the proxy is exempt from the redirect by its UID",
        Mode::Rootless => "without root: the proxy is exempt from the redirect by its mark",
    };
    report.say(&format!("Running {rights}.\n"));
    let mut world = World::within(sandbox)?;
    let result = steps::all(&mut world, report);
    wait_if_interrupted();
    footprint.note(world.sandbox());
    if let Err(error) = &result {
        report.failed(error);
        let directory = std::env::temp_dir().join("countersign-demo-logs");
        keep_logs(&world, &directory);
        report.say(&format!("      look at the programs' logs: {}", directory.display()));
    }
    drop(world);
    let left = footprint.left();
    anyhow::ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    if result.is_ok() {
        report.closing("nothing left behind");
        report.say("Next:  docs/life-of-a-call.md      make test");
    }
    Ok(result.is_ok())
}

fn keep_logs(world: &World, directory: &Path) {
    let copy = || -> std::io::Result<()> {
        std::fs::create_dir_all(directory)?;
        for entry in std::fs::read_dir(world.sandbox().outside(tests::world::logs()))? {
            let entry = entry?;
            std::fs::copy(entry.path(), directory.join(PathBuf::from(entry.file_name())))?;
        }
        Ok(())
    };
    // The step's own error is what matters.
    let _ = copy();
}

/// Set by Ctrl-C: what fails from then on fails because its programs were ended.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// After Ctrl-C the end is the business of the thread that heard it, and not news of a step.
fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// At Ctrl-C the first process of the sandbox is ended, and with it everything; then we end too.
fn end_at_interrupt(init: u32) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // From here on Ctrl-C is heard, whenever the thread begins to listen.
    let mut interrupt = {
        let _runtime = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?
    };
    std::thread::spawn(move || {
        runtime.block_on(interrupt.recv());
        INTERRUPTED.store(true, Ordering::SeqCst);
        let gone = tests::sandbox::end(init);
        Report::new().say(if gone { "\ninterrupted · nothing left behind" } else { "\ninterrupted" });
        std::process::exit(130);
    });
    Ok(())
}
