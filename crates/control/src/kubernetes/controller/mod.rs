//! The controller: custom resources become documents in the store, by one replica at a time, and their status says what
//! became of them.

pub mod lease;
pub mod observe;
pub mod plan;
pub mod report;
pub mod resource;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use kube::Client;
use service::drain;

use lease::Election;
use observe::Cluster;
use report::Reporter;

use crate::index::{self, Index};
use crate::now;
use crate::store::{Store, Synchronised};

/// How often a plan is made again because something else changed in the store meanwhile.
const ATTEMPTS: usize = 5;

/// Before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// For a change to come into force here.
const IN_FORCE: Duration = Duration::from_secs(5);

/// What the controller needs.
pub struct Controller {
    client: Client,
    store: Arc<dyn Store>,
    index: Arc<Index>,
    /// Unique among replicas.
    me: String,
}

/// Why a term has ended.
enum Ended {
    /// Another replica has begun a later one.
    Deposed,
    /// Something failed.
    Failed(anyhow::Error),
}

impl Controller {
    /// Finds the API server: that of the pod, or of `KUBECONFIG`.
    ///
    /// # Errors
    /// If there is neither.
    pub async fn connect(store: Arc<dyn Store>, index: Arc<Index>) -> anyhow::Result<Self> {
        let client = Client::try_default()
            .await
            .context("--kubernetes: the API server is not known: run in a cluster, or set KUBECONFIG")?;
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self { client, store, index, me: format!("{node}_{:08x}", rand::random::<u32>()) })
    }

    /// Synchronises whenever it holds the lease, until it is time to stop; then gives the lease back.
    pub async fn run(self, stop: drain::Watch) {
        let namespace = self.client.default_namespace().to_owned();
        let mut election = Election::new(self.client.clone(), &namespace, self.me.clone());
        tokio::select! {
            () = self.terms(&mut election) => {}
            () = stop.started() => {}
        }
        election.resign().await;
    }

    async fn terms(&self, election: &mut Election) {
        loop {
            election.win().await;
            let term = match self.store.begin_term().await {
                Ok(term) => term,
                Err(error) => {
                    tracing::error!(%error, "no term can be begun");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            // Only who still holds the lease after its term began may write in it: whoever takes the lease later begins
            // a later term, and the store refuses this one.
            if !election.renew().await {
                continue;
            }
            tracing::info!(term, me = self.me, "this replica synchronises custom resources");
            tokio::select! {
                () = election.keep() => tracing::warn!(term, "the lease is lost"),
                ended = self.synchronise(term) => match ended {
                    Ended::Deposed => tracing::warn!(term, "another replica has begun a later term"),
                    Ended::Failed(error) => tracing::error!(term, "the term ends: {error:#}"),
                },
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Keeps the store as the cluster is.
    async fn synchronise(&self, term: u64) -> Ended {
        let mut cluster = Cluster::default();
        let mut telling = observe::watch(&self.client);
        let mut policies = self.index.changed();
        let reporter = Reporter::new(self.client.clone(), self.me.clone());
        loop {
            tokio::select! {
                told = telling.next() => match told {
                    Some(told) => cluster.hear(told),
                    None => return Ended::Failed(anyhow::anyhow!("the watches have ended")),
                },
                // Documents that were applied may be what a custom resource was missing.
                changed = policies.changed() => if changed.is_err() {
                    return Ended::Failed(anyhow::anyhow!("the index has ended"));
                },
            }
            observe::gather(&mut telling, &mut cluster).await;
            while cluster.is_whole() {
                match self.reconcile(term, &cluster, &reporter).await {
                    Ok(()) => break,
                    Err(Ended::Failed(error)) => {
                        tracing::error!("custom resources could not be synchronised: {error:#}");
                        tokio::time::sleep(AGAIN).await;
                        observe::gather(&mut telling, &mut cluster).await;
                    }
                    Err(deposed) => return deposed,
                }
            }
        }
    }

    async fn reconcile(&self, term: u64, cluster: &Cluster, reporter: &Reporter) -> Result<(), Ended> {
        let failed = |error: crate::store::StoreError| Ended::Failed(error.into());
        let observed = cluster.observed();
        for _ in 0..ATTEMPTS {
            let state = self.store.state().await.map_err(failed)?;
            let plan = plan::plan(&observed, &state);
            if !plan.changes.is_empty() {
                let done = self.store.synchronise(term, state.version, &plan.changes, now());
                match done.await.map_err(failed)? {
                    Synchronised::Done(version) => {
                        tracing::info!(%version, changes = plan.changes.len(), "custom resources synchronised");
                        let reached = tokio::time::timeout(IN_FORCE, index::reached(&self.index, version));
                        reached
                            .await
                            .context("a change is slow to come into force")
                            .flatten()
                            .map_err(Ended::Failed)?;
                    }
                    Synchronised::MovedOn => continue,
                    Synchronised::Deposed => return Err(Ended::Deposed),
                }
            }
            reporter.report(&observed.resources, &plan.verdicts).await;
            return Ok(());
        }
        Err(Ended::Failed(anyhow::anyhow!("the store keeps changing")))
    }
}
