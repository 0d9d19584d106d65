//! How the demo speaks: one line for each step, aligned, with the time that it took.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Columns of a step's name.
const NAME: usize = 16;

/// Columns of a line, the time at its end: as the terminal has, within reason; elsewhere the first of these.
const LINE: usize = 100;
const LINES: std::ops::RangeInclusive<usize> = 76..=120;

/// The demo's voice: answers on standard output, a moving line on standard error if that is a terminal.
#[derive(Debug)]
pub(crate) struct Report {
    begun: Instant,
    step: Instant,
    number: u32,
    name: &'static str,
    width: usize,
}

impl Report {
    pub(crate) fn new() -> Self {
        let terminal = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
        let width = terminal.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        let width = width.map_or(LINE, |columns| columns.clamp(*LINES.start(), *LINES.end()));
        Self { begun: Instant::now(), step: Instant::now(), number: 0, name: "", width }
    }

    /// A paragraph before or after the steps.
    pub(crate) fn say(&self, text: &str) {
        line(text);
    }

    /// Begins a step.
    pub(crate) fn begin(&mut self, name: &'static str) {
        self.number += 1;
        self.name = name;
        self.step = Instant::now();
        moving(&format!("{:>2}  {name} …", self.number));
    }

    /// What came out of the step, with the time that it took. Further lines stand below the first.
    pub(crate) fn done(&self, text: &str) {
        moving("");
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let first = format!("{:>2}  {:<NAME$} {first}", self.number, self.name);
        line(&timed(&first, self.step.elapsed(), self.width));
        let indent = NAME + 5;
        for more in lines.flat_map(|more| wrapped(more, self.width - indent)) {
            line(&format!("{:indent$}{more}", ""));
        }
    }

    /// A table below the step's lines: columns line up, what is last is not padded.
    pub(crate) fn table(&self, header: &[&str], rows: &[Vec<String>]) {
        let header: Vec<String> = header.iter().map(|title| (*title).to_owned()).collect();
        let all = || std::iter::once(&header).chain(rows);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..header.len()).map(width).collect();
        for row in all() {
            let cells: String =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
            line(cells.trim_end());
        }
    }

    /// Why the step failed, and where to look.
    pub(crate) fn failed(&self, error: &anyhow::Error) {
        moving("");
        let text = format!("{error:#}");
        let mut lines = text.lines();
        line(&format!(
            "{} {:>2}  {:<NAME$} {}",
            mark("✗"),
            self.number,
            self.name,
            lines.next().unwrap_or_default()
        ));
        lines.for_each(|more| line(&format!("      {more}")));
    }

    /// The closing line.
    pub(crate) fn closing(&self, nothing_left: &str) {
        let seconds = self.begun.elapsed().as_secs_f64();
        line(&format!("\n{n} of {n} · {seconds:.1} s · {nothing_left}", n = self.number));
    }
}

/// A line in pieces that are no wider than this; what continues stands two columns further in.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let indent = text.len() - text.trim_start().len();
    let mut lines = vec![" ".repeat(indent)];
    for word in text.trim_start().split(' ') {
        let line = lines.last_mut().expect("there is one from the start");
        let begins = line.trim().is_empty();
        if !begins && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(format!("{:1$}{word}", "", indent + 2));
        } else if begins {
            line.push_str(word);
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines
}

fn timed(text: &str, took: Duration, width: usize) -> String {
    let time = format!("{:.1} s", took.as_secs_f64());
    let room = width.saturating_sub(text.chars().count());
    format!("{text}{time:>room$}", room = room.max(time.len() + 2))
}

/// ASCII where the locale can't show more.
fn mark(mark: &'static str) -> &'static str {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| std::env::var(name).ok());
    match locale {
        Some(locale) if locale.to_ascii_uppercase().contains("UTF") => mark,
        _ => "FAIL",
    }
}

fn line(text: &str) {
    // A closed pipe is no reason to stop: what was set up must still be taken down.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn moving(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{text}");
        let _ = stderr.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stand_in_one_column() {
        let short = timed(" 1  service", Duration::from_millis(140), LINE);
        let longer = timed(" 2  control plane    ready", Duration::from_millis(12_300), LINE);
        assert_eq!((short.chars().count(), longer.chars().count()), (LINE, LINE));
        assert!(short.ends_with("0.1 s") && longer.ends_with("12.3 s"));
        let long = timed(&"x".repeat(LINE), Duration::ZERO, LINE);
        assert!(long.ends_with("x  0.0 s"));
    }

    #[test]
    fn what_is_too_long_goes_on_below() {
        assert_eq!(wrapped("one line", 20), ["one line"]);
        assert_eq!(wrapped("  this is one line too long", 16), ["  this is one", "    line too", "    long"]);
        assert_eq!(wrapped(&"x".repeat(30), 10), ["x".repeat(30)]);
    }
}
