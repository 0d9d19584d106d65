//! What is wrong with a document, and how people are told.

use std::fmt::Write as _;

use model::Code;

/// Whether a diagnostic refuses the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// It does.
    Error,
    /// It does not.
    Warning,
}

impl Severity {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Something that is wrong, or will surprise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The row of the table.
    pub code: Code,
    /// Whether it refuses.
    pub severity: Severity,
    /// One sentence: `must`, never `should`; literals in backquotes.
    pub message: String,
    /// Where.
    pub at: Place,
    /// What was probably meant, or what is allowed; may be empty.
    pub help: String,
}

/// A place in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// As the user named it; empty for documents that come from the store.
    pub file: String,
    /// 1-based; 0 if the whole document is meant.
    pub line: u32,
    /// 1-based, in characters.
    pub column: u32,
    /// Characters to underline; 0 for none.
    pub length: u32,
    /// The path of the value, as in [`crate::tree::Path`]; empty if the whole document is meant, or if only the place in
    /// the text is known.
    pub path: String,
}

impl Diagnostic {
    /// An error at a place.
    #[must_use]
    pub fn error(code: Code, at: Place, message: impl Into<String>) -> Self {
        Self { code, severity: Severity::Error, message: message.into(), at, help: String::new() }
    }

    /// A warning at a place.
    #[must_use]
    pub fn warning(code: Code, at: Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, at, message) }
    }

    /// The same with help.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    /// Adds `did you mean` with the nearest candidate, if one is near.
    #[must_use]
    pub fn did_you_mean<'a>(self, word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Self {
        match model::text::nearest(word, candidates) {
            Some(near) => self.help(format!("did you mean `{near}`?")),
            None => self,
        }
    }

    /// Whether it refuses the document.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// A diagnostic as one sentence, for who has no text with lines: `CS0103 spec.ttl: …`.
#[must_use]
pub fn sentence(diagnostic: &Diagnostic) -> String {
    let Diagnostic { code, message, at, help, .. } = diagnostic;
    let place = if at.path.is_empty() { String::new() } else { format!(" {}", field(&at.path)) };
    let help = if help.is_empty() { String::new() } else { format!(" ({help})") };
    printable(&format!("{code}{place}: {message}{help}"))
}

/// Several in one line.
#[must_use]
pub fn sentences(found: &[Diagnostic]) -> String {
    found.iter().map(sentence).collect::<Vec<_>>().join("; ")
}

/// A path as Kubernetes writes it: `spec.allow[0].methods`.
fn field(path: &str) -> String {
    let mut text = String::new();
    for part in path.split('/').skip(1) {
        match part.parse::<usize>() {
            Ok(index) => {
                let _ = write!(text, "[{index}]");
            }
            Err(_) if text.is_empty() => text.push_str(part),
            Err(_) => {
                let _ = write!(text, ".{part}");
            }
        }
    }
    text
}

/// Renders a diagnostic with the line that it is about, without colour. What frames the text is ASCII; control characters
/// of the document are shown as `?`, so that a document can't write to the reader's terminal.
#[must_use]
pub fn render(diagnostic: &Diagnostic, source: &str) -> String {
    let Diagnostic { code, severity, message, at, help } = diagnostic;
    let (message, help) = (printable(message), printable(help));
    let mut text = format!("{}[{code}]: {message}\n", severity.as_str());
    if !at.file.is_empty() {
        let _ = match at.line {
            0 => writeln!(text, "  --> {}", printable(&at.file)),
            line => writeln!(text, "  --> {}:{line}:{}", printable(&at.file), at.column),
        };
    }
    let line = (at.line as usize).checked_sub(1).and_then(|index| source.lines().nth(index)).map(printable);
    if let Some(line) = line {
        let number = at.line.to_string();
        let margin = " ".repeat(number.len());
        let before = " ".repeat((at.column as usize).saturating_sub(1));
        let rest = line.chars().count().saturating_sub(before.len());
        let carets = "^".repeat((at.length as usize).clamp(1, rest.max(1)));
        let _ = writeln!(text, "{margin} |\n{number} | {line}\n{margin} | {before}{carets}");
        if !help.is_empty() {
            let _ = writeln!(text, "{margin} = {help}");
        }
    } else if !help.is_empty() {
        let _ = writeln!(text, "   = {help}");
    }
    text
}

/// One line that moves no cursor and hides nothing: each control character, and each that changes the direction of
/// writing (Unicode UAX #9), becomes one that can be seen, so that columns stay where they are. A tab becomes a space.
fn printable(text: &str) -> String {
    let reorders =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() || reorders(c) => '?',
            c => c,
        })
        .collect()
}
