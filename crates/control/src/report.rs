//! Report: audit records, stored once, acknowledged.

use std::collections::HashSet;
use std::sync::Arc;

use model::audit::Record;
use model::{Code, Failure};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use wire::v1;

use crate::server::PeerCertificate;
use crate::store::{Binding, Store, StoreError};
use crate::{now, store_failure};

/// Records in one message.
const BATCH_MAX: usize = 1024;

/// Takes a proxy's records until it leaves or its certificate ends.
pub async fn serve(
    store: Arc<dyn Store>,
    certificate: PeerCertificate,
    binding: Binding,
    mut requests: Streaming<v1::ReportRequest>,
    answers: mpsc::Sender<Result<v1::ReportResponse, Status>>,
) {
    let mut bound = HashSet::new();
    while let Ok(Some(request)) = requests.message().await {
        let stored = if certificate.not_after <= now() {
            Err(Failure::new(Code::SessionEnded, "the certificate of this channel has ended"))
        } else {
            take(&*store, &binding, request, &mut bound).await
        };
        match stored {
            Ok(heads) => {
                for (stream, stored) in heads {
                    if answers.send(Ok(v1::ReportResponse { stream, stored })).await.is_err() {
                        return;
                    }
                }
            }
            Err(failure) => {
                tracing::error!(stage = "audit", caller = %binding.caller.id, code = %failure.code, "{failure}");
                let _ = answers.send(Err(wire::status::from_failure(&failure))).await;
                return;
            }
        }
    }
}

async fn take(
    store: &dyn Store,
    binding: &Binding,
    request: v1::ReportRequest,
    bound: &mut HashSet<String>,
) -> Result<Vec<(String, u64)>, Failure> {
    let malformed = |what: &str| Failure::new(Code::ChainBroken, format!("the report's {what} is not one"));
    if request.records.len() > BATCH_MAX {
        return Err(malformed("size"));
    }
    if !bound.contains(&request.stream) {
        let stream = &request.stream;
        if !is_proxy_stream(stream) {
            return Err(malformed("stream"));
        }
        let ours = store
            .bind_stream(stream, &binding.caller.id, &binding.instance, now())
            .await
            .map_err(store_failure)?;
        if !ours {
            let detail = format!("stream {stream} belongs to another caller or instance");
            return Err(Failure::new(Code::WrongCaller, detail));
        }
        bound.insert(stream.clone());
    }
    let records = Vec::<Record>::try_from(request).map_err(|invalid| malformed(invalid.0))?;
    store.append_records(&records, now()).await.map_err(|error| match error {
        StoreError::Chain { .. } => Failure::new(Code::ChainBroken, error.to_string()),
        error => store_failure(error),
    })
}

/// `proxy/` and 32 hexadecimal digits.
fn is_proxy_stream(name: &str) -> bool {
    name.strip_prefix("proxy/").is_some_and(|id| {
        id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}
