//! Delivers audit events: at least once, in order, acknowledged.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use wire::v1;
use wire::v1::control_plane_client::ControlPlaneClient;

use crate::audit::Audit;

/// Events in one message: as many as the control plane takes.
const BATCH: usize = 1024;

/// After fewer than that, more are waited for: a message costs as much as the delivery of some hundred events. The first
/// event after a pause goes at once.
const PAUSE: Duration = Duration::from_millis(50);

/// Messages that may be under way without an acknowledgement.
const UNDER_WAY: usize = 4;

/// Delivers until the stream ends.
///
/// # Errors
/// Why it ended.
pub async fn run(audit: &Audit, mut client: ControlPlaneClient<Channel>) -> Result<(), tonic::Status> {
    let (requests, receiver) = mpsc::channel(UNDER_WAY);
    let sending = audit.clone();
    let pump = async move {
        // What was delivered but not acknowledged when the last stream ended is sent again; it is stored once.
        let mut sent = sending.before_first();
        loop {
            let run = sending.run_after(sent, BATCH).await;
            sent = run.first + run.records.len() as u64 - 1;
            let request = v1::ReportRequest {
                stream: sending.stream(),
                first: run.first,
                previous: run.previous.0.to_vec(),
                shapes: run.shapes,
                records: run.records,
                hash: run.hash.0.to_vec(),
            };
            if requests.send(request).await.is_err() {
                return;
            }
            if !run.full {
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    let receive = async {
        let mut acknowledgements = client.report(ReceiverStream::new(receiver)).await?.into_inner();
        let stream = audit.stream();
        while let Some(stored) = acknowledgements.message().await? {
            if stored.stream == stream {
                audit.acknowledge(stored.stored);
            }
        }
        Ok(())
    };
    tokio::select! {
        () = pump => Ok(()),
        ended = receive => ended,
    }
}
