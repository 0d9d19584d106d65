//! `countersign-proxy`

use std::process::ExitCode;
use std::time::Duration;

use proxy::capture::{conflicts, install, rules};
use proxy::config::{Capture, Cli, Command, Redirect};
use proxy::{probe, program};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("countersign-proxy: {error:#}"));
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
        Command::Capture(capture) => self::capture(capture),
        Command::Ready { health, wait } => probe::ready(health, Duration::from_secs(wait)),
        Command::Quiet { health, quiet, deadline } => {
            probe::quiet(health, Duration::from_secs(quiet), Duration::from_secs(deadline))
        }
        Command::Reference => {
            print(&service::config::reference::<Cli>("serve"));
            print(&service::config::options::<Cli>("capture install"));
            Ok(())
        }
    }
}

fn capture(capture: Capture) -> anyhow::Result<()> {
    match capture {
        Capture::Install(redirect) => {
            let redirect = redirect_of(redirect);
            install::install(&redirect)?;
            print(&format!("redirected: TCP, IPv4 and IPv6, to port {}\n", redirect.proxy_port));
            rules::rejections(&redirect).iter().for_each(|line| print(&format!("rejected: {line}\n")));
            rules::exclusions(&redirect).iter().for_each(|line| print(&format!("not captured: {line}\n")));
            Ok(())
        }
        Capture::Remove => {
            install::remove()?;
            print("removed\n");
            Ok(())
        }
        Capture::Show => {
            print(&install::show()?.unwrap_or_else(|| "no redirect is installed here\n".to_owned()));
            Ok(())
        }
        Capture::Print(redirect) => {
            let redirect = redirect_of(redirect);
            if let Some(conflict) = conflicts::find(&redirect) {
                anyhow::bail!("{conflict}");
            }
            print(&rules::install(&redirect));
            Ok(())
        }
    }
}

fn redirect_of(redirect: Redirect) -> rules::Redirect {
    let excepts_dns = redirect.other == rules::Other::Reject || redirect.reject_metadata;
    let resolvers = match redirect.resolver.is_empty() && excepts_dns {
        true => install::configured_resolvers(),
        false => redirect.resolver,
    };
    rules::Redirect {
        proxy_port: redirect.proxy_port,
        proxy_uid: redirect.proxy_uid,
        proxy_mark: redirect.proxy_mark,
        exclude_cidrs: redirect.exclude_cidr,
        include_cidrs: redirect.include_cidr,
        exclude_ports: redirect.exclude_port,
        include_ports: redirect.include_port,
        exclude_uids: redirect.exclude_uid,
        include_uids: redirect.include_uid,
        other: redirect.other,
        resolvers,
        reject_metadata: redirect.reject_metadata,
    }
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
fn print(text: &str) {
    print!("{text}");
}

#[expect(clippy::print_stderr, reason = "what a person is told before logging begins")]
fn say(text: &str) {
    eprintln!("{text}");
}
