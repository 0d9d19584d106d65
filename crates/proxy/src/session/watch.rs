//! Receives policy and revocations, puts them in force, keeps the last slice, and says which version runs.

use std::sync::Arc;

use anyhow::Context as _;
use model::redirect::Redirect;
use model::slice::Slice;
use model::{GrantId, SpiffeId};
use policy::Snapshot;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use wire::convert::slice_hash;
use wire::v1;
use wire::v1::control_plane_client::ControlPlaneClient;

use super::trust::Trust;
use crate::caller::CallerState;
use crate::state::StateDir;

const SLICE_FILE: &str = "slice.pb";

/// What a watch works on.
pub struct Watching {
    /// The caller whose policy it is.
    pub state: Arc<CallerState>,
    /// Whose name every slice must have.
    pub caller: SpiffeId,
    /// Where the last slice is kept.
    pub directory: Arc<StateDir>,
    /// Where the control plane's roots go.
    pub trust: Arc<Trust>,
    /// Changes what is logged.
    pub log: service::telemetry::LogHandle,
    /// What was found of the redirect: the control plane shows whether it can carry the mode that was pushed.
    pub redirect: tokio::sync::watch::Receiver<Redirect>,
    /// Told at the first message: the stream is up.
    pub up: tokio::sync::watch::Sender<bool>,
    /// Told why a policy is refused.
    pub trouble: tokio::sync::watch::Sender<String>,
}

/// Puts the slice in force that an earlier run kept, so that a proxy that is restarted while the control plane is away
/// knows what is covered.
///
/// # Errors
/// If it can't be read or used; nothing is in force then.
pub fn restore(state: &CallerState, directory: &StateDir) -> anyhow::Result<bool> {
    let Some(bytes) = directory.read(SLICE_FILE)? else { return Ok(false) };
    let message = v1::Slice::decode(bytes.as_slice()).context("the kept policy can't be read")?;
    let slice = Slice::try_from(&message).context("the kept policy can't be used")?;
    let caller = slice.caller.clone();
    let snapshot = Snapshot::new(slice).context("the kept policy can't be used")?;
    state.set_caller(caller);
    state.set_snapshot(snapshot);
    Ok(true)
}

/// Forgets the kept slice: it was another caller's.
pub fn forget(state: &CallerState, directory: &StateDir) {
    state.forget_snapshot();
    if let Err(error) = directory.remove(SLICE_FILE) {
        tracing::warn!(%error, "the policy of an earlier caller could not be removed");
    }
}

/// Receives until the stream ends.
///
/// # Errors
/// Why it ended.
pub async fn run(watching: &Watching, client: ControlPlaneClient<Channel>) -> Result<(), tonic::Status> {
    let (requests, receiver) = mpsc::channel(16);
    let running = watching.state.snapshot();
    let start = v1::WatchStart {
        running: running.as_ref().map(|snapshot| snapshot.version().into()),
        hash: running.map(|snapshot| slice_hash(&snapshot.slice().into()).to_vec()).unwrap_or_default(),
        proxy_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let start = v1::WatchRequest { message: Some(v1::watch_request::Message::Start(start)) };
    requests.send(start).await.map_err(|_| gone())?;
    let receiving = receive(watching, client, &requests, receiver);
    tokio::select! {
        ended = receiving => ended,
        ended = tell_redirect(watching.redirect.clone(), &requests) => ended,
    }
}

/// Says what was found of the redirect, now and at each change.
async fn tell_redirect(
    mut redirect: tokio::sync::watch::Receiver<Redirect>,
    requests: &mpsc::Sender<v1::WatchRequest>,
) -> Result<(), tonic::Status> {
    loop {
        let found = v1::Redirect::from(*redirect.borrow_and_update());
        let message = v1::WatchRequest { message: Some(v1::watch_request::Message::Redirect(found)) };
        requests.send(message).await.map_err(|_| gone())?;
        if redirect.changed().await.is_err() {
            // It will not change any more; the stream goes on.
            return std::future::pending().await;
        }
    }
}

fn gone() -> tonic::Status {
    tonic::Status::unavailable("the watch has ended")
}

async fn receive(
    watching: &Watching,
    mut client: ControlPlaneClient<Channel>,
    requests: &mpsc::Sender<v1::WatchRequest>,
    receiver: mpsc::Receiver<v1::WatchRequest>,
) -> Result<(), tonic::Status> {
    let mut messages = client.watch(ReceiverStream::new(receiver)).await?.into_inner();
    let mut serial = 0;
    while let Some(message) = messages.message().await? {
        watching.up.send_replace(true);
        let refused = match message.message {
            Some(v1::watch_response::Message::Slice(update)) => put_in_force(watching, &update),
            Some(v1::watch_response::Message::Revocations(revocations)) => {
                serial = revocations.serial;
                watching.state.revoke(revocations.grants.into_iter().map(|id| GrantId(id.into())));
                Ok(())
            }
            Some(v1::watch_response::Message::Bundle(bundle)) => {
                if let Err(error) = watching.trust.learn(&bundle, &watching.directory) {
                    tracing::warn!("{error:#}");
                }
                continue;
            }
            Some(v1::watch_response::Message::LogLevel(level)) => {
                if let Err(error) = watching.log.set(&level.filter) {
                    tracing::warn!("{error:#}");
                }
                continue;
            }
            None => continue,
        };
        if let Err(reason) = &refused {
            tracing::error!(stage = "policy", "the control plane's policy is refused: {reason}");
            watching.trouble.send_replace(format!("the control plane's policy is refused: {reason}"));
        }
        let ack = v1::WatchAck {
            version: watching.state.snapshot().map(|snapshot| snapshot.version().into()),
            refused: refused.err().unwrap_or_default(),
            revocations: serial,
        };
        let ack = v1::WatchRequest { message: Some(v1::watch_request::Message::Ack(ack)) };
        requests.send(ack).await.map_err(|_| gone())?;
    }
    Ok(())
}

/// What can't be understood is refused as a whole, and what was in force stays: the control plane is told, and shows it.
fn put_in_force(watching: &Watching, update: &v1::SliceUpdate) -> Result<(), String> {
    let message = update.slice.as_ref().ok_or("the message has no slice")?;
    if slice_hash(message).as_slice() != update.hash {
        return Err("the slice is not the one that its hash names".to_owned());
    }
    let slice = Slice::try_from(message).map_err(|error| error.to_string())?;
    if slice.caller.id != watching.caller {
        return Err(format!("the slice is for {}, not for {}", slice.caller.id, watching.caller));
    }
    let version = slice.version;
    let snapshot = Snapshot::new(slice).map_err(|error| error.to_string())?;
    watching.state.set_snapshot(snapshot);
    watching.trouble.send_replace(String::new());
    tracing::info!(stage = "policy", %version, "policy in force");
    if let Err(error) = watching.directory.write(SLICE_FILE, &message.encode_to_vec()) {
        tracing::warn!(%error, "the policy could not be kept for a restart");
    }
    Ok(())
}
