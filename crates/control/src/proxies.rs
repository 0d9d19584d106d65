//! The proxies that are connected: what they run, what they have confirmed, and how they are told at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::redirect::Redirect;
use model::slice::Egress;
use model::{GrantId, InstanceId, SpiffeId, UnixMillis, Version};
use prometheus::IntGauge;
use tokio::sync::watch;

/// One proxy's watch.
#[derive(Clone, Debug)]
pub struct ProxyState {
    /// Whose.
    pub caller: SpiffeId,
    /// Which running copy.
    pub instance: InstanceId,
    /// The version that it confirmed.
    pub running: Version,
    /// The version that it was sent last.
    pub wanted: Version,
    /// The policies that it has caught up with: its slice at that version is the one that it runs.
    pub confirmed: Version,
    /// Why it refused what it was sent; empty if it did not.
    pub refused: String,
    /// The last revocations that it acted upon.
    pub revocations: u64,
    /// When it was heard of last.
    pub last_seen: UnixMillis,
    /// When its certificate ends.
    pub session_ends: UnixMillis,
    /// Its program's version.
    pub program: String,
    /// The egress mode that it was sent last.
    pub egress: Egress,
    /// What it found of the redirect that leads to it.
    pub redirect: Redirect,
}

/// All of them.
#[derive(Clone)]
pub struct Proxies(Arc<Inner>);

struct Inner {
    gauge: IntGauge,
    connected: Mutex<HashMap<u64, ProxyState>>,
    next: AtomicU64,
    revoked: watch::Sender<Revoked>,
    changed: watch::Sender<u64>,
}

/// Grants that were revoked in this life of the replica, numbered.
#[derive(Clone, Debug, Default)]
pub struct Revoked {
    /// Of the last one.
    pub serial: u64,
    /// All of them; they are few, and each is short.
    pub grants: Vec<(SpiffeId, GrantId)>,
}

/// A proxy's place among the connected ones; it leaves when this is dropped.
pub struct Registration {
    proxies: Proxies,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.proxies.connected().remove(&self.id);
        self.proxies.0.gauge.dec();
        self.proxies.tick();
    }
}

impl Registration {
    /// Changes what is known of it.
    pub fn update(&self, change: impl FnOnce(&mut ProxyState)) {
        if let Some(state) = self.proxies.connected().get_mut(&self.id) {
            change(state);
        }
        self.proxies.tick();
    }
}

impl Proxies {
    /// Nobody is connected yet; the gauge shows how many are.
    #[must_use]
    pub fn new(gauge: IntGauge) -> Self {
        Self(Arc::new(Inner {
            gauge,
            connected: Mutex::default(),
            next: AtomicU64::default(),
            revoked: watch::Sender::default(),
            changed: watch::Sender::default(),
        }))
    }

    fn connected(&self) -> MutexGuard<'_, HashMap<u64, ProxyState>> {
        self.0.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// A proxy has begun to watch.
    #[must_use]
    pub fn register(&self, state: ProxyState) -> Registration {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.connected().insert(id, state);
        self.0.gauge.inc();
        Registration { proxies: self.clone(), id }
    }

    /// All that are connected, by caller and instance.
    #[must_use]
    pub fn all(&self) -> Vec<ProxyState> {
        let mut all: Vec<ProxyState> = self.connected().values().cloned().collect();
        all.sort_by(|a, b| (&a.caller, &a.instance).cmp(&(&b.caller, &b.instance)));
        all
    }

    /// Tells a caller's proxies to drop a grant; returns the number of this revocation.
    pub fn revoke(&self, caller: SpiffeId, grant: GrantId) -> u64 {
        let mut serial = 0;
        self.0.revoked.send_modify(|revoked| {
            revoked.serial += 1;
            revoked.grants.push((caller, grant));
            serial = revoked.serial;
        });
        serial
    }

    /// Ticks at each revocation.
    #[must_use]
    pub fn revoked(&self) -> watch::Receiver<Revoked> {
        self.0.revoked.subscribe()
    }

    /// Waits until all proxies that `concerns` names have done what `done` says, or the time is over. Returns how many
    /// there are and how many have.
    pub async fn wait(
        &self,
        patience: Duration,
        concerns: impl Fn(&ProxyState) -> bool,
        done: impl Fn(&ProxyState) -> bool,
    ) -> (u32, u32) {
        let mut changed = self.0.changed.subscribe();
        let count = || {
            let all = self.all();
            let concerned: Vec<&ProxyState> = all.iter().filter(|state| concerns(state)).collect();
            let finished = concerned.iter().filter(|state| done(state)).count();
            (u32::try_from(concerned.len()).unwrap_or(u32::MAX), u32::try_from(finished).unwrap_or(u32::MAX))
        };
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let (all, finished) = count();
            if all == finished {
                return (all, finished);
            }
            match tokio::time::timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                _ => return count(),
            }
        }
    }
}
