//! Signs a token into a file, and keeps it renewed if asked, as the kubelet does for a projected volume.

use std::fs::{OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::Value;

use crate::Issuer;
use crate::claims::{Frame, Job, Pod};
use crate::keys::Key;

/// What to mint.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    issuer: Issuer,

    /// Where to write the token.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// The file's owner: the UID of the proxy that reads it.
    #[arg(long, value_name = "UID")]
    owner: Option<u32>,

    /// Whose token it is like.
    #[arg(long, value_enum, default_value_t = Like::Kubernetes)]
    like: Like,

    /// The `aud` claim.
    #[arg(long, value_name = "NAME", default_value = "countersign")]
    audience: String,

    /// Lifetime in seconds; negative for a token that has expired.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, allow_negative_numbers = true)]
    ttl: i64,

    /// Issued this many seconds ago.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    issued_ago: u64,

    /// Stay, and write a new token each time this many seconds have passed.
    #[arg(long, value_name = "SECONDS")]
    renew: Option<u64>,

    /// Namespace of the service account.
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,

    /// The service account.
    #[arg(long, value_name = "NAME", default_value = "default")]
    serviceaccount: String,

    /// Name of the pod; by default the service account's with `-0`.
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,

    /// UID of the pod; by default a new one.
    #[arg(long, value_name = "UUID")]
    pod_uid: Option<String>,

    /// Node of the pod.
    #[arg(long, value_name = "NAME", default_value = "node1")]
    node: String,

    /// The job's repository.
    #[arg(long, value_name = "OWNER/NAME", default_value = "acme/billing")]
    repository: String,

    /// The job's branch or tag.
    #[arg(long, value_name = "REF", default_value = "refs/heads/main")]
    reference: String,

    /// The job's workflow.
    #[arg(long, value_name = "NAME", default_value = "deploy")]
    workflow: String,

    /// The job's environment.
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,

    /// The job's run.
    #[arg(long, value_name = "N", default_value_t = 1)]
    run_id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Like {
    /// A projected service-account token.
    Kubernetes,
    /// A job's token of GitHub Actions.
    Github,
}

/// Writes the token; returns at once unless it is to be renewed.
pub(crate) async fn mint(settings: Settings) -> anyhow::Result<()> {
    let key = Key::open(&settings.issuer.key_file)?;
    // The same pod for every renewal: it is the instance.
    let uid = settings.pod_uid.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    loop {
        let token = key.sign(&claims(&settings, &uid, now()?))?;
        write(&settings.out, &token, settings.owner)
            .with_context(|| format!("could not write the token to {}", settings.out.display()))?;
        let Some(seconds) = settings.renew else { return Ok(()) };
        tokio::time::sleep(Duration::from_secs(seconds.max(1))).await;
    }
}

fn claims(settings: &Settings, uid: &str, now: u64) -> Value {
    // An expired token was issued an hour before it ended, like any other.
    const EXPIRED_LIVED: u64 = 3600;
    let (issued, ttl) = match u64::try_from(settings.ttl) {
        Ok(ttl) => (now.saturating_sub(settings.issued_ago), ttl),
        Err(_) => (now.saturating_sub(settings.ttl.unsigned_abs() + EXPIRED_LIVED), EXPIRED_LIVED),
    };
    let frame = Frame {
        issuer: settings.issuer.issuer.clone(),
        audience: settings.audience.clone(),
        now: issued,
        ttl,
    };
    match settings.like {
        Like::Kubernetes => pod(settings, uid).claims(&frame),
        Like::Github => job(settings).claims(&frame),
    }
}

fn pod(settings: &Settings, uid: &str) -> Pod {
    let account = &settings.serviceaccount;
    Pod {
        namespace: settings.namespace.clone(),
        serviceaccount: account.clone(),
        serviceaccount_uid: stable_uid(&format!("{}/{account}", settings.namespace)),
        name: settings.pod.clone().unwrap_or_else(|| format!("{account}-0")),
        uid: uid.to_owned(),
        node: settings.node.clone(),
        node_uid: stable_uid(&settings.node),
    }
}

fn job(settings: &Settings) -> Job {
    Job {
        repository: settings.repository.clone(),
        reference: settings.reference.clone(),
        workflow: settings.workflow.clone(),
        run_id: settings.run_id,
        environment: settings.environment.clone(),
    }
}

/// The same name has the same UID each time, as an object of a cluster has.
fn stable_uid(name: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_ref()[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

fn now() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs())
}

/// A reader sees the old token or the new one, never half of one.
fn write(path: &Path, token: &str, owner: Option<u32>) -> anyhow::Result<()> {
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(token.as_bytes())?;
    file.sync_all()?;
    if let Some(owner) = owner {
        std::os::unix::fs::chown(&draft, Some(owner), Some(owner))?;
    }
    std::fs::rename(&draft, path)?;
    Ok(())
}
