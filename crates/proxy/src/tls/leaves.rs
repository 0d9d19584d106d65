//! Leaves for what we open: made on a thread of their own, once for each name, and kept up to a bound.
//!
//! An application can send any number of names. A signature is work for the CPU, so none is made where connections are
//! accepted; connections to names whose leaf is there go on while others wait for theirs. All who wait for the same name
//! share one leaf, and what was not used for longest makes room.

use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use model::{Code, Failure, HostName, UnixMillis};
use rustls::sign::CertifiedKey;
use tokio::sync::{OnceCell, mpsc, oneshot};

use crate::authority::{Authority, Leaf};

/// Leaves that are kept: about 2 KiB each.
pub const LEAVES_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Orders that may wait for the thread; past this, whoever opens a connection to a new name waits to place one.
const ORDERS_MAX: usize = 256;

/// The leaves of an instance, shared by all workers.
pub struct Leaves {
    kept: Mutex<LruCache<HostName, Arc<Slot>>>,
    orders: mpsc::Sender<Order>,
}

/// One name's leaf, or the wait for it.
type Slot = OnceCell<Leaf>;

struct Order {
    name: HostName,
    now: UnixMillis,
    answer: oneshot::Sender<anyhow::Result<Leaf>>,
}

impl Leaves {
    /// Starts the thread that makes them; it ends when the last user of these leaves has gone.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn start(authority: Arc<Authority>, most: NonZeroUsize) -> std::io::Result<Arc<Self>> {
        let (orders, received) = mpsc::channel(ORDERS_MAX);
        std::thread::Builder::new().name("leaves".to_owned()).spawn(move || make(&authority, received))?;
        Ok(Arc::new(Self { kept: Mutex::new(LruCache::new(most)), orders }))
    }

    /// A leaf for exactly this name.
    ///
    /// # Errors
    /// [`Code::DownstreamHandshake`] if it can't be made.
    pub async fn get(&self, name: &HostName, now: UnixMillis) -> Result<Arc<CertifiedKey>, Failure> {
        let slot = self.slot(name, now);
        // One order at a time for each slot: if who placed it gives up, the next one places another.
        let leaf = slot.get_or_try_init(|| self.order(name, now)).await.map_err(|error| {
            Failure::new(Code::DownstreamHandshake, format!("no certificate could be made for {name}"))
                .because(error.into_boxed_dyn_error())
        })?;
        Ok(leaf.key.clone())
    }

    /// The slot of a name; a new one if there is none, or if its leaf is to be made anew.
    fn slot(&self, name: &HostName, now: UnixMillis) -> Arc<Slot> {
        // A poisoned lock means a panic while looking something up; the cache itself is whole.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = kept.get(name)
            && slot.get().is_none_or(|leaf| leaf.renew_at > now)
        {
            return slot.clone();
        }
        let slot = Arc::<Slot>::default();
        kept.put(name.clone(), slot.clone());
        slot
    }

    async fn order(&self, name: &HostName, now: UnixMillis) -> anyhow::Result<Leaf> {
        let (answer, made) = oneshot::channel();
        let order = Order { name: name.clone(), now, answer };
        let gone = || anyhow::anyhow!("the thread that makes certificates has ended");
        self.orders.send(order).await.map_err(|_| gone())?;
        made.await.map_err(|_| gone())?
    }
}

/// The thread: one leaf after the other.
fn make(authority: &Authority, mut orders: mpsc::Receiver<Order>) {
    while let Some(Order { name, now, answer }) = orders.blocking_recv() {
        // Nobody waits any more: the connection has ended.
        if answer.is_closed() {
            continue;
        }
        // A panic costs one connection its leaf, not all that come after it.
        let leaf = std::panic::catch_unwind(AssertUnwindSafe(|| authority.mint(&name, now)));
        let _ = answer.send(leaf.unwrap_or_else(|_| Err(anyhow::anyhow!("a panic while it was made"))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateDir;

    const NOW: UnixMillis = UnixMillis(1_795_514_400_000);

    fn leaves(most: usize) -> (tempfile::TempDir, Arc<Leaves>) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(&directory.path().join("s")).unwrap();
        let authority = Arc::new(Authority::open(&state, NOW).unwrap());
        (directory, Leaves::start(authority, NonZeroUsize::new(most).unwrap()).unwrap())
    }

    fn name(text: &str) -> HostName {
        HostName::new(text).unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn many_who_wait_for_a_name_share_one_leaf() {
        let (_directory, leaves) = leaves(8);
        let wanted = name("a.example");
        let got = futures_util::future::join_all((0..100).map(|_| leaves.get(&wanted, NOW))).await;
        let first = got[0].as_ref().unwrap();
        assert!(got.iter().all(|leaf| Arc::ptr_eq(leaf.as_ref().unwrap(), first)));
        let other = leaves.get(&name("b.example"), NOW).await.unwrap();
        assert!(!Arc::ptr_eq(&other, first));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_gives_up_does_not_take_the_leaf_from_who_waits() {
        let (_directory, leaves) = leaves(8);
        let wanted = name("a.example");
        {
            let mut given_up = Box::pin(leaves.get(&wanted, NOW));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(given_up.as_mut().poll(&mut context).is_pending());
        }
        leaves.get(&wanted, NOW).await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_was_not_used_for_longest_makes_room() {
        let (_directory, leaves) = leaves(8);
        let (used, unused) = (name("used.example"), name("unused.example"));
        let (kept, forgotten) =
            (leaves.get(&used, NOW).await.unwrap(), leaves.get(&unused, NOW).await.unwrap());
        for n in 0..100 {
            leaves.get(&name(&format!("h{n}.example")), NOW).await.unwrap();
            assert!(leaves.kept.lock().unwrap().len() <= 8);
            leaves.get(&used, NOW).await.unwrap();
        }
        assert!(Arc::ptr_eq(&leaves.get(&used, NOW).await.unwrap(), &kept));
        assert!(!Arc::ptr_eq(&leaves.get(&unused, NOW).await.unwrap(), &forgotten));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_leaf_is_made_anew_half_a_day_before_its_end() {
        let (_directory, leaves) = leaves(8);
        let wanted = name("a.example");
        let first = leaves.get(&wanted, NOW).await.unwrap();
        let before = leaves.get(&wanted, NOW.plus_secs(43_199)).await.unwrap();
        let after = leaves.get(&wanted, NOW.plus_secs(43_201)).await.unwrap();
        assert!(Arc::ptr_eq(&first, &before) && !Arc::ptr_eq(&first, &after));
    }
}
