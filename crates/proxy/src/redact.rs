//! Takes the credential of a call out of its answer, for destinations that ask for it (`redact: true`).
//!
//! A service that sends back what it was sent would give the application what it must not hold. Header, trailers and
//! body are searched as they stream by; so that there is something to search, the service is asked for an answer that is
//! not compressed and is whole, and one that is compressed all the same is refused.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper::ext::ReasonPhrase;
use model::{Code, Destination, Failure, Secret};
use protocols::redact::{Redactor, redacted};

use crate::credential::Grant;
use crate::protocol::Body;
use crate::protocol::body::{BodyError, WatchedBody};

const IDENTITY: HeaderValue = HeaderValue::from_static("identity");
const GRPC_ACCEPTS: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// What is to be taken out of an answer.
pub struct Redaction(Secret);

/// Asks for an answer in which a credential can be found: not compressed (RFC 9110 §12.5.3), and not in parts, of which
/// each might hold half of it (§14.2: a server may always answer with the whole).
pub fn ask(destination: &Destination, headers: &mut HeaderMap) {
    if !destination.redact {
        return;
    }
    headers.insert(header::ACCEPT_ENCODING, IDENTITY);
    if headers.contains_key(GRPC_ACCEPTS) {
        headers.insert(GRPC_ACCEPTS, IDENTITY);
    }
    headers.remove(header::RANGE);
    headers.remove(header::IF_RANGE);
}

impl Redaction {
    /// For a call to this destination with this credential; `None` if nothing is to be taken out.
    pub fn of(destination: &Destination, grant: Option<&Grant>) -> Option<Self> {
        destination.redact.then(|| grant.map(|grant| Self(grant.token())))?
    }

    /// The answer without the credential.
    ///
    /// # Errors
    /// [`Code::EncodedAnswer`] if it can't be searched.
    pub fn answer(self, response: Response<Body>) -> Result<Response<Body>, Failure> {
        let (mut parts, body) = response.into_parts();
        if let Some(coding) = coding(&parts.headers) {
            let detail = format!("the answer is encoded with {coding}, although it was asked for as it is");
            return Err(Failure::new(Code::EncodedAnswer, detail));
        }
        self.mask(&mut parts.headers);
        let reason = parts.extensions.get::<ReasonPhrase>();
        if reason.is_some_and(|reason| redacted(reason.as_bytes(), &self.0) != reason.as_bytes()) {
            parts.extensions.remove::<ReasonPhrase>();
        }
        let body = match (body, Redactor::new(self.0.clone())) {
            (Body::Empty, _) => Body::Empty,
            (body, None) => body,
            (body, Some(redactor)) => {
                Body::Watched(Box::new(Redacted { body, redactor, redaction: self, trailers: None }))
            }
        };
        Ok(Response::from_parts(parts, body))
    }

    fn mask(&self, headers: &mut HeaderMap) {
        for value in headers.values_mut() {
            if let std::borrow::Cow::Owned(masked) = redacted(value.as_bytes(), &self.0)
                && let Ok(masked) = HeaderValue::from_bytes(&masked)
            {
                *value = masked;
            }
        }
    }
}

/// The first coding of an answer that is not `identity`, as it is named.
fn coding(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(header::CONTENT_ENCODING).iter().chain(headers.get_all(GRPC_ENCODING));
    values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
        .map(|coding| String::from_utf8_lossy(coding).into_owned())
}

struct Redacted {
    body: Body,
    redactor: Redactor,
    redaction: Redaction,
    /// They wait for what was kept back.
    trailers: Option<HeaderMap>,
}

impl Redacted {
    fn rest(&mut self) -> Option<Bytes> {
        let mut rest = Vec::new();
        self.redactor.finish(&mut rest);
        (!rest.is_empty()).then(|| rest.into())
    }
}

impl WatchedBody for Redacted {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(self.rest().map(|rest| Ok(Frame::data(rest)))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) => {
                    let mut out = Vec::new();
                    self.redactor.push(&data, &mut out);
                    if self.body.is_end_stream() {
                        self.redactor.finish(&mut out);
                    }
                    // Nothing is to be sent of a chunk that is kept back as a whole.
                    if !out.is_empty() || data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out.into()))));
                    }
                }
                Err(frame) => {
                    let Ok(mut trailers) = frame.into_trailers() else { continue };
                    self.redaction.mask(&mut trailers);
                    if let Some(rest) = self.rest() {
                        self.trailers = Some(trailers);
                        return Poll::Ready(Some(Ok(Frame::data(rest))));
                    }
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.trailers.is_none() && !self.redactor.is_holding() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.size_hint();
        match hint.exact() {
            Some(exact) => SizeHint::with_exact(exact + self.redactor.held() as u64),
            None => SizeHint::default(),
        }
    }

    fn is_cut(&self) -> bool {
        self.body.is_cut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(pair).collect()
    }

    #[test]
    fn what_can_t_be_searched_is_refused() {
        assert_eq!(coding(&headers(&[("content-encoding", "gzip")])).as_deref(), Some("gzip"));
        assert_eq!(coding(&headers(&[("content-encoding", "identity, br")])).as_deref(), Some("br"));
        assert_eq!(coding(&headers(&[("grpc-encoding", "gzip")])).as_deref(), Some("gzip"));
        assert_eq!(
            coding(&headers(&[("content-encoding", "Identity"), ("grpc-encoding", "identity")])),
            None
        );
    }

    #[test]
    fn every_field_is_masked_and_no_other_byte_changes() {
        let redaction = Redaction(Secret::new(&b"eyJtoken"[..]));
        let mut fields = headers(&[("x-echo", "Bearer eyJtoken!"), ("etag", "eyJtok")]);
        redaction.mask(&mut fields);
        assert_eq!(fields, headers(&[("x-echo", "Bearer ********!"), ("etag", "eyJtok")]));
    }
}
