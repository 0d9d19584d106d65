//! countersign: the command line. It asks the control plane, or with `doctor` the runtimes that are here, and shows what
//! they answer.

pub mod arguments;
pub mod client;
pub mod command;
pub mod exit;
pub mod output;
pub mod table;

use std::process::ExitCode;

use clap::Parser as _;

use arguments::{Cli, Command};
use exit::{Exit, Refusal};
use output::Output;

/// Runs the program: the exit code says what came out, whatever the form of the output.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.code();
        }
    };
    let output = Output::new(cli.color, cli.output);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.refusal(&Refusal::plain(Exit::Error, format!("no runtime: {error}")));
            return Exit::Error.code();
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = dispatch(&cli, &output) => ended,
            _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
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

async fn dispatch(cli: &Cli, output: &Output) -> Result<Exit, Refusal> {
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
        Command::Reference { page } => command::reference::reference(output, page),
    }
}
