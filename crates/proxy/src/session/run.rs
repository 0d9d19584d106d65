//! Keeps one session after the other alive.
//!
//! A session is a certificate. It is renewed at half its life with the newest evidence; the new channel is up before the
//! old one ends. While the control plane is away, what was granted works until it expires.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use model::redirect::Redirect;
use model::{Code, Failure, GrantId, Secret, UnixMillis};
use prometheus::{Gauge, IntCounterVec, IntGauge, Opts, Registry};
use tonic::transport::Channel;
use wire::v1;
use wire::v1::control_plane_client::ControlPlaneClient;
use zeroize::Zeroizing;

use super::attest::{self, Attested, Evidence};
use super::channel::{self, Address};
use super::trust::Trust;
use super::{report, watch};
use crate::audit::Audit;
use crate::caller::CallerState;
use crate::credential::{Issued, Issuer, Order};
use crate::socket::SocketOptions;
use crate::state::StateDir;
use crate::svid::Svid;
use crate::worker::now;

/// What a session needs to know.
pub struct SessionConfig {
    /// Where the control plane is.
    pub address: Address,
    /// Who it is.
    pub trust: Arc<Trust>,
    /// What proves the workload.
    pub evidence: Evidence,
    /// For our sockets.
    pub socket: SocketOptions,
}

/// The proxy's session with the control plane.
pub struct Session {
    config: SessionConfig,
    state: Arc<CallerState>,
    directory: Arc<StateDir>,
    audit: Audit,
    log: service::telemetry::LogHandle,
    redirect: tokio::sync::watch::Receiver<Redirect>,
    key: Arc<Zeroizing<Vec<u8>>>,
    client: ArcSwapOption<ControlPlaneClient<Channel>>,
    /// What went wrong last; empty once a policy has come into force.
    trouble: tokio::sync::watch::Sender<String>,
    metrics: Metrics,
}

struct Metrics {
    connected: IntGauge,
    skew: Gauge,
    attested: IntCounterVec,
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            connected: IntGauge::new(
                "countersign_control_connected",
                "Whether the control plane's watch is up.",
            )?,
            skew: Gauge::new("countersign_clock_skew_seconds", "Control plane's clock less ours.")?,
            attested: IntCounterVec::new(
                Opts::new(
                    "countersign_proxy_attestations_total",
                    "Attestations of this proxy, by how they ended.",
                ),
                &["result"],
            )?,
        };
        registry.register(Box::new(metrics.connected.clone()))?;
        registry.register(Box::new(metrics.skew.clone()))?;
        registry.register(Box::new(metrics.attested.clone()))?;
        Ok(metrics)
    }
}

/// Between attempts: doubles, with jitter, up to the second of the two.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// Before a workload that is gone is asked for again, with jitter: nothing brings it back, but clocks and caches err.
const RETRY_GONE: Duration = Duration::from_secs(60);

/// How long asking for a credential may take.
const ISSUE_PATIENCE: Duration = Duration::from_secs(8);

impl Session {
    /// A session that has not begun. Puts the policy in force that an earlier run kept.
    ///
    /// # Errors
    /// If the state directory can't be used.
    pub fn new(
        config: SessionConfig,
        state: Arc<CallerState>,
        directory: Arc<StateDir>,
        audit: Audit,
        log: service::telemetry::LogHandle,
        redirect: tokio::sync::watch::Receiver<Redirect>,
        registry: &Registry,
    ) -> anyhow::Result<Arc<Self>> {
        match watch::restore(&state, &directory) {
            Ok(true) => tracing::info!(
                stage = "policy",
                "the policy of the last run is in force until a newer one comes"
            ),
            Ok(false) => {}
            // It is as if there were none: nothing passes until the control plane has sent one.
            Err(error) => tracing::warn!("{error:#}"),
        }
        Ok(Arc::new(Self {
            key: attest::channel_key(&directory)?,
            config,
            state,
            directory,
            audit,
            log,
            redirect,
            client: ArcSwapOption::empty(),
            trouble: tokio::sync::watch::Sender::default(),
            metrics: Metrics::new(registry)?,
        }))
    }

    /// What went wrong last, in a few words; empty once a policy has come into force.
    #[must_use]
    pub fn trouble(&self) -> tokio::sync::watch::Receiver<String> {
        self.trouble.subscribe()
    }

    /// Runs for as long as the program does.
    pub async fn run(self: Arc<Self>) {
        let mut running: Option<tokio::task::JoinHandle<()>> = None;
        let mut retry = Retry::default();
        loop {
            match self.attest().await {
                Ok(attested) => {
                    retry = Retry::default();
                    let life =
                        Duration::from_millis(u64::try_from(attested.valid_for_ms).unwrap_or_default());
                    let (up, mut is_up) = tokio::sync::watch::channel(false);
                    let next = tokio::spawn(self.clone().serve(attested, up));
                    // The new channel is up before the old one ends.
                    let _ = tokio::time::timeout(Duration::from_secs(10), is_up.wait_for(|up| *up)).await;
                    if let Some(old) = running.replace(next) {
                        old.abort();
                    }
                    self.until_half(life, running.as_mut()).await;
                }
                Err(failure) => {
                    self.metrics.attested.with_label_values(&["refused"]).inc();
                    tracing::warn!(stage = "identity", code = %failure.code, cause = ?failure.cause, "not attested: {failure}");
                    self.trouble.send_replace(in_few_words(&failure));
                    retry.wait_after(failure.code).await;
                }
            }
        }
    }

    /// Waits for half of a session's life, or for its end if that comes first.
    async fn until_half(&self, life: Duration, running: Option<&mut tokio::task::JoinHandle<()>>) {
        let half = tokio::time::sleep(life / 2);
        match running {
            Some(running) => {
                tokio::select! {
                    () = half => {}
                    _ = running => {}
                }
            }
            None => half.await,
        }
    }

    async fn attest(&self) -> Result<Attested, Failure> {
        let unreachable = |error: anyhow::Error| {
            Failure::new(Code::ControlPlaneUnreachable, "the control plane can't be reached")
                .because(error.into_boxed_dyn_error())
        };
        let client = channel::connect(&self.config.address, &self.config.trust, None, self.config.socket);
        let client = client.await.map_err(unreachable)?;
        let attesting = attest::attest(client, &self.config.evidence, &self.key, now());
        let attested = match tokio::time::timeout(Duration::from_secs(20), attesting).await {
            Ok(attested) => attested?,
            Err(_) => return Err(unreachable(anyhow::anyhow!("attestation took more than 20 s"))),
        };
        if self.state.caller().is_some_and(|caller| caller.id != attested.caller.id) {
            tracing::warn!(stage = "identity", caller = %attested.caller.id, "this is another caller than before");
            watch::forget(&self.state, &self.directory);
        }
        self.metrics.attested.with_label_values(&["accepted"]).inc();
        self.metrics.skew.set(attested.skew_seconds);
        let ends = UnixMillis(now().0.saturating_add(attested.valid_for_ms));
        self.state.set_svid(Svid::new(&attested.identity, ends)?);
        self.state.set_caller(attested.caller.clone());
        self.state.set_fingerprint_key(&attested.fingerprint_key);
        if let Err(error) = self.config.trust.learn(&attested.bundle, &self.directory) {
            tracing::warn!("{error:#}");
        }
        tracing::info!(
            stage = "identity", caller = %attested.caller.id, instance = %attested.instance,
            until = %attested.not_after, "attested"
        );
        Ok(attested)
    }

    /// Serves one session until its certificate ends, over as many connections as that takes.
    async fn serve(self: Arc<Self>, attested: Attested, up: tokio::sync::watch::Sender<bool>) {
        let ends = UnixMillis(now().0.saturating_add(attested.valid_for_ms));
        let mut retry = Retry::default();
        while now() < ends {
            match self.one_connection(&attested, &up).await {
                Ok(()) => retry = Retry::default(),
                Err(Ended::Session) => {
                    tracing::info!(stage = "identity", "the session has ended");
                    return;
                }
                Err(Ended::Connection(reason)) => {
                    tracing::info!(stage = "identity", "the control plane is away: {reason}");
                    self.trouble.send_replace(reason);
                }
            }
            self.metrics.connected.set(0);
            retry.wait().await;
        }
    }

    async fn one_connection(
        &self,
        attested: &Attested,
        up: &tokio::sync::watch::Sender<bool>,
    ) -> Result<(), Ended> {
        let config = &self.config;
        let client =
            channel::connect(&config.address, &config.trust, Some(&attested.identity), config.socket)
                .await
                .map_err(|error| Ended::Connection(format!("{error:#}")))?;
        self.client.store(Some(Arc::new(client.clone())));
        let (watch_up, mut is_up) = tokio::sync::watch::channel(false);
        let watching = watch::Watching {
            state: self.state.clone(),
            caller: attested.caller.id.clone(),
            directory: self.directory.clone(),
            trust: config.trust.clone(),
            log: self.log.clone(),
            redirect: self.redirect.clone(),
            up: watch_up,
            trouble: self.trouble.clone(),
        };
        let noticing = async {
            if is_up.wait_for(|up| *up).await.is_ok() {
                self.metrics.connected.set(1);
                up.send_replace(true);
            }
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            ended = watch::run(&watching, client.clone()) => ended,
            ended = report::run(&self.audit, client.clone()) => ended,
            () = noticing => Ok(()),
        };
        let Err(status) = ended else { return Ok(()) };
        let failure = wire::status::to_failure(&status, Code::ControlPlaneUnreachable);
        match failure.code {
            Code::SessionEnded | Code::WrongCaller => return Err(Ended::Session),
            Code::WorkloadGone => self.report_what_was_done(client).await,
            _ => {}
        }
        Err(Ended::Connection(failure.to_string()))
    }

    /// A workload that is gone gets neither policy nor credentials any more, but what it did is still taken.
    async fn report_what_was_done(&self, client: ControlPlaneClient<Channel>) {
        self.metrics.connected.set(0);
        let reporting = async {
            if let Err(status) = report::run(&self.audit, client).await {
                tracing::info!(stage = "audit", "events can't be delivered: {}", status.message());
            }
            std::future::pending::<()>().await;
        };
        let _ = tokio::time::timeout(jittered(RETRY_GONE), reporting).await;
    }
}

/// Why a connection ended.
enum Ended {
    /// The certificate is no longer good: attest again.
    Session,
    /// The control plane is away: connect again.
    Connection(String),
}

#[async_trait::async_trait]
impl Issuer for Session {
    async fn issue(&self, order: &Order) -> Result<Issued, Failure> {
        let away = |detail: &str| Failure::new(Code::ControlPlaneUnreachable, detail);
        let client =
            self.client.load_full().ok_or_else(|| away("the control plane has not been reached yet"))?;
        let caller = self
            .state
            .caller()
            .ok_or_else(|| Failure::new(Code::NoCaller, "the workload is not attested"))?;
        let request = v1::IssueRequest {
            caller: caller.id.to_string(),
            version: Some(order.version.into()),
            destination: order.key.destination.to_string(),
            provider: order.key.provider.to_string(),
            request: Some((&order.request).into()),
            decision: order.decision.to_string(),
        };
        let mut client = ControlPlaneClient::clone(&client);
        let answer = match tokio::time::timeout(ISSUE_PATIENCE, client.issue(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(wire::status::to_failure(&status, Code::ControlPlaneUnreachable)),
            Err(_) => return Err(away("the control plane does not answer")),
        };
        let version = answer.version.ok_or_else(|| away("the control plane's answer names no version"))?;
        Ok(Issued {
            id: GrantId(answer.grant.into()),
            credential: Secret::new(answer.credential),
            lifetime: Duration::from_millis(answer.lifetime_ms),
            version: version.into(),
        })
    }
}

/// Waits longer each time.
struct Retry(Duration);

impl Default for Retry {
    fn default() -> Self {
        Self(RETRY_FIRST)
    }
}

impl Retry {
    async fn wait(&mut self) {
        tokio::time::sleep(jittered(self.0)).await;
        self.0 = (self.0 * 2).min(RETRY_MOST);
    }

    /// The same, after a refusal with this code.
    async fn wait_after(&mut self, code: Code) {
        match code {
            Code::WorkloadGone => tokio::time::sleep(jittered(RETRY_GONE)).await,
            _ => self.wait().await,
        }
    }
}

fn jittered(most: Duration) -> Duration {
    most.mul_f64(rand::random_range(0.5..1.0))
}

/// Longest reason that is told: a probe's message is part of an event, which is cut at 1024 bytes.
const REASON_MAX: usize = 300;

/// A failure with what lies underneath it all, which is what can be mended: `Connection refused`, `UnknownIssuer`.
fn in_few_words(failure: &Failure) -> String {
    let mut cause = std::error::Error::source(failure);
    let mut innermost = None;
    while let Some(error) = cause {
        innermost = Some(error.to_string());
        cause = error.source();
    }
    let mut words = format!("{} {}", failure.code, failure.detail);
    words.extend(innermost.map(|innermost| format!(": {innermost}")));
    words.truncate(words.floor_char_boundary(REASON_MAX));
    words
}

/// The address, the trust and the rest, from the program's settings.
///
/// # Errors
/// If a setting can't be used.
pub fn config(settings: &crate::config::Settings, state: &StateDir) -> anyhow::Result<SessionConfig> {
    let given = match &settings.control_ca {
        Some(path) => service::roots::from_file(path).context("--control-ca")?,
        None => Vec::new(),
    };
    Ok(SessionConfig {
        address: Address::parse(&settings.control).context("--control")?,
        trust: Arc::new(Trust::new(given, settings.control_fingerprint.as_deref(), state)?),
        evidence: Evidence { kind: settings.evidence_kind.as_str(), token: settings.evidence_token.clone() },
        socket: SocketOptions { mark: settings.mark },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_workload_that_is_gone_is_asked_for_once_a_minute_and_others_every_few_seconds() {
        let mut retry = Retry::default();
        let waited = async |retry: &mut Retry, code| {
            let since = tokio::time::Instant::now();
            retry.wait_after(code).await;
            since.elapsed()
        };
        assert!(waited(&mut retry, Code::NoTrustProvider).await <= RETRY_FIRST);
        for _ in 0..10 {
            assert!(waited(&mut retry, Code::NoTrustProvider).await <= RETRY_MOST);
        }
        let gone = waited(&mut retry, Code::WorkloadGone).await;
        assert!((RETRY_GONE / 2..=RETRY_GONE).contains(&gone), "{gone:?}");
    }

    #[test]
    fn what_is_told_of_a_failure_ends_with_what_can_be_mended() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let refused = anyhow::Error::new(refused).context("the control plane could not be reached");
        let failure = Failure::new(Code::ControlPlaneUnreachable, "the control plane can't be reached");
        let told = in_few_words(&failure.because(refused.into_boxed_dyn_error()));
        assert_eq!(told, "CS6001 the control plane can't be reached: connection refused");
        let long = in_few_words(&Failure::new(Code::NoCaller, "é".repeat(400)));
        assert!(long.len() <= REASON_MAX);
    }
}
