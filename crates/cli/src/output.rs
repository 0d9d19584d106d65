//! The one place that writes to the terminal: standard output is the answer, standard error is talk.

use std::io::{IsTerminal as _, Write as _};

use model::UnixMillis;
use serde_json::{Value, json};

use crate::arguments::{Color, Form};
use crate::exit::Refusal;

/// Where and how a command writes.
#[derive(Clone, Debug)]
pub struct Output {
    form: Form,
    terminal: bool,
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
    pub fn new(color: Color, form: Form) -> Self {
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

    /// Writes a document of the answer as JSON.
    pub fn json(&self, kind: &str, mut content: Value) {
        let mut document = json!({ "apiVersion": "countersign.dev/v1alpha1", "kind": kind });
        if let (Some(document), Some(content)) = (document.as_object_mut(), content.as_object_mut()) {
            document.append(content);
        }
        self.answer(&format!("{document:#}\n"));
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
            _ => (Tone::Bold, "–", "-"),
        };
        self.toned(tone, if self.utf8 { symbol } else { word })
    }

    /// Says why a command did not do what it was asked, on standard error.
    pub fn refusal(&self, refusal: &Refusal) {
        if self.form == Form::Json {
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
