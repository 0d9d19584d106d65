//! Which replica writes: the holder of a Lease (`coordination.k8s.io/v1`), as client-go's leader election does it.
//!
//! Clocks of different machines are never compared: a lease has run out when it was seen unchanged for as long as it
//! lasts. That a holder which slept through its end writes nothing is the store's doing (`Store::begin_term`).

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::Instant;

/// The Lease's name.
pub const NAME: &str = "countersign-control";

/// How long it lasts unless it is renewed.
const LASTS: Duration = Duration::from_secs(15);

/// A holder that could not renew it for so long stops to write, well before others may take it.
const GIVE_UP: Duration = Duration::from_secs(10);

/// How often it is renewed, and how often others look at it.
const EVERY: Duration = Duration::from_secs(2);

/// For one request.
const PATIENCE: Duration = Duration::from_secs(5);

/// A Lease, and who we are.
pub struct Election {
    api: Api<Lease>,
    me: String,
    seen: Option<Seen>,
}

/// What a Lease was, and since when it has not changed.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    version: Option<String>,
    since: Instant,
}

/// What to do about a Lease.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// There is none: make it.
    Create(LeaseSpec),
    /// It is ours, or free: write it.
    Replace(LeaseSpec),
    /// Another one holds it.
    Wait,
}

impl Election {
    /// Stands for election in a namespace, under a name that no other replica has.
    #[must_use]
    pub fn new(client: Client, namespace: &str, me: String) -> Self {
        Self { api: Api::namespaced(client, namespace), me, seen: None }
    }

    /// Waits until the lease is ours.
    pub async fn win(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the lease can't be asked for"),
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Renews the lease for as long as that works.
    pub async fn keep(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < GIVE_UP {
            tokio::time::sleep(EVERY).await;
            let begun = Instant::now();
            match self.attempt().await {
                Ok(true) => renewed = begun,
                Ok(false) => return,
                Err(error) => tracing::warn!(%error, "the lease could not be renewed"),
            }
        }
    }

    /// Renews the lease now; `false` if it is not ours any more, or can't be renewed.
    pub async fn renew(&mut self) -> bool {
        self.attempt().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the lease could not be renewed");
            false
        })
    }

    /// Gives the lease back, so that the next one need not wait.
    pub async fn resign(&mut self) {
        let given_back = async {
            let Some(mut lease) = self.api.get_opt(NAME).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.me) {
                spec.holder_identity = Some(String::new());
                spec.renew_time = Some(MicroTime(Timestamp::now()));
                self.api.replace(NAME, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(PATIENCE, given_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the lease was not given back"),
            Err(_) => tracing::warn!("the lease was not given back in time"),
        }
    }

    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let outcome = tokio::time::timeout(PATIENCE, self.attempt_once()).await;
        outcome.unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into())))
    }

    async fn attempt_once(&mut self) -> Result<bool, kube::Error> {
        let lease = self.api.get_opt(NAME).await?;
        self.look(lease.as_ref(), Instant::now());
        let written =
            match step(lease.as_ref(), &self.me, self.seen.as_ref(), Timestamp::now(), Instant::now()) {
                Step::Wait => return Ok(false),
                Step::Create(spec) => {
                    let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                    self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await
                }
                Step::Replace(spec) => {
                    // With the version that was read: of two who write at once, one is refused.
                    let metadata = lease.map(|lease| lease.metadata).unwrap_or_default();
                    self.api
                        .replace(NAME, &PostParams::default(), &Lease { metadata, spec: Some(spec) })
                        .await
                }
            };
        match written {
            Ok(lease) => {
                self.look(Some(&lease), Instant::now());
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn look(&mut self, lease: Option<&Lease>, now: Instant) {
        let version = lease.and_then(|lease| lease.metadata.resource_version.clone());
        if self.seen.as_ref().is_none_or(|seen| seen.version != version) {
            self.seen = Some(Seen { version, since: now });
        }
    }
}

/// Decides what to do about the lease that was read.
fn step(lease: Option<&Lease>, me: &str, seen: Option<&Seen>, time: Timestamp, now: Instant) -> Step {
    let renewed = |acquired: MicroTime, transitions: i32| LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
        acquire_time: Some(acquired),
        renew_time: Some(MicroTime(time)),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    };
    let Some(lease) = lease else { return Step::Create(renewed(MicroTime(time), 0)) };
    let spec = lease.spec.clone().unwrap_or_default();
    let transitions = spec.lease_transitions.unwrap_or_default();
    let holder = spec.holder_identity.unwrap_or_default();
    if holder == me {
        return Step::Replace(renewed(spec.acquire_time.unwrap_or(MicroTime(time)), transitions));
    }
    let lasts = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let lasts = lasts.map_or(LASTS, Duration::from_secs);
    let has_run_out = seen.is_some_and(|seen| now.duration_since(seen.since) >= lasts);
    if holder.is_empty() || has_run_out {
        Step::Replace(renewed(MicroTime(time), transitions.saturating_add(1)))
    } else {
        Step::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, transitions: i32) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some("7".to_owned()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(15),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    fn decide(lease: Option<&Lease>, unchanged_for: u64) -> Option<(String, i32)> {
        let now = Instant::now() + Duration::from_secs(3600);
        let seen = Seen { version: Some("7".to_owned()), since: now - Duration::from_secs(unchanged_for) };
        match step(lease, "me", Some(&seen), Timestamp::UNIX_EPOCH, now) {
            Step::Wait => None,
            Step::Create(spec) | Step::Replace(spec) => {
                Some((spec.holder_identity.unwrap(), spec.lease_transitions.unwrap()))
            }
        }
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_was_seen_unchanged_for_as_long_as_it_lasts() {
        let mine = |transitions| Some(("me".to_owned(), transitions));
        assert_eq!(decide(None, 0), mine(0));
        assert_eq!(decide(Some(&lease("other", 3)), 14), None);
        assert_eq!(decide(Some(&lease("other", 3)), 15), mine(4));
        assert_eq!(decide(Some(&lease("", 3)), 0), mine(4), "it was given back");
        assert_eq!(decide(Some(&lease("me", 3)), 99), mine(3), "it is renewed");
    }

    #[tokio::test]
    async fn a_lease_that_changes_does_not_run_out() {
        service::tls_provider::install();
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = Client::try_from(config).unwrap();
        let mut election = Election::new(client, "ns", "me".to_owned());
        let begun = Instant::now();
        let mut seen = lease("other", 1);
        election.look(Some(&seen), begun);
        let later = begun + Duration::from_secs(20);
        seen.metadata.resource_version = Some("8".to_owned());
        election.look(Some(&seen), later);
        assert_eq!(step(Some(&seen), "me", election.seen.as_ref(), Timestamp::UNIX_EPOCH, later), Step::Wait);
        election.look(Some(&seen), later + Duration::from_secs(15));
        let end = later + Duration::from_secs(15);
        assert!(matches!(
            step(Some(&seen), "me", election.seen.as_ref(), Timestamp::UNIX_EPOCH, end),
            Step::Replace(_)
        ));
    }
}
