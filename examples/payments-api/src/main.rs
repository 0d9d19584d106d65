//! `payments-api`: the service that the demo and the tests call.
//!
//! HTTPS over HTTP/1.1 and HTTP/2. It takes only a JWT that the control plane has signed for it, and answers who it
//! saw. A second, plain listener on loopback (`/__seen`) says what has reached it, so that a test can tell a call that
//! was refused on the way from one that was refused here.

mod api;
mod seen;
mod serve;
mod verify;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;

use crate::seen::Seen;
use crate::verify::Verifier;

/// An HTTPS service that takes only a JWT of the control plane.
#[derive(Debug, Parser)]
struct Settings {
    /// Address of the service; may be given several times.
    #[arg(long, value_name = "ADDR", default_value = "[::]:443")]
    listen: Vec<SocketAddr>,

    /// Certificate chain (PEM).
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,

    /// Its private key (PEM).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,

    /// Issuer whose tokens are taken: the `iss` claim, and where its discovery document is.
    #[arg(long, value_name = "URL")]
    issuer: String,

    /// Roots (PEM) by which the issuer's certificate is verified.
    #[arg(long, value_name = "FILE")]
    issuer_ca: Option<PathBuf>,

    /// The audience that a token must name.
    #[arg(long, value_name = "URL")]
    audience: String,

    /// Oldest token that is taken, in seconds since it was issued.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    max_age: u64,

    /// Plain HTTP on loopback that says what has reached the service: `/__seen`.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    admin: SocketAddr,

    /// Ask for a client certificate that one of these roots (PEM) has signed, and take no connection without.
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,

    /// Another address, at which the server speaks first, as a mail server does.
    #[arg(long, value_name = "ADDR")]
    greeter: Option<SocketAddr>,

    /// Offer only this version of HTTP.
    #[arg(long, value_enum)]
    only: Option<serve::Version>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    anyhow::ensure!(settings.admin.ip().is_loopback(), "--admin must be a loopback address");
    let verifier = Verifier::new(verify::Settings {
        issuer: settings.issuer,
        issuer_ca: settings.issuer_ca,
        audience: settings.audience,
        max_age: settings.max_age,
    })?;
    let seen = Arc::new(Seen::default());
    let api = Arc::new(api::Api::new(verifier, seen.clone()));
    let tls = serve::tls(&settings.certificate, &settings.key, settings.client_ca.as_deref(), settings.only)?;
    for address in settings.listen {
        let listener =
            serve::listen(address).await.with_context(|| format!("could not listen on {address}"))?;
        tokio::spawn(serve::https(listener, tls.clone(), api.clone()));
    }
    if let Some(address) = settings.greeter {
        let listener =
            serve::listen(address).await.with_context(|| format!("could not listen on {address}"))?;
        tokio::spawn(serve::greet(listener, seen.clone()));
    }
    let admin = serve::listen(settings.admin)
        .await
        .with_context(|| format!("could not listen on {}", settings.admin))?;
    seen::serve(admin, seen).await;
    Ok(())
}
