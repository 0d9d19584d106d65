//! Why a call would be, or was, allowed or denied: the nine stages, each with what it found.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::audit::{Event, What};
use model::name::{HostName, SpiffeId};
use model::request::{Action, RequestFacts};
use model::slice::{Block, BlockTarget};
use model::{Attestation, Caller, Code, Failure, UnixMillis, Verdict};
use policy::snapshot::{Considered, Fact};
use policy::{Question, Snapshot};
use resources::kind::{Kind, Spec};
use serde_json::json;
use wire::v1;

use crate::index::{Index, Policies};
use crate::now;
use crate::store::Binding;

const STAGES: [&str; 9] =
    ["capture", "tls", "protocol", "identity", "policy", "credential", "rewrite", "upstream", "audit"];

/// What a call would meet, without making it.
///
/// # Errors
/// If the workload or the URL is not one.
pub fn hypothetical(
    index: &Index,
    bindings: &[Binding],
    asked: &v1::Hypothetical,
) -> Result<v1::ExplainResponse, Failure> {
    let policies = index.now();
    let caller = caller_of(&policies, bindings, &asked.workload)?;
    let (facts, secure) = facts_of(&asked.method, &asked.url)?;
    let slice = index.slice(&policies, &caller);
    let egress = slice.egress;
    let bypass = slice.bypass(now()).cloned();
    let snapshot = Snapshot::new(slice).map_err(|refused| {
        Failure::new(Code::PolicyError, "the policy can't be evaluated").because(refused)
    })?;
    let mut stages = Stages::default();
    stages.set("protocol", "ok", [format!("{} {}", facts.method, facts.path)]);
    stages.set("identity", "ok", [format!("{} in namespace {}", caller.id, caller.namespace)]);
    let covering = snapshot.cover(&facts.host, facts.port).cloned();
    if let Some(bypass) = bypass
        && !covering.as_ref().is_some_and(|covering| snapshot.slice().is_destination_blocked(&covering.name))
    {
        let line = format!("bypass {} of {} until {}", bypass.id, bypass.workload, bypass.until);
        stages.set("tls", "ok", [line, format!("reason: {}", bypass.reason)]);
        let summary = "BYPASSED: passes untouched, without a credential".to_owned();
        return Ok(stages.response(None, summary, String::new(), &[]));
    }
    let Some(destination) = covering else {
        // Of what nothing covers, a block knows the workload and everything.
        let stops =
            |block: &&Block| matches!(block.target, BlockTarget::Workload(_) | BlockTarget::Everything);
        let blocked = snapshot.slice().blocks.iter().find(stops).map(|_| Code::Blocked);
        let code = blocked.or(match egress {
            model::slice::Egress::Enforce => Some(Code::NotCovered),
            model::slice::Egress::Observe => None,
        });
        let line = format!("no policy of this workload covers {}:{}", facts.host, facts.port);
        let mode = format!("egress mode {}", egress.as_str());
        stages.set("policy", if code.is_some() { "fail" } else { "ok" }, [line, mode]);
        let summary = match code {
            Some(code) => format!("DENIED {code}"),
            None => "PASSES untouched, without a credential".to_owned(),
        };
        return Ok(stages.response(code, summary, String::new(), &[]));
    };
    stages.set("tls", "ok", [format!("{} belongs to destination {}", facts.host, destination.name)]);
    if !secure && !destination.insecure {
        stages.set("protocol", "fail", [Code::PlainHttp.entry().title.to_owned()]);
        return Ok(stages.response(Some(Code::PlainHttp), "DENIED CS3008".to_owned(), String::new(), &[]));
    }
    let caller = Arc::new(caller);
    let question = Question { caller: &caller, destination: &destination, request: &facts, now: now() };
    let explanation = snapshot.explain(&question);
    let mut lines = vec![String::new()];
    lines.extend(explanation.considered.iter().flat_map(considered_lines));
    let (code, summary) = match &explanation.decision.verdict {
        Verdict::Allow { credential, .. } => {
            let by: Vec<String> = explanation.decision.policies.iter().map(ToString::to_string).collect();
            lines[0] = format!("allowed by {}", by.join(", "));
            let credential = credential.as_ref().map_or("none is named".to_owned(), ToString::to_string);
            stages.set("policy", "ok", lines);
            stages.set("credential", "ok", [credential]);
            (None, "ALLOWED".to_owned())
        }
        Verdict::Deny { code, reason } => {
            lines[0] = format!("{code} {reason}");
            stages.set("policy", "fail", lines);
            (Some(*code), format!("DENIED {code}"))
        }
    };
    let nearest = explanation.decision.nearest.first().map(nearest_line).unwrap_or_default();
    Ok(stages.response(code, summary, nearest, &explanation.considered))
}

fn nearest_line(near: &model::decision::NearMiss) -> String {
    let missing: Vec<String> = near
        .failed
        .iter()
        .map(|miss| match miss.allowed.as_slice() {
            [] => format!("{} {}", miss.what, miss.seen).trim_end().to_owned(),
            _ => format!("{} {}", miss.what, miss.seen),
        })
        .collect();
    format!("Nearest: {}, if it also allowed {}.", near.policy, missing.join(" and "))
}

/// A policy that came near, and what it lacks.
fn near_lines(near: &model::decision::NearMiss) -> Vec<String> {
    let misses = near.failed.iter().map(|miss| {
        let (what, seen, allowed) = (miss.what.clone(), miss.seen.clone(), miss.allowed.clone());
        fact_line(&Fact { what, held: Some(false), seen, allowed })
    });
    std::iter::once(format!("{} (permit)", near.policy)).chain(misses).collect()
}

fn considered_lines(considered: &Considered) -> Vec<String> {
    let mut lines = vec![format!("{} ({})", considered.name, considered.effect)];
    lines.extend(considered.facts.iter().map(fact_line));
    lines.extend(considered.expression.iter().map(|expression| format!("    when {expression}")));
    lines
}

fn fact_line(fact: &Fact) -> String {
    let mark = match fact.held {
        Some(true) => "ok",
        Some(false) => "no",
        None => "any",
    };
    let allowed = if fact.allowed.is_empty() {
        String::new()
    } else {
        format!("   allowed: {}", fact.allowed.join(", "))
    };
    format!("  {mark:<4} {} {}{allowed}", fact.what, fact.seen)
}

/// The caller that a question means: one that has attested, or a made-up one that fits a workload's selector.
fn caller_of(policies: &Policies, bindings: &[Binding], text: &str) -> Result<Caller, Failure> {
    let unknown =
        || Failure::new(Code::NotFound, format!("there is no Workload and no attested caller `{text}`"));
    if let Ok(id) = SpiffeId::new(text) {
        let found = bindings.iter().find(|binding| binding.caller.id == id);
        return found.map(|binding| binding.caller.clone()).ok_or_else(unknown);
    }
    let name = text.parse().map_err(|_| unknown())?;
    let document = policies.set.get(Kind::Workload, &name).ok_or_else(unknown)?;
    let known = bindings.iter().find(|binding| policies.workloads_of(&binding.caller).contains(&name));
    if let Some(binding) = known {
        return Ok(binding.caller.clone());
    }
    let (Spec::Workload(spec), Some(namespace)) = (&document.spec, name.namespace.clone()) else {
        return Err(unknown());
    };
    let attributes: BTreeMap<String, String> = spec
        .selector
        .iter()
        .map(|(key, value)| (key.clone(), value.trim_end_matches('*').to_owned()))
        .collect();
    let id = SpiffeId::new(&format!("spiffe://example/ns/{namespace}/workload/{}", name.name))
        .map_err(|_| unknown())?;
    Ok(Caller {
        id,
        namespace,
        attributes,
        attestation: Attestation {
            provider: "none".into(),
            kind: "none".into(),
            issued_at: now(),
            expires_at: UnixMillis(i64::MAX),
        },
    })
}

fn facts_of(method: &str, url: &str) -> Result<(RequestFacts, bool), Failure> {
    let invalid = |what: &str| Failure::new(Code::InvalidValue, format!("`{url}` {what}"));
    let uri: http::Uri = url.parse().map_err(|_| invalid("is not a URL"))?;
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(invalid("must begin with https:// or http://")),
    };
    let host =
        uri.host().and_then(|host| HostName::new(host).ok()).ok_or_else(|| invalid("names no host"))?;
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let facts = RequestFacts {
        action: Action::Http,
        method: method.to_ascii_uppercase(),
        host,
        port,
        path: uri.path().to_owned(),
        headers: BTreeMap::new(),
    };
    Ok((facts, secure))
}

/// What the audit says of one decision. `events` are all that carry its id, oldest first.
#[must_use]
pub fn recorded(events: &[Event]) -> Option<v1::ExplainResponse> {
    let mut stages = Stages::default();
    let mut code = None;
    let mut summary = String::new();
    let mut nearest = String::new();
    for event in events {
        match &event.what {
            What::Intent(intent) => {
                summary = format!("ALLOWED {} https://{}{}", intent.method, intent.authority, intent.path);
                stages.set("capture", "ok", [format!("to {}", intent.upstream)]);
                stages.set("protocol", "ok", [format!("{} {}", intent.method, intent.path)]);
                stages.set("identity", "ok", [intent.caller.to_string()]);
                let by: Vec<String> = intent.policies.iter().map(ToString::to_string).collect();
                stages.set(
                    "policy",
                    "ok",
                    [format!("allowed by {} (policy {})", by.join(", "), intent.version)],
                );
                let grant = intent.grant.as_ref().map_or("none".to_owned(), |grant| {
                    let provider = intent.provider.as_ref().map(ToString::to_string).unwrap_or_default();
                    format!("{grant} from {provider}")
                });
                stages.set("credential", "ok", [grant]);
                stages.set("audit", "ok", [event.time.to_string()]);
            }
            What::Outcome(outcome) => {
                let status =
                    outcome.status.map_or("no answer".to_owned(), |status| format!("answered {status}"));
                code = outcome.code;
                let mark = if code.is_some() { "fail" } else { "ok" };
                stages.set("upstream", mark, [format!("{status} after {} ms", outcome.duration_us / 1000)]);
            }
            What::Refusal(refusal) => {
                summary = format!("DENIED {} {}{}", refusal.method, refusal.authority, refusal.path);
                code = Some(refusal.code);
                stages.set("capture", "ok", [format!("to {}", refusal.authority)]);
                if let Some(destination) = &refusal.destination {
                    stages.set("tls", "ok", [format!("belongs to destination {destination}")]);
                }
                if !refusal.path.is_empty() {
                    stages.set("protocol", "ok", [format!("{} {}", refusal.method, refusal.path)]);
                }
                if let Some(caller) = &refusal.caller {
                    stages.set("identity", "ok", [caller.to_string()]);
                }
                let mut lines = vec![format!("{} {}", refusal.code, refusal.detail)];
                lines.extend(refusal.nearest.iter().flat_map(near_lines));
                if let Some(version) = refusal.version {
                    lines.push(format!("policy {version}"));
                }
                stages.set(refusal.code.stage().as_str(), "fail", lines);
                nearest = refusal.nearest.first().map(nearest_line).unwrap_or_default();
                stages.set("upstream", "skip", ["nothing was sent".to_owned()]);
                stages.set("audit", "ok", [event.time.to_string()]);
            }
            What::Passed(passed) => {
                let name = passed.name.as_ref().unwrap_or(&passed.address);
                summary = format!("PASSED {name} untouched, without a credential");
                stages.set("capture", "ok", [format!("to {}", passed.address)]);
                stages.set("tls", "ok", [format!("left shut: {}", passed.protocol)]);
                stages.set("identity", "ok", [passed.caller.to_string()]);
                let covered = passed.destination.as_ref().map_or(
                    "no policy covers it, and the egress mode is `observe`".to_owned(),
                    |destination| format!("destination {destination} is carried as it is"),
                );
                stages.set("policy", "ok", [covered]);
                stages.set("audit", "ok", [event.time.to_string()]);
            }
            What::StandingCredential(standing) => {
                let line = format!("the application's own `{}` was removed", standing.header);
                stages.set("rewrite", "ok", [line, format!("fingerprint {}", standing.fingerprint)]);
            }
            _ => {}
        }
    }
    (!summary.is_empty()).then(|| stages.response(code, summary, nearest, &[]))
}

/// The nine stages; those that nobody speaks of were not reached.
#[derive(Default)]
struct Stages(BTreeMap<&'static str, (&'static str, Vec<String>)>);

impl Stages {
    fn set(&mut self, stage: &'static str, mark: &'static str, lines: impl IntoIterator<Item = String>) {
        self.0.insert(stage, (mark, lines.into_iter().collect()));
    }

    fn response(
        self,
        code: Option<Code>,
        summary: String,
        nearest: String,
        considered: &[Considered],
    ) -> v1::ExplainResponse {
        let stages: Vec<v1::ExplainedStage> = STAGES
            .iter()
            .map(|stage| match self.0.get(stage) {
                Some((mark, lines)) => v1::ExplainedStage {
                    stage: (*stage).to_owned(),
                    mark: (*mark).to_owned(),
                    lines: lines.clone(),
                },
                None => v1::ExplainedStage {
                    stage: (*stage).to_owned(),
                    mark: "skip".to_owned(),
                    lines: Vec::new(),
                },
            })
            .collect();
        let json = json!({
            "allowed": code.is_none(),
            "code": code,
            "stages": stages.iter().map(|s| json!({ "stage": s.stage, "mark": s.mark, "lines": s.lines })).collect::<Vec<_>>(),
            "considered": considered,
            "nearest": nearest,
        });
        v1::ExplainResponse {
            stages,
            allowed: code.is_none(),
            code: code.map(|code| code.to_string()).unwrap_or_default(),
            summary,
            nearest,
            json: json.to_string(),
        }
    }
}
