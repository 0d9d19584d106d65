//! Requests that no policy covers. Over HTTP/1.1 each has a connection of its own; over HTTP/2 those of one connection of
//! the application's share one. Such connections are in no pool, so that no covered call can come to use one.

use std::time::Duration;

use http::Response;
use model::{Code, Failure};
use tokio::net::TcpStream;

use super::http1::to_http1;
use super::http1_connection::Http1Connection;
use super::http2::{exchange, start_http2};
use super::last_word::LastWord;
use super::pool::Http2Sender;
use super::send::Awaited;
use super::websocket::{agreed, ask_http2};
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
    if request.headers().contains_key(http::header::EXPECT) {
        request.body = interim.guard(request.take_body());
    }
    let connection = Http1Connection::new(LastWord::new(stream));
    let sending = connection.send(request, interim, dropped, None);
    let sent = tokio::time::timeout(patience, sending).await;
    let late = |_| Failure::new(Code::UpstreamTimeout, format!("no answer in {} s", patience.as_secs()));
    sent.map_err(late)?.map_err(|not_answered| not_answered.failure)
}

/// The connection of HTTP/2 in the clear for what one connection of the application's asks where no policy covers it;
/// it ends with that one.
#[derive(Default)]
pub struct Beside(tokio::sync::Mutex<Option<Http2Sender>>);

impl Beside {
    /// Sends the request, whose target is absolute, and brings the answer's head back. Sends it once more, on a new
    /// connection, if the server has not looked at it and says so.
    ///
    /// # Errors
    /// As for dialling; [`Code::UpstreamBadAnswer`] or [`Code::UpstreamTimeout`].
    pub async fn send(
        &self,
        dial: impl AsyncFn() -> Result<TcpStream, Failure>,
        mut request: Box<Message>,
        awaited: Awaited<'_>,
    ) -> Result<Response<Body>, Failure> {
        let sender = self.sender(&dial).await?;
        let is_tunnel = request.is_websocket();
        if is_tunnel {
            ask_http2(&sender, &mut request.parts).await?;
        }
        let agreed = |answer| if is_tunnel { agreed(answer) } else { answer };
        let failed = match exchange(sender, request, awaited).await {
            Ok(answer) => return Ok(agreed(answer)),
            Err(failed) => failed,
        };
        match failed.unsent.or_else(|| awaited.interim.take_sent()) {
            Some(unsent) if failed.untouched => {
                self.0.lock().await.take();
                let again = exchange(self.sender(&dial).await?, unsent, awaited).await;
                again.map(agreed).map_err(|failed| failed.failure)
            }
            _ => Err(failed.failure),
        }
    }

    async fn sender(
        &self,
        dial: &impl AsyncFn() -> Result<TcpStream, Failure>,
    ) -> Result<Http2Sender, Failure> {
        // Held while it is dialled, so that many first requests open one connection.
        let mut kept = self.0.lock().await;
        match &*kept {
            Some(sender) => Ok(sender.clone()),
            None => Ok(kept.insert(start_http2(LastWord::new(dial().await?)).await?).clone()),
        }
    }
}
