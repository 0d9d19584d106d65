//! gRPC as bytes (the protocol's PROTOCOL-HTTP2.md): what a release has sent is sent again as it was, without ever going
//! through the messages of today.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Headers, or trailers.
pub type Fields = Vec<(String, String)>;

/// A flag and four bytes of length stand before each message.
const PREFIX: usize = 5;

/// Messages that may wait.
const QUEUE: usize = 16;

/// A message as it goes over the wire.
#[must_use]
pub fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

/// The next message in what has arrived, if it is whole.
pub fn next_of(arrived: &mut BytesMut) -> Option<Bytes> {
    let length = arrived.get(1..PREFIX)?.get_u32() as usize;
    (arrived.len() >= PREFIX + length).then(|| arrived.split_to(PREFIX + length).freeze().slice(PREFIX..))
}

/// A connection to a server.
pub struct Client(hyper::client::conn::http2::SendRequest<Outgoing>);

type Outgoing = http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>;

impl Client {
    /// Connects by TLS to who must be of this name.
    ///
    /// # Errors
    /// If it can't be reached, or either side does not believe the other.
    pub async fn connect(
        address: SocketAddr,
        name: &'static str,
        mut tls: rustls::ClientConfig,
    ) -> anyhow::Result<Self> {
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name)?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Begins a call. The first message goes with it: servers may wait for one before they answer anything.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn call(&mut self, path: &str, headers: &Fields, first: Bytes) -> anyhow::Result<Call> {
        let (requests, waiting) = mpsc::channel::<Bytes>(QUEUE);
        requests.send(first).await?;
        Ok(Call { requests: Some(requests), ..self.begin(path, headers, waiting).await? })
    }

    /// Sends the one message of a call that has no more.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn ask(&mut self, path: &str, headers: &Fields, only: Bytes) -> anyhow::Result<Call> {
        let (requests, waiting) = mpsc::channel::<Bytes>(QUEUE);
        requests.send(only).await?;
        drop(requests);
        self.begin(path, headers, waiting).await
    }

    async fn begin(
        &mut self,
        path: &str,
        headers: &Fields,
        waiting: mpsc::Receiver<Bytes>,
    ) -> anyhow::Result<Call> {
        let mut request = Request::builder().method("POST").uri(format!("https://control{path}"));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let answer = self.0.send_request(request.body(sending(waiting))?).await?;
        let (head, body) = answer.into_parts();
        ensure!(head.status == 200, "the answer is {}", head.status);
        let arriving = Arriving { body, arrived: BytesMut::new(), end: fields(&head.headers) };
        Ok(Call { _connection: self.0.clone(), requests: None, arriving })
    }
}

/// A call that is open.
pub struct Call {
    _connection: hyper::client::conn::http2::SendRequest<Outgoing>,
    requests: Option<mpsc::Sender<Bytes>>,
    arriving: Arriving,
}

impl Call {
    /// Sends one more message.
    ///
    /// # Errors
    /// If nobody takes it any more.
    pub async fn send(&self, message: Bytes) -> anyhow::Result<()> {
        self.requests.as_ref().context("the call's requests have ended")?.send(message).await?;
        Ok(())
    }

    /// The next answer; `None` at the end.
    ///
    /// # Errors
    /// If the connection broke.
    pub async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        self.arriving.next().await
    }

    /// How it ended: `grpc-status` and what came with it.
    #[must_use]
    pub fn end(&self) -> &Fields {
        &self.arriving.end
    }
}

/// Messages that arrive.
pub struct Arriving {
    body: Incoming,
    arrived: BytesMut,
    end: Fields,
}

impl Arriving {
    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// If the connection broke.
    pub async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if let Some(message) = next_of(&mut self.arrived) {
                return Ok(Some(message));
            }
            match self.body.frame().await.transpose()? {
                None => return Ok(None),
                Some(frame) => match frame.into_data() {
                    Ok(data) => self.arrived.extend_from_slice(&data),
                    Err(frame) => self.end.extend(frame.trailers_ref().map(fields).unwrap_or_default()),
                },
            }
        }
    }
}

/// A call as a server has it.
pub struct Asked {
    /// `/package.Service/Method`.
    pub path: String,
    /// Its headers.
    pub headers: Fields,
    /// What arrives.
    pub requests: Arriving,
    /// Where answers go.
    pub answers: mpsc::Sender<Bytes>,
    /// How it ends; without one it ends well.
    pub end: Arc<std::sync::Mutex<Fields>>,
}

/// Serves every call by `handler`, until the program ends.
///
/// # Errors
/// If no connection can be taken any more.
pub async fn serve<F, Fut>(
    listener: TcpListener,
    mut tls: rustls::ServerConfig,
    handler: F,
) -> anyhow::Result<()>
where
    F: Fn(Asked) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, handler) = (acceptor.clone(), handler.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let answer = answer(request, &handler);
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = serving.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer<F, Fut>(request: Request<Incoming>, handler: &F) -> Response<Outgoing>
where
    F: Fn(Asked) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (answers, waiting) = mpsc::channel(QUEUE);
    let end = Arc::new(std::sync::Mutex::new(vec![("grpc-status".to_owned(), "0".to_owned())]));
    let (head, body) = request.into_parts();
    let handled = handler(Asked {
        path: head.uri.path().to_owned(),
        headers: fields(&head.headers),
        requests: Arriving { body, arrived: BytesMut::new(), end: Fields::new() },
        answers,
        end: end.clone(),
    });
    tokio::spawn(handled);
    let trailers = stream::once(async move {
        let end = end.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        Ok(Frame::trailers(map(&end)))
    });
    let body = StreamBody::new(futures_util::StreamExt::chain(messages(waiting), trailers)).boxed_unsync();
    let mut answer = Response::new(body);
    answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer
}

fn sending(waiting: mpsc::Receiver<Bytes>) -> Outgoing {
    StreamBody::new(messages(waiting)).boxed_unsync()
}

fn messages(
    waiting: mpsc::Receiver<Bytes>,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> + Send {
    stream::unfold(waiting, |mut waiting| async {
        let message = waiting.recv().await?;
        Some((Ok(Frame::data(framed(&message))), waiting))
    })
}

/// Headers as text, in their order; those that are no text are left out.
#[must_use]
pub fn fields(headers: &HeaderMap) -> Fields {
    let text = |(name, value): (&HeaderName, &HeaderValue)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    };
    headers.iter().filter_map(text).collect()
}

fn map(fields: &Fields) -> HeaderMap {
    let read = |(name, value): &(String, String)| {
        Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
    };
    fields.iter().filter_map(read).collect()
}
