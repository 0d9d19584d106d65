//! The two events that every call has, written as [`model::audit::Event`] reads them, from what is there. Every call
//! pays for them, so they are written by hand; a test compares them with what the model writes.

use bytes::Bytes;
use model::audit::{CallResult, Outcome};
use model::{DecisionId, GrantId, HostName, ResourceRef, SpiffeId, UnixMillis, Version};
use serde::Serialize;
use wire::{payload, v1};

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

/// The event that a call is about to be made.
pub fn intent(time: UnixMillis, intent: &Intent<'_>) -> Line {
    let mut line = Line::begin(time, "intent");
    line.decision(intent.decision);
    line.text("caller", intent.caller.as_str());
    line.text("action", intent.action);
    line.text("method", intent.method);
    line.key("destination").reference(intent.destination);
    line.key("authority").put(b"\"").put(intent.host.as_str().as_bytes()).put(b":");
    line.digits(intent.port).put(b"\"");
    line.key("path").put(b"\"").own_text(intent.path).put(b"\"");
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

/// The event that a call has ended.
pub fn outcome(time: UnixMillis, outcome: &Outcome) -> Line {
    let mut line = Line::begin(time, "outcome");
    line.decision(outcome.decision);
    line.key("result").json(&outcome.result);
    if let Some(status) = outcome.status {
        line.key("status").digits(status);
    }
    if let Some(code) = &outcome.code {
        line.text("code", code.as_str());
    }
    line.key("bytes_up").own_digits(outcome.bytes_up);
    line.key("bytes_down").own_digits(outcome.bytes_down);
    line.key("duration_us").own_digits(outcome.duration_us);
    line.end()
}

/// An event as it is recorded: a text that many events have in common, and what is this one's own. Its payload, an
/// object of JSON, is pieces of the text and own parts in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    text: Vec<u8>,
    /// The encoding of a [`v1::ShapedRecord`] whose shape's number is not known yet.
    record: Vec<u8>,
    holes: [Hole; HOLES_MAX],
    filled: usize,
}

/// As many as an outcome has.
const HOLES_MAX: usize = 5;

/// A place in the text where a part of the event's own stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hole {
    at: usize,
    /// Where the part lies in the record.
    begin: usize,
    end: usize,
}

impl Line {
    /// An event that has nothing in common with others.
    pub fn whole(payload: &[u8]) -> Self {
        let mut line = Self::with_capacity(0, payload.len() + 16);
        line.own(payload);
        line
    }

    /// What is in it.
    pub fn payload(&self) -> Vec<u8> {
        self.slices().collect::<Vec<_>>().concat()
    }

    /// What is in it, piece by piece.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let part = |hole: &Hole| &self.record[hole.begin..hole.end];
        let parts = self.holes[..self.filled].iter().map(part).chain([&[][..]]);
        self.pieces().zip(parts).flat_map(|(piece, part)| [piece, part])
    }

    /// The length of what is in it, in bytes.
    pub fn length(&self) -> usize {
        self.text.len() + self.holes.iter().map(|hole| hole.end - hole.begin).sum::<usize>()
    }

    /// The encoding of its record, but for the number of its shape: see [`payload::RECORD_BEGIN`].
    pub fn record(&self) -> &[u8] {
        &self.record
    }

    /// Whether all of it is its own.
    pub const fn is_whole(&self) -> bool {
        self.text.is_empty()
    }

    /// Whether it may have a shape: a large one would be too large for many records.
    pub const fn may_have_shape(&self) -> bool {
        !self.is_whole() && self.text.len() <= payload::SHAPE_BYTES_MAX
    }

    /// Whether this is its shape.
    pub fn has(&self, shape: &v1::Shape) -> bool {
        shape.pieces.len() == self.filled + 1 && self.pieces().zip(&shape.pieces).all(|(a, b)| a == b)
    }

    /// Its shape, under this number.
    pub fn shape(&self, number: u32) -> v1::Shape {
        v1::Shape { number, pieces: self.pieces().map(Bytes::copy_from_slice).collect() }
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let ends = self.holes[..self.filled].iter().map(|hole| hole.at).chain([self.text.len()]);
        ends.scan(0, |begin, end| Some(&self.text[std::mem::replace(begin, end)..end]))
    }

    fn with_capacity(text: usize, record: usize) -> Self {
        let mut line = Self {
            text: Vec::with_capacity(text),
            record: Vec::with_capacity(record),
            holes: Default::default(),
            filled: 0,
        };
        line.record.extend_from_slice(&payload::RECORD_BEGIN);
        line
    }

    fn begin(time: UnixMillis, kind: &str) -> Self {
        let mut line = Self::with_capacity(640, 128);
        line.put(b"{\"time\":").own_digits(time.0);
        line.text("kind", kind);
        line
    }

    fn end(mut self) -> Self {
        self.put(b"}");
        self
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.text.extend_from_slice(bytes);
        self
    }

    fn digits(&mut self, number: impl itoa::Integer) -> &mut Self {
        self.put(itoa::Buffer::new().format(number).as_bytes())
    }

    fn key(&mut self, key: &str) -> &mut Self {
        self.put(b",\"").put(key.as_bytes()).put(b"\":")
    }

    fn decision(&mut self, decision: DecisionId) {
        self.key("decision").put(b"\"").own(&decision.digits()).put(b"\"");
    }

    /// What is this event's own.
    fn own(&mut self, bytes: &[u8]) -> &mut Self {
        payload::put_part(&mut self.record, bytes);
        let end = self.record.len();
        self.holes[self.filled] = Hole { at: self.text.len(), begin: end - bytes.len(), end };
        self.filled += 1;
        self
    }

    fn own_digits(&mut self, number: impl itoa::Integer) -> &mut Self {
        self.own(itoa::Buffer::new().format(number).as_bytes())
    }

    /// Without its quotes.
    fn own_text(&mut self, text: &str) -> &mut Self {
        if is_odd(text) {
            let quoted = serde_json::to_vec(text).expect(WRITABLE);
            self.own(&quoted[1..quoted.len() - 1])
        } else {
            self.own(text.as_bytes())
        }
    }

    fn text(&mut self, key: &str, text: &str) {
        self.key(key);
        if is_odd(text) {
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
        serde_json::to_writer(&mut self.text, value).expect(WRITABLE);
    }
}

/// Whether JSON writes it in another way.
fn is_odd(text: &str) -> bool {
    // Without an early end, so that many bytes are looked at at once.
    let odd = |odd, byte| odd | (byte < b' ') | (byte == b'"') | (byte == b'\\');
    text.bytes().fold(false, odd)
}

const WRITABLE: &str = "texts and names can be written, and memory takes them";

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
        for written in [
            intent(time, &line),
            intent(time, &Intent { provider: None, grant: None, policies: &[], ..line }),
            outcome(time, &completed),
            outcome(
                time,
                &Outcome { code: Some(model::Code::Blocked), ..ended(DecisionId(9), CallResult::Cut) },
            ),
        ] {
            let payload = written.payload();
            assert_eq!(payload.len(), written.length());
            let event: Event = serde_json::from_slice(&payload).unwrap();
            assert_eq!(serde_json::to_vec(&event).unwrap(), payload);
            let shape = written.shape(1);
            assert!(written.has(&shape));
            let read = payload::read(Bytes::copy_from_slice(&numbered(&written)), |_| Some(&shape));
            assert_eq!(read, Ok(payload));
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
    fn numbered(line: &Line) -> Vec<u8> {
        let mut record = line.record().to_vec();
        record[1] = 1;
        record
    }

    #[test]
    fn calls_that_differ_in_what_is_their_own_have_one_shape() {
        let of = |decision, time, bytes_up| {
            let completed = ended(DecisionId(decision), CallResult::Completed);
            outcome(UnixMillis(time), &Outcome { bytes_up, ..completed })
        };
        let (one, other) = (of(1, 5, 7), of(2, 1_795_514_400_000, u64::MAX));
        assert!(other.has(&one.shape(1)));
        assert_ne!(one.payload(), other.payload());
        let cut = outcome(UnixMillis(5), &ended(DecisionId(1), CallResult::Cut));
        assert!(!cut.has(&one.shape(1)));
        assert!(!Line::whole(b"{}").may_have_shape());
    }
}
