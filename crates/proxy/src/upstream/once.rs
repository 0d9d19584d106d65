//! One request over HTTP/1.1 on a connection of its own, for what no policy covers: such connections are never kept, so
//! that no covered call can come to use one.

use std::time::Duration;

use http::Response;
use model::{Code, Failure};
use tokio::net::TcpStream;

use super::http1::to_http1;
use super::http1_connection::Http1Connection;
use super::last_word::LastWord;
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
