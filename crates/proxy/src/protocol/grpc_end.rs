//! How a call of gRPC ends that is cut after its answer has begun: by a status in trailers, which its user reads, where a
//! reset of the stream would say "cancelled" and nothing else.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use model::DecisionId;
use protocols::answer::{Said, grpc_trailers};

use super::Body;
use super::body::{BodyError, WatchedBody};
use crate::exchange::{Open, why_stopped};

/// An answer's body, with a status of ours in the place of a cut.
pub struct GrpcEnd {
    body: Body,
    open: Rc<Open>,
    decision: DecisionId,
    ended: bool,
}

impl GrpcEnd {
    /// Wraps a guarded body.
    pub fn of(body: Body, open: Rc<Open>, decision: DecisionId) -> Body {
        Body::Watched(Box::new(Self { body, open, decision, ended: false }))
    }
}

impl WatchedBody for GrpcEnd {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let Poll::Ready(Some(Err(BodyError::Cut))) = polled else { return polled };
        let Some(code) = self.open.cut_by() else { return polled };
        self.ended = true;
        let said = Said { code, detail: why_stopped(code), decision: self.decision, nearest: &[] };
        Poll::Ready(Some(Ok(Frame::trailers(grpc_trailers(&said)))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }

    fn is_cut(&self) -> bool {
        self.body.is_cut()
    }
}
