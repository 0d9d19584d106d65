//! What happened: events, and the chain that makes a change to one of them visible.
//!
//! Each proxy and each control-plane replica writes its own stream. A record's hash covers the record before it, the
//! stream's name, its number and its payload, so that an edit, a gap or a reordering shows. The payload is the event
//! as JSON, kept byte for byte from where it was written to where it is read: nothing re-encodes it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::credential::GrantId;
use crate::decision::{DecisionId, NearMiss};
use crate::error::Code;
use crate::name::{ResourceRef, SpiffeId};
use crate::redirect::Redirect;
use crate::time::UnixMillis;
use crate::version::Version;

/// SHA-256 over a record and all before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Hash(pub [u8; 32]);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One link of a stream's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The stream: one life of one writer's state directory, `proxy/<caller path>/<instance>/<random>`.
    pub stream: String,
    /// Numbered from 1 without gaps.
    pub sequence: u64,
    /// Hash of the record before; zero for the first.
    pub previous: Hash,
    /// The event as JSON, exactly as it was written.
    pub payload: Vec<u8>,
    /// [`chain`] over the fields above.
    pub hash: Hash,
}

/// Computes a record's hash. Lengths go in with the fields, so that no two records have the same input.
#[must_use]
pub fn chain(previous: &Hash, stream: &str, sequence: u64, payload: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    before_payload(previous, stream, sequence, payload.len(), |bytes| hasher.update(bytes));
    hasher.update(payload);
    Hash(hasher.finalize().into())
}

/// What is hashed before the payload.
fn before_payload(previous: &Hash, stream: &str, sequence: u64, length: usize, mut put: impl FnMut(&[u8])) {
    put(b"countersign audit v1\0");
    put(&previous.0);
    put(&(stream.len() as u64).to_be_bytes());
    put(stream.as_bytes());
    put(&sequence.to_be_bytes());
    put(&(length as u64).to_be_bytes());
}

/// [`chain`] for one who writes many records: of payloads that are there in pieces, in memory that it keeps.
#[derive(Debug, Default)]
pub struct Linker(Vec<u8>);

impl Linker {
    /// The hash of a record whose payload is what `write` appends.
    pub fn link(
        &mut self,
        previous: &Hash,
        stream: &str,
        sequence: u64,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Hash {
        self.0.clear();
        before_payload(previous, stream, sequence, 0, |bytes| self.0.extend_from_slice(bytes));
        let begin = self.0.len();
        write(&mut self.0);
        let length = (self.0.len() - begin) as u64;
        self.0[begin - 8..begin].copy_from_slice(&length.to_be_bytes());
        Hash(Sha256::digest(&self.0).into())
    }
}

impl Record {
    /// Makes the record that follows `previous`.
    #[must_use]
    pub fn after(previous: Hash, stream: &str, sequence: u64, payload: Vec<u8>) -> Self {
        let hash = chain(&previous, stream, sequence, &payload);
        Self { stream: stream.to_owned(), sequence, previous, payload, hash }
    }

    /// Whether the hash is the one that the other fields give.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        chain(&self.previous, &self.stream, self.sequence, &self.payload) == self.hash
    }
}

/// Where a chain does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Break {
    /// The first record that does not hold.
    pub at: u64,
    /// [`Code::ChainBroken`] or [`Code::ChainGap`].
    pub code: Code,
    /// One sentence.
    pub detail: String,
}

/// Follows one stream, record by record.
#[derive(Clone, Debug, Default)]
pub struct Follower {
    /// The last number that held; 0 before the first.
    pub last: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Follower {
    /// Takes the next record.
    ///
    /// # Errors
    /// [`Break`] if it does not follow the one before it, or was changed.
    pub fn take(&mut self, record: &Record) -> Result<(), Break> {
        let at = self.last + 1;
        if record.sequence != at {
            let detail = format!("record {at} is missing; the next one there is {}", record.sequence);
            return Err(Break { at, code: Code::ChainGap, detail });
        }
        if record.previous != self.hash {
            let detail =
                format!("record {at} does not remember the one before it: one of the two was changed");
            return Err(Break { at, code: Code::ChainBroken, detail });
        }
        if !record.is_whole() {
            let detail = format!("record {at} was changed: its hash does not match what is in it");
            return Err(Break { at, code: Code::ChainBroken, detail });
        }
        *self = Self { last: record.sequence, hash: record.hash };
        Ok(())
    }
}

/// An event with its time: the payload of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened, by the writer's clock.
    pub time: UnixMillis,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// The kinds of event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A call was allowed and is about to be sent: written before its first byte goes upstream.
    Intent(Intent),
    /// What became of a call whose intent was recorded.
    Outcome(Outcome),
    /// A call was refused; no request reached the upstream.
    Refusal(Refusal),
    /// A connection passed untouched: its destination is not covered, or says so.
    Passed(Passed),
    /// The application sent a standing credential of its own.
    StandingCredential(StandingCredential),
    /// A credential was made (written by the control plane).
    Issued(Issued),
    /// A workload was attested, or its evidence refused (written by the control plane).
    Attested(Attested),
    /// An administrator changed something (written by the control plane).
    Administration(Administration),
    /// The redirect that leads to a proxy came, went, or carries something else than before.
    Redirect(RedirectSeen),
    /// Events that were not recorded, because of `audit.onFull: drop` or a torn tail.
    Gap(Gap),
}

/// The call as it was judged. Paths are without query; no header values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Names the call in all its events and in answers.
    pub decision: DecisionId,
    /// Who called.
    pub caller: SpiffeId,
    /// For whom, if a subject was proved: `issuer|id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// `http` or `connect`.
    pub action: String,
    /// HTTP method; empty for `connect`.
    pub method: String,
    /// The destination's document.
    pub destination: ResourceRef,
    /// `host:port` as judged.
    pub authority: String,
    /// Path without query.
    pub path: String,
    /// The policies that allowed it.
    pub policies: Vec<ResourceRef>,
    /// The version of policy that was asked.
    pub version: Version,
    /// The credential provider, if a credential was put in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ResourceRef>,
    /// The credential's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantId>,
    /// The address that the application dialled, or the `host:port` for which it asked the explicit proxy.
    pub upstream: String,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The intent's.
    pub decision: DecisionId,
    /// How it ended.
    pub result: CallResult,
    /// Upstream's HTTP status, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Our code, if we answered or cut it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// Body bytes from the application.
    pub bytes_up: u64,
    /// Body bytes to the application.
    pub bytes_down: u64,
    /// From the request's arrival to the end of the exchange, in microseconds.
    pub duration_us: u64,
}

/// The ways in which a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallResult {
    /// The answer was carried to its end.
    Completed,
    /// The upstream failed; `code` says how.
    Failed,
    /// The application went away before the end.
    Aborted,
    /// Cut by us, because its authority ended.
    Cut,
    /// The proxy died in between: it is not known how far it came.
    Unknown,
}

/// A call that was not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Names the refusal in the answer.
    pub decision: DecisionId,
    /// Who called, if it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<SpiffeId>,
    /// `http` or `connect`.
    pub action: String,
    /// HTTP method; empty if the request was not read.
    pub method: String,
    /// The destination's document, if one covers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<ResourceRef>,
    /// `host:port`, or `address:port` if there was no name.
    pub authority: String,
    /// Path without query.
    pub path: String,
    /// Why.
    pub code: Code,
    /// One sentence.
    pub detail: String,
    /// The policies that forbade it, for a guardrail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<ResourceRef>,
    /// The policies that came nearest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nearest: Vec<NearMiss>,
    /// The version of policy that was asked, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
}

/// A connection that was spliced through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// Names the connection.
    pub decision: DecisionId,
    /// Who called.
    pub caller: SpiffeId,
    /// The address that the application dialled, or that was dialled for it; empty if a corporate proxy found it.
    pub address: String,
    /// The name that it gave (SNI or Host), if it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `tls`, `http`, `tcp`.
    pub protocol: String,
    /// The destination's document, if a policy covers it (`tls: passthrough`, `protocol: tcp`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<ResourceRef>,
    /// The bypass under which it passed, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bypass: Option<String>,
}

/// A credential of the application's own, seen in a header that we own or in a call that passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingCredential {
    /// The call.
    pub decision: DecisionId,
    /// Who called.
    pub caller: SpiffeId,
    /// The header's name.
    pub header: String,
    /// HMAC-SHA-256 of the value under a key of the installation, first 16 bytes in hexadecimal.
    pub fingerprint: String,
}

/// A credential that the control plane made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Its id.
    pub grant: GrantId,
    /// For whom.
    pub caller: SpiffeId,
    /// The instance whose channel asked.
    pub instance: String,
    /// For which destination.
    pub destination: ResourceRef,
    /// By which provider.
    pub provider: ResourceRef,
    /// Under which policies.
    pub policies: Vec<ResourceRef>,
    /// Under which version of policy.
    pub version: Version,
    /// When it ends.
    pub expires_at: UnixMillis,
    /// Why it was not made, if it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Code>,
    /// The reason in one sentence, if it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A workload's evidence, accepted or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attested {
    /// The caller, if the evidence verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<SpiffeId>,
    /// The instance, if the evidence verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The trust provider, if one was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Where it came from.
    pub peer: String,
    /// SHA-256 of the proxy's public key (SPKI), in hexadecimal.
    pub key: String,
    /// Whether the instance proved a new key, which replaces an older session.
    pub new_key: bool,
    /// When the certificate ends, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMillis>,
    /// Why it was refused, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Code>,
    /// The reason in one sentence, if it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A change by an administrator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Administration {
    /// Who: `unix:UID` or `token:NAME`.
    pub author: String,
    /// What was done: `created`, `configured`, `deleted`, `blocked`, `lifted`, `revoked`, `refused`.
    pub verb: String,
    /// To what: `kind/namespace/name`.
    pub object: String,
    /// The version that it made.
    pub version: Version,
    /// The administrator's reason, if given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What a proxy found when it looked for the redirect that leads to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedirectSeen {
    /// Whose connections are redirected, if that is known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<SpiffeId>,
    /// What the rules carry.
    pub redirect: Redirect,
    /// What is wrong, if something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// One sentence about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Events that are missing, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// How many, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// `spool_full`, `torn_tail`, `power_cut`.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_record_does_not_hold() {
        let first = Record::after(Hash::default(), "proxy/a", 1, b"{}".to_vec());
        let mut second = Record::after(first.hash, "proxy/a", 2, b"{\"a\":1}".to_vec());
        assert!(first.is_whole() && second.is_whole());
        second.payload[5] = b'2';
        assert!(!second.is_whole());
    }

    #[test]
    fn a_linker_comes_to_the_same_hashes() {
        let (mut linker, previous) = (Linker::default(), Hash([7; 32]));
        for payload in ["{\"a\":1}", "", "longer than the one before it"] {
            let (head, tail) = payload.as_bytes().split_at(payload.len() / 2);
            let hash = linker.link(&previous, "proxy/a", 3, |out| {
                out.extend_from_slice(head);
                out.extend_from_slice(tail);
            });
            assert_eq!(hash, chain(&previous, "proxy/a", 3, payload.as_bytes()));
        }
    }

    #[test]
    fn an_event_reads_back() {
        let event = Event {
            time: UnixMillis(1_790_000_000_000),
            what: What::Gap(Gap { count: Some(3), reason: "spool_full".to_owned() }),
        };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json, r#"{"time":1790000000000,"kind":"gap","count":3,"reason":"spool_full"}"#);
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }
}
