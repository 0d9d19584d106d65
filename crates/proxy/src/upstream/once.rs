//! Requests that no policy covers. What is asked of the explicit proxy in HTTP/1.1 has a connection of its own; what is
//! captured goes on by connections that belong to the application's: one of HTTP/2, or one of HTTP/1.1 after the other.
//! Such connections are in no pool, so that no covered call can come to use one.

use std::cell::{OnceCell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::Response;
use model::{Code, Failure};
use tokio::net::TcpStream;

use super::http1::to_http1;
use super::http1_connection::{Home, Http1Connection, NotAnswered, Switched};
use super::http2::{Room, exchange, start_http2};
use super::last_word::LastWord;
use super::pool::Http2Sender;
use super::send::{Awaited, expects};
use super::websocket::{ask_http2, carried};
use crate::protocol::interim::Interim;
use crate::protocol::{Body, Message};

/// Sends the request and brings the answer's head back.
///
/// # Errors
/// [`Code::UpstreamBadAnswer`] or [`Code::UpstreamTimeout`].
pub async fn send(
    stream: TcpStream,
    mut request: Box<Message>,
    interim: &Interim,
    patience: Duration,
    dropped: &prometheus::IntCounter,
) -> Result<Response<Body>, Failure> {
    to_http1(&mut request.parts, None);
    if expects(request.headers()) {
        request.body = interim.guard(request.take_body());
    }
    let connection = Http1Connection::new(LastWord::new(stream));
    let sending = connection.send(request, interim, dropped, None);
    let sent = tokio::time::timeout(patience, sending).await;
    let late = |_| Failure::new(Code::UpstreamTimeout, format!("no answer in {} s", patience.as_secs()));
    sent.map_err(late)?.map_err(|not_answered| not_answered.failure)
}

/// The connections for what one connection of the application's asks in the clear where no policy covers it; they end
/// with that one.
#[derive(Default)]
pub struct Beside {
    /// What was dialled before the first request came.
    seed: RefCell<Option<TcpStream>>,
    /// Between requests.
    http1: OnceCell<Rc<Resting>>,
    http2: tokio::sync::Mutex<Option<Http2Sender>>,
}

#[derive(Default)]
struct Resting(RefCell<Option<Http1Connection>>);

impl Home for Resting {
    fn put_http1(&self, connection: Http1Connection) {
        *self.0.borrow_mut() = Some(connection);
    }
}

impl Beside {
    /// The first of them is this one, if it was dialled already.
    pub fn seed(&self, dialled: Option<TcpStream>) {
        *self.seed.borrow_mut() = dialled;
    }

    async fn dial(&self, dial: &impl AsyncFn() -> Result<TcpStream, Failure>) -> Result<TcpStream, Failure> {
        match self.seed.take() {
            Some(stream) => Ok(stream),
            None => dial().await,
        }
    }

    /// Sends a request of HTTP/1 as it was asked, also in absolute-form or for a tunnel, and brings the answer's head back.
    ///
    /// # Errors
    /// As for dialling; [`Code::UpstreamBadAnswer`] or [`Code::UpstreamTimeout`].
    pub async fn send_http1(
        &self,
        dial: impl AsyncFn() -> Result<TcpStream, Failure>,
        mut request: Box<Message>,
        awaited: Awaited<'_>,
        dropped: &prometheus::IntCounter,
    ) -> Result<Response<Body>, Failure> {
        let home = self.http1.get_or_init(Rc::default);
        let up = request.asks_for_tunnel().then(|| request.take_body());
        if expects(request.headers()) {
            request.body = awaited.interim.guard(request.take_body());
        }
        if let Some(kept) = home.0.take() {
            match ask(kept, request, awaited, dropped, home, up.is_some()).await? {
                // It was closed meanwhile.
                Err(NotAnswered { unsent: Some(unsent), .. }) => request = unsent,
                asked => return answered(asked, up),
            }
        }
        let fresh = Http1Connection::new(LastWord::new(self.dial(&dial).await?));
        answered(ask(fresh, request, awaited, dropped, home, up.is_some()).await?, up)
    }

    /// Sends a request of HTTP/2, whose target is absolute, and brings the answer's head back. Sends it once more, on a
    /// new connection, if the server has not looked at it and says so.
    ///
    /// # Errors
    /// As for dialling; [`Code::UpstreamBadAnswer`] or [`Code::UpstreamTimeout`].
    pub async fn send_http2(
        &self,
        dial: impl AsyncFn() -> Result<TcpStream, Failure>,
        mut request: Box<Message>,
        awaited: Awaited<'_>,
    ) -> Result<Response<Body>, Failure> {
        let sender = self.sender(&dial).await?;
        if request.is_websocket() {
            ask_http2(&sender, &mut request.parts).await?;
        }
        let failed = match exchange(sender.turn(None), request, awaited).await {
            Ok(answer) => return Ok(answer),
            Err(failed) => failed,
        };
        match failed.unsent.or_else(|| awaited.interim.take_sent()) {
            Some(unsent) if failed.untouched => {
                self.http2.lock().await.take();
                let again = exchange(self.sender(&dial).await?.turn(None), unsent, awaited).await;
                again.map_err(|failed| failed.failure)
            }
            _ => Err(failed.failure),
        }
    }

    async fn sender(
        &self,
        dial: &impl AsyncFn() -> Result<TcpStream, Failure>,
    ) -> Result<Http2Sender, Failure> {
        // Held while it is dialled, so that many first requests open one connection.
        let mut kept = self.http2.lock().await;
        match &*kept {
            Some(sender) => Ok(sender.clone()),
            None => {
                let stream = self.dial(dial).await?;
                Ok(kept.insert(start_http2(LastWord::new(stream), Room::Small).await?).clone())
            }
        }
    }
}

/// Asks one thing of a connection, a tunnel or anything else.
async fn ask(
    connection: Http1Connection,
    request: Box<Message>,
    awaited: Awaited<'_>,
    dropped: &prometheus::IntCounter,
    home: &Rc<Resting>,
    is_tunnel: bool,
) -> Result<Result<Switched, NotAnswered>, Failure> {
    let (interim, home) = (awaited.interim, Some(home.clone() as Rc<dyn Home>));
    if is_tunnel {
        return awaited.in_time(pin!(connection.switch(request, interim, dropped, home))).await;
    }
    let sent = awaited.in_time(pin!(connection.send(request, interim, dropped, home))).await?;
    Ok(sent.map(Switched::No))
}

/// What came of it: an answer, or that to a tunnel, which carries `up`.
fn answered(asked: Result<Switched, NotAnswered>, up: Option<Body>) -> Result<Response<Body>, Failure> {
    match asked.map_err(|not_answered| not_answered.failure)? {
        Switched::No(answer) => Ok(answer),
        Switched::Yes(answer, first, io) => Ok(carried(answer, first, io, up.unwrap_or(Body::Empty))),
    }
}
