//! Security case 12: many requests of two callers to two destinations, at once and in disorder, over both versions. No
//! connection ever carries those of two.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::{Request, Response};
use http_body::Body as _;
use model::destination::{Destination, HttpVersion, Protocol, Resolution, TlsMode};
use model::{HostName, ResourceRef, SpiffeId};
use prometheus::IntCounter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::dial::Dialler;
use super::pool::{OriginKey, Pool};
use super::roots::Roots;
use super::send::Sender;
use crate::capture::accept::OriginalDestination;
use crate::exchange::Open;
use crate::memory::Budget;
use crate::protocol::interim::Interim;
use crate::protocol::{Body, Message};
use crate::socket::SocketOptions;

const REQUESTS: usize = 10_000;
const AT_ONCE: usize = 64;

/// On behalf of whom, and to where, requests came on which connection.
type Carried = Rc<RefCell<HashMap<(u16, usize), BTreeSet<String>>>>;

/// Answers after a while, so that answers come in disorder.
async fn think() {
    tokio::time::sleep(Duration::from_micros(u64::from(rand::random::<u16>() % 2000))).await;
}

/// A server; each answer repeats what its request said about itself.
async fn serve(listener: TcpListener, version: HttpVersion, carried: Carried) {
    let port = listener.local_addr().unwrap().port();
    for number in 0.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        let carried = carried.clone();
        let note = move |who: &str| {
            carried.borrow_mut().entry((port, number)).or_default().insert(who.to_owned());
        };
        match version {
            HttpVersion::Http1 => drop(tokio::task::spawn_local(serve_http1(stream, note))),
            HttpVersion::Http2 => drop(tokio::task::spawn_local(serve_http2(stream, note))),
        }
    }
}

async fn serve_http1(mut stream: TcpStream, note: impl Fn(&str)) {
    let mut head = Vec::new();
    while stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut fields);
        assert!(request.parse(&head).unwrap().is_complete());
        let field = |name: &str| {
            let field = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
            String::from_utf8(field.unwrap().value.to_vec()).unwrap()
        };
        let who = format!("{} at {}", field("x-caller"), field("host"));
        note(&who);
        let answer = format!(
            "HTTP/1.1 200 OK\r\nx-number: {}\r\ncontent-length: {}\r\n\r\n{who}",
            field("x-number"),
            who.len()
        );
        head.clear();
        think().await;
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

async fn serve_http2(stream: TcpStream, note: impl Fn(&str)) {
    let mut server = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = server.accept().await {
        let caller = request.headers()["x-caller"].to_str().unwrap();
        let who = format!("{caller} at {}", request.uri().authority().unwrap());
        note(&who);
        let answer = Response::builder().header("x-number", &request.headers()["x-number"]).body(()).unwrap();
        tokio::task::spawn_local(async move {
            think().await;
            let mut body = respond.send_response(answer, false).unwrap();
            body.send_data(Bytes::from(who), true).unwrap();
        });
    }
}

/// What all requests are sent with.
struct Proxy {
    pool: Pool,
    dialler: Dialler,
    roots: Roots,
    memory: Budget,
    dropped: IntCounter,
}

impl Proxy {
    /// One call; says the number that its answer carries, and its body.
    async fn call(&self, caller: &str, destination: &Arc<Destination>, number: usize) -> (String, String) {
        let port = destination.ports[0];
        let id = SpiffeId::new(&format!("spiffe://demo/{caller}")).unwrap();
        let original = OriginalDestination::dialled(SocketAddr::from(([127, 0, 0, 1], port)));
        let key =
            OriginKey::new(id, HostName::new("localhost").unwrap(), false, destination, &original, None);
        let origin = self.pool.origin(key, None);
        let interim = Interim::default();
        let sender = Sender {
            origin: &origin,
            destination,
            original,
            dialler: &self.dialler,
            roots: &self.roots,
            handshake_patience: Duration::from_secs(5),
            open: &Open::default(),
            answer_patience: Duration::from_secs(30),
            memory: &self.memory,
            trailers_dropped: &self.dropped,
            interim: &interim,
        };
        let request = Request::builder()
            .uri("/")
            .header("host", format!("localhost:{port}"))
            .header("x-caller", caller)
            .header("x-number", number)
            .body(Body::Empty)
            .unwrap();
        let sent = sender.send(Message::new(request), destination.http_versions[0]).await;
        let answer = sent.unwrap_or_else(|failed| panic!("{}", failed.failure));
        let carried = answer.headers()["x-number"].to_str().unwrap().to_owned();
        let (mut body, mut text) = (answer.into_body(), Vec::new());
        while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await
        {
            text.extend_from_slice(frame.unwrap().data_ref().unwrap());
        }
        (carried, String::from_utf8(text).unwrap())
    }
}

fn destination(port: u16, version: HttpVersion) -> Arc<Destination> {
    Arc::new(Destination {
        name: ResourceRef::new(None, &format!("local-{port}")).unwrap(),
        hosts: Vec::new(),
        ports: vec![port],
        addresses: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        protocol: Protocol::Http,
        http_versions: vec![version],
        tls: TlsMode::Terminate,
        insecure: false,
        ca_bundle: String::new(),
        sensitivity: String::new(),
        redact: false,
        server_name: None,
        client_certificate: None,
        resolve: Resolution::Name,
    })
}

#[tokio::test(flavor = "current_thread")]
async fn ten_thousand_interleaved_requests_never_share_a_connection_with_a_stranger() {
    LocalSet::new().run_until(interleaved()).await;
}

async fn interleaved() {
    let carried = Carried::default();
    let mut destinations = Vec::new();
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        destinations.push(destination(listener.local_addr().unwrap().port(), version));
        tokio::task::spawn_local(serve(listener, version, carried.clone()));
    }
    let proxy = Proxy {
        pool: Pool::default(),
        dialler: Dialler::new(SocketOptions::default(), Arc::default(), Duration::from_secs(5), None)
            .unwrap(),
        roots: Roots::new(rustls::RootCertStore::empty()),
        memory: Budget::new(64 << 20, &prometheus::Registry::new()).unwrap(),
        dropped: IntCounter::new("dropped", "dropped").unwrap(),
    };
    let (proxy, destinations) = (&proxy, &destinations);
    let call = |number: usize| async move {
        let caller = if rand::random() { "one" } else { "two" };
        let destination = &destinations[usize::from(rand::random::<bool>())];
        let (answered, who) = proxy.call(caller, destination, number).await;
        assert_eq!(answered, number.to_string(), "an answer for another request");
        assert_eq!(who, format!("{caller} at localhost:{}", destination.ports[0]));
    };
    let mut open = FuturesUnordered::new();
    for number in 0..REQUESTS {
        if open.len() == AT_ONCE {
            open.next().await;
        }
        open.push(call(number));
    }
    while open.next().await.is_some() {}
    let carried = carried.borrow();
    assert!(carried.values().all(|who| who.len() == 1), "{carried:?}");
    let everyone: BTreeSet<_> = carried.values().flatten().collect();
    assert_eq!(everyone.len(), 4, "two callers at two destinations: {everyone:?}");
}
