//! The two events that every call has, written as [`model::audit::Event`] reads them, from what is there: nothing is
//! copied to be written.

use model::audit::{CallResult, Outcome};
use model::{DecisionId, GrantId, HostName, ResourceRef, SpiffeId, UnixMillis, Version};
use serde::{Serialize, Serializer};

use crate::capture::accept::OriginalDestination;

/// A call that is about to be made; see [`model::audit::Intent`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Intent<'a> {
    /// Names the call.
    pub decision: DecisionId,
    /// Who calls.
    pub caller: &'a SpiffeId,
    /// `http`, `grpc` or `connect`.
    pub action: &'a str,
    /// Empty for `connect`.
    pub method: &'a str,
    /// The destination's document.
    pub destination: &'a ResourceRef,
    /// As judged.
    pub authority: Authority<'a>,
    /// Without its query.
    pub path: &'a str,
    /// The policies that allowed it.
    pub policies: &'a [ResourceRef],
    /// The version of policy that was asked.
    pub version: Version,
    /// Whose credential was put in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<&'a ResourceRef>,
    /// Which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<&'a GrantId>,
    /// Where the application was going.
    #[serde(serialize_with = "shown")]
    pub upstream: &'a OriginalDestination,
}

/// `host:port`
#[derive(Clone, Copy, Debug)]
pub struct Authority<'a>(pub &'a HostName, pub u16);

impl Serialize for Authority<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}:{}", self.0, self.1))
    }
}

fn shown<S: Serializer>(original: &&OriginalDestination, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(original)
}

#[derive(Serialize)]
struct Line<'a, T> {
    time: UnixMillis,
    kind: &'a str,
    #[serde(flatten)]
    what: &'a T,
}

/// The payload of an intent.
///
/// # Errors
/// None that JSON knows: all of it is text and numbers.
pub fn intent(time: UnixMillis, intent: &Intent<'_>) -> serde_json::Result<Vec<u8>> {
    write(time, "intent", intent)
}

/// The payload of an outcome.
///
/// # Errors
/// None that JSON knows: all of it is text and numbers.
pub fn outcome(time: UnixMillis, outcome: &Outcome) -> serde_json::Result<Vec<u8>> {
    write(time, "outcome", outcome)
}

fn write(time: UnixMillis, kind: &str, what: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut payload = Vec::with_capacity(640);
    serde_json::to_writer(&mut payload, &Line { time, kind, what })?;
    Ok(payload)
}

/// What becomes of a call of which nothing more is known.
#[must_use]
pub const fn ended(decision: DecisionId, result: CallResult) -> Outcome {
    Outcome { decision, result, status: None, code: None, bytes_up: 0, bytes_down: 0, duration_us: 0 }
}

#[cfg(test)]
mod tests {
    use model::audit::{Event, What};

    use super::*;

    #[test]
    fn both_read_back_and_are_written_as_the_model_writes_them() {
        let (host, caller) = (HostName::new("a.example").unwrap(), SpiffeId::new("spiffe://demo/a").unwrap());
        let (destination, grant) = ("n/d".parse().unwrap(), GrantId("g\"1".into()));
        let original = OriginalDestination::dialled("[fd77::a]:443".parse().unwrap());
        let line = Intent {
            decision: DecisionId(7),
            caller: &caller,
            action: "http",
            method: "GET",
            destination: &destination,
            authority: Authority(&host, 443),
            path: "/a\u{7f}\"b",
            policies: &[destination.clone()],
            version: Version { epoch: 1, revision: 2 },
            provider: Some(&destination),
            grant: Some(&grant),
            upstream: &original,
        };
        let completed = Outcome { status: Some(200), ..ended(DecisionId(7), CallResult::Completed) };
        let time = UnixMillis(1_795_514_400_000);
        for payload in [
            intent(time, &line).unwrap(),
            intent(time, &Intent { provider: None, grant: None, ..line }).unwrap(),
            outcome(time, &completed).unwrap(),
        ] {
            let event: Event = serde_json::from_slice(&payload).unwrap();
            assert_eq!(serde_json::to_vec(&event).unwrap(), payload);
            match event.what {
                What::Intent(intent) => assert_eq!(
                    (intent.authority.as_str(), intent.path.as_str()),
                    ("a.example:443", line.path)
                ),
                What::Outcome(outcome) => assert_eq!(outcome, completed),
                other => panic!("{other:?}"),
            }
        }
    }
}
