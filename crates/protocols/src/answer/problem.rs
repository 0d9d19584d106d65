//! A problem document (RFC 9457).

use serde_json::json;

use super::{Form, Said};

pub(super) fn form(said: &Said<'_>) -> Form {
    let entry = said.code.entry();
    let code = said.code;
    let mut document = json!({
        "type": format!("https://countersign.dev/errors/{code}"),
        "title": entry.title,
        "status": said.status().as_u16(),
        "detail": said.detail,
        "instance": format!("urn:countersign:decision:{}", said.decision),
        "code": code.as_str(),
        "stage": code.stage().as_str(),
        "decision_id": said.decision.to_string(),
        "remedy": entry.remedy_for(said.decision),
        "retryable": entry.retryable,
        // npm shows this member, and nothing else of a body.
        "error": said.line(),
    });
    if !said.nearest.is_empty() {
        let policies = said.nearest.iter().map(|near| {
            json!({
                "name": near.policy.to_string(),
                "failed": near.failed.iter().map(|miss| json!({
                    "what": miss.what, "seen": miss.seen, "allowed": miss.allowed,
                })).collect::<Vec<_>>(),
            })
        });
        document["policies"] = policies.collect::<Vec<_>>().into();
    }
    Form::new("application/problem+json", format!("{document:#}\n"))
}

#[cfg(test)]
mod tests {
    use model::decision::{Miss, NearMiss};
    use model::{Code, DecisionId};

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
        let said = Said {
            code: Code::NoPolicyAllows,
            detail: "No policy allows it.",
            decision: DecisionId(7),
            nearest: &[near],
        };
        let body: serde_json::Value = serde_json::from_slice(&form(&said).body).unwrap();
        assert_eq!(body["decision_id"], "0000000000007");
        assert_eq!(body["policies"][0]["failed"][0]["what"], "method");
        assert_eq!(body["retryable"], false);
        assert_eq!(
            body["error"],
            "CS5001 Denied by policy: No policy allows it. `countersign explain 0000000000007` shows the nearest policy \
             and what it lacks. (countersign, decision 0000000000007)"
        );
    }
}
