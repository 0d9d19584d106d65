//! A program of ours that runs in the background, can be killed, and started again as it was.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::sandbox::{As, HOME, PROGRAMS, Place, Process, Sandbox};

/// Time for becoming ready.
const READY: Duration = Duration::from_secs(60);
/// Time for ending when asked to.
const END: Duration = Duration::from_secs(40);

/// How to start it, and how to know that it is ready.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// For logs and messages.
    pub name: String,
    /// The client in whose namespace it runs; the service's if there is none.
    pub client: Option<String>,
    /// As whom.
    pub who: As,
    /// One of [`PROGRAMS`], or a program of the machine.
    pub program: &'static str,
    /// Its arguments.
    pub args: Vec<String>,
    /// Answers 200 when it is ready. No probe: ready when started.
    pub probe: Option<Probe>,
}

/// Where to ask.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The URL.
    pub url: String,
    /// Root by which its certificate is verified, a file inside.
    pub root: Option<String>,
}

/// A running program.
#[derive(Debug)]
pub struct Daemon {
    sandbox: Arc<Sandbox>,
    recipe: Recipe,
    log: PathBuf,
    process: Process,
}

impl Daemon {
    /// Starts it; it need not be ready yet.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(sandbox: &Arc<Sandbox>, recipe: Recipe) -> anyhow::Result<Self> {
        let log = sandbox.outside(format!("{HOME}/logs/{}.log", recipe.name));
        let process = spawn(sandbox, &recipe, &log)?;
        Ok(Self { sandbox: sandbox.clone(), recipe, log, process })
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// If it ends, or is not ready in time; with the last lines of its log.
    pub fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        self.wait_until("/readyz")
    }

    /// Waits until it answers at all: a program that lacks something is alive without being ready.
    ///
    /// # Errors
    /// If it ends, or does not answer in time.
    pub fn wait_until_live(&mut self) -> anyhow::Result<()> {
        self.wait_until("/livez")
    }

    fn wait_until(&mut self, question: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY;
        let mut said = String::new();
        while !self.answers(question, &mut said)? {
            if !self.process.is_alive() {
                bail!("{} has ended:\n{}", self.recipe.name, self.process.tail());
            }
            if Instant::now() > deadline {
                bail!(
                    "{} is not ready after {} s ({}); its log ends with\n{}",
                    self.recipe.name,
                    READY.as_secs(),
                    said.trim(),
                    self.process.tail()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Whether it is ready now.
    ///
    /// # Errors
    /// If it can't be asked.
    pub fn ready(&self) -> anyhow::Result<bool> {
        self.answers("/readyz", &mut String::new())
    }

    /// What it says about being ready.
    ///
    /// # Errors
    /// If it can't be asked.
    pub fn readiness(&self) -> anyhow::Result<String> {
        let mut said = String::new();
        self.answers("/readyz", &mut said)?;
        Ok(said)
    }

    fn answers(&self, question: &str, said: &mut String) -> anyhow::Result<bool> {
        let Some(probe) = &self.recipe.probe else { return Ok(true) };
        let url = probe.url.replace("/readyz", question);
        let curl = self.sandbox.command(place(&self.recipe), As::Root, "curl");
        let mut curl = curl.args(["-sS", "--max-time", "2", "-w", "%{http_code}"]).arg(&url);
        if let Some(root) = &probe.root {
            curl = curl.args(["--cacert", root]);
        }
        let output = curl.output(Duration::from_secs(10))?;
        *said = format!("{}{}", output.text(), output.stderr);
        Ok(output.success() && output.text().ends_with("200"))
    }

    /// Ends it without a warning.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Asks it to end (SIGTERM), and says with which exit code it did.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn terminate(&mut self) -> anyhow::Result<i32> {
        self.process.terminate(END)
    }

    /// Starts it again as it was, after it has ended; it need not be ready yet.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process = spawn(&self.sandbox, &self.recipe, &self.log)?;
        Ok(())
    }

    /// The same with other arguments from now on.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn restart_with(&mut self, change: impl FnOnce(&mut Vec<String>)) -> anyhow::Result<()> {
        self.process.kill9();
        change(&mut self.recipe.args);
        self.restart()
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The file of its log.
    #[must_use]
    pub fn log(&self) -> &std::path::Path {
        &self.log
    }

    /// All that it has logged, over its restarts.
    #[must_use]
    pub fn logs(&self) -> String {
        self.process.logs()
    }

    /// The value of a metric, summed over its labels that contain `label`.
    ///
    /// # Errors
    /// If the metrics can't be read.
    pub fn metric(&self, name: &str, label: &str) -> anyhow::Result<f64> {
        let probe = self.recipe.probe.as_ref().context("no probe")?;
        let url = probe.url.replace("/readyz", "/metrics");
        let output = self
            .sandbox
            .command(place(&self.recipe), As::Root, "curl")
            .args(["-sS", "--max-time", "2", &url])
            .output(Duration::from_secs(10))?;
        let text = output.text();
        let values = text
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }
}

impl Drop for Daemon {
    /// A test that fails shows what the programs said last.
    #[expect(clippy::print_stderr, reason = "the output of a failed test")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}, its last lines:\n{}\n---", self.recipe.name, self.process.tail());
        }
    }
}

fn place(recipe: &Recipe) -> Place<'_> {
    recipe.client.as_deref().map_or(Place::Service, Place::Client)
}

fn spawn(sandbox: &Sandbox, recipe: &Recipe, log: &std::path::Path) -> anyhow::Result<Process> {
    // What is not one of ours is found by the path.
    let ours = sandbox.outside(format!("{PROGRAMS}/{}", recipe.program)).exists();
    let program = if ours { format!("{PROGRAMS}/{}", recipe.program) } else { recipe.program.to_owned() };
    sandbox
        .command(place(recipe), recipe.who, program)
        .args(&recipe.args)
        .env("RUST_BACKTRACE", "1")
        .start(&recipe.name, log)
}
