//! How an application shows that it does not trust us, of which only the first is certain.
//!
//! OpenSSL and Go send an alert. Node and most of Java's clients end the connection within the handshake without a word.
//! GnuTLS (wget, git on Debian) completes the handshake, looks at the certificate only then, and ends the connection
//! before its first request; but so does a probe that only wanted to see the port open.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use model::HostName;
use tokio::io::{AsyncRead, ReadBuf};

use crate::metrics::Metrics;

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// An alert that names the certificate (RFC 8446 §6.2): certain.
    Alert,
    /// The connection ended after our certificate and before the handshake did: suspected.
    EofHandshake,
    /// The connection ended after the handshake and before the first byte of a request: suspected.
    EofBeforeRequest,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Alert, Self::EofHandshake, Self::EofBeforeRequest];

    /// The metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::EofHandshake => "eof_handshake",
            Self::EofBeforeRequest => "eof_before_request",
        }
    }

    /// What an error of the connection says, where its end would be `end`; `None` if it is about something else.
    #[must_use]
    pub fn of(error: &io::Error, end: Self) -> Option<Self> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        use rustls::AlertDescription::{
            BadCertificate, CertificateUnknown, UnknownCA, UnsupportedCertificate,
        };
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(
                UnknownCA | BadCertificate | CertificateUnknown | UnsupportedCertificate,
            )) => Some(Self::Alert),
            Some(_) => None,
            // A peer that closes with unread bytes of ours resets the connection.
            None => matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe).then_some(end),
        }
    }
}

/// A connection whose handshake is complete, watched until its first byte.
pub struct Watched<T> {
    inner: T,
    /// Until the first byte.
    watch: Option<Box<(HostName, Metrics)>>,
}

impl<T> Watched<T> {
    /// Watches a connection to `name`.
    pub fn new(inner: T, name: HostName, metrics: Metrics) -> Self {
        Self { inner, watch: Some(Box::new((name, metrics))) }
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    #[cold]
    fn first(&mut self, seen: Option<Signal>) {
        let Some((name, metrics)) = self.watch.take().map(|watch| *watch) else { return };
        if let Some(signal) = seen {
            metrics.untrusted(signal);
            tracing::info!(
                stage = "tls", %name, signal = signal.as_str(),
                "the application left before its first request; it may not trust the proxy's certificate"
            );
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.watch.is_none() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let (before, asked) = (buf.filled().len(), buf.remaining() > 0);
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        let end = Signal::EofBeforeRequest;
        match &read {
            Ok(()) if !asked => {}
            Ok(()) => self.first((buf.filled().len() == before).then_some(end)),
            Err(error) => self.first(Signal::of(error, end)),
        }
        Poll::Ready(read)
    }
}

crate::delegate::delegate_writes!(Watched);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn metrics() -> Metrics {
        Metrics::new(&prometheus::Registry::new()).unwrap()
    }

    fn watched(metrics: &Metrics) -> (Watched<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(64);
        (Watched::new(ours, HostName::new("a.example").unwrap(), metrics.clone()), theirs)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_end_before_the_first_byte_is_suspected_and_one_after_it_is_not() {
        let metrics = metrics();
        let (mut stream, theirs) = watched(&metrics);
        drop(theirs);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(metrics.untrusted_seen(Signal::EofBeforeRequest), 1);
        let (mut stream, mut theirs) = watched(&metrics);
        theirs.write_all(b"G").await.unwrap();
        drop(theirs);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 1);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(metrics.untrusted_seen(Signal::EofBeforeRequest), 1);
    }

    #[test]
    fn an_alert_about_the_certificate_is_certain_and_other_errors_are_about_something_else() {
        let alert = |alert| io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert));
        let end = Signal::EofHandshake;
        assert_eq!(Signal::of(&alert(rustls::AlertDescription::UnknownCA), end), Some(Signal::Alert));
        assert_eq!(Signal::of(&alert(rustls::AlertDescription::ProtocolVersion), end), None);
        assert_eq!(Signal::of(&io::ErrorKind::UnexpectedEof.into(), end), Some(end));
        assert_eq!(Signal::of(&io::ErrorKind::TimedOut.into(), end), None);
    }
}
