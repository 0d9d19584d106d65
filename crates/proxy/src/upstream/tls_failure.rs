//! What a failed TLS handshake with an upstream means: a refusal that says what is missing.

use std::io;

use model::{Code, Failure, HostName, UnixMillis};
use rustls::AlertDescription as Alert;
use rustls::CertificateError as Wrong;
use rustls::Error as Tls;
use rustls::PeerIncompatible;
use rustls::pki_types::UnixTime;
use webpki::Error as WebPki;

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
        Tls::InvalidCertificate(wrong) => {
            let why = what_is_wrong(wrong);
            (Code::UpstreamUntrusted, format!("the certificate of {name} does not verify: {why}"))
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

/// What is wrong with a certificate, or with one of those above it.
fn what_is_wrong(wrong: &Wrong) -> String {
    match wrong {
        Wrong::UnknownIssuer => "it is signed by nobody whom the proxy trusts".to_owned(),
        Wrong::ExpiredContext { not_after, .. } => {
            format!("it, or one of those above it, expired at {}", shown(*not_after))
        }
        Wrong::Expired => "it, or one of those above it, has expired".to_owned(),
        Wrong::NotValidYetContext { not_before, .. } => {
            format!("it, or one of those above it, is not valid before {}", shown(*not_before))
        }
        Wrong::NotValidYet => "it, or one of those above it, is not valid yet".to_owned(),
        Wrong::NotValidForNameContext { expected, presented } => {
            format!("it is not for {}, but {}", expected.to_str(), for_whom(presented))
        }
        Wrong::NotValidForName => "it is for another name".to_owned(),
        Wrong::Revoked => "it has been revoked".to_owned(),
        Wrong::UnknownRevocationStatus
        | Wrong::ExpiredRevocationList
        | Wrong::ExpiredRevocationListContext { .. }
        | Wrong::InvalidOcspResponse => "nobody says that it has not been revoked".to_owned(),
        Wrong::BadSignature => "a signature in its chain, or the handshake's, is not right".to_owned(),
        Wrong::UnsupportedSignatureAlgorithmContext { .. }
        | Wrong::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "it, or one of those above it, is signed in a way that the proxy does not accept, SHA-1 for instance"
                .to_owned()
        }
        Wrong::InvalidPurpose | Wrong::InvalidPurposeContext { .. } => {
            "it is not for servers: its extended key usage does not have serverAuth".to_owned()
        }
        Wrong::UnhandledCriticalExtension => UNKNOWN_EXTENSION.to_owned(),
        Wrong::BadEncoding => MALFORMED.to_owned(),
        Wrong::Other(other) => other.0.downcast_ref().map_or(REFUSED, what_else_is_wrong).to_owned(),
        _ => REFUSED.to_owned(),
    }
}

const UNKNOWN_EXTENSION: &str = "it has a critical extension that the proxy does not know";
const MALFORMED: &str = "it is malformed";
/// The log has the error itself beside this.
const REFUSED: &str = "it was refused; the proxy's log says more";

/// The same, of what rustls has no words for.
const fn what_else_is_wrong(wrong: &WebPki) -> &'static str {
    match wrong {
        WebPki::CaUsedAsEndEntity => {
            "it is a CA's (basicConstraints CA:TRUE), and no server's; have the CA sign one for the server"
        }
        WebPki::EndEntityUsedAsCa => "it is signed by a certificate that is no CA's",
        WebPki::NameConstraintViolation => "a CA above it may not sign for this name (nameConstraints)",
        WebPki::PathLenConstraintViolated => {
            "there are more CAs above it than one of them allows (pathLenConstraint)"
        }
        WebPki::MaximumPathDepthExceeded
        | WebPki::MaximumPathBuildCallsExceeded
        | WebPki::MaximumSignatureChecksExceeded
        | WebPki::MaximumNameConstraintComparisonsExceeded => {
            "its chain is too long, or has too many ways to go"
        }
        WebPki::UnsupportedCertVersion => "it is no X.509 certificate of version 3",
        WebPki::UnsupportedCriticalExtension => UNKNOWN_EXTENSION,
        WebPki::CertDistrusted => "the key of it, or of one of those above it, is distrusted",
        WebPki::EmptyEkuExtension
        | WebPki::ExtensionValueInvalid
        | WebPki::InvalidNetworkMaskConstraint
        | WebPki::InvalidSerialNumber
        | WebPki::MalformedDnsIdentifier
        | WebPki::MalformedExtensions
        | WebPki::MalformedNameConstraint
        | WebPki::SignatureAlgorithmMismatch => MALFORMED,
        _ => REFUSED,
    }
}

fn shown(time: UnixTime) -> UnixMillis {
    UnixMillis(i64::try_from(time.as_secs().saturating_mul(1000)).unwrap_or(i64::MAX))
}

/// Names that are told; some certificates have a hundred.
const NAMES_MAX: usize = 4;

/// The names of a certificate, which are there as `DnsName("a.example")`.
fn for_whom(presented: &[String]) -> String {
    let bare = |name: &String| name.split('"').nth(1).unwrap_or(name).to_owned();
    let mut names: Vec<String> = presented.iter().take(NAMES_MAX).map(bare).collect();
    if presented.len() > NAMES_MAX {
        names.push(format!("{} more", presented.len() - NAMES_MAX));
    }
    match names.pop() {
        None => "has no name in subjectAltName".to_owned(),
        Some(last) if names.is_empty() => format!("for {last}"),
        Some(last) => format!("for {} and {last}", names.join(", ")),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::ServerName;

    use super::*;

    /// What is said of a certificate for `a.example` that was changed in this way, by rustls' own verifier.
    fn said(change: impl FnOnce(&mut CertificateParams)) -> String {
        let key = || KeyPair::generate().unwrap();
        let mut root = CertificateParams::new(Vec::new()).unwrap();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name.push(DnType::CommonName, "root");
        let root_key = key();
        let mut roots = RootCertStore::empty();
        roots.add(root.self_signed(&root_key).unwrap().der().clone()).unwrap();
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        change(&mut params);
        let leaf = params.signed_by(&key(), &Issuer::from_params(&root, &root_key)).unwrap();
        let provider = service::tls_provider::provider();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let name = ServerName::try_from("a.example").unwrap();
        match verifier.verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now()) {
            Ok(_) => String::new(),
            Err(Tls::InvalidCertificate(wrong)) => what_is_wrong(&wrong),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_wrong_with_a_certificate_is_said_in_words() {
        assert_eq!(said(|_| ()), "");
        let authority = said(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        assert!(authority.starts_with("it is a CA's"), "{authority}");
        let day = Duration::from_secs(86_400);
        let expired = said(|params| params.not_after = (SystemTime::now() - day).into());
        assert!(expired.starts_with("it, or one of those above it, expired at 2"), "{expired}");
        let early = said(|params| params.not_before = (SystemTime::now() + day).into());
        assert!(early.starts_with("it, or one of those above it, is not valid before 2"), "{early}");
        let client = said(|params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        });
        assert!(client.contains("serverAuth"), "{client}");
    }

    #[test]
    fn a_certificate_for_others_says_for_whom_and_does_not_go_on_about_it() {
        let names = |names: &[&str]| {
            let names: Vec<_> =
                names.iter().map(|name| rcgen::SanType::DnsName((*name).try_into().unwrap())).collect();
            said(|params| params.subject_alt_names = names)
        };
        assert_eq!(names(&["b.example"]), "it is not for a.example, but for b.example");
        assert_eq!(
            names(&["1.b", "2.b", "3.b", "4.b", "5.b", "6.b"]),
            "it is not for a.example, but for 1.b, 2.b, 3.b, 4.b and 2 more"
        );
        assert_eq!(names(&[]), "it is not for a.example, but has no name in subjectAltName");
    }

    #[test]
    fn what_rustls_would_show_as_a_programmer_sees_it_has_words_too() {
        let wrong = |error: WebPki| what_is_wrong(&Wrong::Other(rustls::OtherError(Arc::new(error))));
        for error in [
            WebPki::CaUsedAsEndEntity,
            WebPki::EndEntityUsedAsCa,
            WebPki::NameConstraintViolation,
            WebPki::PathLenConstraintViolated,
            WebPki::MaximumPathDepthExceeded,
            WebPki::UnsupportedCertVersion,
            WebPki::MalformedExtensions,
        ] {
            let words = wrong(error.clone());
            assert!(
                words.contains(' ') && !words.contains(&format!("{error:?}")) && words != REFUSED,
                "{words}"
            );
        }
        assert_eq!(wrong(WebPki::UnsupportedNameType), REFUSED);
        assert!(what_is_wrong(&Wrong::UnknownIssuer).contains("signed by nobody"));
    }
}
