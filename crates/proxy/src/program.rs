//! Puts the parts together and keeps them running until the program is told to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use model::redirect::RedirectState;
use rustls::pki_types::CertificateDer;
use service::health::{self, Blocker, Readiness};
use service::telemetry;

use crate::audit::Audit;
use crate::authority::Authority;
use crate::bundle::Bundle;
use crate::bypass;
use crate::caller::{CallerState, Callers};
use crate::capture::sentinel::{self, Watchman};
use crate::capture::{accept, explicit};
use crate::config::{OnFull, Redirected, Settings};
use crate::credential;
use crate::limits::Limits;
use crate::memory::{self, Budget};
use crate::metrics::Metrics;
use crate::session::{self, Session};
use crate::socket::SocketOptions;
use crate::state::StateDir;
use crate::tls::leaves::{LEAVES_MAX, Leaves};
use crate::trust_port::TrustPort;
use crate::upstream::corporate::Corporate;
use crate::upstream::resolve::OffLimits;
use crate::upstream::roots::Roots;
use crate::worker::{Door, Shared, Worker, now};

/// Carries the workload's calls until SIGTERM or SIGINT.
///
/// # Errors
/// If something that is needed can't be had; what is wrong with it is said.
pub fn serve(settings: &Settings) -> anyhow::Result<()> {
    memory::keep_reserve();
    service::tls_provider::install();
    let log = telemetry::init(&settings.log, settings.log_format)?;
    service::process::harden().context("the process could not be made unreadable for others")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(settings, log))
}

/// The control thread: session, health, signals. Calls are carried on the workers' threads.
async fn run(settings: &Settings, log: telemetry::LogHandle) -> anyhow::Result<()> {
    let registry = health::registry()?;
    let readiness = Readiness::default();
    let policy_missing = readiness.block("first policy");
    let workers_missing = readiness.block("listeners");
    let state = Arc::new(StateDir::open(&settings.state)?);
    let authority = Arc::new(Authority::open(&state, now())?);
    let operator_roots = match &settings.roots {
        Some(path) => service::roots::from_path(path).context("--roots")?,
        None => Vec::new(),
    };
    write_bundle(settings, &authority, &operator_roots)?;
    let on_full = settings.audit_on_full == OnFull::Drop;
    let audit = Audit::open(&settings.spool, settings.spool_max_mib << 20, on_full, &registry)?;
    let (cache, orders) = credential::cache();
    let cache = Arc::new(cache);
    let caller = Arc::new(CallerState::new(cache.clone()));
    let (found, redirect) = tokio::sync::watch::channel(redirect_at_start(settings));
    let session = Session::new(
        session::run::config(settings, &state)?,
        caller.clone(),
        state,
        audit.clone(),
        log.clone(),
        redirect,
        &registry,
    )?;
    let (drain, watch) = service::drain::new();
    let limits = Limits::of(settings);
    let memory = Budget::new(limits.memory, &registry)?;
    tokio::spawn(memory.clone().watch());
    let shared = Arc::new(Shared {
        callers: Callers::sidecar(caller.clone()),
        audit: audit.clone(),
        leaves: Leaves::start(authority, LEAVES_MAX)?,
        ticketer: rustls::crypto::aws_lc_rs::Ticketer::new()?,
        roots: Roots::new(service::roots::store(&operator_roots)?),
        socket: SocketOptions { mark: settings.mark },
        limits,
        memory,
        off_limits: Arc::new(OffLimits {
            own_ports: own_ports(settings),
            networks: settings.refuse_cidr.clone(),
        }),
        corporate: corporate(settings)?.map(Arc::new),
        explicit: explicit::Access::new(settings.explicit_token_file.as_deref())?,
        metrics: Metrics::new(&registry)?,
        drain: watch,
        sentinel: Arc::default(),
    });
    let watchman = Watchman {
        sentinel: shared.sentinel.clone(),
        socket: shared.socket,
        found,
        audit: audit.clone(),
        caller: caller.clone(),
        readiness: readiness.clone(),
        metrics: sentinel::Metrics::new(&registry, shared.metrics.clone())?,
    };
    let redirect_missing = readiness.block(sentinel::BLOCKER_GONE);
    if let Some(port) = TrustPort::listen(settings.trust_port).await? {
        port.serve(shared.terminator()?);
    }
    let showing_bypass = bypass::show(caller.clone(), readiness.clone(), &registry)?;
    let health = tokio::spawn(health::serve(settings.health, readiness.clone(), registry));
    let workers = start_workers(settings, &shared)?;
    drop(workers_missing);
    match settings.redirect {
        Redirected::Expected => drop(tokio::spawn(watchman.run(redirect_missing))),
        Redirected::None => drop(redirect_missing),
    }
    let trouble = session.trouble();
    tokio::spawn(orders.serve(cache, session.clone()));
    tokio::spawn(session.run());
    tokio::spawn(log.serve_signals());
    tokio::spawn(showing_bypass);
    tokio::spawn(first_policy(caller, trouble, policy_missing));
    tokio::select! {
        signal = service::signals::shutdown() => tracing::info!(signal = signal?, "draining"),
        served = health => served?.context("health and metrics can't be served")?,
    }
    until_quiet(settings, &shared, &audit).await;
    drain.start();
    finished(&shared).await;
    drain.finish();
    for worker in workers {
        let _ = worker.join();
    }
    tracing::info!(pending = audit.pending(), "stopped");
    Ok(())
}

/// Waits for the first policy; until it is there the probe says what stands in its way.
async fn first_policy(
    caller: Arc<CallerState>,
    mut trouble: tokio::sync::watch::Receiver<String>,
    missing: Blocker,
) {
    let mut changed = caller.changed();
    while caller.snapshot().is_none() {
        tokio::select! {
            ticked = changed.changed() => if ticked.is_err() {
                return;
            },
            told = trouble.changed() => if told.is_err() {
                return;
            },
        }
        missing.because(&trouble.borrow_and_update());
    }
    drop(missing);
    service::process::give_back_code();
}

/// What is known of the redirect before anybody has looked.
fn redirect_at_start(settings: &Settings) -> model::redirect::Redirect {
    let state = match settings.redirect {
        Redirected::Expected => RedirectState::Unknown,
        Redirected::None => RedirectState::Unused,
    };
    model::redirect::Redirect { state, ..Default::default() }
}

/// The image's roots, the operator's and ours, for all runtimes.
fn write_bundle(
    settings: &Settings,
    authority: &Authority,
    operator: &[CertificateDer<'static>],
) -> anyhow::Result<()> {
    let others = [service::roots::system().as_slice(), operator].concat();
    let bundle = Bundle::new(authority.certificate(), &others);
    bundle.write_pem(&settings.bundle)?;
    bundle.write_pkcs12(&settings.bundle_for_java(), &settings.bundle_p12_password)
}

/// One thread for each worker, each with listeners of its own on both families.
fn start_workers(
    settings: &Settings,
    shared: &Arc<Shared>,
) -> anyhow::Result<Vec<std::thread::JoinHandle<()>>> {
    let count = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        count => count,
    };
    (0..count)
        .map(|index| {
            let (shared, doors) = (shared.clone(), doors(settings));
            let (told, ready) = std::sync::mpsc::channel();
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let runtime = match worker_runtime() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(told.send(Err(error.into()))),
                };
                runtime.block_on(async move {
                    let began = begin(shared, &doors);
                    match began {
                        Ok((worker, listeners)) => {
                            let _ = told.send(Ok(()));
                            worker.run(listeners).await;
                        }
                        Err(error) => drop(told.send(Err(error))),
                    }
                });
            })?;
            ready.recv().context("a worker did not start")??;
            Ok(thread)
        })
        .collect()
}

/// A panic in one of its tasks, which is a connection's, ends that task: programs are built to unwind.
pub(crate) fn worker_runtime() -> std::io::Result<tokio::runtime::LocalRuntime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build_local(tokio::runtime::LocalOptions::default())
}

/// The proxy through which upstreams are reached, if one is configured.
fn corporate(settings: &Settings) -> anyhow::Result<Option<Corporate>> {
    let Some(url) = &settings.upstream_proxy else { return Ok(None) };
    let credential = settings.upstream_proxy_credential_file.as_deref();
    Corporate::new(url, credential, &settings.upstream_proxy_except).map(Some).context("--upstream-proxy")
}

/// By which port which way leads in.
fn doors(settings: &Settings) -> Vec<(Door, u16)> {
    let explicit = settings.explicit_port.map(|port| (Door::Explicit, port));
    [(Door::Redirect, settings.listen_port)].into_iter().chain(explicit).collect()
}

/// Ports at which nobody may be led back to the proxy itself.
fn own_ports(settings: &Settings) -> Vec<u16> {
    let doors = doors(settings).into_iter().map(|(_, port)| port);
    doors.chain([settings.health.port(), settings.trust_port]).collect()
}

type Listeners = Vec<(Door, tokio::net::TcpListener)>;

fn begin(shared: Arc<Shared>, doors: &[(Door, u16)]) -> anyhow::Result<(std::rc::Rc<Worker>, Listeners)> {
    let mut listeners = Vec::new();
    for (door, port) in doors {
        for address in accept::REDIRECT_TARGETS {
            let listener = accept::listen(address, *port).with_context(|| {
                format!("could not listen on {address} port {port}; both IPv4 and IPv6 loopback are needed")
            })?;
            listeners.push((*door, listener));
        }
    }
    Ok((Worker::new(shared)?, listeners))
}

/// How often it is looked whether something is still open or owed.
const LOOK: Duration = Duration::from_millis(20);

/// For GOAWAY and `connection: close` to reach who is still there.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long what is open at the deadline may take to finish, once it was told.
const FINISH: Duration = Duration::from_secs(5);

/// Waits until nothing is open any more, or the time for that is over.
async fn finished(shared: &Shared) {
    if shared.metrics.connections.get() == 0 {
        return;
    }
    tokio::time::sleep(LAST_WORDS).await;
    let deadline = tokio::time::Instant::now() + FINISH;
    while shared.metrics.connections.get() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
}

/// Goes on serving, new connections too, until the application has gone and everything is delivered, or the time for
/// that is over. The application has gone when it has had no connection for a while: one that makes short ones has none
/// at times.
async fn until_quiet(settings: &Settings, shared: &Shared, audit: &Audit) {
    let quiet = Duration::from_secs(settings.drain_quiet);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(settings.drain);
    let mut quiet_since = tokio::time::Instant::now();
    while tokio::time::Instant::now() < deadline {
        if shared.metrics.connections.get() > 0 || audit.pending() > 0 {
            quiet_since = tokio::time::Instant::now();
        } else if quiet_since.elapsed() >= quiet {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    tracing::warn!(
        connections = shared.metrics.connections.get(),
        pending = audit.pending(),
        "the time to drain is over"
    );
}
