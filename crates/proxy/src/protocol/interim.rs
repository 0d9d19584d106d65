//! What the two sides of one exchange tell each other beside the message: interim answers (1xx) on their way from the
//! upstream to the application, the body that waits for one of them, and the code with which either gave up.
//!
//! RFC 9110 §15.2: a proxy forwards interim answers. Neither of our HTTP libraries does that by itself: hyper tells of
//! them on the upstream's side only, and says `100 Continue` to the application whenever a body is first asked for.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};

use super::Body;
use super::body::{BodyError, WatchedBody};

/// How long a body waits for the upstream's `100 Continue` (RFC 9110 §10.1.1: not for ever; servers may ignore it).
/// Common clients wait one second.
const PATIENCE: Duration = Duration::from_secs(1);

/// Interim answers that are kept for an application that does not read.
const QUEUE_MAX: usize = 16;

/// Of one exchange; shared by its two sides.
#[derive(Clone, Default)]
pub struct Interim(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<VecDeque<Response<()>>>,
    application: AtomicWaker,
    gate: AtomicU8,
    muted: AtomicBool,
    body: AtomicWaker,
    cancelled: AtomicU64,
    given_up: AtomicU64,
}

/// Nobody has said that the body is wanted.
const SHUT: u8 = 0;
/// The upstream has said so.
const CONTINUED: u8 = 1;
/// Nobody has, but the body is sent all the same; the application is not told `100`.
const SILENT: u8 = 2;

/// Beside the code: that there is one.
const CANCELLED: u64 = 1 << 32;

impl Interim {
    /// Relays nothing from now on but the bare `100`: what else an upstream says is not searched.
    pub fn mute(&self) {
        self.0.muted.store(true, Ordering::Relaxed);
    }

    /// An interim answer has come from the upstream.
    pub fn push(&self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::CONTINUE {
            self.open(CONTINUED);
        }
        let muted = self.0.muted.load(Ordering::Relaxed);
        if muted && status != StatusCode::CONTINUE {
            return;
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        if !muted {
            response.headers_mut().clone_from(headers);
        }
        protocols::http::strip_hop_by_hop(response.headers_mut());
        response.headers_mut().remove(http::header::ALT_SVC);
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() < QUEUE_MAX {
            queue.push_back(response);
        }
        drop(queue);
        self.0.application.wake();
    }

    /// The application has reset its stream with this code.
    pub fn cancel(&self, reason: h2::Reason) {
        self.0.cancelled.store(CANCELLED | u64::from(u32::from(reason)), Ordering::Release);
    }

    /// The code with which the application has reset its stream, if it has.
    pub fn cancelled(&self) -> Option<h2::Reason> {
        let cancelled = self.0.cancelled.load(Ordering::Acquire);
        (cancelled & CANCELLED != 0).then(|| h2::Reason::from(cancelled as u32))
    }

    /// The upstream has reset its stream with this code before its answer, and that is what the application is to see.
    pub fn give_up(&self, reason: h2::Reason) {
        self.0.given_up.store(CANCELLED | u64::from(u32::from(reason)), Ordering::Release);
    }

    /// The code of that, if so.
    pub fn given_up(&self) -> Option<h2::Reason> {
        let given_up = self.0.given_up.load(Ordering::Acquire);
        (given_up & CANCELLED != 0).then(|| h2::Reason::from(given_up as u32))
    }

    /// The next one for the application; else wakes whoever polls when there is one.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Response<()>> {
        self.0.application.register(cx.waker());
        match self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
            Some(response) => Poll::Ready(response),
            None => Poll::Pending,
        }
    }

    /// Whether the body goes on although the upstream never said `100`.
    pub fn is_silent(&self) -> bool {
        self.0.gate.load(Ordering::Acquire) == SILENT
    }

    fn open(&self, how: u8) {
        // The first opening counts.
        let _ = self.0.gate.compare_exchange(SHUT, how, Ordering::AcqRel, Ordering::Acquire);
        self.0.body.wake();
    }

    /// A body that is not asked for before the upstream wants it.
    pub fn guard(&self, body: Body) -> Body {
        if matches!(body, Body::Empty) {
            return body;
        }
        let patience = Box::pin(tokio::time::sleep(PATIENCE));
        Body::Watched(Box::new(Expecting { body, interim: self.clone(), patience }))
    }
}

struct Expecting {
    body: Body,
    interim: Interim,
    patience: Pin<Box<tokio::time::Sleep>>,
}

impl WatchedBody for Expecting {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let shared = &self.interim.0;
        if shared.gate.load(Ordering::Acquire) == SHUT {
            shared.body.register(cx.waker());
            if self.patience.as_mut().poll(cx).is_ready() {
                self.interim.open(SILENT);
            } else if shared.gate.load(Ordering::Acquire) == SHUT {
                return Poll::Pending;
            }
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An interim answer as bytes of HTTP/1.1.
pub fn as_http1(response: &Response<()>) -> Vec<u8> {
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}
