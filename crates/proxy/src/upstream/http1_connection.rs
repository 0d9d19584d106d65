//! One connection of HTTP/1.1 to an upstream, which is asked one thing at a time.
//!
//! It has no task of its own: it moves while whoever uses it is polled, so that a request and its answer wake nobody on
//! their way. Only where the two must go their own ways, an upload that is not over when its answer begins, the upload
//! gets a task.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use hyper::ext::ReasonPhrase;
use model::Failure;
use protocols::http1::body::Reader;
use protocols::http1::head::{self, AnswerHead, Bounds, Scan};
use protocols::http1::write::{self, Framing};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

use super::failure::{bad_answer, broken_off};
use crate::protocol::body::{BodyError, WatchedBody};
use crate::protocol::incoming::Inward;
use crate::protocol::interim::{Interim, Sent};
use crate::protocol::wire::{Handle, Outgoing, Stopped, Wire};
use crate::protocol::{Body, Message, trailers, tunnel};

/// How large the head of an answer may be.
const BOUNDS: Bounds = Bounds { bytes: 128 << 10, fields: 256 };

/// How long a server may take to hear that an upload has broken off.
const LINGER: Duration = Duration::from_secs(2);

/// What a connection to an upstream is made of.
pub trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// A connection on which nothing is being asked.
pub struct Http1Connection(Rc<Link>);

struct Link {
    wire: Rc<Wire<Box<dyn Io>>>,
    answer: Inward,
    /// Whether it has rested before, or carried a request: then the server may have ended it meanwhile.
    used: Cell<bool>,
    /// Whether writing to it has failed.
    broken: Cell<bool>,
    /// The upload that goes on beside the answer.
    upload: RefCell<Option<AbortHandle>>,
    /// Where the connection goes once both are over; `None` if it ends.
    goes_to: RefCell<Option<Rc<dyn Home>>>,
}

/// Where connections rest.
pub trait Home {
    /// Takes a connection back, after its answer has been read to the end.
    fn put_http1(&self, connection: Http1Connection);
}

impl Drop for Link {
    /// Ends it in order, as far as that can be done without waiting; unless it goes on as a tunnel.
    fn drop(&mut self) {
        if Rc::strong_count(&self.wire) > 1 {
            return;
        }
        let _ = self.wire.poll_shutdown(&mut Context::from_waker(Waker::noop()));
    }
}

/// Why there is no answer.
pub struct NotAnswered {
    /// What to tell the application.
    pub failure: Failure,
    /// The request, if nothing of it went out.
    pub unsent: Option<Box<Message>>,
}

impl From<Failure> for NotAnswered {
    fn from(failure: Failure) -> Self {
        Self { failure, unsent: None }
    }
}

impl Http1Connection {
    /// HTTP/1.1 on a new connection.
    pub fn new(io: impl Io + 'static) -> Self {
        Self(Rc::new(Link {
            wire: Rc::new(Wire::new(Box::new(io))),
            answer: Inward::default(),
            used: Cell::new(false),
            broken: Cell::new(false),
            upload: RefCell::default(),
            goes_to: RefCell::default(),
        }))
    }

    /// It rests from now on.
    pub fn rests(&self) {
        self.0.used.set(true);
    }

    /// Whether the upstream has ended it, or has said something that nobody asked for; to be looked at between requests.
    pub fn is_closed(&self) -> bool {
        self.0.poll_over(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Sends a request and brings its answer. The connection goes back `home` once the answer has been read to its
    /// end, if it can be used again.
    ///
    /// # Errors
    /// If there is no answer that can be used; with the request, if nothing of it went out.
    pub async fn send(
        self,
        request: Box<Message>,
        interim: &Interim,
        dropped: &prometheus::IntCounter,
        home: Option<Rc<dyn Home>>,
    ) -> Result<Response<Body>, NotAnswered> {
        let (head, method, upload) = self.ask(request, interim, dropped).await?;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(bad_answer("the upstream switches protocols, which nobody has asked for").into());
        }
        Ok(self.0.answered(head, &method, upload, interim, home))
    }

    /// Sends a request that asks for a tunnel, and has no body. The connection goes back `home` if there is none.
    ///
    /// # Errors
    /// If there is no answer that can be used.
    pub async fn switch(
        self,
        request: Box<Message>,
        interim: &Interim,
        dropped: &prometheus::IntCounter,
        home: Option<Rc<dyn Home>>,
    ) -> Result<Switched, NotAnswered> {
        let (head, method, _) = self.ask(request, interim, dropped).await?;
        if !tunnel::is_agreed(method == Method::CONNECT, head.status) {
            return Ok(Switched::No(self.0.answered(head, &method, None, interim, home)));
        }
        let first = self.0.wire.with_unread(bytes::BytesMut::split).freeze();
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.fields.headers;
        interim.answered(head.fields.spelling);
        Ok(Switched::Yes(response, first, Handle(self.0.wire.clone())))
    }

    /// Writes a request and reads the head of its answer; with what of the request is still to be written.
    async fn ask(
        &self,
        mut request: Box<Message>,
        interim: &Interim,
        dropped: &prometheus::IntCounter,
    ) -> Result<(AnswerHead, Method, Option<Outgoing>), NotAnswered> {
        let link = &self.0;
        if link.used.replace(true) && poll_fn(|cx| Poll::Ready(link.poll_over(cx).is_ready())).await {
            let failure = bad_answer("the upstream closed the connection before the request");
            return Err(NotAnswered { failure, unsent: Some(request) });
        }
        let body = request.take_body();
        let parts = &request.parts;
        let framing = framing_of(parts, &body);
        let body = trailers::to_http1(body, &parts.headers, true, dropped);
        link.wire.put_head(|out| {
            interim.with_asked(|spelling| {
                write::request(out, (&parts.method, &parts.uri), &parts.headers, spelling, framing);
            });
        });
        let method = parts.method.clone();
        interim.sent(Sent::Whole(request));
        let mut upload = Some(Outgoing::new(body, framing));
        let head = link.exchange(&mut upload, interim).await?;
        Ok((head, method, upload))
    }
}

/// What came of asking for a tunnel.
pub enum Switched {
    /// It was refused in an ordinary way.
    No(Response<Body>),
    /// The server has agreed: the head of its answer, what was read behind that, and the connection.
    Yes(Response<()>, Bytes, Handle<Box<dyn Io>>),
}

/// A request's framing, by what it says itself where it does. A body that may come has a length of 0 rather than none
/// (RFC 9110 §8.6).
fn framing_of(parts: &http::request::Parts, body: &Body) -> Framing {
    let said = write::said_length(&parts.headers);
    match body.size_hint().exact().or(said) {
        Some(0) if said.is_none() && !may_have_body(&parts.method) => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    }
}

fn may_have_body(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}

impl Link {
    /// Ready once it is of no use any more, between requests.
    fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.wire.with_unread(|unread| !unread.is_empty()) {
            return Poll::Ready(());
        }
        self.wire.poll_read_some(cx).map(|_| ())
    }

    /// Writes the request and reads the head of its answer, both at once; `upload` is taken when it is over.
    async fn exchange(
        &self,
        upload: &mut Option<Outgoing>,
        interim: &Interim,
    ) -> Result<AnswerHead, Failure> {
        let mut scan = Scan::default();
        // How writing failed: what the server has said before that counts more.
        let mut failed = None;
        poll_fn(|cx| {
            if let Some(outgoing) = upload
                && let Poll::Ready(written) = outgoing.poll(&self.wire, cx)
            {
                *upload = None;
                match written {
                    Ok(()) => {}
                    Err(Stopped::Sink(error)) => {
                        self.broken.set(true);
                        failed = Some(error);
                    }
                    Err(Stopped::Source(_) | Stopped::Length(_)) => {
                        return Poll::Ready(Err(bad_answer("the request's body broke off")));
                    }
                }
            }
            loop {
                match self.next_head(&mut scan) {
                    Ok(None) => {}
                    Ok(Some(head)) if is_interim(head.status) => {
                        interim.push(head.status, &head.fields.headers);
                        scan = Scan::default();
                        continue;
                    }
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Err(failure) => return Poll::Ready(Err(failure)),
                }
                match ready!(self.wire.poll_read_some(cx)) {
                    Ok(1..) => {}
                    Ok(_) => return Poll::Ready(Err(broken_off(failed.take()))),
                    Err(error) => return Poll::Ready(Err(broken_off(Some(error)))),
                }
            }
        })
        .await
    }

    fn next_head(&self, scan: &mut Scan) -> Result<Option<AnswerHead>, Failure> {
        let unusable = |fault: &dyn std::fmt::Display| bad_answer(&format!("the upstream's answer: {fault}"));
        self.wire.with_unread(|unread| {
            let Some(end) = scan.end(unread, BOUNDS).map_err(|fault| unusable(&fault))? else {
                return Ok(None);
            };
            head::answer(&unread.split_to(end).freeze(), scan.fields())
                .map(Some)
                .map_err(|fault| unusable(&fault))
        })
    }

    /// What follows the head of an answer (RFC 9112 §6.3).
    fn answered(
        self: Rc<Self>,
        head: AnswerHead,
        method: &Method,
        upload: Option<Outgoing>,
        interim: &Interim,
        home: Option<Rc<dyn Home>>,
    ) -> Response<Body> {
        let AnswerHead { status, reason, fields } = head;
        interim.answered(fields.spelling);
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = status;
        *response.headers_mut() = fields.headers;
        if status.canonical_reason().is_none_or(|usual| usual.as_bytes() != &reason[..])
            && let Ok(reason) = ReasonPhrase::try_from(reason)
        {
            response.extensions_mut().insert(reason);
        }
        let has_no_body = *method == Method::HEAD
            || status.is_informational()
            || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
        let reader = if has_no_body { Reader::EMPTY } else { Reader::of_answer(fields.length) };
        if fields.persists && !reader.ends_with_connection() && !self.broken.get() {
            *self.goes_to.borrow_mut() = home;
        }
        if let Some(upload) = upload {
            self.go_on(upload);
        }
        *response.body_mut() = self.body(reader);
        response
    }

    /// The body of an answer; one piece if all of it has come.
    fn body(self: Rc<Self>, reader: Reader) -> Body {
        match self.answer.begin(reader, &self.wire) {
            None => Body::Watched(Box::new(Answer(Some(self)))),
            Some(whole) => {
                self.over();
                Body::whole(whole)
            }
        }
    }

    /// Gives the upload a task. It ends with the answer, unless that was read to its end.
    fn go_on(self: &Rc<Self>, mut upload: Outgoing) {
        let link = self.clone();
        let task = tokio::task::spawn_local(async move {
            let written = poll_fn(|cx| upload.poll(&link.wire, cx)).await;
            if let Err(stopped) = written {
                tracing::debug!(stage = "upstream", ?stopped, "an upload stopped before its end");
                *link.goes_to.borrow_mut() = None;
                if !matches!(stopped, Stopped::Sink(_)) {
                    // The server must not take it for whole, or wait for the rest.
                    let shutdown = poll_fn(|cx| link.wire.poll_shutdown(cx));
                    let _ = tokio::time::timeout(LINGER, shutdown).await;
                }
            }
            link.upload.take();
            if link.answer.is_over() {
                link.over();
            }
        });
        *self.upload.borrow_mut() = Some(task.abort_handle());
    }

    /// The answer is over: the connection goes back, unless an upload goes on.
    fn over(self: Rc<Self>) {
        if self.upload.borrow().is_some() {
            return;
        }
        let clean = self.wire.with_unread(|unread| unread.is_empty());
        if let Some(home) = self.goes_to.take().filter(|_| clean) {
            self.wire.rest();
            home.put_http1(Http1Connection(self));
        }
    }
}

/// 101 ends HTTP; all others of this class are followed by another (RFC 9110 §15.2).
fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// The body of an answer: gives its connection back at its end. Dropped before that, it closes it.
struct Answer(Option<Rc<Link>>);

impl WatchedBody for Answer {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(link) = &self.0 else { return Poll::Ready(None) };
        let frame = ready!(link.answer.poll_frame(&link.wire, cx));
        if link.answer.is_over()
            && let Some(link) = self.0.take()
        {
            link.over();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |link| link.answer.size_hint())
    }

    fn is_cut(&self) -> bool {
        false
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // The upload holds the connection too.
        if let Some(upload) = self.0.as_ref().and_then(|link| link.upload.take()) {
            upload.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::Request;
    use http_body::Body as _;
    use model::{HostName, SpiffeId};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::upstream::pool::{Origin, OriginKey, Pool};

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    fn connected() -> (Http1Connection, DuplexStream, Rc<Origin>) {
        let (ours, theirs) = tokio::io::duplex(1024);
        let host = HostName::new("a").unwrap();
        let key = OriginKey {
            caller: SpiffeId::new("spiffe://demo/a").unwrap(),
            server_name: host.clone(),
            host,
            port: 443,
            secure: true,
            ca_bundle: String::new(),
            client_certificate: None,
            member: None::<SocketAddr>,
        };
        (Http1Connection::new(ours), theirs, Pool::default().origin(key, None))
    }

    fn request(body: Body) -> Box<Message> {
        Message::new(Request::builder().uri("/").header("host", "a").body(body).unwrap())
    }

    async fn send(
        connection: Http1Connection,
        body: Body,
        origin: &Rc<Origin>,
    ) -> Result<Response<Body>, NotAnswered> {
        let dropped = prometheus::IntCounter::new("dropped", "dropped").unwrap();
        connection.send(request(body), &Interim::default(), &dropped, Some(origin.clone())).await
    }

    /// Reads up to the end of a head, and answers in these pieces.
    async fn answer(server: &mut DuplexStream, pieces: &[&[u8]]) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(server.read_u8().await.unwrap());
        }
        for piece in pieces {
            server.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    }

    async fn text(response: Response<Body>) -> Result<String, BodyError> {
        let (mut body, mut text) = (response.into_body(), Vec::new());
        while let Some(frame) = poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
            text.extend_from_slice(frame?.data_ref().unwrap());
        }
        Ok(String::from_utf8(text).unwrap())
    }

    /// Outside of a set of local tasks, where nothing could be given one.
    #[tokio::test(flavor = "current_thread")]
    async fn a_request_and_its_answer_need_no_task_and_the_connection_comes_back() {
        let (mut connection, mut server, origin) = connected();
        for pieces in [&[ANSWER][..], &[&ANSWER[..9], &ANSWER[9..39], &ANSWER[39..]]] {
            let (sent, ()) =
                tokio::join!(send(connection, Body::Empty, &origin), answer(&mut server, pieces));
            assert_eq!(text(sent.ok().expect("an answer")).await.unwrap(), "ok");
            connection = origin.take_http1().expect("it comes back");
            assert!(!connection.is_closed());
        }
        drop(server);
        assert!(connection.is_closed());
        let unsent = send(connection, Body::Empty, &origin).await.err().and_then(|not| not.unsent);
        assert!(unsent.is_some(), "nothing of it went out");
    }

    /// Also one that was asked for a tunnel: what the server ties to it (a handshake of NTLM) goes on.
    #[tokio::test(flavor = "current_thread")]
    async fn one_that_refuses_a_tunnel_comes_back() {
        let (connection, mut server, origin) = connected();
        let mut asked = request(Body::Empty);
        asked.parts.method = Method::CONNECT;
        asked.parts.uri = "a:443".parse().unwrap();
        let dropped = prometheus::IntCounter::new("dropped", "dropped").unwrap();
        let interim = Interim::default();
        let switching = connection.switch(asked, &interim, &dropped, Some(origin.clone()));
        let refused: &[u8] = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 2\r\n\r\nno";
        let pieces = [refused];
        let (switched, ()) = tokio::join!(switching, answer(&mut server, &pieces));
        let Ok(Switched::No(answer)) = switched else { panic!("it was refused") };
        assert_eq!(text(answer).await.unwrap(), "no");
        assert!(origin.take_http1().is_some());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_with_something_left_or_that_is_to_end_does_not_come_back() {
        for said in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
            b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        ] {
            let (connection, mut server, origin) = connected();
            let said = [said];
            let (sent, ()) = tokio::join!(send(connection, Body::Empty, &origin), answer(&mut server, &said));
            assert_eq!(text(sent.ok().expect("an answer")).await.unwrap(), "ok");
            assert!(origin.take_http1().is_none(), "{}", said[0].escape_ascii());
            assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_answer_that_is_cut_short_is_not_whole() {
        for said in
            [&ANSWER[..ANSWER.len() - 1], b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"]
        {
            let (connection, mut server, origin) = connected();
            let cut = async {
                answer(&mut server, &[said]).await;
                drop(server);
            };
            let (sent, ()) = tokio::join!(send(connection, Body::Empty, &origin), cut);
            assert!(text(sent.ok().expect("an answer")).await.is_err(), "{}", said.escape_ascii());
            assert!(origin.take_http1().is_none());
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_answer_s_header_is_bounded() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(BOUNDS.fields + 1));
        let long = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(BOUNDS.bytes));
        for said in [many, long] {
            let (connection, mut server, origin) = connected();
            let answering = async {
                let mut head = [0; 27];
                server.read_exact(&mut head).await.unwrap();
                // The connection may end before all of it was taken.
                let _ = server.write_all(said.as_bytes()).await;
            };
            let (sent, ()) = tokio::join!(send(connection, Body::Empty, &origin), answering);
            assert_eq!(sent.err().map(|not| not.failure.code), Some(model::Code::UpstreamBadAnswer));
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_that_nobody_wants_any_more_ends() {
        let (connection, mut server, origin) = connected();
        drop(connection);
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        let (connection, mut server, _) = connected();
        {
            let mut sending = std::pin::pin!(send(connection, Body::Empty, &origin));
            let polled = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx).is_pending()));
            assert!(polled.await, "it waits for its answer");
        }
        let mut sent = Vec::new();
        server.read_to_end(&mut sent).await.unwrap();
        assert!(sent.starts_with(b"GET / HTTP/1.1\r\n"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_upload_that_outlives_its_answer_goes_on_and_the_connection_comes_back_after_both() {
        let going_on = async {
            let (connection, mut server, origin) = connected();
            let (uplink, body) = tunnel::uplink();
            let (sent, ()) = tokio::join!(send(connection, body, &origin), answer(&mut server, &[ANSWER]));
            assert_eq!(text(sent.ok().expect("an answer")).await.unwrap(), "ok");
            assert!(origin.take_http1().is_none(), "the upload goes on");
            uplink.send(Bytes::from_static(b"late")).await.unwrap();
            drop(uplink);
            let mut rest = [0; 14];
            server.read_exact(&mut rest).await.unwrap();
            assert_eq!(&rest, b"4\r\nlate\r\n0\r\n\r\n");
            while origin.take_http1().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::task::LocalSet::new().run_until(going_on).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_upload_ends_with_an_answer_that_nobody_reads_on() {
        let ending = async {
            let (connection, mut server, origin) = connected();
            let (uplink, body) = tunnel::uplink();
            let begun: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok";
            let begun = [begun];
            let (sent, ()) = tokio::join!(send(connection, body, &origin), answer(&mut server, &begun));
            drop(sent);
            uplink.closed().await;
            assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        };
        tokio::task::LocalSet::new().run_until(ending).await;
    }
}
