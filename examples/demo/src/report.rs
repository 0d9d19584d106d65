//! How the demo speaks: one line for each step, aligned, with the time that it took.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Columns of a step's name, and of the line up to the time.
const NAME: usize = 16;
const LINE: usize = 100;

/// The demo's voice: answers on standard output, a moving line on standard error if that is a terminal.
#[derive(Debug)]
pub(crate) struct Report {
    begun: Instant,
    step: Instant,
    number: u32,
    name: &'static str,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), step: Instant::now(), number: 0, name: "" }
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
        line(&timed(&format!("{:>2}  {:<NAME$} {first}", self.number, self.name), self.step.elapsed()));
        lines.for_each(|more| line(&format!("    {:NAME$} {more}", "")));
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

fn timed(text: &str, took: Duration) -> String {
    let time = format!("{:.1} s", took.as_secs_f64());
    let room = LINE.saturating_sub(text.chars().count());
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
        let short = timed(" 1  service", Duration::from_millis(140));
        let longer = timed(" 2  control plane    ready", Duration::from_millis(12_300));
        assert_eq!((short.chars().count(), longer.chars().count()), (LINE, LINE));
        assert!(short.ends_with("0.1 s") && longer.ends_with("12.3 s"));
        let long = timed(&"x".repeat(LINE), Duration::ZERO);
        assert!(long.ends_with("x  0.0 s"));
    }
}
