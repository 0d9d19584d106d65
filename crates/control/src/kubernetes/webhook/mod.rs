//! `countersign-control webhook`: what the API server asks before it takes a pod, or a resource of ours.
//!
//! Replicas hold nothing that another one needs, so there may be as many as one likes.

pub mod certificate;
pub mod door;
pub mod injection;
pub mod metrics;
pub mod namespaces;
pub mod review;
pub mod server_version;
pub mod settings;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use kube::Client;
use prometheus::Registry;
use service::health::{self, Readiness};
use service::{drain, telemetry};
use tokio::net::TcpListener;
use tokio::sync::watch;

use certificate::{Files, Shown};
use injection::Injection;
use metrics::Metrics;
use namespaces::Namespaces;
use server_version::knows_native_sidecars;
use settings::Settings;

use super::inject;

/// After the signal to stop, connections are still taken for this long: the API server hears later than we do that a
/// replica is leaving.
const LEAVING: Duration = Duration::from_secs(5);

/// For reviews that are open then.
const DRAIN: Duration = Duration::from_secs(5);

/// How often the API server is asked for its version: clusters are upgraded under running programs.
const ASK_VERSION_EVERY: Duration = Duration::from_secs(300);

/// How long to wait before asking the API server again what it did not answer.
const AGAIN: Duration = Duration::from_secs(2);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// If something that is needed can't be had; what is wrong with it is said.
pub fn serve(settings: &Settings) -> anyhow::Result<()> {
    service::tls_provider::install();
    let log = telemetry::init(&settings.log, settings.log_format)?;
    service::process::harden().context("the process could not be made unreadable for others")?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(settings, log))
}

async fn run(settings: &Settings, log: telemetry::LogHandle) -> anyhow::Result<()> {
    let readiness = Readiness::default();
    let starting = readiness.block("start");
    let registry = Registry::new();
    let metrics = Metrics::new(&registry)?;
    let health = tokio::spawn(health::serve(settings.health, readiness.clone(), registry));
    let client = Client::try_default()
        .await
        .context("the API server is not known: run in a cluster, or set KUBECONFIG")?;

    let shown = Arc::new(Shown::default());
    keep_certificate(settings, &shown)?;
    let clients = settings.client_ca.as_deref().map(service::roots::from_file).transpose();
    let tls = door::tls(shown, clients.context("--client-ca")?.as_deref())?;

    let namespaces = Namespaces::watch(client.clone());
    let waiting = readiness.block("the cluster's namespaces and version");
    let injection = settings_of_injection(settings.clone(), client).await;
    namespaces.known().await?;
    drop(waiting);

    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("could not listen on {} for the API server", settings.listen))?;
    let (drain, drained) = drain::new();
    let router = routes(Injection { settings: injection, namespaces, metrics });
    let mut serving = tokio::spawn(door::serve(listener, tls, router, drained));
    tokio::spawn(log.serve_signals());
    drop(starting);
    tracing::info!(listen = %settings.listen, "serving");
    tokio::select! {
        signal = service::signals::shutdown() => tracing::info!(signal = signal?, "stopping"),
        ended = &mut serving => ended.context("the door has failed")?,
        ended = health => ended?.context("health and metrics can't be served")?,
    }
    let _stopping = readiness.block("stopping");
    tokio::time::sleep(LEAVING).await;
    drain.start();
    drain.finish();
    let _ = tokio::time::timeout(DRAIN, serving).await;
    tracing::info!("stopped");
    Ok(())
}

/// What is served. Each path is a webhook of its own.
fn routes(injection: Injection) -> Router {
    Router::new().route("/inject", review::route(move |request| injection.clone().answer(request)))
}

fn keep_certificate(settings: &Settings, shown: &Arc<Shown>) -> anyhow::Result<()> {
    let (Some(certificate), Some(key)) = (&settings.tls_cert, &settings.tls_key) else {
        anyhow::bail!("--tls-cert and --tls-key are needed");
    };
    let files = Files { certificate: certificate.clone(), key: key.clone() };
    shown.replace(files.read()?);
    tokio::spawn(files.keep_current(shown.clone()));
    Ok(())
}

/// What injection puts into pods, by what this cluster is able to do, now and after it was upgraded.
async fn settings_of_injection(
    settings: Settings,
    client: Client,
) -> watch::Receiver<Arc<inject::settings::Settings>> {
    let knows = loop {
        match client.apiserver_version().await {
            Ok(version) => break knows_native_sidecars(&version),
            Err(error) => tracing::warn!(%error, "the API server does not say its version"),
        }
        tokio::time::sleep(AGAIN).await;
    };
    let (sender, receiver) = watch::channel(Arc::new(settings.injection(knows)));
    tracing::info!(native_sidecars = sender.borrow().native_sidecars, "the proxy's container");
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(ASK_VERSION_EVERY).await;
            match client.apiserver_version().await {
                Ok(version) => {
                    sender.send_replace(Arc::new(settings.injection(knows_native_sidecars(&version))));
                }
                Err(error) => tracing::warn!(%error, "the API server does not say its version"),
            }
        }
    });
    receiver
}
