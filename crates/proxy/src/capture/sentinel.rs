//! Notices at run time that the redirect is gone, without the capability to read rules.
//!
//! The rules redirect a few ports of 127.0.0.1 and ::1, the sentinels, to the proxy, ahead of the proxy's own exemption;
//! nothing else of loopback is captured. The proxy dials them. While the redirect stands it reaches itself; once the
//! rules are flushed the kernel refuses, or somebody else answers, who can't know what is expected: each look sends a
//! nonce, and only the proxy's own listener tells whether it came in. Which sentinels are redirected says what else the
//! rules carry. What this can't notice is in docs/capture.md.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::audit::{RedirectSeen, What};
use model::redirect::{Redirect, RedirectState};
use model::{Code, Failure};
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};
use service::health::{Blocker, Readiness};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};

use super::accept::{OriginalDestination, REDIRECT_TARGETS};
use super::namesake;
use crate::audit::Audit;
use crate::caller::CallerState;
use crate::socket::{self, SocketOptions};
use crate::splice::reset;

/// What a sentinel says by being redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// TCP is redirected.
    Redirected,
    /// What is not TCP is rejected.
    OtherRejected,
    /// Nothing but loopback and the proxy is left out.
    Whole,
    /// The proxy's own connections are redirected too: this one stands behind its exemption, so it must not be.
    OwnTraffic,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Redirected, Self::OtherRejected, Self::Whole, Self::OwnTraffic];

    /// Its port on loopback. An application that listens there can't be reached while the redirect is installed.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Redirected => 15_011,
            Self::OtherRejected => 15_012,
            Self::Whole => 15_013,
            Self::OwnTraffic => 15_014,
        }
    }
}

/// Whether a connection was dialled to a sentinel: it is never carried.
#[must_use]
pub fn is_sentinel(original: &OriginalDestination) -> bool {
    original.address().is_some_and(|address| address.ip().to_canonical().is_loopback())
        && Signal::ALL.iter().any(|signal| signal.port() == original.port())
}

/// Between two looks: a flushed redirect is noticed within this and the time of a look, which is long only if somebody
/// accepts in the proxy's place and keeps silent.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Every so many looks is a thorough one: at all sentinels, and for somebody with the proxy's UID.
const THOROUGH_EVERY: u64 = 5;

/// How long the find of somebody with the proxy's UID counts: whoever made one connection will make another.
const NAMESAKE_STAYS: Duration = Duration::from_secs(60);

/// How long the proxy may take to hear from itself. A worker that is busy for longer has other troubles.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);

/// How long somebody who dialled a sentinel may take for the nonce: the proxy sends it at once.
const NONCE_PATIENCE: Duration = Duration::from_secs(1);

type Nonce = [u8; 16];

/// What the looking and the accepting side share: the nonces that are under way, and whether we would talk to ourselves.
#[derive(Default)]
pub struct Sentinel {
    expected: Mutex<HashMap<Nonce, oneshot::Sender<()>>>,
    loops: AtomicBool,
}

impl Sentinel {
    /// Whether the proxy's own connections come back to it: then none may be carried, since each would make another.
    #[must_use]
    pub fn loops(&self) -> bool {
        self.loops.load(Ordering::Relaxed)
    }

    fn expect(&self) -> (Nonce, oneshot::Receiver<()>) {
        let nonce: Nonce = rand::random();
        let (sender, receiver) = oneshot::channel();
        self.map().insert(nonce, sender);
        (nonce, receiver)
    }

    fn forget(&self, nonce: &Nonce) {
        self.map().remove(nonce);
    }

    /// The accepting side of a sentinel: whoever sends what is expected is the proxy itself.
    pub async fn hear(&self, mut stream: TcpStream) {
        let mut nonce = Nonce::default();
        let Ok(Ok(_)) = timeout(NONCE_PATIENCE, stream.read_exact(&mut nonce)).await else { return };
        // Leaves no TIME_WAIT, and nothing in connection tracking for two minutes.
        reset(&stream);
        if let Some(heard) = self.map().remove(&nonce) {
            let _ = heard.send(());
        }
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<Nonce, oneshot::Sender<()>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a look found, for IPv4 and IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    redirected: [bool; 2],
    other_rejected: [bool; 2],
    whole: [bool; 2],
    own_traffic: [bool; 2],
    /// Somebody else has the proxy's UID.
    shared: bool,
}

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

impl Found {
    /// What it means: the weaker of the two families counts.
    fn redirect(&self) -> Redirect {
        let state = if self.own_traffic != [false; 2] {
            RedirectState::Loop
        } else if self.redirected == [true; 2] {
            if self.shared { RedirectState::Shared } else { RedirectState::Installed }
        } else {
            RedirectState::Gone
        };
        let installed = matches!(state, RedirectState::Installed | RedirectState::Shared);
        Redirect {
            state,
            rejects_other: installed && self.other_rejected == [true; 2],
            whole: installed && self.whole == [true; 2],
        }
    }

    fn failure(&self) -> Option<Failure> {
        let named = |found: [bool; 2], wanted: bool| {
            let families = FAMILIES.iter().zip(found).filter(|(_, is)| *is == wanted);
            families.map(|(family, _)| *family).collect::<Vec<_>>().join(" and ")
        };
        match self.redirect().state {
            RedirectState::Loop => Some(Failure::new(
                Code::RedirectLoop,
                format!(
                    "the proxy's own connections over {} are redirected to it",
                    named(self.own_traffic, true)
                ),
            )),
            RedirectState::Gone => Some(Failure::new(
                Code::RedirectGone,
                format!("no rule redirects {} to this proxy", named(self.redirected, false)),
            )),
            RedirectState::Shared => Some(Failure::new(
                Code::UidShared,
                "another process runs with the proxy's UID and has sockets of its own: its calls go around the proxy",
            )),
            _ => None,
        }
    }
}

/// Looks after the redirect for as long as the program runs.
pub struct Watchman {
    /// Shared with the workers that accept.
    pub sentinel: Arc<Sentinel>,
    /// How the proxy's own sockets are told from the application's.
    pub socket: SocketOptions,
    /// Told what was found.
    pub found: watch::Sender<Redirect>,
    /// Where a change is recorded.
    pub audit: Audit,
    /// Whose connections they are.
    pub caller: Arc<CallerState>,
    /// What falls when the redirect is gone.
    pub readiness: Readiness,
    /// Shows it.
    pub metrics: Metrics,
}

/// What `/metrics` shows of the redirect.
pub struct Metrics {
    redirected: IntGaugeVec,
    rejects_other: IntGauge,
    failures: crate::metrics::Metrics,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// If one is registered already.
    pub fn new(registry: &Registry, failures: crate::metrics::Metrics) -> Result<Self, prometheus::Error> {
        let redirected = IntGaugeVec::new(
            Opts::new(
                "countersign_redirect_installed",
                "Whether the redirect of this family leads to the proxy.",
            ),
            &["family"],
        )?;
        let rejects_other = IntGauge::new(
            "countersign_redirect_rejects_other",
            "Whether the installed rules reject what is not TCP.",
        )?;
        registry.register(Box::new(redirected.clone()))?;
        registry.register(Box::new(rejects_other.clone()))?;
        Ok(Self { redirected, rejects_other, failures })
    }

    fn show(&self, found: &Found) {
        for (family, installed) in ["ipv4", "ipv6"].iter().zip(found.redirected) {
            self.redirected.with_label_values(&[family]).set(installed.into());
        }
        self.rejects_other.set(found.redirect().rejects_other.into());
    }
}

impl Watchman {
    /// Never ends. `first` keeps the program from being ready until the redirect has been found once.
    pub async fn run(self, first: Blocker) {
        let mut held = Some(first);
        let mut before: Option<Found> = None;
        let mut shared_until = Instant::now();
        for look in 0_u64.. {
            let thorough = look % THOROUGH_EVERY == 0;
            if thorough && self.socket.mark.is_none() && namesake::is_there().await {
                shared_until = Instant::now() + NAMESAKE_STAYS;
            }
            let shared = Instant::now() < shared_until;
            let known = before.filter(|_| !thorough);
            let found = Found { shared, ..self.look(known).await };
            if before != Some(found) {
                let next = self.changed(&found).map(|name| self.readiness.block(name));
                // The new one is there before the old one goes.
                drop(std::mem::replace(&mut held, next));
                before = Some(found);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Shows a change everywhere; says what keeps the program from being ready, if anything does.
    fn changed(&self, found: &Found) -> Option<&'static str> {
        let (redirect, failure) = (found.redirect(), found.failure());
        self.sentinel.loops.store(redirect.state == RedirectState::Loop, Ordering::Relaxed);
        self.metrics.show(found);
        self.found.send_replace(redirect);
        match &failure {
            Some(failure) => {
                self.metrics.failures.failed(failure);
                tracing::error!(stage = "capture", code = %failure.code, "{failure}");
            }
            None => {
                tracing::info!(
                    stage = "capture",
                    rejects_other = redirect.rejects_other,
                    "redirect in place"
                );
            }
        }
        let event = RedirectSeen {
            caller: self.caller.caller().map(|caller| caller.id.clone()),
            redirect,
            code: failure.as_ref().map(|failure| failure.code),
            detail: failure.as_ref().map_or_else(String::new, |failure| failure.detail.clone()),
        };
        if let Err(unrecorded) = self.audit.write(What::Redirect(event)) {
            tracing::warn!(stage = "audit", code = %unrecorded.code, "the change could not be recorded: {unrecorded}");
        }
        failure.map(|failure| match failure.code {
            Code::RedirectLoop => BLOCKER_LOOP,
            Code::UidShared => BLOCKER_SHARED,
            _ => BLOCKER_GONE,
        })
    }

    /// Looks at everything, unless what is known is not much older and the redirect is as it was.
    async fn look(&self, known: Option<Found>) -> Found {
        let both = |signal: Signal| async move {
            let [v4, v6] = REDIRECT_TARGETS.map(|ip| self.reaches_us(SocketAddr::new(ip, signal.port())));
            <[bool; 2]>::from(tokio::join!(v4, v6))
        };
        let redirected = both(Signal::Redirected).await;
        if redirected != [true; 2] {
            // What else the rules say does not matter now; this is told at once.
            return Found { redirected, ..Found::default() };
        }
        if let Some(known) = known.filter(|known| known.redirected == redirected) {
            return known;
        }
        let (other_rejected, whole, own_traffic) =
            tokio::join!(both(Signal::OtherRejected), both(Signal::Whole), both(Signal::OwnTraffic));
        Found { redirected, other_rejected, whole, own_traffic, shared: false }
    }

    /// Whether what is dialled at this address arrives at our own listener.
    async fn reaches_us(&self, address: SocketAddr) -> bool {
        let (nonce, heard) = self.sentinel.expect();
        let dialling = async {
            let mut stream = socket::connect_tcp(address, &self.socket).await.ok()?;
            stream.write_all(&nonce).await.ok()?;
            let mut answer = [0];
            tokio::select! {
                biased;
                heard = heard => heard.ok()?,
                // Our own listener says nothing: whoever answers, or leaves first, is somebody else.
                _ = stream.read(&mut answer) => return None,
            }
            reset(&stream);
            Some(())
        };
        let reached = matches!(timeout(LOOK_PATIENCE, dialling).await, Ok(Some(())));
        self.sentinel.forget(&nonce);
        reached
    }
}

/// What `/readyz` names while the redirect does not lead here.
pub const BLOCKER_GONE: &str = "redirect";
const BLOCKER_LOOP: &str = "redirect (it catches the proxy's own connections)";
const BLOCKER_SHARED: &str = "redirect (another process has the proxy's UID, and goes around it)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weaker_family_counts() {
        let both = [true; 2];
        let whole = Found { redirected: both, other_rejected: both, whole: both, ..Found::default() };
        let state = |found: Found| (found.redirect().state, found.failure().map(|failure| failure.code));
        assert_eq!(state(whole), (RedirectState::Installed, None));
        assert!(whole.redirect().rejects_other && whole.redirect().whole);
        let only_v4 = Found { redirected: [true, false], ..whole };
        assert_eq!(state(only_v4), (RedirectState::Gone, Some(Code::RedirectGone)));
        assert!(only_v4.failure().unwrap().detail.contains("IPv6"));
        assert!(!only_v4.redirect().rejects_other);
        let caught = Found { own_traffic: [false, true], ..whole };
        assert_eq!(state(caught), (RedirectState::Loop, Some(Code::RedirectLoop)));
        let shared = Found { shared: true, ..whole };
        assert_eq!(state(shared), (RedirectState::Shared, Some(Code::UidShared)));
        let passes = Found { other_rejected: [true, false], ..whole };
        assert_eq!((state(passes).0, passes.redirect().rejects_other), (RedirectState::Installed, false));
    }

    #[tokio::test]
    async fn only_who_knows_the_nonce_is_heard() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let expected = Sentinel::default();
        let (nonce, mut heard) = expected.expect();
        for sent in [&[0_u8; 16][..], &nonce[..15], &nonce[..]] {
            let mut stranger = TcpStream::connect(address).await.unwrap();
            stranger.write_all(sent).await.unwrap();
            drop(stranger);
            let (stream, _) = listener.accept().await.unwrap();
            expected.hear(stream).await;
            assert_eq!(heard.try_recv().is_ok(), sent.len() == 16 && sent == nonce);
        }
    }

    #[test]
    fn only_loopback_has_sentinels() {
        let is = |text: &str| is_sentinel(&OriginalDestination::dialled(text.parse().unwrap()));
        assert!(is("127.0.0.1:15011") && is("[::1]:15014") && is("[::ffff:127.0.0.1]:15012"));
        assert!(!is("127.0.0.1:15015") && !is("10.0.0.1:15011"));
    }
}
