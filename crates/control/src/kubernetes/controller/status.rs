//! What a custom resource's status says: three conditions, in the words that users of the Gateway API know.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::plan::{InForce, References, Verdict};

/// It is valid.
pub const ACCEPTED: &str = "Accepted";
/// All that it names is there.
pub const RESOLVED: &str = "ResolvedRefs";
/// Decisions are made by this generation.
pub const PROGRAMMED: &str = "Programmed";

/// Longest message of a condition (Kubernetes API, `metav1.Condition`).
const MESSAGE_MAX: usize = 32_768;

/// The conditions of a verdict. Those that hold as they did before keep the time since when.
#[must_use]
pub fn conditions(verdict: &Verdict, generation: i64, before: &[Condition], now: &Time) -> Vec<Condition> {
    [(ACCEPTED, accepted(verdict)), (RESOLVED, resolved(verdict)), (PROGRAMMED, programmed(verdict))]
        .into_iter()
        .map(|(name, said)| {
            let known = before.iter().find(|known| known.type_ == name && known.status == said.status);
            Condition {
                type_: name.to_owned(),
                status: said.status.to_owned(),
                reason: said.reason,
                message: cut(said.message, MESSAGE_MAX),
                observed_generation: Some(generation),
                last_transition_time: known
                    .map_or_else(|| now.clone(), |known| known.last_transition_time.clone()),
            }
        })
        .collect()
}

/// What people should be told beside the status: the first condition that does not hold.
#[must_use]
pub fn complaint(conditions: &[Condition]) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.status == "False")
}

struct Said {
    status: &'static str,
    reason: String,
    message: String,
}

fn say(status: &'static str, reason: impl Into<String>, message: impl Into<String>) -> Said {
    Said { status, reason: reason.into(), message: message.into() }
}

fn accepted(verdict: &Verdict) -> Said {
    match &verdict.accepted {
        Ok(warnings) if warnings.is_empty() => say("True", "Accepted", "it is valid"),
        Ok(warnings) => say("True", "Accepted", warnings.clone()),
        // The code's name is one word, as a reason must be.
        Err(problem) => say("False", format!("{:?}", problem.code), problem.message.clone()),
    }
}

fn resolved(verdict: &Verdict) -> Said {
    match &verdict.references {
        References::Resolved => say("True", "ResolvedRefs", "all that it names is there"),
        References::Dangling(message) => say("False", "RefNotFound", message.clone()),
        References::NotLookedAt => say("Unknown", "NotAccepted", "it is not valid"),
    }
}

fn programmed(verdict: &Verdict) -> Said {
    match (verdict.in_force, &verdict.accepted) {
        (InForce::This, _) => say("True", "Programmed", "decisions are made by it"),
        (InForce::Earlier(generation), _) => say(
            "False",
            "EarlierGeneration",
            format!("it is not valid; generation {generation} stays in force until it is, or is deleted"),
        ),
        (InForce::Nothing, Ok(_)) => {
            say("False", "RefNotFound", "it grants nothing until all that it names is there")
        }
        (InForce::Nothing, Err(_)) => say("False", "NotAccepted", "nothing of it is in force"),
    }
}

/// At most so many bytes, at the end of a character.
#[must_use]
pub fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max - '…'.len_utf8()));
        text.push('…');
    }
    text
}
