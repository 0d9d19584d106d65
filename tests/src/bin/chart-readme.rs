//! Prints the README of a chart with its table of values as it should be: `chart-readme charts/countersign`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let chart = PathBuf::from(std::env::args_os().nth(1).context("which chart?")?);
    let read = |name: &str| {
        std::fs::read_to_string(chart.join(name)).with_context(|| chart.join(name).display().to_string())
    };
    let text = tests::chart::readme(&read("README.md")?, &read("values.yaml")?)?;
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
