//! Requests over HTTP/1.1: one at a time on each connection, which is kept when its answer has been read.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use model::destination::HttpVersion;
use model::{Code, Failure};

use super::SendFailure;
use super::driven::Driven;
use super::failure::{bad_answer, http1_failure};
use super::pool::Origin;
use super::send::{Fresh, Sender};
use crate::protocol::body::{BodyError, WatchedBody};
use crate::protocol::{Body, trailers};

impl Sender<'_> {
    pub(super) async fn send_http1(
        &self,
        mut request: Box<Request<Body>>,
    ) -> Result<Response<Body>, SendFailure> {
        to_http1(&mut request, Some(self.origin));
        // A kept connection may be closing at this moment; hyper gives the request back if it was not begun.
        while let Some(connection) = self.origin.take_http1() {
            match self.try_http1(connection, request).await {
                Err(SendFailure { unsent: Some(unsent), .. }) => request = unsent,
                other => return other,
            }
        }
        Box::pin(self.send_over_new(request)).await
    }

    async fn send_over_new(&self, request: Box<Request<Body>>) -> Result<Response<Body>, SendFailure> {
        match self.open(&[HttpVersion::Http1]).await {
            Ok(Fresh::Http1(connection)) => self.try_http1(connection, request).await,
            // A plain destination that is declared to speak HTTP/2.
            Ok(Fresh::Http2(sender)) => self.send_http2(sender, request).await,
            Err(failure) => Err(SendFailure { failure, unsent: Some(request), untouched: true }),
        }
    }

    pub(super) async fn send_fresh_http1(
        &self,
        connection: Driven,
        mut request: Box<Request<Body>>,
    ) -> Result<Response<Body>, SendFailure> {
        to_http1(&mut request, Some(self.origin));
        self.try_http1(connection, request).await
    }

    async fn try_http1(
        &self,
        mut connection: Driven,
        mut request: Box<Request<Body>>,
    ) -> Result<Response<Body>, SendFailure> {
        if protocols::http::is_grpc(request.method(), request.headers()) {
            return Err(Failure::new(Code::GrpcNeedsHttp2, "gRPC is carried over HTTP/2 only").into());
        }
        let interim = self.interim.clone();
        hyper::ext::on_informational(&mut request, move |early| {
            interim.push(early.status(), early.headers())
        });
        with_announced_trailers(&mut request, self.trailers_dropped);
        let mut answer = match self.in_time(connection.send(*request)).await? {
            Ok(answer) => answer,
            Err(mut error) => {
                let unsent = error.take_message().map(Box::new);
                let failure = match connection.heads().fault() {
                    Some(fault) => {
                        bad_answer(&format!("the upstream's answer can be read in two ways: {fault}"))
                    }
                    None => http1_failure(error.into_error()),
                };
                return Err(SendFailure { failure, unsent, untouched: false });
            }
        };
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(bad_answer("the upstream switches protocols, which nobody has asked for").into());
        }
        protocols::http::check_answer(answer.headers()).map_err(|e| bad_answer(&e.to_string()))?;
        answer.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
        if self.open.is_uploading() {
            // An application may send all of its body before it reads any of the answer.
            connection.detach();
        }
        Ok(answer.map(|incoming| {
            let body = Body::from_http1(incoming);
            if body.is_end_stream() {
                self.origin.put_http1(connection);
                Body::Empty
            } else {
                let used = Some((self.origin.clone(), connection));
                Body::Watched(Box::new(Http1Answer { body, used }))
            }
        }))
    }
}

/// The request with those trailers alone that it announces.
fn with_announced_trailers(request: &mut Request<Body>, dropped: &prometheus::IntCounter) {
    let body = std::mem::replace(request.body_mut(), Body::Empty);
    *request.body_mut() = trailers::to_http1(body, request.headers(), true, dropped);
}

/// Origin-form and Host, as RFC 9112 §3.2.1 asks of a request to a server. What was judged (`origin`) is what Host names.
pub(super) fn to_http1(request: &mut Request<Body>, origin: Option<&Origin>) {
    if let Some(origin) = origin {
        name_host(request.headers_mut(), origin);
    }
    if request.version() == Version::HTTP_2 {
        // RFC 9113 §8.2.3 lets a client split the cookie field; HTTP/1 wants one.
        join_cookies(request.headers_mut());
    }
    let uri = request.uri();
    if uri.authority().is_some() || uri.path_and_query().is_none() {
        let target = uri.path_and_query().cloned();
        *request.uri_mut() = target.unwrap_or_else(|| PathAndQuery::from_static("/")).into();
    }
    *request.version_mut() = Version::HTTP_11;
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

/// The body of an HTTP/1 answer: gives the connection back to its origin at its end. Dropped before that, it closes it.
struct Http1Answer {
    /// Before the connection, which closes in order once nobody reads from it.
    body: Body,
    used: Option<(Rc<Origin>, Driven)>,
}

impl WatchedBody for Http1Answer {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some((_, connection)) = &mut self.used else { return Pin::new(&mut self.body).poll_frame(cx) };
        let polled = connection.poll_with(cx, |cx| Pin::new(&mut self.body).poll_frame(cx));
        let ended = matches!(polled, Poll::Ready(None))
            || (matches!(polled, Poll::Ready(Some(Ok(_)))) && self.body.is_end_stream());
        if ended && let Some((origin, connection)) = self.used.take() {
            origin.put_http1(connection);
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
