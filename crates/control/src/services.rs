//! The four calls of a proxy as gRPC: who asks is found out here, what is answered in the modules of their names.

use std::sync::Arc;

use model::{Code, Failure};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::v1;
use wire::v1::control_plane_server::ControlPlane;

use crate::attendance::Attendance;
use crate::attest::Attestor;
use crate::issue::Issuing;
use crate::metrics::Metrics;
use crate::server::{self, Peer, PeerCertificate};
use crate::store::{Binding, Store};
use crate::watch::Watcher;
use crate::{now, report, store_failure};

/// Messages that wait for a slow proxy.
const QUEUE: usize = 16;

/// The control plane as proxies see it.
pub struct ProxyServices {
    /// Whose key is whose.
    pub store: Arc<dyn Store>,
    /// Who is still there.
    pub attendance: Arc<Attendance>,
    /// Attest.
    pub attestor: Arc<Attestor>,
    /// Watch.
    pub watcher: Arc<Watcher>,
    /// Issue.
    pub issuing: Arc<Issuing>,
    /// What is counted.
    pub metrics: Metrics,
}

impl ProxyServices {
    /// Who asks: the certificate, and the instance whose current key it is.
    async fn session<T>(&self, request: &Request<T>) -> Result<(PeerCertificate, Binding), Status> {
        let refuse = |failure: Failure| wire::status::from_failure(&failure);
        let certificate = server::authenticated(request, now()).map_err(refuse)?;
        let binding = self.store.binding(&certificate.key).await.map_err(|e| refuse(store_failure(e)))?;
        let binding = binding.filter(|binding| binding.caller.id == certificate.caller).ok_or_else(|| {
            refuse(Failure::new(Code::SessionEnded, "a newer session of this instance has replaced this one"))
        })?;
        Ok((certificate, binding))
    }

    /// The same, where the workload must still be there: what is gone may report what it did, and nothing else.
    async fn present<T>(&self, request: &Request<T>) -> Result<(PeerCertificate, Binding), Status> {
        let (certificate, binding) = self.session(request).await?;
        self.attendance.check(&binding).await.map_err(|failure| wire::status::from_failure(&failure))?;
        Ok((certificate, binding))
    }
}

type Answers<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl ControlPlane for ProxyServices {
    type AttestStream = Answers<v1::AttestResponse>;
    type WatchStream = Answers<v1::WatchResponse>;
    type ReportStream = Answers<v1::ReportResponse>;

    async fn attest(
        &self,
        request: Request<Streaming<v1::AttestRequest>>,
    ) -> Result<Response<Self::AttestStream>, Status> {
        let peer =
            request.extensions().get::<Peer>().map(|peer| peer.address.to_string()).unwrap_or_default();
        let (answers, receiver) = tokio::sync::mpsc::channel(QUEUE);
        let attestor = self.attestor.clone();
        tokio::spawn(async move { attestor.attest(request.into_inner(), answers, peer).await });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn watch(
        &self,
        request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (certificate, binding) = self.present(&request).await?;
        let (answers, receiver) = tokio::sync::mpsc::channel(QUEUE);
        tokio::spawn(self.watcher.clone().serve(certificate, binding, request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn issue(&self, request: Request<v1::IssueRequest>) -> Result<Response<v1::IssueResponse>, Status> {
        let (certificate, binding) = self.present(&request).await?;
        let issued = self.issuing.issue(&certificate, &binding, request.into_inner()).await;
        self.metrics.issued(issued.as_ref().err());
        match issued {
            Ok(response) => Ok(Response::new(response)),
            Err(failure) => {
                tracing::info!(
                    stage = "credential", code = %failure.code, caller = %certificate.caller, cause = ?failure.cause,
                    "{failure}"
                );
                Err(wire::status::from_failure(&failure))
            }
        }
    }

    async fn report(
        &self,
        request: Request<Streaming<v1::ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let (certificate, binding) = self.session(&request).await?;
        let (answers, receiver) = tokio::sync::mpsc::channel(QUEUE);
        tokio::spawn(report::serve(self.store.clone(), certificate, binding, request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
