//! What a failed TLS handshake with an upstream means: a refusal that says what is missing.

use std::io;

use model::{Code, Failure, HostName};
use rustls::AlertDescription as Alert;
use rustls::Error as Tls;
use rustls::PeerIncompatible;

use super::roots::Shown;

/// Tells a certificate that does not verify from a server that wants ours, both from one that speaks no TLS that we
/// accept, and says which.
pub fn tls_failure(name: &HostName, shown: &Shown, error: io::Error) -> Failure {
    let (code, detail) = match error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) {
        Some(tls) => meaning(name, shown, tls),
        None => (Code::UpstreamUnreachable, format!("{name} closed during the TLS handshake")),
    };
    Failure::new(code, detail).because(error)
}

fn meaning(name: &HostName, shown: &Shown, error: &Tls) -> (Code, String) {
    match error {
        Tls::InvalidCertificate(problem) => {
            (Code::UpstreamUntrusted, format!("the certificate of {name} does not verify: {problem}"))
        }
        Tls::AlertReceived(alert) if shown.was_asked_for() && is_about_certificate(*alert) => {
            (Code::UpstreamWantsCertificate, about_certificate(name.as_str(), *alert, shown.is_there()))
        }
        Tls::AlertReceived(Alert::CertificateRequired | Alert::BadCertificate) => {
            (Code::UpstreamWantsCertificate, format!("{name} asks for a client certificate"))
        }
        _ => (Code::UpstreamTls, missing(name, error)),
    }
}

/// What the server does not have.
fn missing(name: &HostName, error: &Tls) -> String {
    match error {
        Tls::AlertReceived(Alert::ProtocolVersion)
        | Tls::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => format!("{name} speaks neither TLS 1.3 nor TLS 1.2, only older versions"),
        Tls::AlertReceived(Alert::HandshakeFailure | Alert::InsufficientSecurity)
        | Tls::PeerIncompatible(
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::NoKxGroupsInCommon
            | PeerIncompatible::NoSignatureSchemesInCommon,
        ) => format!(
            "{name} has no cipher in common with the proxy: it lacks TLS 1.3, and in TLS 1.2 ECDHE with AEAD \
             (AES-GCM or ChaCha20-Poly1305)"
        ),
        Tls::AlertReceived(Alert::NoApplicationProtocol) => {
            format!("{name} speaks none of the versions of HTTP that it was offered")
        }
        Tls::AlertReceived(Alert::UnrecognisedName) => {
            format!("the server does not know the name {name}; `serverName` in the Destination sends another")
        }
        Tls::InvalidMessage(_) | Tls::InappropriateMessage { .. } => {
            format!("{name} does not speak TLS on this port")
        }
        other => format!("the TLS handshake with {name} failed: {other}"),
    }
}

/// Whether a server says by this alert that it is not content with the client's certificate, or with there being none
/// (RFC 8446 §6.2; OpenSSL says `handshake_failure` in TLS 1.2 if there is none).
pub fn is_about_certificate(alert: Alert) -> bool {
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::HandshakeFailure
    )
}

/// That, for people.
pub fn about_certificate(name: &str, alert: Alert, shown: bool) -> String {
    if shown {
        format!("{name} does not accept the workload's certificate (alert {alert:?})")
    } else {
        format!("{name} asks for a client certificate")
    }
}
