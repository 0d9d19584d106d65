//! How long the webhook takes for a pod: the shipped program behind HTTPS, asked as an API server asks it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tests::cluster::Identity;
use tests::{Certificates, Cluster, Process};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::measure::{self, PROXY_CPU};
use crate::{quantile, say};

/// What we promise: this many pods a second, and of 100 of them 99 within this time.
const PODS_PER_SECOND: u32 = 200;
const P99_MAX_MS: f64 = 10.0;

/// For how long.
const SECONDS: u32 = 30;

/// Not measured: what is the first of its kind.
const WARM_UP: u32 = 200;

/// In whose place each review has one of its own.
const UID: &str = "uid-of-a-review";

const ADDRESS: &str = "127.0.0.1:18443";
const HEALTH: &str = "127.0.0.1:18442";

/// Prints the table.
pub(crate) fn rows() -> anyhow::Result<()> {
    say(&format!(
        "\nA pod's admission (ms; HTTPS, {PODS_PER_SECOND} pods of a replica set a second for {SECONDS} s)\n"
    ));
    if let Err(why) = tests::cluster::built() {
        say(&format!("skipped: {why:#}"));
        return Ok(());
    }
    say("p50      p99      max      CPU/pod   bound");
    let cluster = Cluster::start()?;
    let namespace = cluster.namespace("bench")?;
    let certificates = Certificates::new("bench")?;
    let webhook = start(&cluster, &certificates)?;
    let pid = webhook.pid().context("the webhook has ended")?;
    measure::pin(pid, PROXY_CPU)?;
    let review = review(namespace.name())?;
    let before = measure::cpu(pid)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let taken = runtime.block_on(load(&certificates, &review))?;
    let cpu =
        (measure::cpu(pid)? - before).as_secs_f64() * 1000.0 / f64::from(PODS_PER_SECOND * SECONDS + WARM_UP);
    let milliseconds = |share| quantile(taken.iter().copied(), share);
    say(&format!(
        "{:<8.2} {:<8.2} {:<8.2} {cpu:<9.2} p99 {P99_MAX_MS:.0}",
        milliseconds(0.5),
        milliseconds(0.99),
        milliseconds(1.0),
    ));
    Ok(())
}

fn start(cluster: &Cluster, certificates: &Certificates) -> anyhow::Result<Process> {
    let leaf = certificates.server(&["localhost"])?;
    let certificate = cluster.write("bench/tls.crt", &leaf.certificate)?;
    let key = cluster.write("bench/tls.key", &leaf.key)?;
    let args = [
        "webhook".to_owned(),
        format!("--listen={ADDRESS}"),
        format!("--health={HEALTH}"),
        format!("--tls-cert={}", certificate.display()),
        format!("--tls-key={}", key.display()),
        "--proxy-image=registry.example/countersign-proxy:1".to_owned(),
        "--control=https://countersign-control.countersign.svc:8440".to_owned(),
        format!("--control-fingerprint=sha256:{}", "00".repeat(32)),
    ];
    let kubeconfig = cluster.kubeconfig(Identity::Admin)?.display().to_string();
    let webhook =
        cluster.start_ours("countersign-control", &args, &[("KUBECONFIG", kubeconfig)], "webhook")?;
    cluster.wait_for("a ready webhook", || {
        let url = format!("http://{HEALTH}/readyz");
        let curl = cluster.command("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]);
        Ok((curl.output(Duration::from_secs(10))?.text() == "200").then_some(()))
    })?;
    Ok(webhook)
}

/// A pod of a replica set, as an API server sent it.
fn review(namespace: &str) -> anyhow::Result<String> {
    let path = "../tests/golden/kubernetes/admissionreview/005-CREATE-pods-ReplicaSet-web-5484f64bf5.json";
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let mut review: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    review["request"]["namespace"] = json!(namespace);
    review["request"]["uid"] = json!(UID);
    Ok(review.to_string())
}

/// The times that answers took, in milliseconds, from when each was due to be asked for.
async fn load(certificates: &Certificates, review: &str) -> anyhow::Result<Vec<f64>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificates.root().as_bytes())?)?;
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(ADDRESS).await?;
    stream.set_nodelay(true)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::try_from("localhost")?, stream).await?;
    // As API servers do: one connection, many streams.
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let pause = Duration::from_secs(1) / PODS_PER_SECOND;
    let begun = Instant::now();
    let mut open = Vec::new();
    for number in 0..PODS_PER_SECOND * SECONDS + WARM_UP {
        let due = begun + pause * number;
        tokio::time::sleep_until(due).await;
        let review = review.replace(UID, &format!("00000000-0000-4000-8000-{number:012}"));
        let body = Full::new(Bytes::from(review));
        let request =
            Request::post("https://localhost/inject?timeout=10s").header("content-type", "application/json");
        let (request, mut sender) = (request.body(body)?, sender.clone());
        open.push(tokio::spawn(async move {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            let taken = due.elapsed().as_secs_f64() * 1000.0;
            anyhow::Ok((status, body, taken))
        }));
    }
    let mut taken = Vec::new();
    for answer in open.into_iter().skip(WARM_UP as usize) {
        let (status, body, milliseconds) = answer.await??;
        anyhow::ensure!(status == StatusCode::OK, "{status}");
        let text = String::from_utf8_lossy(&body);
        anyhow::ensure!(text.contains("\"patch\":\""), "it was not injected: {text}");
        taken.push(milliseconds);
    }
    Ok(taken)
}
