//! What failures mean on the way to an upstream.

use model::{Code, Failure};
use rustls::AlertDescription;

use super::tls_failure::{about_certificate, is_about_certificate};

/// The upstream's answer is of no use.
pub fn bad_answer(detail: &str) -> Failure {
    Failure::new(Code::UpstreamBadAnswer, detail)
}

/// The upstream's connection ended before its answer, in order or by an error.
pub fn broken_off(error: Option<std::io::Error>) -> Failure {
    let failure = bad_answer("the upstream closed the connection before its answer");
    match error {
        None => failure,
        Some(error) => certificate_wanted(&error).unwrap_or_else(|| failure.because(error)),
    }
}

/// What a failure of h2's means.
pub fn http2_failure(error: h2::Error) -> Failure {
    if let Some(failure) = certificate_wanted(&error) {
        return failure;
    }
    bad_answer("the upstream ended the stream before its answer").because(error)
}

/// In TLS 1.3 a server refuses a client certificate, or that there is none, only after the client's side of the handshake
/// is done, so that the alert comes up as an error of the connection.
fn certificate_wanted(error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    let mut source = Some(error);
    while let Some(current) = source {
        let io = current.downcast_ref::<std::io::Error>();
        let io = io.or_else(|| current.downcast_ref::<h2::Error>().and_then(h2::Error::get_io));
        if let Some(alert) = io.and_then(certificate_alert) {
            // What there is to show was shown; a server that got something says something else than this.
            let shown = alert != AlertDescription::CertificateRequired;
            let detail = about_certificate("the server", alert, shown);
            return Some(Failure::new(Code::UpstreamWantsCertificate, detail));
        }
        source = current.source();
    }
    None
}

/// h2 keeps only the text of an I/O error, so the text is compared where the error itself is gone.
fn certificate_alert(error: &std::io::Error) -> Option<AlertDescription> {
    let inner = error.get_ref()?;
    let text = || inner.to_string();
    let received = match inner.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        Some(_) => None,
        None => (0..=u8::MAX)
            .map(AlertDescription::from)
            .filter(|alert| is_about_certificate(*alert))
            .find(|alert| rustls::Error::AlertReceived(*alert).to_string() == text()),
    };
    received.filter(|alert| is_about_certificate(*alert))
}
