//! The one place that writes to the terminal: standard output is the answer, standard error is talk.

use std::io::{IsTerminal as _, Write as _};

use model::UnixMillis;
use serde_json::{Value, json};

use crate::arguments::{Color, Form};
use crate::exit::Refusal;
use crate::table::{self, Cell, Style};

/// Where and how a command writes.
#[derive(Clone, Debug)]
pub struct Output {
    form: Form,
    terminal: bool,
    /// Columns of the terminal; `None` where nothing may be cut.
    width: Option<usize>,
    headers: bool,
    color: bool,
    color_of_talk: bool,
    utf8: bool,
}

/// What a word means, and so its colour. Colour never is the only sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Errors.
    Bad,
    /// Warnings.
    Warn,
    /// Good.
    Good,
    /// Names.
    Bold,
}

impl Tone {
    const fn escape(self) -> &'static str {
        match self {
            Self::Bad => "\x1b[31m",
            Self::Warn => "\x1b[33m",
            Self::Good => "\x1b[32m",
            Self::Bold => "\x1b[1m",
        }
    }
}

impl Output {
    /// Looks at the terminal and the environment: `NO_COLOR`, `CLICOLOR_FORCE`, `TERM`, the locale.
    #[must_use]
    pub fn new(color: Color, form: Form, headers: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let decide = |terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => (terminal || set("CLICOLOR_FORCE")) && !set("NO_COLOR") && !dumb,
        };
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
            .unwrap_or_default()
            .to_ascii_uppercase();
        Self {
            form,
            terminal: std::io::stdout().is_terminal(),
            width: (form != Form::Wide).then(terminal_width).flatten(),
            headers,
            color: decide(std::io::stdout().is_terminal()),
            color_of_talk: decide(std::io::stderr().is_terminal()),
            utf8: locale.contains("UTF-8") || locale.contains("UTF8"),
        }
    }

    /// In which form the answer is wanted.
    #[must_use]
    pub const fn form(&self) -> Form {
        self.form
    }

    /// Whether a person looks at it.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes a part of the answer. A reader that has left is no error: it has seen enough.
    pub fn answer(&self, text: &str) {
        let _ = std::io::stdout().write_all(text.as_bytes());
    }

    /// Writes a line of talk.
    pub fn talk(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Whether the answer is for a program.
    #[must_use]
    pub const fn is_structured(&self) -> bool {
        matches!(self.form, Form::Json | Form::Jsonl | Form::Yaml)
    }

    /// Writes the answer for a program: as JSON, on one line or on many, or as YAML.
    pub fn document(&self, kind: &str, mut content: Value) {
        let mut document = json!({ "apiVersion": "countersign.dev/v1alpha1", "kind": kind });
        if let (Some(document), Some(content)) = (document.as_object_mut(), content.as_object_mut()) {
            document.append(content);
        }
        match self.form {
            Form::Yaml => self.yaml(&document),
            Form::Jsonl => self.answer(&format!("{document}\n")),
            _ => self.answer(&format!("{document:#}\n")),
        }
    }

    /// Writes a value as one document of YAML.
    pub fn yaml(&self, value: &Value) {
        // A JSON value is one that YAML can hold.
        let text = serde_saphyr::to_string(value).unwrap_or_else(|_| format!("{value:#}\n"));
        self.answer(&format!("---\n{text}"));
    }

    /// Writes a table: on a terminal as wide as that is, elsewhere whole.
    pub fn table(&self, header: &[&str], rows: &[Vec<Cell>]) {
        self.answer(&self.rendered(header, rows, self.headers));
    }

    /// Writes rows that go on below others.
    pub fn more_rows(&self, header: &[&str], rows: &[Vec<Cell>]) {
        self.answer(&self.rendered(header, rows, false));
    }

    fn rendered(&self, titles: &[&str], rows: &[Vec<Cell>], header: bool) -> String {
        let ellipsis = if self.utf8 { "…" } else { "..." };
        let paint = |tone: Tone, text: &str| self.toned(tone, text);
        table::render(titles, rows, &Style { width: self.width, header, ellipsis, paint: &paint })
    }

    /// A text of the answer in its tone.
    #[must_use]
    pub fn toned(&self, tone: Tone, text: &str) -> String {
        if self.color { format!("{}{text}\x1b[0m", tone.escape()) } else { text.to_owned() }
    }

    fn toned_talk(&self, tone: Tone, text: &str) -> String {
        if self.color_of_talk { format!("{}{text}\x1b[0m", tone.escape()) } else { text.to_owned() }
    }

    /// A mark for yes, no, or not reached; in ASCII where the locale has no other.
    #[must_use]
    pub fn mark(&self, mark: &str) -> String {
        let (tone, symbol, word) = match mark {
            "ok" => (Tone::Good, "✓", "ok"),
            "fail" => (Tone::Bad, "✗", "FAIL"),
            _ => (Tone::Bold, "–", "skip"),
        };
        self.toned(tone, if self.utf8 { symbol } else { word })
    }

    /// Says why a command did not do what it was asked, on standard error.
    pub fn refusal(&self, refusal: &Refusal) {
        if self.is_structured() {
            let error = json!({ "error": {
                "code": refusal.code.map(|code| code.to_string()), "message": refusal.message, "remedy": refusal.help,
            }});
            return self.talk(&error.to_string());
        }
        let code = refusal.code.map(|code| format!("[{code}]")).unwrap_or_default();
        self.talk(&format!("{}: {}", self.toned_talk(Tone::Bad, &format!("error{code}")), refusal.message));
        if !refusal.help.is_empty() {
            self.talk(&format!("  {}", refusal.help));
        }
        if let Some(code) = refusal.code {
            self.talk(&format!("  more: countersign explain {code}"));
        }
    }

    /// Renders a diagnostic, with colour on its first word.
    pub fn diagnostic(&self, rendered: &str, is_error: bool) {
        let tone = if is_error { Tone::Bad } else { Tone::Warn };
        match rendered.split_once(": ") {
            Some((head, rest)) => self.talk(&format!("{}: {rest}", self.toned_talk(tone, head))),
            None => self.talk(rendered),
        }
    }

    /// A time: how long ago for a person, RFC 3339 for a program.
    #[must_use]
    pub fn time(&self, at: UnixMillis, now: UnixMillis) -> String {
        if self.terminal { ago(now.millis_since(at)) } else { at.to_string() }
    }
}

fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// `1 error`, `2 errors`.
#[must_use]
pub fn counted(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// `12s`, `5m`, `3h`, `2d`.
#[must_use]
pub fn ago(millis: i64) -> String {
    let seconds = millis.max(0) / 1000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
