//! Which fields after a body go on (RFC 9110 §6.5).
//!
//! None that belongs in a header or to one hop, and none that we own, towards either version. A peer of HTTP/1 gets
//! those alone that `Trailer` announced, as it may be unable to take others. What does not go on is counted.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, TE, TRAILER};
use http_body::{Body as _, Frame, SizeHint};
use prometheus::IntCounter;
use protocols::edit::Edit;

use super::Body;
use super::body::{BodyError, WatchedBody};

/// A body without the fields that don't belong after it, and without those that we own: by the edit, and the
/// credential's.
pub fn clean(body: Body, owned: Option<(&Edit, Option<&HeaderName>)>, dropped: &IntCounter) -> Body {
    filtered(body, dropped, || Rule::Clean(owned.map(|(edit, also)| (edit.clone(), also.cloned()))))
}

/// A body on its way to a peer of HTTP/1, behind this header. `may_have` says whether the peer takes trailers at all.
pub fn to_http1(body: Body, headers: &HeaderMap, may_have: bool, dropped: &IntCounter) -> Body {
    filtered(body, dropped, || {
        // Only what is chunked has a place for them (RFC 9112 §7.1.2).
        let possible = may_have && !headers.contains_key(CONTENT_LENGTH);
        Rule::Announced(if possible { announced(headers) } else { Vec::new() })
    })
}

/// Whether a peer of HTTP/1 has said that it takes trailers (RFC 9110 §10.1.4).
pub fn are_taken(headers: &HeaderMap) -> bool {
    let tokens = headers.get_all(TE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    tokens.map(<[u8]>::trim_ascii).any(|token| token.eq_ignore_ascii_case(b"trailers"))
}

fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(TRAILER).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    values.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect()
}

fn filtered(body: Body, dropped: &IntCounter, rule: impl FnOnce() -> Rule) -> Body {
    // What has a length has no trailers.
    if body.is_end_stream() || body.size_hint().exact().is_some() {
        return body;
    }
    Body::Watched(Box::new(Filtered { body, rule: rule(), dropped: dropped.clone() }))
}

enum Rule {
    Clean(Option<(Edit, Option<HeaderName>)>),
    Announced(Vec<HeaderName>),
}

impl Rule {
    fn apply(&self, trailers: &mut HeaderMap) {
        match self {
            Self::Clean(owned) => {
                protocols::http::clean_trailers(trailers);
                if let Some((edit, also)) = owned {
                    let _ = edit.apply_to_trailers(trailers, also.as_ref());
                }
            }
            Self::Announced(names) => {
                let unknown: Vec<_> = trailers.keys().filter(|name| !names.contains(name)).cloned().collect();
                for name in unknown {
                    trailers.remove(name);
                }
            }
        }
    }
}

struct Filtered {
    body: Body,
    rule: Rule,
    dropped: IntCounter,
}

impl WatchedBody for Filtered {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) if frame.is_trailers() => frame,
            other => return Poll::Ready(other),
        };
        let Ok(mut trailers) = frame.into_trailers() else { return Poll::Ready(None) };
        let before = trailers.len();
        self.rule.apply(&mut trailers);
        self.dropped.inc_by((before - trailers.len()) as u64);
        Poll::Ready((!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_cut(&self) -> bool {
        self.body.is_cut()
    }
}
