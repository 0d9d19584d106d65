//! `token-issuer`: a small OIDC issuer, for the demo and the tests.
//!
//! It stands in for a real one: a Kubernetes API server that signs projected service-account tokens, or a CI system
//! that gives each job an OIDC token. It signs whatever it is asked to sign, so it is nothing to run in earnest. Its
//! tokens have the same claims as the real ones, and the control plane verifies both by the same code.

mod claims;
mod keys;
mod mint;
mod serve;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// A small OIDC issuer that stands in for a Kubernetes API server or a CI system.
#[derive(Debug, Parser)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the discovery document and the keys over HTTPS.
    Serve(serve::Settings),
    /// Sign a token and write it to a file, as a platform would.
    Mint(Box<mint::Settings>),
}

/// What both need to know.
#[derive(Clone, Debug, clap::Args)]
struct Issuer {
    /// The issuer's URL: the `iss` claim, and where its discovery document is.
    #[arg(long, value_name = "URL")]
    issuer: String,

    /// The signing key (PEM, PKCS#8, P-256). Made at first use, kept from then on.
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Program::parse().command {
        Command::Serve(settings) => serve::serve(settings).await,
        Command::Mint(settings) => mint::mint(*settings).await,
    }
}
