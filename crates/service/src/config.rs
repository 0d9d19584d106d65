//! Settings by flag, environment and file, each declared once, in the program's clap types.
//!
//! Precedence: flag, environment, file, default. The file's keys are the flags' long names.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};
use model::text::nearest;
use serde_json::Value;

/// The prefix of every environment variable of ours.
const PREFIX: &str = "COUNTERSIGN_";

/// Reads the program's settings. Exits with help or a usage error as clap does.
///
/// # Errors
/// If the configuration file can't be read, or has a key that is no setting.
pub fn load<T: CommandFactory + FromArgMatches>() -> anyhow::Result<T> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let complete = with_file(T::command(), arguments)?;
    let matches = T::command().get_matches_from(complete);
    T::from_arg_matches(&matches).map_err(|error| error.exit())
}

/// Variables with our prefix that are no setting, each with the nearest that is.
#[must_use]
pub fn unknown_variables<T: CommandFactory>() -> Vec<String> {
    unknown_variables_among::<T>(&[])
}

/// The same, without variables that begin like those of other programs.
#[must_use]
pub fn unknown_variables_among<T: CommandFactory>(others: &[&str]) -> Vec<String> {
    let mut known = Vec::new();
    collect_variables(&T::command(), &mut known);
    let there: BTreeSet<String> =
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    there
        .iter()
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name))
        .filter(|name| !others.iter().any(|other| name.starts_with(other)))
        .filter(|name| !is_service_link(name, &there))
        .map(|name| match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("{name} is no setting; did you mean {near}?"),
            None => format!("{name} is no setting"),
        })
        .collect()
}

/// Whether Kubernetes has set a variable for a Service of the pod's namespace, as it does for each (Kubernetes
/// documentation, "Service: environment variables"): nobody has written it.
fn is_service_link(name: &str, there: &BTreeSet<String>) -> bool {
    let service = |(end, _): (usize, &str)| there.contains(&format!("{}_SERVICE_HOST", &name[..end]));
    name.match_indices("_SERVICE_").any(service) || name.match_indices("_PORT").any(service)
}

fn collect_variables(command: &Command, into: &mut Vec<String>) {
    into.extend(
        command.get_arguments().filter_map(Arg::get_env).map(|name| name.to_string_lossy().into_owned()),
    );
    command.get_subcommands().for_each(|sub| collect_variables(sub, into));
}

/// The arguments, with those that only the file gives at their end.
fn with_file(mut command: Command, arguments: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    // The first look ignores what is missing: the file may give it.
    let matches = command.clone().ignore_errors(true).try_get_matches_from(&arguments);
    let Ok(matches) = matches else { return Ok(arguments) };
    command.build();
    let (command, matches) = innermost(&command, &matches);
    let has_file = command.get_arguments().any(|arg| arg.get_id() == "config");
    let Some(path) = has_file.then(|| matches.get_one::<PathBuf>("config")).flatten() else {
        return Ok(arguments);
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("could not read the configuration file {}", path.display()))?;
    let values: BTreeMap<String, Value> =
        serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
    let mut complete = arguments;
    for (key, value) in values {
        let arg = find(command, &key).with_context(|| path.display().to_string())?;
        let given = matches.value_source(arg.get_id().as_str());
        if matches!(given, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
            continue;
        }
        append(&mut complete, arg, &key, value).with_context(|| path.display().to_string())?;
    }
    Ok(complete)
}

fn innermost<'a>(command: &'a Command, matches: &'a ArgMatches) -> (&'a Command, &'a ArgMatches) {
    match matches.subcommand().and_then(|(name, sub)| Some((command.find_subcommand(name)?, sub))) {
        Some((command, matches)) => innermost(command, matches),
        None => (command, matches),
    }
}

fn find<'a>(command: &'a Command, key: &str) -> anyhow::Result<&'a Arg> {
    if let Some(arg) = command.get_arguments().find(|arg| arg.get_long() == Some(key)) {
        return Ok(arg);
    }
    match nearest(key, command.get_arguments().filter_map(Arg::get_long)) {
        Some(near) => bail!("`{key}` is no setting; did you mean `{near}`?"),
        None => bail!("`{key}` is no setting"),
    }
}

fn append(arguments: &mut Vec<OsString>, arg: &Arg, key: &str, value: Value) -> anyhow::Result<()> {
    match value {
        Value::Bool(on) if !arg.get_action().takes_values() => {
            if on {
                arguments.push(format!("--{key}").into());
            }
        }
        Value::Array(values) => {
            for value in values {
                append(arguments, arg, key, value)?;
            }
        }
        Value::String(text) => arguments.push(format!("--{key}={text}").into()),
        Value::Number(number) => arguments.push(format!("--{key}={number}").into()),
        Value::Bool(on) => arguments.push(format!("--{key}={on}").into()),
        Value::Null | Value::Object(_) => bail!("`{key}` must be a text, a number, a truth value or a list"),
    }
    Ok(())
}

/// The table of a program's settings, as Markdown.
#[must_use]
pub fn reference<T: CommandFactory>(subcommand: &str) -> String {
    let mut command = T::command();
    command.build();
    let program = command.get_name().to_owned();
    let page = format!(
        "# Settings of `{program} {subcommand}`\n\n\
         Generated from the program; `make gen` writes it anew.\n\
         Precedence: flag, environment, configuration file (`--config`), default.\n\
         In the file a setting's key is its flag without the dashes.\n\n\
         {}",
        table(&command, subcommand)
    );
    page
}

/// The table of a command's options, which have neither environment variables nor keys, as Markdown.
#[must_use]
pub fn options<T: CommandFactory>(subcommand: &str) -> String {
    let mut command = T::command();
    command.build();
    format!("\n## Options of `{} {subcommand}`\n\n{}", command.get_name(), table(&command, subcommand))
}

/// `subcommand` may be the words of a command below another.
fn table(command: &Command, subcommand: &str) -> String {
    let found = subcommand.split(' ').try_fold(command, |command, word| command.find_subcommand(word));
    let Some(command) = found else { return String::new() };
    let mut page = "| flag | environment | default | meaning |\n|---|---|---|---|\n".to_owned();
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let Some(long) = arg.get_long().filter(|long| !["help", "version"].contains(long)) else { continue };
        let value = arg.get_value_names().and_then(|names| names.first()).map(|name| format!(" {name}"));
        let takes = arg.get_action().takes_values();
        let environment = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy()));
        let default: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
        let default =
            if default.is_empty() || !takes { String::new() } else { format!("`{}`", default.join(",")) };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let choices: Vec<_> = if takes { arg.get_possible_values() } else { Vec::new() }
            .iter()
            .map(|choice| format!("`{}`", choice.get_name()))
            .collect();
        let choices =
            if choices.is_empty() { String::new() } else { format!(" One of {}.", choices.join(", ")) };
        let _ = writeln!(
            page,
            "| `--{long}{}` | {} | {default} | {}.{choices} |",
            value.filter(|_| takes).unwrap_or_default(),
            environment.unwrap_or_default(),
            help.trim_end_matches('.').replace('|', "\\|"),
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(subcommand)]
        command: Sub,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Sub {
        Serve {
            /// File.
            #[arg(long)]
            config: Option<PathBuf>,
            /// Where to listen.
            #[arg(long, env = "COUNTERSIGN_TEST_LISTEN", default_value = "here")]
            listen: String,
            /// Needed.
            #[arg(long)]
            needed: u16,
        },
    }

    #[test]
    fn variables_that_kubernetes_sets_for_a_service_are_not_misspelt_settings() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let links = [
            "COUNTERSIGN_CONTROL_SERVICE_HOST",
            "COUNTERSIGN_CONTROL_SERVICE_PORT",
            "COUNTERSIGN_CONTROL_SERVICE_PORT_GRPC",
            "COUNTERSIGN_CONTROL_PORT",
            "COUNTERSIGN_CONTROL_PORT_8440_TCP",
            "COUNTERSIGN_CONTROL_PORT_8440_TCP_ADDR",
        ];
        let there = set(&links);
        assert!(links.iter().all(|link| is_service_link(link, &there)));
        // Without such a Service they are what somebody wrote.
        assert!(!is_service_link("COUNTERSIGN_CONTROL_PORT", &set(&["COUNTERSIGN_CONTROL_PORT"])));
        assert!(!is_service_link("COUNTERSIGN_PROXY_LISTEN_PROT", &there));
    }

    fn parsed(file: &str, more: &[&str]) -> anyhow::Result<(String, u16)> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("c.yaml");
        std::fs::write(&path, file)?;
        let path = path.to_string_lossy().into_owned();
        let arguments: Vec<OsString> =
            ["p", "serve", "--config", &path].iter().chain(more).map(OsString::from).collect();
        let program = Program::try_parse_from(with_file(Program::command(), arguments)?)?;
        let Sub::Serve { listen, needed, .. } = program.command;
        Ok((listen, needed))
    }

    #[test]
    fn the_file_gives_what_nobody_else_does() {
        assert_eq!(parsed("needed: 7\nlisten: there\n", &[]).unwrap(), ("there".to_owned(), 7));
        assert_eq!(parsed("needed: 7\n", &["--needed", "8"]).unwrap(), ("here".to_owned(), 8));
    }

    #[test]
    fn a_misspelt_key_is_refused_with_the_nearest() {
        let error = parsed("neded: 7\n", &["--needed", "8"]).unwrap_err();
        assert!(format!("{error:#}").contains("did you mean `needed`"), "{error:#}");
    }

    #[test]
    fn the_reference_lists_every_setting() {
        let page = reference::<Program>("serve");
        assert!(
            page.contains("| `--listen LISTEN` | `COUNTERSIGN_TEST_LISTEN` | `here` | Where to listen. |"),
            "{page}"
        );
    }
}
