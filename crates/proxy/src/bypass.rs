//! A bypass: for the day when something is wrong with us, connections of a workload pass untouched.
//!
//! It is part of the caller's slice and ends by the clock. While it is in force new connections are carried to where
//! the application dialled, opened ones are ended at their next pause, so that they come again, and nothing is injected.
//! A block wins over it (docs/decisions/0016-bypass.md).

use std::sync::Arc;
use std::time::Duration;

use model::slice::Bypass;
use model::{Destination, HostName, UnixMillis};
use policy::Snapshot;
use prometheus::{IntGauge, Registry};
use service::health::Readiness;

use crate::caller::CallerState;
use crate::capture::accept::OriginalDestination;
use crate::worker::now;

/// The bypass under which a connection passes, if there is one: to a destination that is blocked none does.
pub fn of_connection<'a>(
    snapshot: &'a Snapshot,
    name: Option<&HostName>,
    original: &OriginalDestination,
    now: UnixMillis,
) -> Option<&'a Bypass> {
    let bypass = snapshot.slice().bypass(now)?;
    let blocked = covering(snapshot, name, original)
        .is_some_and(|covering| snapshot.slice().is_destination_blocked(&covering.name));
    (!blocked).then_some(bypass)
}

/// Whether a policy covers what a connection goes to: once the bypass is over it may no longer pass.
pub fn is_covered(snapshot: &Snapshot, name: Option<&HostName>, original: &OriginalDestination) -> bool {
    covering(snapshot, name, original).is_some()
}

fn covering<'a>(
    snapshot: &'a Snapshot,
    name: Option<&HostName>,
    original: &OriginalDestination,
) -> Option<&'a Arc<Destination>> {
    let by_address = || {
        let address = original.address()?;
        snapshot.cover_address(address.ip(), address.port())
    };
    let name = name.or_else(|| original.name());
    name.and_then(|name| snapshot.cover(name, original.port())).or_else(by_address)
}

/// Ready when the connection would pass if it were made now: what is open is then to be ended at its next pause, so that
/// it comes again. One that stays refused, as to a blocked destination, has nothing to come again for.
pub async fn begun(
    caller: Option<Arc<CallerState>>,
    name: Option<&HostName>,
    original: &OriginalDestination,
) {
    let Some(caller) = caller else { return std::future::pending().await };
    let passes = |snapshot: Arc<Snapshot>| of_connection(&snapshot, name, original, now()).is_some();
    let mut changed = caller.changed();
    while !caller.snapshot().is_some_and(passes) {
        if changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// How long after its end a bypass may still be shown.
const LOOK: Duration = Duration::from_secs(1);

/// Shows a bypass for as long as it is in force: in the log, in a metric, and beside readiness.
///
/// # Errors
/// If the metric is registered already.
pub fn show(
    caller: Arc<CallerState>,
    readiness: Readiness,
    registry: &Registry,
) -> Result<impl Future<Output = ()> + use<>, prometheus::Error> {
    let gauge = IntGauge::new("countersign_bypass_active", "Whether the workload is bypassed.")?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(async move {
        let mut shown: Option<Bypass> = None;
        let mut changed = caller.changed();
        loop {
            let snapshot = caller.snapshot();
            let current = snapshot.as_ref().and_then(|snapshot| snapshot.slice().bypass(now()));
            if current != shown.as_ref() {
                gauge.set(i64::from(current.is_some()));
                readiness.note(&current.map(sentence).unwrap_or_default());
                match current {
                    Some(bypass) => tracing::warn!(stage = "policy", id = %bypass.id, "{}", sentence(bypass)),
                    None => tracing::warn!(stage = "policy", "the bypass has ended: calls are judged again"),
                }
                shown = current.cloned();
            }
            // A bypass begins with a change; its end is the clock's.
            let _ = match shown {
                Some(_) => tokio::time::timeout(LOOK, changed.changed()).await.is_ok(),
                None => changed.changed().await.is_ok(),
            };
        }
    })
}

fn sentence(bypass: &Bypass) -> String {
    format!(
        "bypassed until {} ({}): connections pass untouched, without a credential",
        bypass.until, bypass.id
    )
}
