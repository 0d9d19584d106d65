//! The two events that every call has, written as [`model::audit::Event`] reads them, from what is there. Every call
//! pays for them, so they are written by hand, and what calls have in common is written for the first of them only; a
//! test compares them with what the model writes.

use bytes::Bytes;
use model::audit::{CallResult, Outcome};
use model::{Code, DecisionId, GrantId, HostName, ResourceRef, SpiffeId, UnixMillis, Version};
use serde::Serialize;
use wire::payload;

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
pub fn intent<'a>(time: UnixMillis, intent: &Intent<'a>) -> Line<'a> {
    let mut own = Own::begin(time, intent.decision);
    if is_odd(intent.path) {
        let quoted = serde_json::to_vec(intent.path).expect(WRITABLE);
        own.put(&quoted[1..quoted.len() - 1]);
    } else {
        own.put(intent.path.as_bytes());
    }
    Line { about: About::Intent(*intent), own }
}

/// The event that a call has ended.
pub fn outcome(time: UnixMillis, outcome: &Outcome) -> Line<'static> {
    let mut own = Own::begin(time, outcome.decision);
    own.digits(outcome.bytes_up);
    own.digits(outcome.bytes_down);
    own.digits(outcome.duration_us);
    Line {
        about: About::Outcome(Ending { result: outcome.result, status: outcome.status, code: outcome.code }),
        own,
    }
}

/// An event as it is recorded. Its payload, an object of JSON, is pieces of a text that many events have in common, with
/// parts of its own in between; the text is written only if nobody has written it before.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    about: About<'a>,
    own: Own,
}

/// What the text is about.
#[derive(Clone, Debug)]
enum About<'a> {
    Intent(Intent<'a>),
    Outcome(Ending),
    /// Nothing: all of it is its own.
    Nothing,
}

/// What events of one shape have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Common {
    /// All of an intent but time, decision and path.
    Intent(Box<Making>),
    /// All of an outcome but time, decision and numbers.
    Outcome(Ending),
}

/// How calls are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Making {
    caller: SpiffeId,
    action: String,
    method: String,
    destination: ResourceRef,
    host: HostName,
    port: u16,
    policies: Vec<ResourceRef>,
    version: Version,
    provider: Option<ResourceRef>,
    grant: Option<GrantId>,
    upstream: String,
}

/// How calls end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    result: CallResult,
    status: Option<u16>,
    code: Option<Code>,
}

impl Line<'_> {
    /// An event that has nothing in common with others.
    pub fn whole(payload: &[u8]) -> Line<'static> {
        let mut own = Own::with_capacity(payload.len() + 16);
        own.put(payload);
        Line { about: About::Nothing, own }
    }

    /// The same event, as one that has nothing in common with others.
    pub fn to_whole(&self) -> Line<'static> {
        Line::whole(&self.payload(&self.pieces()))
    }

    /// Whether it has nothing in common with others.
    pub const fn is_whole(&self) -> bool {
        matches!(self.about, About::Nothing)
    }

    /// Whether this is what it has in common with others.
    pub fn has(&self, common: &Common) -> bool {
        match (&self.about, common) {
            (About::Intent(intent), Common::Intent(making)) => making.is_of(intent),
            (About::Outcome(one), Common::Outcome(other)) => one == other,
            _ => false,
        }
    }

    /// What it has in common with others.
    pub fn common(&self) -> Option<Common> {
        match &self.about {
            About::Intent(intent) => Some(Common::Intent(Box::new(Making::of(intent)))),
            About::Outcome(ending) => Some(Common::Outcome(*ending)),
            About::Nothing => None,
        }
    }

    /// The pieces of its text.
    pub fn pieces(&self) -> Vec<Bytes> {
        match &self.about {
            About::Intent(intent) => intent_text(intent),
            About::Outcome(ending) => outcome_text(ending),
            About::Nothing => Text { text: Vec::new(), cuts: vec![0] },
        }
        .pieces()
    }

    /// The encoding of its record, but for the number of its shape: see [`payload::RECORD_BEGIN`].
    pub fn record(&self) -> &[u8] {
        &self.own.record
    }

    /// Its payload, in which these are the pieces of its text.
    pub fn payload(&self, pieces: &[Bytes]) -> Vec<u8> {
        let mut payload = Vec::with_capacity(640);
        self.put_payload(pieces, &mut payload);
        payload
    }

    /// Appends its payload, in which these are the pieces of its text.
    pub fn put_payload(&self, pieces: &[Bytes], out: &mut Vec<u8>) {
        for (number, piece) in pieces.iter().enumerate() {
            out.extend_from_slice(piece);
            if let Some(&(begin, end)) = self.own.parts[..self.own.count].get(number) {
                out.extend_from_slice(&self.own.record[begin..end]);
            }
        }
    }
}

impl Making {
    fn of(intent: &Intent<'_>) -> Self {
        Self {
            caller: intent.caller.clone(),
            action: intent.action.to_owned(),
            method: intent.method.to_owned(),
            destination: intent.destination.clone(),
            host: intent.host.clone(),
            port: intent.port,
            policies: intent.policies.to_vec(),
            version: intent.version,
            provider: intent.provider.cloned(),
            grant: intent.grant.cloned(),
            upstream: intent.upstream.to_owned(),
        }
    }

    fn is_of(&self, intent: &Intent<'_>) -> bool {
        self.grant.as_ref() == intent.grant
            && self.method == intent.method
            && self.upstream == intent.upstream
            && self.host == *intent.host
            && self.port == intent.port
            && self.destination == *intent.destination
            && self.version == intent.version
            && self.policies == intent.policies
            && self.provider.as_ref() == intent.provider
            && self.caller == *intent.caller
            && self.action == intent.action
    }
}

/// Parts of an event's own, as the encoding of a [`wire::v1::ShapedRecord`] whose shape's number is not known yet.
#[derive(Clone, Debug)]
struct Own {
    record: Vec<u8>,
    /// Where in the record each of them begins and ends.
    parts: [(usize, usize); PARTS_MAX],
    count: usize,
}

/// As many as an outcome has.
const PARTS_MAX: usize = 5;

impl Own {
    fn begin(time: UnixMillis, decision: DecisionId) -> Self {
        let mut own = Self::with_capacity(128);
        own.digits(time.0);
        own.put(&decision.digits());
        own
    }

    fn with_capacity(capacity: usize) -> Self {
        let mut record = Vec::with_capacity(capacity);
        record.extend_from_slice(&payload::RECORD_BEGIN);
        Self { record, parts: Default::default(), count: 0 }
    }

    fn put(&mut self, bytes: &[u8]) {
        payload::put_part(&mut self.record, bytes);
        let end = self.record.len();
        self.parts[self.count] = (end - bytes.len(), end);
        self.count += 1;
    }

    fn digits(&mut self, number: impl itoa::Integer) {
        self.put(itoa::Buffer::new().format(number).as_bytes());
    }
}

fn intent_text(intent: &Intent<'_>) -> Text {
    let mut line = Text::begin("intent");
    line.text("caller", intent.caller.as_str());
    line.text("action", intent.action);
    line.text("method", intent.method);
    line.key("destination").reference(intent.destination);
    line.key("authority").put(b"\"").put(intent.host.as_str().as_bytes()).put(b":");
    line.digits(intent.port).put(b"\"");
    line.key("path").put(b"\"").cut().put(b"\"");
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
    line.put(b"}");
    line
}

fn outcome_text(ending: &Ending) -> Text {
    let mut line = Text::begin("outcome");
    line.key("result").json(&ending.result);
    if let Some(status) = ending.status {
        line.key("status").digits(status);
    }
    if let Some(code) = ending.code {
        line.text("code", code.as_str());
    }
    line.key("bytes_up").cut();
    line.key("bytes_down").cut();
    line.key("duration_us").cut().put(b"}");
    line
}

/// An object of JSON as far as it is written, with cuts where something is left out.
struct Text {
    text: Vec<u8>,
    cuts: Vec<usize>,
}

impl Text {
    fn begin(kind: &str) -> Self {
        let mut line = Self { text: Vec::with_capacity(640), cuts: Vec::new() };
        line.put(b"{\"time\":").cut();
        line.text("kind", kind);
        line.key("decision").put(b"\"").cut().put(b"\"");
        line
    }

    fn pieces(self) -> Vec<Bytes> {
        let text = Bytes::from(self.text);
        let begins = [0].into_iter().chain(self.cuts.iter().copied());
        let ends = self.cuts.iter().copied().chain([text.len()]);
        begins.zip(ends).map(|(begin, end)| text.slice(begin..end)).collect()
    }

    fn cut(&mut self) -> &mut Self {
        self.cuts.push(self.text.len());
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
            let pieces = written.pieces();
            let payload = written.payload(&pieces);
            let event: Event = serde_json::from_slice(&payload).unwrap();
            assert_eq!(serde_json::to_vec(&event).unwrap(), payload);
            let mut record = written.record().to_vec();
            record[1] = 1;
            let shape = wire::v1::Shape { number: 1, pieces };
            assert_eq!(payload::read(record.into(), |_| Some(&shape)), Ok(payload));
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
    #[test]
    fn calls_that_differ_in_what_is_their_own_have_the_rest_in_common() {
        let of = |decision, time, bytes_up| {
            let completed = ended(DecisionId(decision), CallResult::Completed);
            outcome(UnixMillis(time), &Outcome { bytes_up, ..completed })
        };
        let (one, other) = (of(1, 5, 7), of(2, 1_795_514_400_000, u64::MAX));
        assert!(other.has(&one.common().unwrap()));
        assert_eq!(one.pieces(), other.pieces());
        let cut = outcome(UnixMillis(5), &ended(DecisionId(1), CallResult::Cut));
        assert!(!cut.has(&one.common().unwrap()));
        assert!(Line::whole(b"{}").common().is_none());
    }

    #[test]
    fn intents_have_in_common_what_is_written_alike_and_nothing_else() {
        let (host, caller) = (HostName::new("a.example").unwrap(), SpiffeId::new("spiffe://demo/a").unwrap());
        let (other_host, other_caller) =
            (HostName::new("b.example").unwrap(), SpiffeId::new("spiffe://demo/b").unwrap());
        let (one, two): (ResourceRef, ResourceRef) = ("n/d".parse().unwrap(), "n/e".parse().unwrap());
        let grants = (GrantId("1".into()), GrantId("2".into()));
        let first = Intent {
            decision: DecisionId(7),
            caller: &caller,
            action: "http",
            method: "GET",
            destination: &one,
            host: &host,
            port: 443,
            path: "/",
            policies: std::slice::from_ref(&one),
            version: Version { epoch: 1, revision: 2 },
            provider: Some(&one),
            grant: Some(&grants.0),
            upstream: "10.0.0.1:443",
        };
        let line = |given: &Intent<'_>| {
            let line = intent(UnixMillis(1), given);
            (line.common().unwrap(), line.pieces())
        };
        let same = Intent { decision: DecisionId(8), path: "/other", ..first };
        assert_eq!(line(&same), line(&first));
        let others = [
            Intent { caller: &other_caller, ..first },
            Intent { action: "grpc", ..first },
            Intent { method: "PUT", ..first },
            Intent { destination: &two, ..first },
            Intent { host: &other_host, ..first },
            Intent { port: 444, ..first },
            Intent { policies: &[], ..first },
            Intent { version: Version { epoch: 1, revision: 3 }, ..first },
            Intent { provider: None, ..first },
            Intent { grant: Some(&grants.1), ..first },
            Intent { upstream: "10.0.0.2:443", ..first },
        ];
        for other in others {
            assert!(!intent(UnixMillis(1), &other).has(&line(&first).0), "{other:?}");
            assert_ne!(line(&other).1, line(&first).1);
        }
    }
}
