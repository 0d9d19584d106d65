//! countersign: the command line. It asks the control plane, or with `doctor` the runtimes that are here, and shows what
//! they answer.

pub mod arguments;
pub mod client;
pub mod cluster;
pub mod command;
pub mod exit;
pub mod naming;
pub mod output;
pub mod table;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _, ValueEnum as _};

use arguments::{Cli, Color, Command, Form};
use exit::{Exit, Refusal};
use output::Output;

/// Runs the program: the exit code says what came out, whatever the form of the output.
#[must_use]
pub fn run() -> ExitCode {
    // A shell that wants to know what could come next asks so, and gets nothing else.
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misunderstood(&error),
    };
    let output = Output::new(cli.color, cli.output, !cli.no_headers);
    let strangers = service::config::unknown_variables_among::<Cli>(OTHER_PROGRAMS);
    strangers.iter().for_each(|warning| output.talk(&format!("warning: {warning}")));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.refusal(&Refusal::plain(Exit::Error, format!("no runtime: {error}")));
            return Exit::Error.code();
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = dispatch(&mut cli, &output) => ended,
            _ = tokio::signal::ctrl_c() => {
                output.talk("interrupted");
                Ok(Exit::Interrupted)
            }
        }
    });
    match ended {
        Ok(exit) => exit.code(),
        Err(refusal) => {
            output.refusal(&refusal);
            refusal.exit.code()
        }
    }
}

/// Variables that begin with these are for our other programs.
const OTHER_PROGRAMS: &[&str] = &["COUNTERSIGN_CONTROL_", "COUNTERSIGN_PROXY_"];

/// What clap did not understand; or the help that was asked for. Whoever asked for JSON gets it then too.
fn misunderstood(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return Exit::Done.code();
    }
    let arguments: Vec<String> = std::env::args().collect();
    let asked = |form: &str| {
        let pairs = arguments.windows(2);
        let apart = pairs.into_iter().any(|pair| ["-o", "--output"].contains(&&*pair[0]) && pair[1] == form);
        apart || arguments.contains(&format!("-o{form}")) || arguments.contains(&format!("--output={form}"))
    };
    let form = [Form::Json, Form::Jsonl, Form::Yaml]
        .into_iter()
        .find(|form| form.to_possible_value().is_some_and(|name| asked(name.get_name())));
    match form {
        None => drop(error.print()),
        Some(form) => {
            let rendered = error.render().to_string();
            let message = rendered.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Output::new(Color::Never, form, true).refusal(&Refusal::plain(Exit::Usage, message));
        }
    }
    Exit::Usage.code()
}

async fn dispatch(cli: &mut Cli, output: &Output) -> Result<Exit, Refusal> {
    if cluster::is_meant(cli) {
        cluster::fill_namespace(cli).await?;
    }
    let cli = &*cli;
    match &cli.command {
        Command::Apply(asked) => command::apply::apply(cli, output, asked).await,
        Command::Get(asked) => command::get::get(cli, output, asked).await,
        Command::Delete(asked) => command::delete::delete(cli, output, asked).await,
        Command::Explain(asked) => command::explain::explain(cli, output, asked).await,
        Command::Revoke(asked) => command::revoke::revoke(cli, output, asked).await,
        Command::Bypass(asked) => command::bypass::bypass(cli, output, asked).await,
        Command::Audit(asked) => command::audit::audit(cli, output, asked).await,
        Command::Status => command::status::status(cli, output).await,
        Command::Doctor(asked) => command::doctor::doctor(cli, output, asked).await,
        Command::Completion { shell } => command::completion::script(output, shell),
        Command::Reference { page } => command::reference::reference(output, page),
    }
}
