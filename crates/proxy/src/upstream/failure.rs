//! What failures of the HTTP libraries mean on the way to an upstream.

use model::{Code, Failure};

/// The upstream's answer is of no use.
pub fn bad_answer(detail: &str) -> Failure {
    Failure::new(Code::UpstreamBadAnswer, detail)
}

/// What a failure of hyper's means.
pub fn http1_failure(error: hyper::Error) -> Failure {
    if let Some(failure) = certificate_wanted(&error) {
        return failure;
    }
    let detail = if error.is_parse() || error.is_parse_status() {
        "the upstream's answer is not valid HTTP"
    } else {
        "the upstream closed the connection before its answer"
    };
    bad_answer(detail).because(error)
}

/// What a failure of h2's means.
pub fn http2_failure(error: h2::Error) -> Failure {
    if let Some(failure) = certificate_wanted(&error) {
        return failure;
    }
    bad_answer("the upstream ended the stream before its answer").because(error)
}

/// In TLS 1.3 a server refuses a missing client certificate only after the client's side of the handshake is done, so
/// that the alert comes up as an error of the connection.
fn certificate_wanted(error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    let mut source = Some(error);
    while let Some(current) = source {
        let io = current.downcast_ref::<std::io::Error>();
        let io = io.or_else(|| current.downcast_ref::<h2::Error>().and_then(h2::Error::get_io));
        if io.is_some_and(is_certificate_alert) {
            let detail = "the server asks for a client certificate";
            return Some(Failure::new(Code::UpstreamWantsCertificate, detail));
        }
        source = current.source();
    }
    None
}

/// h2 keeps only the text of an I/O error, so the text is compared where the error itself is gone.
fn is_certificate_alert(error: &std::io::Error) -> bool {
    use rustls::AlertDescription::{BadCertificate, CertificateRequired};
    let alerts = [CertificateRequired, BadCertificate].map(rustls::Error::AlertReceived);
    let Some(inner) = error.get_ref() else { return false };
    match inner.downcast_ref::<rustls::Error>() {
        Some(tls) => alerts.contains(tls),
        None => alerts.iter().any(|alert| alert.to_string() == inner.to_string()),
    }
}
