//! A stand-in for a kubelet's port-forward, and for nothing else of it: the API server of the tests has no nodes.
//!
//! Speaks what kube-apiserver passes on from a client of `pods/portforward` by WebSocket (subprotocol
//! `v4.channel.k8s.io`, kubernetes `pkg/kubelet/cri/streaming/portforward/websocket.go`): of each port two channels, data
//! and errors, each beginning with the port's number. Every pod is this machine's loopback.

use anyhow::Context as _;
use clap::Parser;
use futures_util::{SinkExt as _, StreamExt as _};
use tests::stand_in::Listening;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

const PROTOCOL: &str = "v4.channel.k8s.io";

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    listening: Listening,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let (listener, acceptor) = options.listening.start(&[]).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            if let Err(error) = forward(acceptor, stream).await {
                complain(&error);
            }
        });
    }
}

#[expect(clippy::print_stderr, reason = "its log is the test's")]
fn complain(error: &anyhow::Error) {
    eprintln!("kubelet-stand-in: {error:#}");
}

async fn forward(acceptor: TlsAcceptor, stream: TcpStream) -> anyhow::Result<()> {
    let stream = acceptor.accept(stream).await?;
    let mut asked = None;
    #[expect(clippy::result_large_err, reason = "the library's signature")]
    let choose = |request: &Request, mut response: Response| {
        asked = request.uri().query().and_then(|query| query.strip_prefix("port=")).map(str::to_owned);
        response.headers_mut().insert("sec-websocket-protocol", http::HeaderValue::from_static(PROTOCOL));
        Ok(response)
    };
    let socket = tokio_tungstenite::accept_hdr_async(stream, choose).await?;
    let port: u16 = asked.context("no port was asked for")?.parse()?;
    let target = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut to_client, mut from_client) = socket.split();
    for channel in [0, 1] {
        let [low, high] = port.to_le_bytes();
        to_client.send(Message::binary(vec![channel, low, high])).await?;
    }
    let (mut from_target, mut to_target) = target.into_split();
    let up = async {
        while let Some(message) = from_client.next().await {
            if let Message::Binary(bytes) = message?
                && let Some((0, data)) = bytes.split_first().map(|(channel, data)| (*channel, data))
            {
                to_target.write_all(data).await?;
            }
        }
        anyhow::Ok(())
    };
    let down = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = from_target.read(&mut buffer).await?;
            if read == 0 {
                to_client.close().await?;
                return anyhow::Ok(());
            }
            let message = [&[0], &buffer[..read]].concat();
            to_client.send(Message::binary(message)).await?;
        }
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}
