//! `countersign-control check`: whether an installation answers, asked from inside the cluster as its peers ask it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use http::Uri;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, WebhookClientConfig};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::authority::SERVER_NAME;

/// For each of them, from the name look-up to the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Settings of `check`.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// URL of the control plane.
    #[arg(long, value_name = "URL")]
    pub control: Uri,

    /// ConfigMap with the control plane's root certificates, in the pod's own namespace.
    #[arg(long, value_name = "NAME")]
    pub control_ca_config_map: String,

    /// MutatingWebhookConfiguration whose webhook is to be asked; none if absent.
    #[arg(long, value_name = "NAME")]
    pub webhook_configuration: Option<String>,
}

/// Asks; says what answered, a line each.
///
/// # Errors
/// At the first that does not answer, or shows a certificate that its peers would not believe.
pub async fn check(settings: &Settings) -> anyhow::Result<Vec<String>> {
    let client = Client::try_default().await.context("the API server is not known: run in a cluster")?;
    let mut answered = vec![within(control(&client, settings)).await.context("the control plane")?];
    if let Some(name) = &settings.webhook_configuration {
        answered.push(within(webhook(&client, name)).await.context("the webhook")?);
    }
    Ok(answered)
}

async fn within(asking: impl Future<Output = anyhow::Result<String>>) -> anyhow::Result<String> {
    tokio::time::timeout(PATIENCE, asking)
        .await
        .with_context(|| format!("no answer in {} s", PATIENCE.as_secs()))?
}

/// Its certificate is what a proxy verifies before it says anything.
async fn control(client: &Client, settings: &Settings) -> anyhow::Result<String> {
    let name = &settings.control_ca_config_map;
    let published = Api::<ConfigMap>::default_namespaced(client.clone()).get(name).await;
    let published = published.with_context(|| format!("ConfigMap {name}, which it writes"))?;
    let roots = published.data.unwrap_or_default().remove("ca.crt");
    let roots = roots.with_context(|| format!("ConfigMap {name} has no ca.crt"))?;
    let host = settings.control.host().context("--control names no host")?;
    let port = settings.control.port_u16().unwrap_or(443);
    connect(host, port, SERVER_NAME, roots.as_bytes(), b"h2").await?;
    Ok(format!("the control plane answers at {host}:{port} with a certificate of its published roots"))
}

/// Asked as the API server does: at the Service that the configuration names, verified by its `caBundle`.
async fn webhook(client: &Client, name: &str) -> anyhow::Result<String> {
    let found = Api::<MutatingWebhookConfiguration>::all(client.clone()).get(name).await;
    let found = found.with_context(|| format!("MutatingWebhookConfiguration {name}"))?;
    let configured = found.webhooks.into_iter().flatten().next().context("it has no webhook")?.client_config;
    let WebhookClientConfig { service: Some(service), ca_bundle: Some(bundle), .. } = configured else {
        anyhow::bail!("MutatingWebhookConfiguration {name} has no service or no caBundle yet");
    };
    let host = format!("{}.{}.svc", service.name, service.namespace);
    let port = service.port.map_or(Ok(443), u16::try_from)?;
    let mut stream = connect(&host, port, &host, &bundle.0, b"http/1.1").await?;
    // What it says to this does not matter: somebody who speaks HTTP is behind the certificate.
    let path = service.path.unwrap_or_default();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut status = [0; 9];
    stream.read_exact(&mut status).await.context("no HTTP answer")?;
    anyhow::ensure!(&status == b"HTTP/1.1 ", "no HTTP answer");
    Ok(format!("the webhook answers at {host}:{port} with a certificate that the API server believes"))
}

/// Opens TLS to a server whose certificate must be for this name, and of one of these roots (PEM).
async fn connect(
    host: &str,
    port: u16,
    name: &str,
    roots: &[u8],
    protocol: &[u8],
) -> anyhow::Result<TlsStream<TcpStream>> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots) {
        store.add(root.context("its roots")?)?;
    }
    let mut config = ClientConfig::builder_with_provider(service::tls_provider::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let place = || format!("{host}:{port}");
    let stream = TcpStream::connect((host, port)).await.with_context(place)?;
    let name = ServerName::try_from(name.to_owned())?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.with_context(place)
}
