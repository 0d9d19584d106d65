//! How an answer of ours reads, in the dialect of the call.
//!
//! An SDK shows its user only what it expects from the service that it was made for, so a refusal is written in that
//! service's form: AWS's errors, a Kubernetes `Status`, text for git, a gRPC status; for everyone else a problem document.
//! Every dialect carries the same code and the same decision id, and the same headers; HTTP/1.1's reason phrase has the
//! code too. docs/answers.md shows what the user of each client reads.

mod aws;
mod dialect;
mod git;
mod grpc;
mod kubernetes;
mod problem;

pub use aws::AwsForm;
use bytes::Bytes;
pub use dialect::Dialect;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
pub use kubernetes::KubernetesForm;
use model::decision::NearMiss;
use model::{Code, DecisionId};

/// An answer, ready to be put into a message of either version.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// HTTP/1's reason phrase: the code's title and the code; no user's input.
    pub reason: String,
    /// All headers.
    pub headers: HeaderMap,
    /// In the dialect of the call; empty for gRPC, whose status is in the headers.
    pub body: Bytes,
}

/// What an answer says, in whichever dialect.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// Which row of the table.
    pub code: Code,
    /// What happened this time: a stranger's words may be in it.
    pub detail: &'a str,
    /// By which `countersign explain` finds it.
    pub decision: DecisionId,
    /// The policies that came nearest to allowing it.
    pub nearest: &'a [NearMiss],
}

impl Said<'_> {
    /// The status of HTTP. A code without one of its own is answered with 502: it can only come from the way to the
    /// upstream.
    fn status(&self) -> StatusCode {
        self.code.entry().status.and_then(|s| StatusCode::from_u16(s).ok()).unwrap_or(StatusCode::BAD_GATEWAY)
    }

    /// Code, reason, remedy and decision as one line, for clients that show one field.
    fn line(&self) -> String {
        let entry = self.code.entry();
        let detail = self.detail.trim_end_matches('.');
        format!(
            "{} {}: {detail}. {} (countersign, decision {})",
            self.code,
            entry.title,
            entry.remedy_for(self.decision),
            self.decision
        )
    }
}

/// A dialect's own part of an answer.
struct Form {
    /// In place of the code's own status, where the client would show nothing of an answer with that.
    status: Option<StatusCode>,
    content_type: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Form {
    fn new(content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status: None, content_type, headers: Vec::new(), body: body.into() }
    }

    fn status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Makes the answer.
#[must_use]
pub fn answer(dialect: Dialect, said: &Said<'_>) -> Answer {
    let form = match dialect {
        Dialect::Problem => problem::form(said),
        Dialect::Aws(form) => aws::form(form, said),
        Dialect::Kubernetes(form) => kubernetes::form(form, said),
        Dialect::Git => git::form(said),
        Dialect::Grpc => grpc::form(said),
    };
    let mut headers = common_headers(said);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(form.content_type));
    if dialect != Dialect::Grpc {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(form.body.len()));
    }
    for (name, value) in form.headers {
        // What a header can't carry is left out rather than bent: the body has it too.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Answer {
        status: form.status.unwrap_or_else(|| said.status()),
        reason: format!("{} {}", said.code.entry().title, said.code),
        headers,
        body: form.body.into(),
    }
}

/// The trailers by which a call of gRPC ends whose answer has begun.
#[must_use]
pub fn grpc_trailers(said: &Said<'_>) -> HeaderMap {
    let mut trailers = common_headers(said);
    trailers.remove(CACHE_CONTROL);
    for (name, value) in grpc::form(said).headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            trailers.insert(HeaderName::from_static(name), value);
        }
    }
    trailers
}

fn common_headers(said: &Said<'_>) -> HeaderMap {
    let code = said.code;
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("countersign-code"), HeaderValue::from_static(code.as_str()));
    let decision = said.decision.to_string();
    if let Ok(value) = HeaderValue::try_from(&decision) {
        headers.insert(HeaderName::from_static("countersign-decision"), value);
    }
    // RFC 9209 §2: a structured-field list; `error` is a token, `details` a string.
    let status = format!("countersign; error={}; details=\"{code} {decision}\"", code.entry().proxy_status);
    if let Ok(value) = HeaderValue::try_from(status) {
        headers.insert(HeaderName::from_static("proxy-status"), value);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const ALL: &[Dialect] = &[
        Dialect::Problem,
        Dialect::Aws(AwsForm::Query),
        Dialect::Aws(AwsForm::Ec2),
        Dialect::Aws(AwsForm::S3),
        Dialect::Aws(AwsForm::Json10),
        Dialect::Aws(AwsForm::Json11),
        Dialect::Aws(AwsForm::RestJson),
        Dialect::Aws(AwsForm::Cbor),
        Dialect::Kubernetes(KubernetesForm::Status),
        Dialect::Kubernetes(KubernetesForm::Text),
        Dialect::Git,
        Dialect::Grpc,
    ];

    fn said(code: Code, detail: &str) -> Said<'_> {
        Said { code, detail, decision: DecisionId(7), nearest: &[] }
    }

    #[test]
    fn every_dialect_says_the_same_and_none_asks_to_be_retried_later() {
        for entry in model::error::TABLE {
            for dialect in ALL {
                let answer = answer(*dialect, &said(entry.code, "it is so"));
                assert_eq!(answer.headers["countersign-code"], entry.text);
                assert_eq!(answer.headers["countersign-decision"], "0000000000007");
                assert_eq!(answer.headers["cache-control"], "no-store");
                assert_eq!(answer.reason, format!("{} {}", entry.title, entry.text));
                assert!(!answer.headers.contains_key("retry-after"), "{}", entry.text);
                let shown = match dialect {
                    Dialect::Grpc => answer.headers["grpc-message"].to_str().unwrap().to_owned(),
                    _ => String::from_utf8_lossy(&answer.body).into_owned(),
                };
                for needed in [entry.text, entry.title, "it is so", "0000000000007"] {
                    assert!(shown.contains(needed), "{dialect:?} {needed}: {shown}");
                }
            }
        }
    }

    #[test]
    fn trailers_of_grpc_have_a_status_and_nothing_of_a_header() {
        let trailers = grpc_trailers(&said(Code::Blocked, "the call was stopped"));
        assert_eq!(trailers["grpc-status"], "7");
        assert!(
            trailers["grpc-message"].to_str().unwrap().starts_with("CS5007 Blocked: the call was stopped.")
        );
        assert!(!trailers.contains_key("cache-control") && !trailers.contains_key("content-type"));
    }

    #[test]
    fn who_did_it_is_in_a_header_that_proxies_have_for_that() {
        let answer = answer(Dialect::Problem, &said(Code::NoPolicyAllows, "No policy allows it."));
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert_eq!(answer.reason, "Denied by policy CS5001");
        assert_eq!(
            answer.headers["proxy-status"],
            "countersign; error=http_request_denied; details=\"CS5001 0000000000007\""
        );
    }

    #[test]
    fn a_mistake_of_request_policy_or_issuer_is_a_status_that_no_client_retries() {
        use model::Stage;
        // docs/answers.md has the measurement: 5xx, 408, 425 and 429 are retried by somebody. The rest is not, but that a
        // 421 may be asked once more on a new connection, which is what it means.
        for entry in model::error::TABLE {
            let asked = matches!(entry.code.stage(), Stage::Protocol | Stage::Policy | Stage::Credential);
            if let Some(status) = entry.status.filter(|_| asked && !entry.retryable) {
                assert!((400..500).contains(&status), "{} {status}", entry.text);
                assert!(![408, 425, 429].contains(&status), "{} {status}", entry.text);
                assert_ne!(grpc::status(entry.code), grpc::UNAVAILABLE, "{}", entry.text);
            }
        }
    }
}
