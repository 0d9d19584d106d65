//! Puts a request on a connection to its upstream and brings the answer's head back.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper_util::rt::TokioIo;
use model::destination::HttpVersion;
use model::{Code, Destination, Failure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

use super::SendFailure;
use super::connect::{self, Link, Patience};
use super::last_word::LastWord;
use super::pool::{Http1Sender, Http2Sender, Origin};
use super::resolve::Resolver;
use super::roots::Roots;
use crate::capture::accept::OriginalDestination;
use crate::protocol::body::{BodyError, WatchedBody};
use crate::protocol::{Body, pump};
use crate::socket::SocketOptions;

/// HTTP/2 windows towards upstreams, for one stream and for a connection: 64 KiB, the protocol's default, is too small
/// for bodies.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// What sending needs besides the request.
pub struct Sender<'a> {
    /// Where connections are kept.
    pub origin: &'a Rc<Origin>,
    /// What is called.
    pub destination: &'a Arc<Destination>,
    /// Where the application dialled.
    pub original: OriginalDestination,
    /// Of this worker.
    pub resolver: &'a Resolver,
    /// By whom upstreams are believed.
    pub roots: &'a Roots,
    /// How the proxy's own sockets are told from the application's.
    pub socket: &'a SocketOptions,
    /// For connecting.
    pub patience: Patience,
    /// For the head of the answer.
    pub answer_patience: Duration,
}

/// A connection that was just opened.
enum Fresh {
    Http1(Http1Sender),
    Http2(Http2Sender),
}

impl Sender<'_> {
    /// Opens a connection that offers HTTP/2 and HTTP/1.1 and keeps it: tells which of them the server speaks.
    ///
    /// # Errors
    /// As for dialling.
    pub async fn learn(&self) -> Result<HttpVersion, Failure> {
        let _flight = self.origin.dialling.lock().await;
        if let Some(known) = self.origin.version_for(&[HttpVersion::Http2, HttpVersion::Http1], &[]) {
            return Ok(known);
        }
        match self.open(&[HttpVersion::Http2, HttpVersion::Http1]).await? {
            Fresh::Http1(sender) => {
                self.origin.put_http1(sender);
                Ok(HttpVersion::Http1)
            }
            Fresh::Http2(sender) => {
                self.origin.set_http2(Some(sender));
                Ok(HttpVersion::Http2)
            }
        }
    }

    /// Sends a request by `version` if the server speaks it, else by the other.
    ///
    /// # Errors
    /// A failure of this stage; `unsent` holds the request if nothing of it went out.
    pub async fn send(
        &self,
        request: Request<Body>,
        version: HttpVersion,
    ) -> Result<Response<Body>, SendFailure> {
        match version {
            HttpVersion::Http1 => self.send_http1(request).await,
            HttpVersion::Http2 => match self.http2().await? {
                Fresh::Http2(sender) => self.send_http2(sender, request).await,
                Fresh::Http1(sender) => self.send_fresh_http1(sender, request).await,
            },
        }
    }

    async fn send_http1(&self, mut request: Request<Body>) -> Result<Response<Body>, SendFailure> {
        to_http1(&mut request);
        // A kept connection may be closing at this moment; hyper gives the request back if it was not begun.
        while let Some(sender) = self.origin.take_http1() {
            match self.try_http1(sender, request).await {
                Err(SendFailure { unsent: Some(unsent), .. }) => request = *unsent,
                other => return other,
            }
        }
        let sender = match self.open(&[HttpVersion::Http1]).await? {
            Fresh::Http1(sender) => sender,
            // The server chose what was not offered.
            Fresh::Http2(_) => {
                return Err(bad_answer("the server's choice of protocol was not offered").into());
            }
        };
        self.try_http1(sender, request).await
    }

    async fn send_fresh_http1(
        &self,
        sender: Http1Sender,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, SendFailure> {
        to_http1(&mut request);
        self.try_http1(sender, request).await
    }

    async fn try_http1(
        &self,
        mut sender: Http1Sender,
        request: Request<Body>,
    ) -> Result<Response<Body>, SendFailure> {
        let answer = sender.try_send_request(request);
        let mut answer = match self.in_time(answer).await? {
            Ok(answer) => answer,
            Err(mut error) => {
                let unsent = error.take_message().map(Box::new);
                return Err(SendFailure { failure: http1_failure(error.into_error()), unsent });
            }
        };
        answer.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
        Ok(answer.map(|incoming| {
            let returning = Returning { origin: self.origin.clone(), sender: Some(sender) };
            let body = Body::from_http1(incoming);
            if body.is_end_stream() {
                let _ = returning.give_back();
                Body::Empty
            } else {
                Body::Watched(Box::new(Http1Answer { body, returning: Some(returning) }))
            }
        }))
    }

    async fn http2(&self) -> Result<Fresh, Failure> {
        if let Some(sender) = self.ready_http2().await {
            return Ok(Fresh::Http2(sender));
        }
        let _flight = self.origin.dialling.lock().await;
        if let Some(sender) = self.ready_http2().await {
            return Ok(Fresh::Http2(sender));
        }
        let fresh = self.open(&[HttpVersion::Http2, HttpVersion::Http1]).await?;
        if let Fresh::Http2(sender) = &fresh {
            self.origin.set_http2(Some(sender.clone()));
        }
        Ok(fresh)
    }

    /// The kept connection, once it has room for another stream; forgotten if it has ended.
    async fn ready_http2(&self) -> Option<Http2Sender> {
        let sender = self.origin.http2()?;
        match sender.ready().await {
            Ok(sender) => Some(sender),
            Err(_) => {
                self.origin.set_http2(None);
                None
            }
        }
    }

    async fn send_http2(
        &self,
        sender: Http2Sender,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, SendFailure> {
        to_http2(&mut request, &self.origin.key)?;
        let (parts, body) = request.into_parts();
        let head = Request::from_parts(parts, ());
        let ended = body.is_end_stream();
        let mut sender = sender.ready().await.map_err(|e| SendFailure::from(http2_failure(e)))?;
        let (answer, sink) =
            sender.send_request(head, ended).map_err(|e| SendFailure::from(http2_failure(e)))?;
        let upload = (!ended).then(|| {
            let task = tokio::task::spawn_local(async move {
                if let Err(stopped) = pump::pump(body, sink).await {
                    tracing::debug!(?stopped, "the request's body stopped before its end");
                }
            });
            AbortOnDrop(task.abort_handle())
        });
        let answer = self.in_time(answer).await?.map_err(|e| SendFailure::from(http2_failure(e)))?;
        Ok(answer.map(|stream| match Body::from_http2(stream) {
            // The request may still be on its way after the answer's end, so the upload goes with the body.
            Body::Empty if upload.is_none() => Body::Empty,
            body => Body::Watched(Box::new(Http2Answer { body, _upload: upload })),
        }))
    }

    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, Failure> {
        pingora_timeout::fast_timeout::fast_timeout(self.answer_patience, answer).await.map_err(|_| {
            let seconds = self.answer_patience.as_secs();
            let detail = format!("{} did not answer in {seconds} s", self.origin.key.host);
            Failure::new(Code::UpstreamTimeout, detail)
        })
    }

    async fn open(&self, offer: &[HttpVersion]) -> Result<Fresh, Failure> {
        // Boxed: dialling is rare, and its state would make every request's future large.
        match Box::pin(self.link(offer)).await? {
            Link::Plain(stream) => start_http1(stream).await.map(Fresh::Http1),
            Link::Tls(stream, version) => {
                if offer.contains(&HttpVersion::Http2) {
                    self.origin.learn(version);
                }
                match version {
                    HttpVersion::Http1 => start_http1(*stream).await.map(Fresh::Http1),
                    HttpVersion::Http2 => start_http2(*stream).await.map(Fresh::Http2),
                }
            }
        }
    }

    async fn link(&self, offer: &[HttpVersion]) -> Result<Link, Failure> {
        let key = &self.origin.key;
        let addresses: Vec<SocketAddr> =
            self.resolver.addresses(&key.host, self.destination, self.original).await?;
        let (stream, _) = connect::dial(&addresses, self.socket, self.patience.connect).await?;
        if !key.secure {
            return Ok(Link::Plain(LastWord::new(stream)));
        }
        let patience = self.patience.handshake;
        connect::secure(stream, &key.host, self.destination, self.roots, offer, patience).await
    }
}

async fn start_http1(io: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<Http1Sender, Failure> {
    let (sender, connection) = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .handshake(TokioIo::new(io))
        .await
        .map_err(http1_failure)?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(sender)
}

async fn start_http2(io: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<Http2Sender, Failure> {
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(64 * 1024)
        .enable_push(false)
        .handshake(io)
        .await
        .map_err(http2_failure)?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(sender)
}

/// Origin-form and Host, as RFC 9112 §3.2.1 asks of a request to a server.
fn to_http1(request: &mut Request<Body>) {
    if request.version() == Version::HTTP_2 {
        if !request.headers().contains_key(header::HOST)
            && let Some(authority) = request.uri().authority()
            && let Ok(host) = header::HeaderValue::try_from(authority.as_str())
        {
            request.headers_mut().insert(header::HOST, host);
        }
        // RFC 9113 §8.2.3 lets a client split the cookie field; HTTP/1 wants one.
        join_cookies(request.headers_mut());
    }
    let origin_form = request.uri().path_and_query().map_or("/", |path| path.as_str());
    if let Ok(uri) = origin_form.parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_11;
}

fn join_cookies(headers: &mut http::HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(|value| value.as_bytes()).collect();
    if let Ok(mut joined) = header::HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        joined.set_sensitive(true);
        headers.insert(header::COOKIE, joined);
    }
}

/// Scheme and authority in the pseudo-headers, none in Host (RFC 9113 §8.3.1).
fn to_http2(request: &mut Request<Body>, key: &super::pool::OriginKey) -> Result<(), Failure> {
    let path = request.uri().path_and_query().cloned();
    let path = path.unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    let scheme = if key.secure { "https" } else { "http" };
    let authority = if key.port == if key.secure { 443 } else { 80 } {
        key.host.to_string()
    } else {
        format!("{}:{}", key.host, key.port)
    };
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
    *request.uri_mut() = uri.map_err(|e| {
        Failure::new(Code::MalformedRequest, "the request's target can't be carried").because(e)
    })?;
    request.headers_mut().remove(header::HOST);
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}

fn bad_answer(detail: &str) -> Failure {
    Failure::new(Code::UpstreamBadAnswer, detail)
}

fn http1_failure(error: hyper::Error) -> Failure {
    if let Some(failure) = certificate_wanted(&error) {
        return failure;
    }
    let detail = if error.is_parse() || error.is_parse_status() {
        "the upstream's answer is not valid HTTP"
    } else {
        "the upstream closed the connection before its answer"
    };
    bad_answer(detail).because(error)
}

fn http2_failure(error: h2::Error) -> Failure {
    if let Some(failure) = certificate_wanted(&error) {
        return failure;
    }
    bad_answer("the upstream ended the stream before its answer").because(error)
}

/// In TLS 1.3 a server refuses a missing client certificate only after the client's side of the handshake is done, so
/// that the alert comes up as an error of the connection.
fn certificate_wanted(error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    let mut source = Some(error);
    while let Some(current) = source {
        let io = current.downcast_ref::<std::io::Error>();
        let io = io.or_else(|| current.downcast_ref::<h2::Error>().and_then(h2::Error::get_io));
        if io.is_some_and(is_certificate_alert) {
            let detail = "the server asks for a client certificate";
            return Some(Failure::new(Code::UpstreamWantsCertificate, detail));
        }
        source = current.source();
    }
    None
}

/// h2 keeps only the text of an I/O error, so the text is compared where the error itself is gone.
fn is_certificate_alert(error: &std::io::Error) -> bool {
    use rustls::AlertDescription::{BadCertificate, CertificateRequired};
    let alerts = [CertificateRequired, BadCertificate].map(rustls::Error::AlertReceived);
    let Some(inner) = error.get_ref() else { return false };
    match inner.downcast_ref::<rustls::Error>() {
        Some(tls) => alerts.contains(tls),
        None => alerts.iter().any(|alert| alert.to_string() == inner.to_string()),
    }
}

/// An HTTP/1 connection that goes back to its origin.
struct Returning {
    origin: Rc<Origin>,
    sender: Option<Http1Sender>,
}

impl Returning {
    fn give_back(mut self) -> Option<()> {
        self.origin.put_http1(self.sender.take()?);
        Some(())
    }
}

/// The body of an HTTP/1 answer: gives the connection back at its end. Dropped before that, it closes it.
struct Http1Answer {
    body: Body,
    returning: Option<Returning>,
}

impl WatchedBody for Http1Answer {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = std::pin::Pin::new(&mut self.body).poll_frame(cx);
        let ended = matches!(polled, Poll::Ready(None))
            || (matches!(polled, Poll::Ready(Some(Ok(_)))) && self.body.is_end_stream());
        if ended && let Some(returning) = self.returning.take() {
            let _ = returning.give_back();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an HTTP/2 answer, with the upload that may still run beside it.
struct Http2Answer {
    body: Body,
    _upload: Option<AbortOnDrop>,
}

impl WatchedBody for Http2Answer {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
