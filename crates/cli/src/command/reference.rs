//! `countersign reference`: pages of the documentation that the program itself knows.

use std::fmt::Write as _;

use clap::{Arg, CommandFactory as _};
use model::error::TABLE;

use crate::arguments::{self, Cli};
use crate::exit::{Exit, Refusal};
use crate::output::Output;

/// Prints a page.
///
/// # Errors
/// If there is no such page.
pub fn reference(output: &Output, page: &str) -> Result<Exit, Refusal> {
    match page {
        "errors" => output.answer(&errors()),
        "resources" => output.answer(&resources::reference::page()),
        "countersign" => output.answer(&commands()),
        _ => {
            let message =
                format!("there is no page `{page}`; there are `errors`, `resources` and `countersign`");
            return Err(Refusal::plain(Exit::Usage, message));
        }
    }
    Ok(Exit::Done)
}

/// The command line itself.
#[must_use]
pub fn commands() -> String {
    let mut page = format!(
        "# The command line\n\n\
         Generated from the program; `make gen` writes it anew.\n\
         What is written for people may change; what `-o json` and `-o yaml` print only gains fields.\n\n\
         ```\n{}\n```\n",
        arguments::HELP
    );
    let mut program = Cli::command();
    program.build();
    let global = |arg: &&Arg| arg.is_global_set();
    page.push_str("\n## For every command\n\n| flag | environment | meaning |\n|---|---|---|\n");
    program.get_arguments().filter(global).for_each(|arg| flag(&mut page, arg));
    let shown = |command: &&clap::Command| !command.is_hide_set() && command.get_name() != "help";
    for command in program.get_subcommands().filter(shown) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = write!(page, "\n## countersign {}\n\n{about}.\n", command.get_name());
        if let Some(examples) = command.get_after_help() {
            let _ = write!(page, "\n```\n{examples}\n```\n");
        }
        let own = |arg: &&Arg| !arg.is_global_set() && !["help", "version"].contains(&arg.get_id().as_str());
        if command.get_arguments().any(|arg| own(&arg)) {
            page.push_str("\n| argument | environment | meaning |\n|---|---|---|\n");
            command.get_arguments().filter(own).for_each(|arg| flag(&mut page, arg));
        }
        for inner in command.get_subcommands().filter(shown) {
            let about = inner.get_about().map(ToString::to_string).unwrap_or_default();
            let _ = write!(page, "\n`countersign {} {}`: {about}.\n", command.get_name(), inner.get_name());
        }
    }
    page
}

fn flag(page: &mut String, arg: &Arg) {
    let value =
        arg.get_value_names().and_then(|names| names.first()).filter(|_| arg.get_action().takes_values());
    let value = value.map(ToString::to_string).unwrap_or_default();
    let name = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long} {value}"),
        (None, Some(long)) => format!("--{long} {value}"),
        _ => value,
    };
    let environment = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let choices: Vec<_> =
        if arg.get_action().takes_values() { arg.get_possible_values() } else { Vec::new() }
            .iter()
            .map(|choice| format!("`{}`", choice.get_name()))
            .collect();
    let choices = if choices.is_empty() { String::new() } else { format!(" One of {}.", choices.join(", ")) };
    let _ = writeln!(
        page,
        "| `{}` | {environment} | {}.{choices} |",
        name.trim_end(),
        help.trim_end_matches('.')
    );
}

/// The table of codes.
#[must_use]
pub fn errors() -> String {
    let mut page = String::from(
        "# Codes\n\n\
         Generated from the program; `make gen` writes it anew.\n\
         `CS`, the digit of the stage, three digits; a code is never used again for another meaning.\n\
         On HTTP/1.1 the code stands in the reason phrase, and in the headers `countersign-code` and `proxy-status` always.\n\
         DECISION is the id in the header `countersign-decision` and in `countersign audit`; an answer has its own there.\n\
         On a terminal, `countersign explain CODE` says the same.\n\
         The proxy's flags that a remedy names are those of `countersign-proxy serve`; in pods the platform team sets them \
         ([kubernetes.md](../kubernetes.md#settings-of-the-proxy)).\n\n\
         | code | title | HTTP | retry helps | what it means | what to do |\n|---|---|---|---|---|---|\n",
    );
    for entry in TABLE {
        let status = entry.status.map_or("–".to_owned(), |status| status.to_string());
        let retry = if entry.retryable { "yes" } else { "no" };
        let _ = writeln!(
            page,
            "| {} | {} | {status} | {retry} | {} | {} |",
            entry.text, entry.title, entry.meaning, entry.remedy
        );
    }
    page
}
