//! Stands where a control plane would, and writes down every header field that it is sent: what a client gives away.
//!
//! gRPC over TLS as far as a refusal (`grpc-status: 16`).

use std::convert::Infallible;
use std::io::Write as _;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Parser;
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tests::stand_in::Listening;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    listening: Listening,
    /// Where the fields are written, a line each.
    #[arg(long)]
    out: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let (listener, acceptor) = options.listening.start(&[b"h2"]).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, out) = (acceptor.clone(), options.out.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let answer = service_fn(move |request| std::future::ready(record(&request, &out)));
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

fn record<B>(request: &http::Request<B>, out: &PathBuf) -> Result<http::Response<Empty<Bytes>>, Infallible> {
    let mut text = format!(":path: {}\n", request.uri().path());
    for (name, value) in request.headers() {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(out) {
        let _ = file.write_all(text.as_bytes());
    }
    let mut response = http::Response::new(Empty::new());
    for (name, value) in [("content-type", "application/grpc"), ("grpc-status", "16")] {
        response.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    Ok(response)
}
