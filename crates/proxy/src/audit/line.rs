//! The two events that every call has, written as [`model::audit::Event`] reads them, from what is there. Every call
//! pays for them, so they are written by hand; a test compares them with what the model writes.

use model::audit::{CallResult, Outcome};
use model::{DecisionId, GrantId, HostName, ResourceRef, SpiffeId, UnixMillis, Version};
use serde::Serialize;

/// A call that is about to be made; see [`model::audit::Intent`].
#[derive(Clone, Copy, Debug)]
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
    /// The name as judged.
    pub host: &'a HostName,
    /// The port as judged.
    pub port: u16,
    /// Without its query.
    pub path: &'a str,
    /// The policies that allowed it.
    pub policies: &'a [ResourceRef],
    /// The version of policy that was asked.
    pub version: Version,
    /// Whose credential was put in.
    pub provider: Option<&'a ResourceRef>,
    /// Which.
    pub grant: Option<&'a GrantId>,
    /// Where the application was going, for people.
    pub upstream: &'a str,
}

/// The payload of an intent.
pub fn intent(time: UnixMillis, intent: &Intent<'_>) -> Vec<u8> {
    let mut line = Line::begin(time, "intent");
    line.decision(intent.decision);
    line.text("caller", intent.caller.as_str());
    line.text("action", intent.action);
    line.text("method", intent.method);
    line.key("destination").reference(intent.destination);
    line.key("authority").put(b"\"").put(intent.host.as_str().as_bytes()).put(b":");
    line.digits(intent.port).put(b"\"");
    line.text("path", intent.path);
    line.key("policies").put(b"[");
    for (number, policy) in intent.policies.iter().enumerate() {
        line.put(if number == 0 { b"" } else { b"," }).reference(policy);
    }
    line.put(b"]");
    line.key("version").put(b"{\"epoch\":").digits(intent.version.epoch);
    line.put(b",\"revision\":").digits(intent.version.revision).put(b"}");
    if let Some(provider) = intent.provider {
        line.key("provider").reference(provider);
    }
    if let Some(grant) = intent.grant {
        line.text("grant", &grant.0);
    }
    line.text("upstream", intent.upstream);
    line.end()
}

/// The payload of an outcome.
pub fn outcome(time: UnixMillis, outcome: &Outcome) -> Vec<u8> {
    let mut line = Line::begin(time, "outcome");
    line.decision(outcome.decision);
    line.key("result").json(&outcome.result);
    if let Some(status) = outcome.status {
        line.key("status").digits(status);
    }
    if let Some(code) = &outcome.code {
        line.text("code", code.as_str());
    }
    line.key("bytes_up").digits(outcome.bytes_up);
    line.key("bytes_down").digits(outcome.bytes_down);
    line.key("duration_us").digits(outcome.duration_us);
    line.end()
}

/// An object of JSON, as far as it is written.
struct Line(Vec<u8>);

impl Line {
    fn begin(time: UnixMillis, kind: &str) -> Self {
        let mut line = Self(Vec::with_capacity(640));
        line.put(b"{\"time\":").digits(time.0);
        line.text("kind", kind);
        line
    }

    fn end(mut self) -> Vec<u8> {
        self.put(b"}");
        self.0
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn digits(&mut self, number: impl itoa::Integer) -> &mut Self {
        self.put(itoa::Buffer::new().format(number).as_bytes())
    }

    fn key(&mut self, key: &str) -> &mut Self {
        self.put(b",\"").put(key.as_bytes()).put(b"\":")
    }

    fn decision(&mut self, decision: DecisionId) {
        self.key("decision").put(b"\"").put(&decision.digits()).put(b"\"");
    }

    fn text(&mut self, key: &str, text: &str) {
        self.key(key);
        // Without an early end, so that many bytes are looked at at once.
        let odd = |odd, byte| odd | (byte < b' ') | (byte == b'"') | (byte == b'\\');
        if text.bytes().fold(false, odd) {
            self.json(&text);
        } else {
            self.put(b"\"").put(text.as_bytes()).put(b"\"");
        }
    }

    /// Its letters are those of names, of which none is written otherwise in JSON.
    fn reference(&mut self, reference: &ResourceRef) {
        self.put(b"\"");
        if let Some(namespace) = &reference.namespace {
            self.put(namespace.as_str().as_bytes()).put(b"/");
        }
        self.put(reference.name.as_bytes()).put(b"\"");
    }

    fn json(&mut self, value: &impl Serialize) {
        serde_json::to_writer(&mut self.0, value)
            .expect("texts and names can be written, and memory takes them");
    }
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
        let (destination, cluster) = ("n/d".parse().unwrap(), "c.1".parse().unwrap());
        let grant = GrantId("g\"1".into());
        let line = Intent {
            decision: DecisionId(7),
            caller: &caller,
            action: "http",
            method: "GET",
            destination: &destination,
            host: &host,
            port: 443,
            path: "/a\u{7f}\"b",
            policies: &[destination.clone(), cluster],
            version: Version { epoch: 1, revision: 2 },
            provider: Some(&destination),
            grant: Some(&grant),
            upstream: "[fd77::a]:443",
        };
        let completed = Outcome { status: Some(200), ..ended(DecisionId(7), CallResult::Completed) };
        let time = UnixMillis(1_795_514_400_000);
        for payload in [
            intent(time, &line),
            intent(time, &Intent { provider: None, grant: None, policies: &[], ..line }),
            outcome(time, &completed),
            outcome(
                time,
                &Outcome { code: Some(model::Code::Blocked), ..ended(DecisionId(9), CallResult::Cut) },
            ),
        ] {
            let event: Event = serde_json::from_slice(&payload).unwrap();
            assert_eq!(serde_json::to_vec(&event).unwrap(), payload);
            match event.what {
                What::Intent(intent) => assert_eq!(
                    (intent.authority.as_str(), intent.path.as_str()),
                    ("a.example:443", line.path)
                ),
                What::Outcome(outcome) => assert!(outcome.code.is_some() || outcome == completed),
                other => panic!("{other:?}"),
            }
        }
    }
}
