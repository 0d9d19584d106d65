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
use tokio::task::LocalSet;

use crate::audit::Audit;
use crate::authority::Authority;
use crate::call;
use crate::caller::{CallerState, Callers};
use crate::capture::accept;
use crate::exchange::Register;
use crate::limits::Limits;
use crate::memory::{self, Budget, Reserved};
use crate::metrics::Metrics;
use crate::socket::SocketOptions;
use crate::tls::Terminator;
use crate::upstream::pool::Pool;
use crate::upstream::resolve::Resolver;
use crate::upstream::roots::Roots;

/// What all workers share.
pub struct Shared {
    /// Who may call through this proxy.
    pub callers: Callers,
    /// Where events go.
    pub audit: Audit,
    /// The instance's CA.
    pub authority: Arc<Authority>,
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
    /// Ports of the proxy itself: never dialled on loopback.
    pub own_ports: Arc<[u16]>,
    /// Counters.
    pub metrics: Metrics,
    /// Told to drain.
    pub drain: service::drain::Watch,
}

/// Connections over the limit that still get an answer.
const TOLD_MAX: usize = 32;

/// One worker's own state.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Opens applications' TLS.
    pub terminator: Terminator,
    /// Upstream connections.
    pub pool: Pool,
    /// Finds addresses.
    pub resolver: Resolver,
    /// Exchanges that are open.
    pub register: Rc<Register>,
    connections: Cell<usize>,
    /// Of them, those for which there was no memory.
    unreserved: Cell<usize>,
    watched: RefCell<HashSet<usize>>,
}

impl Worker {
    /// A worker that has not begun.
    ///
    /// # Errors
    /// If the resolver can't be set up.
    pub fn new(shared: Arc<Shared>) -> Result<Rc<Self>, Failure> {
        Ok(Rc::new(Self {
            terminator: Terminator::new(shared.authority.clone(), shared.ticketer.clone()),
            pool: Pool::default(),
            resolver: Resolver::new(shared.own_ports.clone())?,
            register: Rc::default(),
            connections: Cell::new(0),
            unreserved: Cell::new(0),
            watched: RefCell::default(),
            shared,
        }))
    }

    /// Serves until the drain is over. Runs on a `current_thread` runtime of its own.
    pub async fn run(self: Rc<Self>, listeners: Vec<TcpListener>) {
        let local = LocalSet::new();
        local
            .run_until(async {
                tokio::task::spawn_local(self.register.clone().watch_time(self.shared.memory.clone()));
                tokio::task::spawn_local(self.clone().sweep());
                for listener in listeners {
                    tokio::task::spawn_local(self.clone().accept(listener));
                }
                self.shared.drain.clone().finished().await;
            })
            .await;
    }

    async fn accept(self: Rc<Self>, listener: TcpListener) {
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
            let Some(held) = Held::new(self.clone()) else {
                self.shared.metrics.connection_refused();
                continue;
            };
            match tracing::debug_span!("capture").in_scope(|| accept::captured(stream, peer)) {
                Ok(captured) => {
                    tokio::task::spawn_local(async move { call::connection(&held.worker, captured).await });
                }
                Err(failure) => {
                    self.shared.metrics.failed(&failure);
                    tracing::warn!(stage = "capture", code = %failure.code, %peer, "{failure}");
                }
            }
        }
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
            tokio::time::sleep(Duration::from_secs(10)).await;
            self.pool.sweep();
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
