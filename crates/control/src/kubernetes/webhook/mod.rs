//! `countersign-control webhook`: what the API server asks before it takes a pod, or a resource of ours.
//!
//! Replicas hold nothing that another one needs, so there may be as many as one likes.

pub mod certificate;
pub mod documents;
pub mod door;
pub mod injection;
pub mod issued;
pub mod metrics;
pub mod namespaces;
pub mod notes;
pub mod own_ca;
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
use documents::Documents;
use injection::Injection;
use issued::Issued;
use metrics::Metrics;
use namespaces::Namespaces;
use server_version::knows_native_sidecars;
use settings::Settings;

use super::{inject, roots};

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
    inject::containers::check_more_args(&settings.proxy_arg)
        .map_err(anyhow::Error::msg)
        .context("--proxy-arg")?;
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

    let shown = Arc::new(Shown::new(metrics.certificate_expires.clone()));
    let namespace = settings.namespace.as_deref().unwrap_or(client.default_namespace()).to_owned();
    let waiting = readiness.block("certificate");
    keep_certificate(settings, &namespace, client.clone(), &shown).await?;
    drop(waiting);
    let clients = settings.client_ca.as_deref().map(service::roots::from_file).transpose();
    let tls = door::tls(shown, clients.context("--client-ca")?.as_deref())?;

    let namespaces = Namespaces::watch(client.clone());
    let waiting = readiness.block("namespaces");
    namespaces.known().await?;
    drop(waiting);
    let waiting = readiness.block("the control plane's root key");
    let injection = settings_of_injection(settings.clone(), &namespace, client.clone()).await?;
    drop(waiting);
    let documents = Documents::watch(client.clone(), namespaces.clone(), settings.egress_mode());
    tokio::spawn(notes::keep_telling(client));

    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("could not listen on {} for the API server", settings.listen))?;
    let (drain, drained) = drain::new();
    let router = routes(Injection { settings: injection, namespaces, metrics }, documents);
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
fn routes(injection: Injection, documents: Documents) -> Router {
    Router::new()
        .route("/inject", review::route(move |request| injection.clone().answer(request)))
        .route("/validate", review::route(move |request| documents.clone().answer(request)))
}

/// Has a certificate shown, and from then on always the newest one.
async fn keep_certificate(
    settings: &Settings,
    namespace: &str,
    client: Client,
    shown: &Arc<Shown>,
) -> anyhow::Result<()> {
    if let (Some(certificate), Some(key)) = (&settings.tls_cert, &settings.tls_key) {
        let files = Files { certificate: certificate.clone(), key: key.clone() };
        shown.replace(files.read()?);
        tokio::spawn(files.keep_current(shown.clone()));
        return Ok(());
    }
    let mut names = vec![format!("{}.{namespace}.svc", settings.service)];
    names.extend(settings.server_name.iter().cloned());
    let issued = Issued::new(client, namespace, &settings.secret, &settings.webhook_configuration, names);
    while let Err(error) = issued.look(shown).await {
        tracing::error!("there is no certificate yet: {error:#}");
        tokio::time::sleep(AGAIN).await;
    }
    tokio::spawn(issued.keep_current(shown.clone()));
    Ok(())
}

/// What injection puts into pods, by what this cluster is able to do and by which key its control plane is known, now and
/// after either has changed.
async fn settings_of_injection(
    settings: Settings,
    namespace: &str,
    client: Client,
) -> anyhow::Result<watch::Receiver<Arc<inject::settings::Settings>>> {
    let mut fingerprint = match (&settings.control_fingerprint, &settings.control_ca_config_map) {
        (None, Some(name)) => roots::fingerprint(client.clone(), namespace, name).await?,
        (fixed, _) => watch::channel(fixed.clone().unwrap_or_default()).1,
    };
    let mut knows = loop {
        match client.apiserver_version().await {
            Ok(version) => break knows_native_sidecars(&version),
            Err(error) => tracing::warn!(%error, "the API server does not say its version"),
        }
        tokio::time::sleep(AGAIN).await;
    };
    let first = settings.injection(knows, &fingerprint.borrow());
    tracing::info!(native_sidecars = first.native_sidecars, "the proxy's container");
    let (sender, receiver) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        let mut asking = tokio::time::interval(ASK_VERSION_EVERY);
        asking.tick().await;
        loop {
            tokio::select! {
                _ = asking.tick() => match client.apiserver_version().await {
                    Ok(version) => knows = knows_native_sidecars(&version),
                    Err(error) => tracing::warn!(%error, "the API server does not say its version"),
                },
                Ok(()) = fingerprint.changed() => {}
            }
            let now = settings.injection(knows, &fingerprint.borrow());
            sender.send_replace(Arc::new(now));
        }
    });
    Ok(receiver)
}
