//! What the proxy costs: against the direct call, against other proxies on the same core, and in memory.
//!
//! See README.md for the method and what the figures are worth.

mod documents;
mod latency;
mod load;
mod measure;
mod memory;
mod pod_start;
mod rivals;
mod stage;
mod webhook;

use clap::{Parser, ValueEnum};

use crate::rivals::Kind;
use crate::stage::Stage;

/// Measures.
#[derive(Debug, Parser)]
struct Settings {
    /// What to measure; everything if nothing is named.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Rounds of each row, in which the proxies take turns; the median counts.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Proxies to compare with besides nginx.
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Kind>,
    /// Measures nothing, but keeps our proxy under load for this many seconds, for a profiler to look at.
    #[arg(long, value_name = "SECONDS")]
    hold: Option<u64>,
    /// The version of that load.
    #[arg(long)]
    http2: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Latency and CPU that the proxy adds to a direct call.
    Latency,
    /// CPU for each request, against nginx on the same core.
    Cpu,
    /// Memory, idle and with idle connections.
    Memory,
    /// A pod's admission by the webhook.
    Webhook,
    /// The start of a pod as injected.
    PodStart,
}

fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let wanted = |part| settings.parts.is_empty() || settings.parts.contains(&part);
    measure::take_precedence()?;
    if wanted(Part::Webhook) {
        webhook::rows()?;
    }
    if wanted(Part::PodStart) {
        pod_start::rows()?;
    }
    let of_stage = [Part::Memory, Part::Cpu, Part::Latency];
    if settings.hold.is_none() && !of_stage.into_iter().any(wanted) {
        return Ok(());
    }
    let mut stage = Stage::new()?;
    if let Some(seconds) = settings.hold {
        return rivals::hold(&mut stage, settings.http2, seconds);
    }
    // First: what an idle proxy takes is that of one that has carried nothing.
    if wanted(Part::Memory) {
        memory::rows(&mut stage)?;
    }
    if wanted(Part::Cpu) {
        let kinds = [&[Kind::Nginx], settings.peers.as_slice()].concat();
        let rivals = kinds.into_iter().map(|kind| stage.rival(kind)).collect::<anyhow::Result<Vec<_>>>()?;
        rivals::rows(&mut stage, rivals, settings.rounds)?;
    }
    if wanted(Part::Latency) {
        latency::rows(&mut stage)?;
    }
    Ok(())
}

/// The median of some figures.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    quantile(figures, 0.5)
}

/// The figure below which this share of them lies.
pub(crate) fn quantile(figures: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    let index = ((figures.len() as f64 - 1.0) * share).round() as usize;
    figures.get(index).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::print_stdout, reason = "the answer of the program")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
