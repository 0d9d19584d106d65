//! `countersign-control`

use std::process::ExitCode;

use control::config::{Cli, Command};
use control::keys::Keys;
use control::kubernetes::{check, crds, webhook};
use control::{authority, discovery, now, program};
use resources::crd::Rules;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("countersign-control: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let cli: Cli = service::config::load()?;
    match cli.command {
        Command::Serve(settings) => {
            service::config::unknown_variables::<Cli>().iter().for_each(|warning| say(warning));
            program::serve(&settings)
        }
        Command::Check(settings) => once(async move {
            service::tls_provider::install();
            print(&format!("{}\n", check::check(&settings).await?.join("\n")));
            Ok(())
        }),
        Command::DiscoveryExport { installation, issuer_url, directory } => once(async move {
            let store = program::open_existing(&installation).await?;
            let keys = Keys::open(store, now()).await?;
            discovery::export(&directory, &issuer_url, &keys).await
        }),
        Command::NewEpoch { installation } => once(async move {
            let version = program::open_existing(&installation).await?.new_epoch(now()).await?;
            print(&format!("epoch {} has begun\n", version.epoch));
            Ok(())
        }),
        Command::RotateCa { installation, trust_domain, ahead } => once(async move {
            let store = program::open_existing(&installation).await?;
            let from = authority::next_root(&*store, &trust_domain, now(), ahead).await?;
            print(&format!("the new root signs from {from}\n"));
            Ok(())
        }),
        Command::Crds { without_rules, directory } => {
            let rules = if without_rules { Rules::Without } else { Rules::With };
            match directory {
                Some(directory) => crds::write(&directory, rules)?,
                None => print(&crds::text(rules)?),
            }
            Ok(())
        }
        Command::Webhook(settings) => {
            service::config::unknown_variables::<Cli>().iter().for_each(|warning| say(warning));
            webhook::serve(&settings)
        }
        Command::Reference { subcommand } => {
            print(&service::config::reference::<Cli>(&subcommand));
            if subcommand == "serve" {
                // What is done to its installation.
                let beside = ["discovery-export", "new-epoch", "rotate-ca"];
                print(&beside.map(service::config::options::<Cli>).concat());
            }
            Ok(())
        }
    }
}

fn once(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
fn print(text: &str) {
    print!("{text}");
}

#[expect(clippy::print_stderr, reason = "what a person is told before logging begins")]
fn say(text: &str) {
    eprintln!("{text}");
}
