//! Stage 6, credential: get it.
//!
//! Looking a credential up takes no lock. A miss asks the control plane once for all who wait; the flight goes on when
//! those who wait have left. What is held is renewed ahead of its end, with jitter, and kept when renewal fails.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use foldhash::HashMap;
use http::{HeaderName, HeaderValue};
use model::slice::ProviderFace;
use model::{Code, DecisionId, Failure, GrantId, RequestFacts, ResourceRef, Secret, Subject, Version};
use protocols::edit;
use tokio::sync::{mpsc, watch};

use crate::moment::Moment;

/// What a grant is for: the cache's key. The caller is implied, each has a cache of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The destination.
    pub destination: ResourceRef,
    /// The credential provider.
    pub provider: ResourceRef,
    /// Its revision: a changed recipe makes other credentials.
    pub provider_revision: u64,
    /// The human behind the call, if one was proved.
    pub subject: Option<Subject>,
    /// What the provider draws from the request.
    pub parameters: Vec<(String, String)>,
    header: String,
    prefix: String,
    /// Of the fields above, made once: the key is looked up by every request.
    digest: u64,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.digest);
    }
}

impl Key {
    /// The key of calls to a destination with a provider's credential.
    #[must_use]
    pub fn new(destination: ResourceRef, face: &ProviderFace) -> Self {
        let (name, injection) = (&face.name, &face.injection);
        let all = (&destination, name, face.revision, &injection.header, &injection.prefix);
        Self {
            digest: BuildHasherDefault::<DefaultHasher>::default().hash_one(all),
            destination,
            provider: face.name.clone(),
            provider_revision: face.revision,
            subject: None,
            parameters: Vec::new(),
            header: face.injection.header.clone(),
            prefix: face.injection.prefix.clone(),
        }
    }
}

/// A credential, ready to be put into a request.
pub struct Grant {
    /// Its id.
    pub id: GrantId,
    /// Who made it.
    pub provider: ResourceRef,
    /// The header into which it goes.
    pub header_name: HeaderName,
    /// The header's value. Marked sensitive.
    pub header: HeaderValue,
    /// Where in it the credential itself begins.
    token_at: usize,
    /// The version of policy under which it was granted.
    pub version: Version,
    end: Moment,
    used: AtomicBool,
}

/// A credential is not used in its last half minute, or the last half of a shorter life: clocks and networks are slow.
const MARGIN_MS: i64 = 30_000;

/// A failure is remembered this long, so that a busy client does not become a busy control plane.
const NEGATIVE: Duration = Duration::from_secs(2);

/// Longest time that a caller waits for a credential.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a credential may be replaced because an upstream did not take it.
const REPLACE_EVERY: Duration = Duration::from_secs(60);

/// Credentials, flights and failures that are kept for one caller. Keys come from policy, so there are few.
const ENTRIES_MAX: usize = 4096;

/// What the control plane is asked.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The request for which the credential is.
    pub request: &'a RequestFacts,
    /// The decision that allowed it.
    pub decision: DecisionId,
    /// The version under which it was decided.
    pub version: Version,
}

/// A question on its way to the control plane.
#[derive(Clone, Debug)]
pub struct Order {
    /// For what.
    pub key: Key,
    /// The request for which it was first asked.
    pub request: RequestFacts,
    /// The decision that allowed it.
    pub decision: DecisionId,
    /// The version under which it was decided.
    pub version: Version,
}

/// What the control plane answers.
#[derive(Debug)]
pub struct Issued {
    /// The grant's id.
    pub id: GrantId,
    /// The credential.
    pub credential: Secret,
    /// How long it lives.
    pub lifetime: Duration,
    /// The version under which it was granted.
    pub version: Version,
}

/// Asks the control plane. Implemented by the session.
#[async_trait::async_trait]
pub trait Issuer: Send + Sync + 'static {
    /// Asks once.
    ///
    /// # Errors
    /// Of stage credential.
    async fn issue(&self, order: &Order) -> Result<Issued, Failure>;
}

type Answer = Option<Result<Arc<Grant>, (Code, String)>>;

/// One caller's credentials.
pub struct Cache {
    grants: ArcSwap<HashMap<Key, Arc<Grant>>>,
    revoked: ArcSwap<HashSet<GrantId>>,
    flights: Mutex<HashMap<Key, (Version, watch::Receiver<Answer>)>>,
    failures: Mutex<HashMap<Key, (Version, tokio::time::Instant, Code, String)>>,
    watermark: Mutex<Version>,
    replaced: Mutex<HashMap<Key, tokio::time::Instant>>,
    orders: mpsc::UnboundedSender<(Order, watch::Sender<Answer>)>,
}

/// The receiving end of a cache, served on the control thread.
pub struct Orders(mpsc::UnboundedReceiver<(Order, watch::Sender<Answer>)>);

/// An empty cache, and the end by which its misses are served.
#[must_use]
pub fn cache() -> (Cache, Orders) {
    let (orders, receiver) = mpsc::unbounded_channel();
    let cache = Cache {
        grants: ArcSwap::default(),
        revoked: ArcSwap::default(),
        flights: Mutex::default(),
        failures: Mutex::default(),
        watermark: Mutex::default(),
        replaced: Mutex::default(),
        orders,
    };
    (cache, Orders(receiver))
}

impl Grant {
    /// The credential without what stands before it in the header.
    #[must_use]
    pub fn token(&self) -> Secret {
        Secret::new(self.header.as_bytes().get(self.token_at..).unwrap_or_default())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each critical section leaves its map whole, also when it panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    /// A credential that is good now, under a slice of this version. Takes no lock.
    #[must_use]
    pub fn cached(&self, key: &Key, slice: Version, now: Moment) -> Option<Arc<Grant>> {
        let grants = self.grants.load();
        let grant = grants.get(key)?;
        let good = grant.version >= slice && !grant.end.has_passed(now);
        if good && !grant.used.load(Ordering::Relaxed) {
            grant.used.store(true, Ordering::Relaxed);
        }
        good.then(|| grant.clone())
    }

    /// A credential, from the control plane if need be. Everybody who asks for the same shares one question.
    ///
    /// # Errors
    /// Of stage credential; a failure stands for two seconds.
    pub async fn get(&self, key: &Key, ask: &Ask<'_>) -> Result<Arc<Grant>, Failure> {
        if let Some(grant) = self.cached(key, ask.version, Moment::now()) {
            return Ok(grant);
        }
        if let Some(failure) = self.recent_failure(key, ask.version) {
            return Err(failure);
        }
        let mut answer = self.join(key, ask)?;
        let waited = tokio::time::timeout(PATIENCE, answer.wait_for(Option::is_some)).await;
        let answer = match waited {
            Ok(Ok(answer)) => answer.clone(),
            // The control thread has gone, or is too slow.
            Ok(Err(_)) | Err(_) => None,
        };
        match answer {
            Some(Ok(grant)) => Ok(grant),
            Some(Err((code, detail))) => Err(Failure::new(code, detail)),
            None => {
                Err(Failure::new(Code::ControlPlaneUnreachable, "the control plane did not answer in time"))
            }
        }
    }

    fn recent_failure(&self, key: &Key, version: Version) -> Option<Failure> {
        let failures = lock(&self.failures);
        let (at_version, until, code, detail) = failures.get(key)?;
        (*at_version == version && tokio::time::Instant::now() < *until)
            .then(|| Failure::new(*code, detail.clone()))
    }

    fn join(&self, key: &Key, ask: &Ask<'_>) -> Result<watch::Receiver<Answer>, Failure> {
        let mut flights = lock(&self.flights);
        if let Some((version, answer)) = flights.get(key)
            && *version == ask.version
            && answer.borrow().is_none()
            && answer.has_changed().is_ok()
        {
            return Ok(answer.clone());
        }
        let (sender, receiver) = watch::channel(None);
        let order = Order {
            key: key.clone(),
            request: ask.request.clone(),
            decision: ask.decision,
            version: ask.version,
        };
        self.orders
            .send((order, sender))
            .map_err(|_| Failure::new(Code::ControlPlaneUnreachable, "the proxy is shutting down"))?;
        if flights.len() >= ENTRIES_MAX {
            flights.retain(|_, (_, answer)| answer.borrow().is_none());
        }
        flights.insert(key.clone(), (ask.version, receiver.clone()));
        Ok(receiver)
    }

    /// Keeps a credential, unless it is older than the newest slice or was revoked meanwhile. Answers whoever waits
    /// with it all the same: each judges again.
    fn keep(&self, key: &Key, grant: &Arc<Grant>) {
        // Held while inserting: a slice that comes now must find the grant and drop it, or be seen here.
        let watermark = lock(&self.watermark);
        if grant.version < *watermark || self.is_revoked(&grant.id) {
            return;
        }
        self.grants.rcu(|grants| {
            let mut grants = HashMap::clone(grants);
            if grants.len() >= ENTRIES_MAX {
                let now = Moment::now();
                grants.retain(|_, grant| !grant.end.has_passed(now));
            }
            // A late answer never replaces a newer one.
            if grants.get(key).is_none_or(|there| there.version <= grant.version) {
                grants.insert(key.clone(), grant.clone());
            }
            grants
        });
        lock(&self.failures).remove(key);
    }

    fn remember_failure(&self, order: &Order, code: Code, detail: &str) {
        let mut failures = lock(&self.failures);
        if failures.len() >= ENTRIES_MAX {
            failures.clear();
        }
        let until = tokio::time::Instant::now() + NEGATIVE;
        failures.insert(order.key.clone(), (order.version, until, code, detail.to_owned()));
    }

    /// A new slice is in force: what was granted under an older one is dropped.
    pub fn raise_watermark(&self, version: Version) {
        let mut watermark = lock(&self.watermark);
        *watermark = version;
        self.retain(|grant| grant.version >= version);
        lock(&self.failures).clear();
    }

    /// Drops one credential.
    pub fn drop_grant(&self, id: &GrantId) {
        self.retain(|grant| grant.id != *id);
    }

    fn retain(&self, keep: impl Fn(&Grant) -> bool) {
        self.grants.rcu(|grants| {
            let kept = grants.iter().filter(|(_, grant)| keep(grant));
            kept.map(|(key, grant)| (key.clone(), grant.clone())).collect::<HashMap<_, _>>()
        });
    }

    /// Revokes credentials: drops them, and never keeps them again.
    pub fn revoke(&self, ids: impl IntoIterator<Item = GrantId>) {
        let ids: Vec<GrantId> = ids.into_iter().collect();
        let _watermark = lock(&self.watermark);
        self.revoked.rcu(|revoked| {
            let mut revoked = HashSet::clone(revoked);
            revoked.extend(ids.iter().cloned());
            revoked
        });
        self.retain(|grant| !ids.contains(&grant.id));
    }

    /// Whether a credential was revoked.
    #[must_use]
    pub fn is_revoked(&self, id: &GrantId) -> bool {
        self.revoked.load().contains(id)
    }

    /// Whether a credential that an upstream did not take may be replaced now; at most once a minute for each key.
    #[must_use]
    pub fn may_replace(&self, refused: &Grant) -> bool {
        let grants = self.grants.load();
        let Some((key, _)) = grants.iter().find(|(_, grant)| grant.id == refused.id) else { return false };
        let mut replaced = lock(&self.replaced);
        let now = tokio::time::Instant::now();
        if replaced.get(key).is_some_and(|at| now.duration_since(*at) < REPLACE_EVERY) {
            return false;
        }
        if replaced.len() >= ENTRIES_MAX {
            replaced.clear();
        }
        replaced.insert(key.clone(), now);
        true
    }

    /// How many credentials are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.grants.load().len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Orders {
    /// Serves the cache's misses, and renews what is used, until the cache is gone. Each question is a task of its own,
    /// so that one slow issuer does not stall the others.
    pub async fn serve(mut self, cache: Arc<Cache>, issuer: Arc<dyn Issuer>) {
        while let Some((order, answer)) = self.0.recv().await {
            tokio::spawn(fly(cache.clone(), issuer.clone(), order, answer));
        }
    }
}

async fn fly(cache: Arc<Cache>, issuer: Arc<dyn Issuer>, order: Order, answer: watch::Sender<Answer>) {
    let outcome = obtain(&cache, &*issuer, &order).await;
    match outcome {
        Ok((grant, refresh_in)) => {
            answer.send_replace(Some(Ok(grant.clone())));
            drop(answer);
            renew(cache, issuer, order, grant, refresh_in).await;
        }
        Err(failure) => {
            tracing::info!(stage = "credential", code = %failure.code, provider = %order.key.provider, "{failure}");
            // Disagreement about the version is over as soon as either side catches up.
            if failure.code != Code::PolicyMoved {
                cache.remember_failure(&order, failure.code, &failure.detail);
            }
            answer.send_replace(Some(Err((failure.code, failure.detail))));
        }
    }
}

async fn obtain(
    cache: &Cache,
    issuer: &dyn Issuer,
    order: &Order,
) -> Result<(Arc<Grant>, Duration), Failure> {
    // Its life is counted from here: the answer may take its time.
    let asked = Moment::now();
    let issued = issuer.issue(order).await?;
    let grant =
        Arc::new(usable(&order.key, issued.id, &issued.credential, asked, issued.lifetime, issued.version)?);
    cache.keep(&order.key, &grant);
    Ok((grant, refresh_after(issued.lifetime)))
}

/// Renews a credential for as long as it is used and still the one that is held.
async fn renew(
    cache: Arc<Cache>,
    issuer: Arc<dyn Issuer>,
    order: Order,
    mut held: Arc<Grant>,
    mut wait: Duration,
) {
    loop {
        tokio::time::sleep(wait).await;
        let current = cache.grants.load().get(&order.key).cloned();
        let still_ours = current.is_some_and(|current| current.id == held.id);
        if !still_ours || !held.used.swap(false, Ordering::Relaxed) {
            return;
        }
        match obtain(&cache, &*issuer, &order).await {
            Ok((grant, refresh_in)) => {
                // Renewed, but not asked for yet.
                grant.used.store(false, Ordering::Relaxed);
                (held, wait) = (grant, refresh_in);
            }
            // What is held works until its end; ask again a little later.
            Err(failure) if failure.code.entry().retryable => {
                held.used.store(true, Ordering::Relaxed);
                wait = jittered(Duration::from_secs(5));
                if held.end.has_passed(Moment::now()) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

fn usable(
    key: &Key,
    id: GrantId,
    credential: &Secret,
    asked: Moment,
    lifetime: Duration,
    version: Version,
) -> Result<Grant, Failure> {
    let unusable = |problem: String| Failure::new(Code::CredentialUnusable, problem);
    let header = edit::header_value(&key.prefix, credential.expose()).map_err(|e| unusable(e.to_string()))?;
    let header_name = HeaderName::from_bytes(key.header.as_bytes())
        .map_err(|_| unusable("the provider's header is not a name".to_owned()))?;
    let lifetime = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
    let end = asked.plus(lifetime - MARGIN_MS.min(lifetime / 2));
    let used = AtomicBool::new(true);
    let (provider, token_at) = (key.provider.clone(), key.prefix.len());
    Ok(Grant { id, provider, header_name, header, token_at, version, end, used })
}

/// Two thirds of its life, give or take a tenth: proxies that began together do not renew together.
fn refresh_after(lifetime: Duration) -> Duration {
    jittered(lifetime * 2 / 3)
}

fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::random_range(0.9..1.1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicUsize;

    use model::HostName;
    use model::request::Action;

    use super::*;

    struct Fake {
        asked: AtomicUsize,
        answer: Box<dyn Fn(usize) -> Result<Issued, Failure> + Send + Sync>,
    }

    #[async_trait::async_trait]
    impl Issuer for Fake {
        async fn issue(&self, _: &Order) -> Result<Issued, Failure> {
            tokio::time::sleep(Duration::from_millis(20)).await;
            (self.answer)(self.asked.fetch_add(1, Ordering::SeqCst))
        }
    }

    const V1: Version = Version { epoch: 1, revision: 1 };
    const V2: Version = Version { epoch: 1, revision: 2 };

    fn issued(n: usize, lifetime_secs: u64, version: Version) -> Issued {
        Issued {
            id: GrantId(format!("g{n}").into()),
            credential: Secret::new(format!("secret{n}").into_bytes()),
            lifetime: Duration::from_secs(lifetime_secs),
            version,
        }
    }

    fn begun(
        answer: impl Fn(usize) -> Result<Issued, Failure> + Send + Sync + 'static,
    ) -> (Arc<Cache>, Arc<Fake>, Key) {
        let (cache, orders) = cache();
        let (cache, fake) =
            (Arc::new(cache), Arc::new(Fake { asked: AtomicUsize::new(0), answer: Box::new(answer) }));
        tokio::spawn(orders.serve(cache.clone(), fake.clone()));
        let face = ProviderFace {
            name: "payments/token".parse().unwrap(),
            revision: 1,
            injection: model::Injection { header: "authorization".into(), prefix: "Bearer ".into() },
        };
        (cache, fake, Key::new("payments/api".parse().unwrap(), &face))
    }

    fn request() -> RequestFacts {
        RequestFacts {
            action: Action::Http,
            method: "GET".into(),
            host: HostName::new("a.example").unwrap(),
            port: 443,
            path: "/".into(),
            headers: BTreeMap::new(),
        }
    }

    async fn get(cache: &Cache, key: &Key, version: Version) -> Result<Arc<Grant>, Failure> {
        let request = request();
        cache.get(key, &Ask { request: &request, decision: DecisionId(1), version }).await
    }

    #[tokio::test(start_paused = true)]
    async fn many_ask_one_flies() {
        let (cache, fake, key) = begun(|n| Ok(issued(n, 300, V1)));
        let all = futures_util::future::join_all((0..50).map(|_| get(&cache, &key, V1))).await;
        assert!(all.iter().all(|grant| grant.as_ref().is_ok_and(|grant| &*grant.id.0 == "g0")));
        assert_eq!(fake.asked.load(Ordering::SeqCst), 1);
        assert_eq!(cache.cached(&key, V1, Moment::now()).unwrap().header, "Bearer secret0");
        assert!(cache.cached(&key, V1, Moment::now()).unwrap().header.is_sensitive());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_leaves_does_not_stop_the_flight() {
        let (cache, fake, key) = begun(|n| Ok(issued(n, 300, V1)));
        let left = tokio::time::timeout(Duration::from_millis(5), get(&cache, &key, V1)).await;
        assert!(left.is_err());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(cache.cached(&key, V1, Moment::now()).is_some());
        assert_eq!(fake.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_stands_for_seconds() {
        let (cache, fake, key) = begun(|_| Err(Failure::new(Code::IssuerRefused, "no")));
        for _ in 0..10 {
            assert_eq!(get(&cache, &key, V1).await.err().unwrap().code, Code::IssuerRefused);
        }
        assert_eq!(fake.asked.load(Ordering::SeqCst), 1);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let _ = get(&cache, &key, V1).await;
        assert_eq!(fake.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_while_it_is_used_and_kept_when_that_fails() {
        let (cache, fake, key) = begun(|n| match n {
            1 => Err(Failure::new(Code::ControlPlaneUnreachable, "away")),
            n => Ok(issued(n, 300, V1)),
        });
        get(&cache, &key, V1).await.unwrap();
        // Renewed after 180 to 220 s, and once more after 4.5 to 5.5.
        tokio::time::sleep(Duration::from_secs(230)).await;
        assert_eq!(fake.asked.load(Ordering::SeqCst), 3, "renewal failed once and was tried again");
        assert_eq!(&*cache.cached(&key, V1, Moment::now()).unwrap().id.0, "g2");
        tokio::time::sleep(Duration::from_secs(2000)).await;
        assert_eq!(fake.asked.load(Ordering::SeqCst), 4, "used once more, then never again");
    }

    #[tokio::test(start_paused = true)]
    async fn older_than_its_slice_is_neither_used_nor_kept() {
        let (cache, _, key) = begun(|n| Ok(issued(n, 300, V1)));
        get(&cache, &key, V1).await.unwrap();
        assert!(cache.cached(&key, V2, Moment::now()).is_none());
        cache.raise_watermark(V2);
        assert!(cache.is_empty());
        // A late answer of the older version is handed to who waits, who judges again, but not kept.
        get(&cache, &key, V2).await.unwrap();
        assert!(cache.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_revoked_grant_is_gone_and_stays_away() {
        let (cache, _, key) = begun(|_| Ok(issued(7, 300, V1)));
        let grant = get(&cache, &key, V1).await.unwrap();
        cache.revoke([grant.id.clone()]);
        assert!(cache.cached(&key, V1, Moment::now()).is_none() && cache.is_revoked(&grant.id));
        let _ = get(&cache, &key, V1).await;
        assert!(cache.cached(&key, V1, Moment::now()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_unusable_credential_is_never_sent() {
        let (cache, _, key) =
            begun(|_| Ok(Issued { credential: Secret::new(b"a\r\nx: y".to_vec()), ..issued(0, 300, V1) }));
        assert_eq!(get(&cache, &key, V1).await.err().unwrap().code, Code::CredentialUnusable);
    }

    #[test]
    fn the_earlier_clock_counts() {
        let now = Moment { wall_ms: 1_000_000, boot_ms: 500 };
        let end = now.plus(1000);
        assert!(!end.has_passed(now));
        assert!(end.has_passed(Moment { wall_ms: 0, boot_ms: 1_500 }), "the wall clock was set back");
        assert!(end.has_passed(Moment { wall_ms: 1_001_000, boot_ms: 500 }));
    }

    #[test]
    fn a_short_life_keeps_half() {
        let (_, key) = {
            let face = ProviderFace {
                name: "payments/token".parse().unwrap(),
                revision: 1,
                injection: model::Injection { header: "x".into(), prefix: String::new() },
            };
            ((), Key::new("payments/api".parse().unwrap(), &face))
        };
        let asked = Moment { wall_ms: 0, boot_ms: 0 };
        let end = |secs| {
            let grant = usable(
                &key,
                GrantId("g".into()),
                &Secret::new(b"s".to_vec()),
                asked,
                Duration::from_secs(secs),
                V1,
            );
            grant.unwrap().end.wall_ms
        };
        assert_eq!((end(300), end(40)), (270_000, 20_000));
    }
}
