//! Stage 9, audit: what happened?
//!
//! An intent is handed to the kernel before the first byte of its request goes upstream, the outcome after. The files
//! are synced every 100 ms: what a power cut can lose is the events of that time (docs/decisions/0004-audit-spool.md).

pub mod line;
pub mod segment;
pub mod spool;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::audit::{CallResult, Event, Outcome, What};
use model::{Code, DecisionId, Failure, UnixMillis};
use prometheus::{IntCounter, IntGauge, Registry};
use tokio::sync::Notify;

use crate::worker::now;
use line::Line;
use segment::Run;
use spool::{Kind, Spool};

/// How often the spool is synced to disk.
const SYNC_EVERY: Duration = Duration::from_millis(100);

/// Where events go. Cheap to clone; all workers write to one stream.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    spool: Mutex<Spool>,
    written: Notify,
    drop_when_full: bool,
    pending: IntGauge,
    dropped: IntCounter,
}

/// A call whose intent is recorded. Its outcome is recorded by [`OpenCall::finish`]; one that is dropped before counts
/// as aborted, so that no way out of a call can forget it.
pub struct OpenCall {
    audit: Audit,
    decision: Option<DecisionId>,
    /// The number of its intent; `None` if that was dropped.
    intent: Option<u64>,
}

impl Audit {
    /// Opens the spool and begins to sync it.
    ///
    /// # Errors
    /// If the directory can't be used.
    pub fn open(
        directory: &Path,
        bytes_max: u64,
        drop_when_full: bool,
        registry: &Registry,
    ) -> anyhow::Result<Self> {
        let spool = Spool::open(directory, bytes_max, now())?;
        let pending =
            IntGauge::new("countersign_spool_events", "Events that the control plane does not have yet.")?;
        let dropped =
            IntCounter::new("countersign_events_dropped_total", "Events lost because the spool was full.")?;
        registry.register(Box::new(pending.clone()))?;
        registry.register(Box::new(dropped.clone()))?;
        let written = Notify::new();
        let inner = Arc::new(Inner { spool: Mutex::new(spool), written, drop_when_full, pending, dropped });
        let syncing = Arc::downgrade(&inner);
        std::thread::Builder::new().name("audit-sync".to_owned()).spawn(move || {
            while let Some(inner) = syncing.upgrade() {
                inner.sync();
                drop(inner);
                std::thread::sleep(SYNC_EVERY);
            }
        })?;
        Ok(Self(inner))
    }

    /// Records that a call is about to be made, at this time.
    ///
    /// # Errors
    /// [`Code::SpoolFull`] if there is no room and the configuration does not allow a gap.
    pub fn intent(&self, time: UnixMillis, intent: &line::Intent<'_>) -> Result<OpenCall, Failure> {
        let written = self.append(&line::intent(time, intent), Kind::Intent, time)?;
        Ok(OpenCall { audit: self.clone(), decision: Some(intent.decision), intent: written })
    }

    /// Records an event that stands alone.
    ///
    /// # Errors
    /// [`Code::SpoolFull`] if there is no room and the configuration does not allow a gap.
    pub fn write(&self, what: What) -> Result<(), Failure> {
        let unwritable = |e| Failure::new(Code::SpoolFull, "an event could not be written").because(e);
        let time = now();
        let payload = serde_json::to_vec(&Event { time, what }).map_err(unwritable)?;
        self.append(&Line::whole(&payload), Kind::Alone, time)?;
        Ok(())
    }

    /// The event's number; `None` if it was dropped because there is no room, which the configuration then allows.
    fn append(&self, event: &Line<'_>, kind: Kind, time: UnixMillis) -> Result<Option<u64>, Failure> {
        let mut spool = self.0.spool();
        match spool.append(event, kind, time) {
            Ok(number) => {
                drop(spool);
                self.0.written.notify_one();
                Ok(Some(number))
            }
            Err(_) if self.0.drop_when_full => {
                spool.count_dropped();
                self.0.dropped.inc();
                Ok(None)
            }
            Err(_) => Err(Failure::new(Code::SpoolFull, "the audit spool is full")),
        }
    }

    fn outcome(&self, outcome: &Outcome, intent: Option<u64>) {
        self.0.spool().append_outcome(line::outcome(now(), outcome), intent);
        self.0.written.notify_one();
    }

    /// Whether there is no room for calls that need a credential.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.spool().is_full()
    }

    /// Events that the control plane does not have yet.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.0.spool().pending()
    }

    /// The stream's name.
    #[must_use]
    pub fn stream(&self) -> String {
        self.0.spool().stream().to_owned()
    }

    /// The number before the first event that is still here.
    #[must_use]
    pub fn before_first(&self) -> u64 {
        self.0.spool().first() - 1
    }

    /// The next events after `sequence`; waits until there is one.
    pub async fn run_after(&self, sequence: u64, limit: usize) -> Run {
        loop {
            let run = self.0.spool().run_after(sequence, limit);
            if let Some(run) = run {
                return run;
            }
            self.0.written.notified().await;
        }
    }

    /// The control plane has stored everything up to `sequence`.
    pub fn acknowledge(&self, sequence: u64) {
        let mut spool = self.0.spool();
        spool.acknowledge(sequence);
        self.0.pending.set(i64::try_from(spool.pending()).unwrap_or(i64::MAX));
    }
}

impl Inner {
    fn spool(&self) -> MutexGuard<'_, Spool> {
        // A panic while appending leaves a record without its length, which the next one overwrites.
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync(&self) {
        let files = {
            let spool = self.spool();
            self.pending.set(i64::try_from(spool.pending()).unwrap_or(i64::MAX));
            spool.current_files()
        };
        for file in files {
            if let Err(error) = file.sync_data() {
                tracing::error!(stage = "audit", %error, "the audit spool could not be synced to disk");
            }
        }
    }
}

impl OpenCall {
    /// Records how the call ended.
    pub fn finish(mut self, outcome: Outcome) {
        self.decision = None;
        self.audit.outcome(&outcome, self.intent);
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if let Some(decision) = self.decision.take() {
            self.audit.outcome(&line::ended(decision, CallResult::Aborted), self.intent);
        }
    }
}
