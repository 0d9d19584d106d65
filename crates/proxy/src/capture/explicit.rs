//! The explicit proxy: applications that are told of it (`HTTPS_PROXY`) ask for what they want, instead of being
//! redirected. From there on nothing differs: what is in a tunnel is looked at, judged, opened or left shut as a captured
//! connection is.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use bytes::{Buf as _, BytesMut};
use model::destination::HttpVersion;
use model::{Code, DecisionId, Failure, Secret};
use policy::Snapshot;
use protocols::connect::{Request, Tunnel};
use protocols::http::Host;
use sha2::{Digest as _, Sha256};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::accept::{Captured, OriginalDestination};
use crate::bypass;
use crate::call::{self, Connection};
use crate::caller::CallerState;
use crate::policy::{Route, uncovered};
use crate::protocol::facts::Channel;
use crate::protocol::http1;
use crate::protocol::rewind::Rewind;
use crate::worker::{Worker, now};

/// Who may use the explicit proxy.
#[derive(Debug, Default)]
pub struct Access {
    token: Option<Secret>,
}

impl Access {
    /// Reads the token that is asked for; without a file everybody who reaches the port may use it.
    ///
    /// # Errors
    /// If the file can't be read, or holds nothing.
    pub fn new(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = file else { return Ok(Self::default()) };
        let content = Secret::new(std::fs::read(path).with_context(|| path.display().to_string())?);
        let token = content.expose().trim_ascii_end();
        ensure!(!token.is_empty(), "{} holds no token", path.display());
        Ok(Self { token: Some(Secret::new(token)) })
    }

    /// Whether exactly one credential is there and it is the right one, if one is asked for.
    ///
    /// # Errors
    /// [`Code::ProxyAuthentication`] if not.
    pub fn admits(&self, passwords: impl IntoIterator<Item = Option<Secret>>) -> Result<(), Failure> {
        let Some(token) = &self.token else { return Ok(()) };
        let mut passwords = passwords.into_iter();
        let right = match (passwords.next(), passwords.next()) {
            // Digests have one length, so that the comparison tells nothing about the token's.
            (Some(Some(password)), None) => {
                let digest = |secret: &Secret| Sha256::digest(secret.expose());
                verify_slices_are_equal(&digest(token), &digest(&password)).is_ok()
            }
            _ => false,
        };
        if right {
            return Ok(());
        }
        let detail = "the explicit proxy wants its token as the password of Proxy-Authorization: Basic";
        Err(Failure::new(Code::ProxyAuthentication, detail))
    }
}

/// Serves one connection to the explicit proxy's port.
pub async fn serve(worker: &Rc<Worker>, mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut first = BytesMut::with_capacity(4096);
    let asked = read(worker, &mut stream, &mut first).await;
    let caller = worker.shared.callers.at_accept();
    if let Some(caller) = &caller {
        worker.watch(caller);
    }
    match asked {
        Ok(None) => {}
        Ok(Some(Request::Other)) => {
            let channel = Channel { original: None, name: None, secure: false };
            let version = HttpVersion::Http1;
            let connection = Connection::new(worker.clone(), caller, channel, version);
            http1::serve(Rc::new(connection), Rewind::new(first, stream)).await;
        }
        Ok(Some(Request::Http2)) => refuse_http2(worker, caller, stream).await,
        Ok(Some(Request::Tunnel(tunnel))) => {
            let original = original(&tunnel);
            match begin(worker, caller.as_deref(), &tunnel, original.clone()).await {
                Ok((original, dialled)) => {
                    first.advance(tunnel.length);
                    if stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.is_ok() {
                        call::connection(worker, Captured { stream, first, original, dialled }).await;
                    }
                }
                Err(failure) => refuse(worker, caller, Some(original), &failure, stream).await,
            }
        }
        Err(failure) => refuse(worker, caller, None, &failure, stream).await,
    }
}

/// Reads the head of the first request; `None` if the connection ended before that.
async fn read(
    worker: &Worker,
    stream: &mut TcpStream,
    first: &mut BytesMut,
) -> Result<Option<Request>, Failure> {
    let limits = &worker.shared.limits;
    let deadline = Instant::now() + limits.head;
    loop {
        // An empty buffer could become anything.
        if !first.is_empty() {
            let read = protocols::connect::request(first)
                .map_err(|e| Failure::new(Code::MalformedRequest, e.to_string()))?;
            if read.is_some() {
                return Ok(read);
            }
        }
        if first.len() > limits.head_bytes {
            let detail = format!("the request's header is longer than {} bytes", limits.head_bytes);
            return Err(Failure::new(Code::HeaderTooLarge, detail));
        }
        match timeout_at(deadline, stream.read_buf(first)).await {
            Ok(Ok(read)) if read > 0 => {}
            _ => return Ok(None),
        }
    }
}

fn original(tunnel: &Tunnel) -> OriginalDestination {
    match &tunnel.host {
        Host::Name(name) => OriginalDestination::named(name.clone(), tunnel.port),
        Host::Address(address) => OriginalDestination::asked(SocketAddr::new(*address, tunnel.port)),
    }
}

/// Decides whether the tunnel is begun at all. Where a policy covers its name, or may cover what is in it, that is looked
/// at first; else the upstream is dialled, so that the application is told if it can't be reached.
async fn begin(
    worker: &Worker,
    caller: Option<&CallerState>,
    tunnel: &Tunnel,
    original: OriginalDestination,
) -> Result<(OriginalDestination, Option<TcpStream>), Failure> {
    worker.shared.explicit.admits([tunnel.password.clone()])?;
    if let Some(field) = &tunnel.host_field
        && (field.host != tunnel.host || field.port.is_some_and(|port| port != tunnel.port))
    {
        return Err(Failure::new(Code::Misdirected, "CONNECT and its Host field name different services"));
    }
    if worker.is_over_limit() {
        let detail = format!("the proxy has more than {} connections", worker.shared.limits.connections);
        return Err(Failure::new(Code::OverLimit, detail));
    }
    let no_policy = || Failure::new(Code::NoSnapshot, "no policy has been received yet");
    let snapshot: Arc<Snapshot> = caller.and_then(CallerState::snapshot).ok_or_else(no_policy)?;
    let Some(name) = original.name() else {
        if let Some(address) = original.address() {
            let listing = snapshot.cover_address(address.ip(), address.port());
            worker.dialler.resolver().check(address, listing.map(|destination| &**destination))?;
        }
        return Ok((original, None));
    };
    if snapshot.cover(name, original.port()).is_some() {
        return Ok((original, None));
    }
    let bypassed = bypass::of_connection(&snapshot, None, &original, now()).is_some();
    if let Route::Refuse(code) = uncovered(&snapshot)
        && !bypassed
    {
        let detail = match code {
            Code::Blocked => format!("the workload is blocked, and {original} with it"),
            _ => format!("no policy covers {original}"),
        };
        return Err(Failure::new(code, detail));
    }
    let (upstream, address) = worker.dialler.to_name(name, None, &original).await?;
    let original = match address {
        Some(address) => original.at(address),
        None => original,
    };
    Ok((original, Some(upstream)))
}

/// Says why no tunnel is begun, and closes.
async fn refuse(
    worker: &Rc<Worker>,
    caller: Option<Arc<CallerState>>,
    original: Option<OriginalDestination>,
    failure: &Failure,
    mut stream: TcpStream,
) {
    let channel = Channel { original, name: None, secure: false };
    let connection = Connection::new(worker.clone(), caller, channel, HttpVersion::Http1);
    let answer = http1::refuse(&connection, failure);
    if stream.write_all(&answer).await.is_ok() {
        http1::linger(&mut stream).await;
    }
}

/// SETTINGS, which come first, and GOAWAY with HTTP_1_1_REQUIRED and a text (RFC 9113 §§6.5, 6.8, 7).
fn farewell(text: &str) -> Vec<u8> {
    let length = u8::try_from(8 + text.len()).expect("a short text");
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let goaway = [0, 0, length, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13];
    [&settings[..], &goaway, text.as_bytes()].concat()
}

/// An application is told of its proxy as `http://HOST:PORT`, which means HTTP/1.1; who speaks HTTP/2 without having asked
/// is told so in HTTP/2.
async fn refuse_http2(worker: &Rc<Worker>, caller: Option<Arc<CallerState>>, mut stream: TcpStream) {
    let channel = Channel { original: None, name: None, secure: false };
    let connection = Connection::new(worker.clone(), caller, channel, HttpVersion::Http2);
    let detail = "the explicit proxy is asked over HTTP/1.1";
    call::refuse_unread(&connection, DecisionId(rand::random()), &Failure::new(Code::NotCarried, detail));
    if stream.write_all(&farewell(&format!("{} {detail}", Code::NotCarried))).await.is_ok() {
        http1::linger(&mut stream).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_admits_and_only_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "right\n").unwrap();
        let access = Access::new(Some(&path)).unwrap();
        let secret = |text: &str| Some(Secret::new(text.as_bytes()));
        assert!(access.admits([secret("right")]).is_ok());
        for wrong in [vec![], vec![None], vec![secret("wrong")], vec![secret("right"), secret("right")]] {
            assert_eq!(access.admits(wrong).unwrap_err().code, Code::ProxyAuthentication);
        }
        assert!(Access::default().admits([]).is_ok());
        std::fs::write(&path, " \n").unwrap();
        assert!(Access::new(Some(&path)).is_err(), "an empty token would admit everybody");
        assert!(!format!("{access:?}").contains("right"));
    }
}
