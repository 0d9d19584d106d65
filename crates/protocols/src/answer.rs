//! How an answer of ours reads: a problem document (RFC 9457), with the code in the reason phrase and in headers, since
//! most clients show their user nothing else.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use model::decision::NearMiss;
use model::{Code, DecisionId};
use serde_json::json;

/// An answer, ready to be put into a message of either version.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// HTTP/1's reason phrase: the code's title and the code; no user's input.
    pub reason: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The problem document.
    pub body: Bytes,
}

/// Makes the answer of a code. A code without an HTTP status of its own is answered with 502.
#[must_use]
pub fn problem(code: Code, detail: &str, decision: DecisionId, nearest: &[NearMiss]) -> Answer {
    let entry = code.entry();
    let status = entry.status.and_then(|s| StatusCode::from_u16(s).ok()).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut document = json!({
        "type": format!("https://countersign.dev/errors/{code}"),
        "title": entry.title,
        "status": status.as_u16(),
        "detail": detail,
        "instance": format!("urn:countersign:decision:{decision}"),
        "code": code.as_str(),
        "stage": code.stage().as_str(),
        "decision_id": decision.to_string(),
        "remedy": entry.remedy,
        "retryable": entry.retryable,
    });
    if !nearest.is_empty() {
        let policies: Vec<_> = nearest
            .iter()
            .map(|near| {
                json!({
                    "name": near.policy.to_string(),
                    "failed": near.failed.iter().map(|miss| json!({
                        "what": miss.what, "seen": miss.seen, "allowed": miss.allowed,
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        document["policies"] = policies.into();
    }
    let body = Bytes::from(format!("{document:#}\n"));
    Answer {
        status,
        reason: format!("{} {code}", entry.title),
        headers: headers(code, decision, body.len()),
        body,
    }
}

fn headers(code: Code, decision: DecisionId, length: usize) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(6);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("countersign-code"), HeaderValue::from_static(code.as_str()));
    let decision = decision.to_string();
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
    use model::decision::Miss;

    use super::*;

    #[test]
    fn a_denial_says_all_that_its_reader_needs() {
        let near = NearMiss {
            policy: "payments/billing-charges".parse().unwrap(),
            failed: vec![Miss {
                what: "method".into(),
                seen: "DELETE".into(),
                allowed: vec!["GET".into(), "POST".into()],
            }],
        };
        let answer = problem(Code::NoPolicyAllows, "No policy allows it.", DecisionId(7), &[near]);
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert_eq!(answer.reason, "Denied by policy CS5001");
        assert_eq!(answer.headers["countersign-code"], "CS5001");
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert_eq!(
            answer.headers["proxy-status"],
            "countersign; error=http_request_denied; details=\"CS5001 0000000000007\""
        );
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["decision_id"], "0000000000007");
        assert_eq!(body["policies"][0]["failed"][0]["what"], "method");
        assert_eq!(body["retryable"], false);
    }

    #[test]
    fn no_answer_asks_to_be_retried_later() {
        for entry in model::error::TABLE {
            let answer = problem(entry.code, "x", DecisionId(0), &[]);
            assert!(!answer.headers.contains_key("retry-after"), "{}", entry.text);
        }
    }
}
