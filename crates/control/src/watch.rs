//! Watch: a caller's whole slice at each change, revocations at once, acknowledged.

use std::sync::Arc;

use model::redirect::Redirect;
use model::slice::Egress;
use model::{Code, Failure, Version};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use wire::convert::slice_hash;
use wire::v1;

use crate::attendance::Attendance;
use crate::authority::Authority;
use crate::index::{Index, Policies};
use crate::proxies::{Proxies, ProxyState, Registration, Revoked};
use crate::server::PeerCertificate;
use crate::store::{Binding, Store};
use crate::{now, store_failure};

/// What a watch needs.
pub struct Watcher {
    /// For revoked grants, and for whose key it is.
    pub store: Arc<dyn Store>,
    /// Where policy comes from.
    pub index: Arc<Index>,
    /// Where what is running is kept.
    pub proxies: Proxies,
    /// For who is still there.
    pub attendance: Arc<Attendance>,
    /// For the bundle.
    pub authority: Arc<Authority>,
}

type Answers = mpsc::Sender<Result<v1::WatchResponse, Status>>;

impl Watcher {
    /// Serves one proxy until it leaves, its certificate ends, or a newer session replaces it.
    pub async fn serve(
        self: Arc<Self>,
        certificate: PeerCertificate,
        binding: Binding,
        requests: Streaming<v1::WatchRequest>,
        answers: Answers,
    ) {
        let ends = certificate.not_after.millis_since(now());
        let until = std::time::Duration::from_millis(u64::try_from(ends).unwrap_or_default());
        let served = tokio::time::timeout(until, self.watch(&certificate, binding, requests, &answers)).await;
        let failure = match served {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => failure,
            Err(_) => Failure::new(Code::SessionEnded, "the certificate of this channel has ended"),
        };
        let _ = answers.send(Err(wire::status::from_failure(&failure))).await;
    }

    async fn watch(
        &self,
        certificate: &PeerCertificate,
        binding: Binding,
        mut requests: Streaming<v1::WatchRequest>,
        answers: &Answers,
    ) -> Result<(), Failure> {
        let first = requests.message().await.ok().flatten().and_then(|message| message.message);
        let Some(v1::watch_request::Message::Start(start)) = first else {
            return Err(Failure::new(Code::WrongCaller, "a watch begins with what the proxy runs"));
        };
        let running: Version = start.running.map(Into::into).unwrap_or_default();
        let registration = self.proxies.register(ProxyState {
            caller: binding.caller.id.clone(),
            instance: binding.instance.clone(),
            running,
            wanted: running,
            confirmed: Version::default(),
            refused: String::new(),
            revocations: 0,
            last_seen: now(),
            session_ends: certificate.not_after,
            program: start.proxy_version,
            egress: Egress::default(),
            redirect: Redirect::default(),
        });
        let mut changed = self.index.changed();
        let mut revoked = self.proxies.revoked();
        let mut roots = self.authority.changes();
        let bundle = roots.borrow_and_update().bundle();
        send(answers, v1::watch_response::Message::Bundle(bundle)).await?;
        let all = revoked.borrow_and_update().clone();
        self.send_revoked(&binding, answers, &all).await?;
        let policies = changed.borrow_and_update().clone();
        let mut sent = (running, start.hash);
        self.send_slice(&policies, &binding, answers, &registration, &mut sent).await?;
        let mut looking = tokio::time::interval(std::time::Duration::from_secs(5));
        loop {
            tokio::select! {
                ticked = changed.changed() => {
                    ticked.map_err(|_| gone())?;
                    let policies = changed.borrow_and_update().clone();
                    self.send_slice(&policies, &binding, answers, &registration, &mut sent).await?;
                }
                ticked = revoked.changed() => {
                    ticked.map_err(|_| gone())?;
                    let all = revoked.borrow_and_update().clone();
                    self.send_revoked(&binding, answers, &all).await?;
                }
                ticked = roots.changed() => {
                    ticked.map_err(|_| gone())?;
                    let bundle = roots.borrow_and_update().bundle();
                    send(answers, v1::watch_response::Message::Bundle(bundle)).await?;
                }
                message = requests.message() => {
                    match message.ok().flatten().and_then(|message| message.message) {
                        Some(v1::watch_request::Message::Ack(ack)) => acknowledged(&registration, ack),
                        Some(v1::watch_request::Message::Redirect(found)) => {
                            registration.update(|state| {
                                state.last_seen = now();
                                state.redirect = (&found).into();
                            });
                        }
                        Some(v1::watch_request::Message::Start(_)) | None => return Ok(()),
                    }
                }
                _ = looking.tick() => {
                    self.still_current(certificate).await?;
                    self.attendance.check(&binding).await?;
                }
            }
        }
    }

    /// A newer session of the same instance ends this one.
    async fn still_current(&self, certificate: &PeerCertificate) -> Result<(), Failure> {
        match self.store.binding(&certificate.key).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(Failure::new(
                Code::SessionEnded,
                "a newer session of this instance has replaced this one",
            )),
            // The store is away: what was granted works until it expires.
            Err(error) => {
                tracing::warn!(%error, "a session could not be looked up");
                Ok(())
            }
        }
    }

    async fn send_slice(
        &self,
        policies: &Policies,
        binding: &Binding,
        answers: &Answers,
        registration: &Registration,
        sent: &mut (Version, Vec<u8>),
    ) -> Result<(), Failure> {
        let slice = self.index.slice(policies, &binding.caller);
        let version = slice.version;
        let message = v1::Slice::from(&slice);
        let hash = slice_hash(&message).to_vec();
        if *sent == (version, hash.clone()) {
            // It runs this already; whoever waits for the newer policies need not wait for it.
            registration.update(|state| {
                state.egress = slice.egress;
                if state.running == version && state.refused.is_empty() {
                    state.confirmed = policies.version;
                }
            });
            return Ok(());
        }
        registration.update(|state| {
            state.wanted = version;
            state.egress = slice.egress;
            state.confirmed = Version::default();
        });
        *sent = (version, hash.clone());
        let update = v1::SliceUpdate { slice: Some(message), hash };
        send(answers, v1::watch_response::Message::Slice(update)).await
    }

    /// The caller's revoked grants that have not expired: all that the store knows, and those of this moment.
    async fn send_revoked(
        &self,
        binding: &Binding,
        answers: &Answers,
        revoked: &Revoked,
    ) -> Result<(), Failure> {
        let live = self.store.live_grants(Some(&binding.caller.id), now()).await.map_err(store_failure)?;
        let stored =
            live.into_iter().filter(|grant| grant.revoked_at.is_some()).map(|grant| grant.id.0.into());
        let message = v1::Revocations { serial: revoked.serial, grants: stored.collect() };
        send(answers, v1::watch_response::Message::Revocations(message)).await
    }
}

fn acknowledged(registration: &Registration, ack: v1::WatchAck) {
    registration.update(|state| {
        state.last_seen = now();
        state.revocations = ack.revocations;
        state.refused = ack.refused;
        if let Some(version) = ack.version {
            state.running = version.into();
        }
        if state.refused.is_empty() && state.running == state.wanted {
            state.confirmed = state.confirmed.max(state.wanted);
        }
    });
}

async fn send(answers: &Answers, message: v1::watch_response::Message) -> Result<(), Failure> {
    answers.send(Ok(v1::WatchResponse { message: Some(message) })).await.map_err(|_| gone())
}

fn gone() -> Failure {
    Failure::new(Code::SessionEnded, "the watch has ended")
}
