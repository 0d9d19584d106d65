//! One request over HTTP/1.1 on a connection of its own, for what no policy covers: such connections are never kept, so
//! that no covered call can come to use one.

use http::{Request, Response, StatusCode};
use model::{Code, Failure};
use std::time::Duration;
use tokio::net::TcpStream;

use super::driven::Driven;
use super::failure::{bad_answer, http1_failure};
use super::http1::to_http1;
use super::last_word::LastWord;
use crate::protocol::Body;
use crate::protocol::interim::Interim;

/// Sends the request and brings the answer's head back.
///
/// # Errors
/// [`Code::UpstreamBadAnswer`] or [`Code::UpstreamTimeout`].
pub async fn send(
    stream: TcpStream,
    mut request: Request<Body>,
    interim: &Interim,
    patience: Duration,
) -> Result<Response<Body>, Failure> {
    to_http1(&mut request, None);
    let early = interim.clone();
    hyper::ext::on_informational(&mut request, move |answer| early.push(answer.status(), answer.headers()));
    if request.headers().contains_key(http::header::EXPECT) {
        request = request.map(|body| interim.guard(body));
    }
    let mut connection = Driven::start(LastWord::new(stream)).await?;
    // It is used once, and ends with the answer.
    connection.detach();
    let answer = tokio::time::timeout(patience, connection.send(request))
        .await
        .map_err(|_| Failure::new(Code::UpstreamTimeout, format!("no answer in {} s", patience.as_secs())))?;
    let mut answer = answer.map_err(|error| http1_failure(error.into_error()))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(bad_answer("the upstream switches protocols, which nobody has asked for"));
    }
    protocols::http::check_answer(answer.headers()).map_err(|e| bad_answer(&e.to_string()))?;
    answer.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    Ok(answer.map(Body::from_http1))
}
