//! One worker: a thread with a runtime, listeners, an upstream pool and the exchanges that are open on it.
//!
//! Workers share nothing but what [`Shared`] holds; a request stays on the worker that accepted its connection.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::{Code, Failure, UnixMillis};
use rustls::server::ProducesTickets;
use tokio::net::TcpListener;

use crate::audit::Audit;
use crate::call;
use crate::caller::{CallerState, Callers};
use crate::capture::accept::{self, Captured};
use crate::capture::explicit;
use crate::capture::sentinel::{self, Sentinel};
use crate::exchange::Register;
use crate::limits::Limits;
use crate::memory::{self, Budget, Reserved};
use crate::metrics::Metrics;
use crate::socket::SocketOptions;
use crate::tls::leaves::Leaves;
use crate::tls::terminate::Terminator;
use crate::upstream::corporate::Corporate;
use crate::upstream::dial::Dialler;
use crate::upstream::pool::{Pool, SWEEP_EVERY};
use crate::upstream::resolve::OffLimits;
use crate::upstream::roots::Roots;

/// What all workers share.
pub struct Shared {
    /// Who may call through this proxy.
    pub callers: Callers,
    /// Where events go.
    pub audit: Audit,
    /// Leaves for what is opened.
    pub leaves: Arc<Leaves>,
    /// Makes session tickets for applications.
    pub ticketer: Arc<dyn ProducesTickets>,
    /// By whom upstreams are believed.
    pub roots: Roots,
    /// How the proxy's own sockets are told from the application's.
    pub socket: SocketOptions,
    /// Bounds.
    pub limits: Limits,
    /// What they come to in memory.
    pub memory: Budget,
    /// Where nobody is led.
    pub off_limits: Arc<OffLimits>,
    /// Counters.
    pub metrics: Metrics,
    /// The proxy through which upstreams are reached, if there is one.
    pub corporate: Option<Arc<Corporate>>,
    /// Who may use the explicit proxy, if it is asked for.
    pub explicit: explicit::Access,
    /// Told to drain.
    pub drain: service::drain::Watch,
    /// Answers the proxy's own look for the redirect.
    pub sentinel: Arc<Sentinel>,
}

impl Shared {
    /// What opens applications' TLS, for one more thread.
    ///
    /// # Errors
    /// If no TLS version is configured.
    pub fn terminator(&self) -> Result<Terminator, Failure> {
        let (leaves, ticketer) = (self.leaves.clone(), self.ticketer.clone());
        Terminator::new(leaves, ticketer, self.metrics.clone(), self.limits.head)
    }
}

/// By which way a connection comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Redirected by the kernel.
    Redirect,
    /// The application asks the explicit proxy.
    Explicit,
}

/// Connections over the limit that still get an answer.
const TOLD_MAX: usize = 32;

/// Connections to a sentinel at a time: the proxy makes eight, an application has nothing to look for there.
const HEARD_MAX: usize = 256;

/// One worker's own state.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Opens applications' TLS.
    pub terminator: Terminator,
    /// Upstream connections.
    pub pool: Pool,
    /// Finds addresses and connects to them.
    pub dialler: Dialler,
    /// Exchanges that are open.
    pub register: Rc<Register>,
    connections: Cell<usize>,
    heard: Cell<usize>,
    /// Of them, those for which there was no memory.
    unreserved: Cell<usize>,
    watched: RefCell<HashSet<usize>>,
}

impl Worker {
    /// A worker that has not begun.
    ///
    /// # Errors
    /// If the resolver or TLS can't be set up.
    pub fn new(shared: Arc<Shared>) -> Result<Rc<Self>, Failure> {
        Ok(Rc::new(Self {
            terminator: shared.terminator()?,
            pool: Pool::default(),
            dialler: Dialler::new(
                shared.socket,
                shared.off_limits.clone(),
                shared.limits.patience.connect,
                shared.corporate.clone(),
            )?,
            register: Rc::default(),
            connections: Cell::new(0),
            heard: Cell::new(0),
            unreserved: Cell::new(0),
            watched: RefCell::default(),
            shared,
        }))
    }

    /// Serves until the drain is over. Runs on a `current_thread` runtime of its own, a local one, whose tasks need not
    /// be `Send`.
    pub async fn run(self: Rc<Self>, listeners: Vec<(Door, TcpListener)>) {
        tokio::task::spawn_local(self.register.clone().watch_time(self.shared.memory.clone()));
        tokio::task::spawn_local(self.clone().sweep());
        for (door, listener) in listeners {
            tokio::task::spawn_local(self.clone().accept(door, listener));
        }
        self.shared.drain.clone().finished().await;
    }

    async fn accept(self: Rc<Self>, door: Door, listener: TcpListener) {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors or memory: nothing is lost by waiting, the kernel queues what comes.
                    tracing::warn!(stage = "capture", %error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            if door == Door::Explicit {
                self.begin(move |worker| async move { explicit::serve(&worker, stream).await });
                continue;
            }
            match tracing::debug_span!("capture").in_scope(|| accept::captured(stream)) {
                Ok(captured) if sentinel::is_sentinel(&captured.original) => self.hear(captured),
                Ok(captured) => {
                    self.begin(move |worker| async move { call::connection(&worker, captured).await });
                }
                Err(failure) => {
                    self.shared.metrics.failed(&failure);
                    tracing::warn!(stage = "capture", code = %failure.code, %peer, "{failure}");
                }
            }
        }
    }

    fn begin<F: Future<Output = ()> + 'static>(self: &Rc<Self>, serve: impl FnOnce(Rc<Self>) -> F + 'static) {
        let place = if self.shared.sentinel.loops() { None } else { Held::new(self.clone()) };
        let Some(held) = place else {
            self.shared.metrics.connection_refused();
            return;
        };
        tokio::task::spawn_local(async move { serve(held.worker.clone()).await });
    }

    /// Not counted among the connections: it is the proxy's own, or over in a second.
    fn hear(self: &Rc<Self>, captured: Captured) {
        if self.heard.get() >= HEARD_MAX {
            return;
        }
        self.heard.set(self.heard.get() + 1);
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            worker.shared.sentinel.hear(captured.stream).await;
            worker.heard.set(worker.heard.get() - 1);
        });
    }

    /// Whether there are more connections than the limit: then requests are answered with 503.
    pub fn is_over_limit(&self) -> bool {
        self.connections.get() > self.shared.limits.connections
    }

    /// Reserves memory for a request, or a connection that is carried.
    ///
    /// # Errors
    /// [`Code::OverLimit`] if there is none.
    pub fn room(&self) -> Result<Reserved, Failure> {
        self.shared.memory.reserve(memory::REQUEST).ok_or_else(|| {
            let detail =
                format!("what is open needs the {} MiB of the memory cap", self.shared.memory.cap_mib());
            Failure::new(Code::OverLimit, detail)
        })
    }

    /// Judges this worker's exchanges again whenever something changes for a caller. Begun with its first connection.
    pub fn watch(self: &Rc<Self>, caller: &Arc<CallerState>) {
        if !self.watched.borrow_mut().insert(Arc::as_ptr(caller) as usize) {
            return;
        }
        let mut changed = caller.changed();
        let register = self.register.clone();
        tokio::task::spawn_local(async move {
            while changed.changed().await.is_ok() {
                register.judge_all(now());
            }
        });
    }

    async fn sweep(self: Rc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            self.pool.sweep(now());
        }
    }
}

/// A connection's place among those that the worker holds.
struct Held {
    worker: Rc<Worker>,
    memory: Option<Reserved>,
}

impl Held {
    /// Up to a few more than there is room for get a place, so that they can be told why; past that there is no room
    /// to say so.
    fn new(worker: Rc<Worker>) -> Option<Self> {
        let memory = worker.shared.memory.reserve(memory::CONNECTION);
        let untold = worker.unreserved.get();
        let over = worker.connections.get() >= worker.shared.limits.connections + TOLD_MAX;
        if over || (memory.is_none() && untold >= TOLD_MAX) {
            return None;
        }
        worker.unreserved.set(untold + usize::from(memory.is_none()));
        worker.connections.set(worker.connections.get() + 1);
        worker.shared.metrics.connections.inc();
        Some(Self { worker, memory })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let worker = &self.worker;
        worker.connections.set(worker.connections.get() - 1);
        worker.unreserved.set(worker.unreserved.get() - usize::from(self.memory.is_none()));
        worker.shared.metrics.connections.dec();
    }
}

/// The wall clock: the one place of the data path that reads it.
pub fn now() -> UnixMillis {
    UnixMillis::from_system(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;
    use crate::state::StateDir;
    use crate::tls::leaves::LEAVES_MAX;
    use crate::upstream::connect::Patience;

    const SOON: Duration = Duration::from_secs(10);

    fn limits() -> Limits {
        Limits {
            patience: Patience { connect: SOON, handshake: SOON },
            answer: SOON,
            head: SOON,
            idle: SOON,
            body: SOON,
            stream: SOON,
            connections: 10,
            requests: 10,
            body_bytes: u64::MAX,
            head_bytes: 1 << 16,
            headers: 100,
            streams: 10,
            resets: 10,
            memory: 64 << 20,
        }
    }

    fn shared(directory: &std::path::Path) -> Shared {
        let registry = prometheus::Registry::new();
        let state = StateDir::open(&directory.join("state")).unwrap();
        let authority = Arc::new(Authority::open(&state, now()).unwrap());
        let (cache, _) = crate::credential::cache();
        Shared {
            callers: Callers::sidecar(Arc::new(CallerState::new(Arc::new(cache)))),
            audit: Audit::open(&directory.join("spool"), 8 << 20, false, &registry).unwrap(),
            leaves: Leaves::start(authority, LEAVES_MAX).unwrap(),
            ticketer: rustls::crypto::aws_lc_rs::Ticketer::new().unwrap(),
            roots: Roots::new(rustls::RootCertStore::empty()),
            socket: SocketOptions { mark: None },
            limits: limits(),
            memory: Budget::new(limits().memory, &registry).unwrap(),
            off_limits: Arc::new(OffLimits { own_ports: Vec::new(), networks: Vec::new() }),
            metrics: Metrics::new(&registry).unwrap(),
            corporate: None,
            explicit: explicit::Access::default(),
            drain: service::drain::new().1,
            sentinel: Arc::default(),
        }
    }

    #[test]
    fn a_panic_in_one_connection_ends_that_connection_only() {
        let directory = tempfile::tempdir().unwrap();
        let shared = Arc::new(shared(directory.path()));
        service::tls_provider::install();
        let runtime = crate::program::worker_runtime().unwrap();
        runtime.block_on(async {
            let worker = Worker::new(shared.clone()).unwrap();
            let (tell, told) = tokio::sync::oneshot::channel();
            let (go, gone) = tokio::sync::oneshot::channel::<()>();
            worker.begin(|_| async move {
                let _ = gone.await;
                let _ = tell.send(());
            });
            worker.begin(|_| async { panic!("a fault that nobody foresaw") });
            while shared.metrics.connections.get() > 1 {
                tokio::task::yield_now().await;
            }
            // What it held is given back, and the other goes on.
            assert_eq!((worker.connections.get(), worker.unreserved.get()), (1, 0));
            let _ = go.send(());
            tokio::time::timeout(SOON, told).await.unwrap().unwrap();
            // And so does the worker.
            let (tell, told) = tokio::sync::oneshot::channel();
            worker.begin(|_| async move {
                let _ = tell.send(());
            });
            tokio::time::timeout(SOON, told).await.unwrap().unwrap();
        });
    }
}
