//! Puts the parts together and keeps them running until the program is told to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use model::Namespace;
use model::slice::Egress;
use policy::compile::EgressDefaults;
use service::health::{self, Readiness};
use service::telemetry;
use tokio::net::TcpListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use wire::v1::administration_server::AdministrationServer;
use wire::v1::control_plane_server::ControlPlaneServer;

use crate::administration::Admin;
use crate::attendance::Attendance;
use crate::attest::Attestor;
use crate::authority::{self, Authority};
use crate::config::{Installation, Settings};
use crate::door::{self, Accounts, Door, Role};
use crate::index::Index;
use crate::issue::Issuing;
use crate::keys::Keys;
use crate::kubernetes::controller::Controller;
use crate::metrics::Metrics;
use crate::proxies::Proxies;
use crate::services::ProxyServices;
use crate::store::Store;
use crate::store::seal::SealingKey;
use crate::store::sqlite::SqliteStore;
use crate::watch::Watcher;
use crate::{audit, discovery, kubernetes, now, server};

/// Largest message: a thousand audit records.
const MESSAGE_MAX: usize = 16 << 20;

/// For what is open when the program is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

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

/// The database, in the state directory.
const DATABASE: &str = "control.db";

/// Opens the store of a state directory, and makes what is not there. The sealing key is made with the database and never
/// after it: what is sealed already would not open by another one.
///
/// # Errors
/// If the directory, the sealing key or the database can't be used.
pub async fn open_store(state: &Path, sealing_key: Option<&PathBuf>) -> anyhow::Result<Arc<SqliteStore>> {
    std::fs::create_dir_all(state).with_context(|| format!("state directory {}", state.display()))?;
    restrict(state)?;
    let database = state.join(DATABASE);
    let path = sealing_key.cloned().unwrap_or_else(|| state.join("sealing.key"));
    let sealing = match SealingKey::read(&path)? {
        Some(key) => key,
        None if is_there(&database)? => anyhow::bail!(
            "{} is sealed with a key, and there is none at {}: give its file with --sealing-key",
            database.display(),
            path.display()
        ),
        None => SealingKey::make(&path)?,
    };
    let stream = stream_name(&state.join("stream"))?;
    let store = SqliteStore::open(&database, sealing, stream).await?;
    Ok(Arc::new(store))
}

/// Opens the store of an installation that is there; makes none.
///
/// # Errors
/// If there is no database, or the sealing key is not the one that its keys are sealed with.
pub async fn open_existing(installation: &Installation) -> anyhow::Result<Arc<SqliteStore>> {
    let Installation { state, sealing_key } = installation;
    if !is_there(&state.join(DATABASE))? {
        anyhow::bail!(
            "{} has no {DATABASE}, so no control plane keeps its state there: give the directory of `serve` with --state",
            state.display()
        );
    }
    let store = open_store(state, sealing_key.as_ref()).await?;
    // What a wrong key sealed would keep the next `serve` from starting.
    let keys = store.keys(authority::PURPOSE).await;
    keys.context(
        "--sealing-key must be the file that `serve` is given; sealing.key in --state unless it is given one",
    )?;
    Ok(store)
}

fn is_there(path: &Path) -> anyhow::Result<bool> {
    path.try_exists().with_context(|| path.display().to_string())
}

fn restrict(directory: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("state directory {}", directory.display()))
}

/// The name of this replica's own audit stream: made once, with the state directory.
fn stream_name(path: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(name) => Ok(name),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let name = format!("control/{:032x}", rand::random::<u128>());
            service::files::write_atomically(path, name.as_bytes(), 0o600)?;
            Ok(name)
        }
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

async fn run(settings: &Settings, log: telemetry::LogHandle) -> anyhow::Result<()> {
    let readiness = Readiness::default();
    let starting = readiness.block("start");
    let registry = health::registry()?;
    let metrics = Metrics::new(&registry)?;
    let health = tokio::spawn(health::serve(settings.health, readiness.clone(), registry));
    let store: Arc<dyn Store> = open_store(&settings.state, settings.sealing_key.as_ref()).await?;
    let keys = Keys::open(store.clone(), now()).await?;
    let authority = Authority::open(store.clone(), &settings.trust_domain, now()).await?;
    publish_roots(settings.ca_out.as_deref(), &authority)?;
    if let Some(name) = settings.ca_config_map.clone() {
        let client = kube::Client::try_default().await.context("--ca-config-map needs a cluster")?;
        tokio::spawn(kubernetes::roots::keep_published(client, name, authority.clone()));
    }
    let index = Index::start(store.clone(), egress(settings)?).await?;
    let controller = match settings.kubernetes {
        true => Some(Controller::connect(store.clone(), index.clone()).await?),
        false => None,
    };
    let proxies = Proxies::new(metrics.proxies.clone());
    tokio::spawn(count_bypasses(index.clone(), metrics.bypasses.clone()));
    let roots = match &settings.roots {
        Some(path) => service::roots::from_path(path).context("--roots")?,
        None => Vec::new(),
    };
    let verifier =
        Arc::new(attestation::Verifier::new(&settings.trust_domain, service::roots::store(&roots)?));
    let attendance = Arc::new(Attendance::new(verifier.clone(), index.clone()));
    let services = ControlPlaneServer::new(ProxyServices {
        store: store.clone(),
        attendance: attendance.clone(),
        attestor: Arc::new(Attestor {
            store: store.clone(),
            verifier,
            authority: authority.clone(),
            index: index.clone(),
            keys: keys.clone(),
            metrics: metrics.clone(),
            svid_life_secs: settings.svid_lifetime,
        }),
        watcher: Arc::new(Watcher {
            store: store.clone(),
            index: index.clone(),
            proxies: proxies.clone(),
            attendance,
            authority: authority.clone(),
        }),
        issuing: Arc::new(Issuing {
            store: store.clone(),
            index: index.clone(),
            keys: keys.clone(),
            issuer_url: settings.issuer_url.clone(),
        }),
        metrics: metrics.clone(),
    })
    .max_decoding_message_size(MESSAGE_MAX);
    let token_file = settings.token_file.clone().unwrap_or_else(|| settings.state.join("admin-token"));
    let admin = Admin {
        door: Arc::new(Door::open(&token_file, door_accounts(settings)?)?),
        store: store.clone(),
        index,
        proxies,
        keys: keys.clone(),
    };
    let admin = AdministrationServer::new(admin).max_decoding_message_size(MESSAGE_MAX);

    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("could not listen on {} for proxies", settings.listen))?;
    let incoming = server::incoming(listener, authority.clone())?;
    let socket = UnixListenerStream::new(door::listen(&settings.socket)?);
    let discovery_tls = match (&settings.discovery_certificate, &settings.discovery_key) {
        (Some(certificate), Some(key)) => Some(discovery::tls(certificate, key)?),
        _ => None,
    };
    let (drain, watch) = service::drain::new();
    let synchronising = controller.map(|controller| tokio::spawn(controller.run(watch.clone())));
    let proxies_served = configured()
        .add_service(services)
        .add_service(admin.clone())
        .serve_with_incoming_shutdown(incoming, watch.clone().started());
    let admins_served = configured().add_service(admin).serve_with_incoming_shutdown(socket, watch.started());
    let discovery_listener = TcpListener::bind(settings.discovery_listen)
        .await
        .with_context(|| format!("could not listen on {} for discovery", settings.discovery_listen))?;
    let discovery = discovery::serve(discovery_listener, discovery_tls, &settings.issuer_url, keys.clone());
    let ca_out = settings.ca_out.clone();
    tokio::spawn(authority.keep_rotating(move |authority| publish_roots(ca_out.as_deref(), authority)));
    tokio::spawn(keys.clone().keep_rotating());
    tokio::spawn(audit::keep_signing(store.clone(), keys.clone()));
    tokio::spawn(log.serve_signals());
    drop(starting);
    tracing::info!(listen = %settings.listen, issuer = %settings.issuer_url, "serving");
    let served = async { tokio::try_join!(proxies_served, admins_served) };
    tokio::pin!(served);
    tokio::select! {
        signal = service::signals::shutdown() => tracing::info!(signal = signal?, "stopping"),
        ended = &mut served => drop(ended.context("the doors can't be served")?),
        () = discovery => {}
        ended = health => ended?.context("health and metrics can't be served")?,
    }
    drain.start();
    let _ = tokio::time::timeout(DRAIN, served).await;
    if let Some(synchronising) = synchronising {
        // It gives its lease back, so that the next one need not wait for its end.
        let _ = tokio::time::timeout(DRAIN, synchronising).await;
    }
    audit::checkpoint(&*store, &keys, now()).await?;
    tracing::info!("stopped");
    Ok(())
}

/// A bypass ends by the clock, so it is the clock that it is counted by.
async fn count_bypasses(index: Arc<Index>, gauge: prometheus::IntGauge) {
    let mut ticking = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticking.tick().await;
        gauge.set(i64::try_from(index.now().bypasses_in_force(now())).unwrap_or(i64::MAX));
    }
}

/// What a proxy may send in one frame, in bytes: a full message of events, which is one write for it then and not four.
const FRAME_BYTES: u32 = 128 << 10;

fn configured() -> Server {
    Server::builder()
        .max_frame_size(Some(FRAME_BYTES))
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .max_concurrent_streams(Some(1024))
}

/// Proxies learn out of band whom to trust: by this file, or by a fingerprint that is logged.
fn publish_roots(ca_out: Option<&Path>, authority: &Authority) -> anyhow::Result<()> {
    if let Some(path) = ca_out {
        service::files::write_atomically(path, authority.now().roots_pem().as_bytes(), 0o644)
            .with_context(|| format!("could not write the root certificates to {}", path.display()))?;
    }
    let fingerprints = authority.fingerprints()?.join(" ");
    tracing::info!(fingerprints, "roots of the control plane; the first one signs");
    Ok(())
}

/// Whose tokens open the door for administrators.
fn door_accounts(settings: &Settings) -> anyhow::Result<Accounts> {
    let mut accounts = Accounts::new(&settings.admin_audience);
    for (names, role, flag) in [
        (&settings.viewer_service_account, Role::Viewer, "--viewer-service-account"),
        (&settings.admin_service_account, Role::Administrator, "--admin-service-account"),
    ] {
        names.iter().try_for_each(|name| accounts.add(name, role)).context(flag)?;
    }
    Ok(accounts)
}

fn egress(settings: &Settings) -> anyhow::Result<EgressDefaults> {
    let namespaces = settings.enforce_namespace.iter().map(|name| {
        let namespace = Namespace::new(name).context("--enforce-namespace")?;
        Ok((namespace, Egress::Enforce))
    });
    Ok(EgressDefaults {
        configured: settings.egress.into(),
        namespaces: namespaces.collect::<anyhow::Result<_>>()?,
    })
}
