//! Requests over HTTP/1.1: one at a time on each connection, which is kept when its answer has been read.

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Response, Version, header};
use model::destination::HttpVersion;
use model::{Code, Failure};

use super::SendFailure;
use super::http1_connection::{Http1Connection, NotAnswered};
use super::http2::Room;
use super::pool::Origin;
use super::send::{Opened, Sender};
use crate::protocol::{Body, Message};

impl Sender<'_> {
    pub(super) async fn send_http1(&self, mut request: Box<Message>) -> Result<Response<Body>, SendFailure> {
        to_http1(&mut request.parts, Some(self.origin));
        // A kept connection may be closing at this moment; the request is given back if it was not begun.
        while let Some(connection) = self.origin.take_http1() {
            match self.try_http1(connection, request).await {
                Err(SendFailure { unsent: Some(unsent), .. }) => request = unsent,
                other => return other,
            }
        }
        Box::pin(self.send_over_new(request)).await
    }

    async fn send_over_new(&self, request: Box<Message>) -> Result<Response<Body>, SendFailure> {
        match self.open(&[HttpVersion::Http1], Room::Small).await {
            Ok(Opened::Http1(connection)) => self.try_http1(connection, request).await,
            // A plain destination that is declared to speak HTTP/2.
            Ok(Opened::Http2(sender)) => self.send_http2(sender.turn(None), request).await,
            // The other version may be tried; the same address was tried enough.
            Err(failure) => Err(SendFailure { failure, unsent: Some(request), untouched: false }),
        }
    }

    pub(super) async fn send_fresh_http1(
        &self,
        connection: Http1Connection,
        mut request: Box<Message>,
    ) -> Result<Response<Body>, SendFailure> {
        to_http1(&mut request.parts, Some(self.origin));
        self.try_http1(connection, request).await
    }

    async fn try_http1(
        &self,
        connection: Http1Connection,
        request: Box<Message>,
    ) -> Result<Response<Body>, SendFailure> {
        if protocols::http::is_grpc(&request.parts.method, request.headers()) {
            return Err(Failure::new(Code::GrpcNeedsHttp2, "gRPC is carried over HTTP/2 only").into());
        }
        let sending =
            connection.send(request, self.interim, self.trailers_dropped, Some(self.origin.clone()));
        let sending = std::pin::pin!(sending);
        self.awaited().in_time(sending).await?.map_err(SendFailure::from)
    }
}

impl From<NotAnswered> for SendFailure {
    fn from(NotAnswered { failure, unsent }: NotAnswered) -> Self {
        Self { failure, unsent, untouched: false }
    }
}

/// Origin-form and Host, as RFC 9112 §3.2.1 asks of a request to a server. What was judged (`origin`) is what Host names.
pub(super) fn to_http1(request: &mut Parts, origin: Option<&Origin>) {
    if let Some(origin) = origin {
        name_host(&mut request.headers, origin);
    }
    if request.version == Version::HTTP_2 {
        // RFC 9113 §8.2.3 lets a client split the cookie field; HTTP/1 wants one.
        join_cookies(&mut request.headers);
    }
    let uri = &request.uri;
    if uri.authority().is_some() || uri.path_and_query().is_none() {
        let target = uri.path_and_query().cloned();
        request.uri = target.unwrap_or_else(|| PathAndQuery::from_static("/")).into();
    }
    request.version = Version::HTTP_11;
}

/// How the application spelt the judged name is kept where it means nothing else.
fn name_host(headers: &mut http::HeaderMap, origin: &Origin) {
    let named = headers.get(header::HOST).map(header::HeaderValue::as_bytes);
    let is_judged = |name: &[u8]| {
        name.eq_ignore_ascii_case(origin.authority.as_str().as_bytes())
            || name.eq_ignore_ascii_case(format!("{}:{}", origin.key.host, origin.key.port).as_bytes())
    };
    if !named.is_some_and(is_judged)
        && let Ok(host) = header::HeaderValue::try_from(origin.authority.as_str())
    {
        headers.insert(header::HOST, host);
    }
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
