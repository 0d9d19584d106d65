//! One module for each command.

pub mod apply;
pub mod audit;
pub mod bypass;
pub mod completion;
pub mod delete;
pub mod doctor;
pub mod explain;
pub mod get;
pub mod reference;
pub mod revoke;
pub mod status;

use model::UnixMillis;
use wire::v1;

use crate::exit::{Exit, Refusal};
use crate::output::Output;

fn now() -> UnixMillis {
    UnixMillis::from_system(std::time::SystemTime::now())
}

/// `accesspolicy/payments/billing-charges`: what every command takes as a name.
fn label(reference: Option<&v1::Reference>) -> String {
    let Some(reference) = reference else { return String::new() };
    let parts = [&*reference.kind.to_ascii_lowercase(), &reference.namespace, &reference.name];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

/// What can't be undone is asked about first, by default with no; nobody is there to ask in a script.
fn confirm(output: &Output, what: &str, otherwise: &str) -> Result<(), Refusal> {
    use std::io::{BufRead as _, IsTerminal as _};
    if !std::io::stdin().is_terminal() {
        let what = what.trim_end_matches('.');
        return Err(Refusal::plain(Exit::Usage, format!("{what}; give --yes to do it")));
    }
    output.talk(&format!("{what} Go on? [y/N]"));
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    match line.trim().eq_ignore_ascii_case("y") {
        true => Ok(()),
        false => Err(Refusal::plain(Exit::No, otherwise)),
    }
}

/// Reads files, and the YAML and JSON files of directories; `-` is standard input.
fn read_files(paths: &[std::path::PathBuf]) -> Result<Vec<v1::File>, Refusal> {
    let mut files = Vec::new();
    for path in paths {
        let shown = path.display().to_string();
        let problem =
            |error: std::io::Error| Refusal::plain(Exit::Error, format!("{shown} can't be read: {error}"));
        if shown == "-" {
            let text = std::io::read_to_string(std::io::stdin()).map_err(problem)?;
            files.push(v1::File { name: "-".to_owned(), text });
        } else if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(problem)?;
            let mut inside: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            let is_document = |path: &std::path::PathBuf| {
                path.extension()
                    .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|e| extension == *e))
            };
            inside.retain(is_document);
            inside.sort();
            if inside.is_empty() {
                return Err(Refusal::plain(Exit::Usage, format!("{shown} has no .yaml, .yml or .json file")));
            }
            files.extend(read_files(&inside)?);
        } else {
            files.push(v1::File {
                name: shown.clone(),
                text: std::fs::read_to_string(path).map_err(problem)?,
            });
        }
    }
    Ok(files)
}

/// How long proxies are waited for.
fn wait_ms(text: &str) -> Result<u32, Refusal> {
    let seconds = resources::values::duration(text)
        .ok_or_else(|| Refusal::plain(Exit::Usage, format!("`{text}` is not a duration such as 2s")))?;
    Ok(seconds.saturating_mul(1000))
}

/// Shows what is wrong with documents, on standard error; whether something is.
fn show_diagnostics(output: &Output, diagnostics: &[v1::Diagnostic], files: &[v1::File]) -> bool {
    for message in diagnostics {
        let source =
            files.iter().find(|file| file.name == message.file).map_or("", |file| file.text.as_str());
        let is_error = message.severity == "error";
        let code = model::Code::parse(&message.code).unwrap_or(model::Code::InvalidValue);
        let at = resources::diagnostic::Place {
            file: message.file.clone(),
            line: message.line,
            column: message.column,
            length: message.length,
            path: String::new(),
        };
        let diagnostic = if is_error {
            resources::Diagnostic::error(code, at, message.message.clone())
        } else {
            resources::Diagnostic::warning(code, at, message.message.clone())
        };
        output.diagnostic(
            &resources::diagnostic::render(&diagnostic.help(message.help.clone()), source),
            is_error,
        );
    }
    diagnostics.iter().any(|message| message.severity == "error")
}

fn diagnostics_json(diagnostics: &[v1::Diagnostic]) -> serde_json::Value {
    diagnostics
        .iter()
        .map(|d| {
            serde_json::json!({
                "code": d.code, "severity": d.severity, "message": d.message, "file": d.file, "line": d.line,
                "column": d.column, "help": d.help,
            })
        })
        .collect()
}

fn changes_json(changes: &[v1::Change]) -> serde_json::Value {
    changes
        .iter()
        .map(|c| serde_json::json!({ "object": label(c.reference.as_ref()), "verb": c.verb }))
        .collect()
}
