//! Logs: JSON for programs, text for people; the level can be changed while the program runs.

use std::io::{self, IsTerminal as _};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How lines are logged: a setting of every program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Changes what is logged.
#[derive(Clone)]
pub struct LogHandle {
    set: Arc<dyn Fn(EnvFilter) -> anyhow::Result<()> + Send + Sync>,
    configured: Arc<str>,
}

impl LogHandle {
    /// Logs by these directives from now on: a level, or `info,proxy::session=debug`.
    ///
    /// # Errors
    /// If they can't be read; nothing changes then.
    pub fn set(&self, directives: &str) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(directives)
            .with_context(|| format!("`{directives}` is not a log filter; a level such as `debug` is one"))?;
        (self.set)(filter)
    }

    /// Serves SIGUSR1 (log more: everything at `debug`) and SIGUSR2 (log as configured again).
    ///
    /// # Errors
    /// If the handlers can't be installed.
    pub async fn serve_signals(self) -> io::Result<()> {
        let mut more = signal(SignalKind::user_defined1())?;
        let mut configured = signal(SignalKind::user_defined2())?;
        loop {
            let directives = tokio::select! {
                _ = more.recv() => "debug",
                _ = configured.recv() => &*self.configured,
            };
            if self.set(directives).is_ok() {
                tracing::warn!(directives, "log level changed by signal");
            }
        }
    }
}

/// Begins logging, to standard error.
///
/// # Errors
/// If the directives can't be read, or something else has begun logging before.
pub fn init(directives: &str, format: Format) -> anyhow::Result<LogHandle> {
    let filter = EnvFilter::try_new(directives)
        .with_context(|| format!("`{directives}` is not a log filter; a level such as `debug` is one"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let text = match format {
        Format::Text => true,
        Format::Json => false,
        Format::Auto => io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    // At `debug` each stage of a call is a span, and its end a line with the time that it took.
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_span_events(FmtSpan::CLOSE);
    let begun = if text {
        registry.with(lines).try_init()
    } else {
        registry.with(lines.json().flatten_event(true).with_current_span(true)).try_init()
    };
    begun.context("logging has begun already")?;
    let set = move |filter| handle.reload(filter).context("the log filter could not be changed");
    Ok(LogHandle { set: Arc::new(set), configured: directives.into() })
}
