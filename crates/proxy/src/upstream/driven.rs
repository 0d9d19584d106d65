//! A connection of HTTP/1 to an upstream that moves while whoever uses it is polled: it has no task of its own, so that
//! a request and its answer wake nobody on their way.
//!
//! hyper gives a connection in two halves, one that is asked and one that does the work and is meant for a task. Here
//! the asker does the work. Only where the two must go their own ways, an upload that is not over when its answer
//! begins, the connection gets a task after all, and keeps it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use model::Failure;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::checked::{Checked, Heads};
use super::failure::http1_failure;
use crate::protocol::Body;

/// A connection, with who asks for it to be polled.
pub struct Driven {
    /// `None` only while it is dropped.
    sender: Option<SendRequest<Body>>,
    heads: Heads,
    /// What does the work; `None` once it has a task, or has ended.
    work: Option<Pin<Box<dyn Future<Output = hyper::Result<()>>>>>,
    nudge: Arc<Nudge>,
    waker: Waker,
}

/// Wakes whoever uses the connection at the moment, if somebody waits.
#[derive(Default)]
struct Nudge {
    user: AtomicWaker,
    nudged: AtomicBool,
    /// There is nothing to read before the next nudge.
    dry: AtomicBool,
    /// The connection has a task.
    own_task: AtomicBool,
}

impl Wake for Nudge {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.dry.store(false, Ordering::Relaxed);
        self.nudged.store(true, Ordering::Relaxed);
        self.user.wake();
    }
}

/// The connection's bytes. hyper asks for them several times in one turn; only the first time is worth an answer.
struct Sparing<T> {
    inner: T,
    nudge: Arc<Nudge>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Sparing<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.nudge.dry.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        // Before it is asked, which may nudge at once.
        self.nudge.dry.store(!self.nudge.own_task.load(Ordering::Relaxed), Ordering::Relaxed);
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_ready() {
            self.nudge.dry.store(false, Ordering::Relaxed);
        }
        polled
    }
}

crate::delegate::delegate_writes!(Sparing);

impl Driven {
    /// Begins HTTP/1.1 on a new connection.
    ///
    /// # Errors
    /// What hyper says.
    pub async fn start(io: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<Self, Failure> {
        let (io, heads) = Checked::new(io);
        let nudge = Arc::new(Nudge::default());
        let waker = Waker::from(nudge.clone());
        let io = TokioIo::new(Sparing { inner: io, nudge: nudge.clone() });
        let (sender, connection) =
            Builder::new().preserve_header_case(true).handshake(io).await.map_err(http1_failure)?;
        let mut driven = Self { sender: Some(sender), heads, work: Some(Box::pin(connection)), nudge, waker };
        driven.work();
        Ok(driven)
    }

    /// Sends a request and brings the head of its answer.
    ///
    /// # Errors
    /// What hyper says; with the request, if nothing of it went out.
    pub async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        self.heads.expect();
        let sender = self.sender.as_mut().expect("it is there until it is dropped");
        let mut answer = std::pin::pin!(sender.try_send_request(request));
        std::future::poll_fn(|cx| self.poll_with(cx, |cx| answer.as_mut().poll(cx))).await
    }

    /// Polls what comes of the connection, once that has done what it can.
    pub fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut coming: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if self.work.is_none() {
            return coming(cx);
        }
        // What the work and what comes of it tell each other needs no waking: both are polled here.
        drop(self.nudge.user.take());
        self.nudge.nudged.store(false, Ordering::Relaxed);
        self.work();
        if let Poll::Ready(come) = coming(&mut Context::from_waker(Waker::noop())) {
            return Poll::Ready(come);
        }
        self.nudge.user.register(cx.waker());
        if self.nudge.nudged.load(Ordering::Relaxed) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Does what can be done now; to be called now and then for a connection that nobody uses, so that its end is seen.
    pub fn work(&mut self) {
        if let Some(work) = &mut self.work
            && let Poll::Ready(ended) = work.as_mut().poll(&mut Context::from_waker(&self.waker))
        {
            note(ended);
            self.work = None;
        }
    }

    /// Gives it a task, so that it moves whether it is polled or not.
    pub fn detach(&mut self) {
        if let Some(work) = self.work.take() {
            // It is no longer nudged, but woken as every task is.
            self.nudge.own_task.store(true, Ordering::Relaxed);
            self.nudge.dry.store(false, Ordering::Relaxed);
            tokio::task::spawn_local(async move { note(work.await) });
        }
    }

    /// Whether it can take a request.
    pub fn is_ready(&self) -> bool {
        self.sender.as_ref().is_some_and(SendRequest::is_ready)
    }

    /// Whether it was found to have ended.
    pub fn is_closed(&self) -> bool {
        self.sender.as_ref().is_none_or(SendRequest::is_closed)
    }

    /// Who has looked at its answers.
    pub const fn heads(&self) -> &Heads {
        &self.heads
    }
}

impl Drop for Driven {
    /// hyper ends a connection in order once nobody can ask for anything any more.
    fn drop(&mut self) {
        drop(self.sender.take());
        drop(self.nudge.user.take());
        self.work();
    }
}

fn note(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "upstream connection ended");
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    async fn connected() -> (Driven, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1024);
        (Driven::start(ours).await.unwrap(), theirs)
    }

    fn request() -> Request<Body> {
        Request::builder().uri("/").header("host", "a").body(Body::Empty).unwrap()
    }

    async fn answer(server: &mut DuplexStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(server.read_u8().await.unwrap());
        }
        server.write_all(ANSWER).await.unwrap();
    }

    /// Outside of a set of local tasks, where nothing could be given one.
    #[tokio::test(flavor = "current_thread")]
    async fn a_request_and_its_answer_need_no_task() {
        let (mut driven, mut server) = connected().await;
        for _ in 0..3 {
            let (sent, ()) = tokio::join!(driven.send(request()), answer(&mut server));
            let mut body = Body::from_http1(sent.ok().expect("an answer").into_body());
            let next = std::future::poll_fn(|cx| {
                driven.poll_with(cx, |cx| Pin::new(&mut body).poll_frame(cx).map(|frame| frame.unwrap()))
            });
            assert_eq!(next.await.unwrap().into_data().unwrap(), "ok");
            assert!(body.is_end_stream() && driven.is_ready());
        }
        drop(server);
        assert!(!driven.is_closed(), "nobody has looked");
        driven.work();
        assert!(driven.is_closed());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_that_nobody_wants_any_more_ends() {
        let (driven, mut server) = connected().await;
        drop(driven);
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        let (mut driven, mut server) = connected().await;
        {
            let mut sending = std::pin::pin!(driven.send(request()));
            let polled = std::future::poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx).is_pending()));
            assert!(polled.await, "it waits for its answer");
        }
        drop(driven);
        let mut sent = Vec::new();
        server.read_to_end(&mut sent).await.unwrap();
        assert!(sent.starts_with(b"GET / HTTP/1.1\r\n"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn with_a_task_it_moves_by_itself() {
        let moving = async {
            let (mut driven, mut server) = connected().await;
            driven.detach();
            let (sent, ()) = tokio::join!(driven.send(request()), answer(&mut server));
            assert!(sent.is_ok());
            drop(server);
            while !driven.is_closed() {
                tokio::task::yield_now().await;
            }
        };
        tokio::task::LocalSet::new().run_until(moving).await;
    }
}
