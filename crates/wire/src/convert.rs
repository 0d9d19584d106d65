//! Messages into domain types and back.
//!
//! A message is what a stranger sent: each field is checked when the domain type is made, and the error names the
//! field, not its value.

use std::collections::BTreeMap;

use model::audit::{Hash, Record};
use model::destination::{ClientCertificate, HttpVersion, Protocol, Resolution, TlsMode};
use model::name::{HostName, HostPattern, Namespace, ResourceRef, SpiffeId};
use model::redirect::{Redirect, RedirectState};
use model::request::{Action, RequestFacts};
use model::slice::{
    Block, BlockTarget, Bypass, CompiledPolicy, Condition, ConditionKind, Effect, Egress, ProviderFace, Rule,
    Slice,
};
use model::{Attestation, Caller, Destination, Injection, UnixMillis, Version};
use prost::Message as _;
use sha2::{Digest, Sha256};

use crate::payload::{self, Shapes};
use crate::v1;

/// A field that is missing or has a value that it can't have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message's field `{0}` is missing or not valid")]
pub struct Invalid(pub &'static str);

type Result<T> = std::result::Result<T, Invalid>;

fn parse<T: std::str::FromStr>(text: &str, field: &'static str) -> Result<T> {
    text.parse().map_err(|_| Invalid(field))
}

fn list<T: std::str::FromStr>(texts: &[String], field: &'static str) -> Result<Vec<T>> {
    texts.iter().map(|text| parse(text, field)).collect()
}

fn optional<T: std::str::FromStr>(text: &str, field: &'static str) -> Result<Option<T>> {
    if text.is_empty() { Ok(None) } else { parse(text, field).map(Some) }
}

fn required<'a, T>(message: &'a Option<T>, field: &'static str) -> Result<&'a T> {
    message.as_ref().ok_or(Invalid(field))
}

fn hash(bytes: &[u8], field: &'static str) -> Result<Hash> {
    bytes.try_into().map(Hash).map_err(|_| Invalid(field))
}

/// SHA-256 over a slice's encoding. Its maps are ordered, so equal slices have equal hashes.
#[must_use]
pub fn slice_hash(slice: &v1::Slice) -> [u8; 32] {
    Sha256::digest(slice.encode_to_vec()).into()
}

impl From<Redirect> for v1::Redirect {
    fn from(redirect: Redirect) -> Self {
        Self {
            state: redirect.state.as_str().to_owned(),
            rejects_other: redirect.rejects_other,
            whole: redirect.whole,
        }
    }
}

impl From<&v1::Redirect> for Redirect {
    fn from(message: &v1::Redirect) -> Self {
        let state = RedirectState::parse(&message.state);
        Self { state, rejects_other: message.rejects_other, whole: message.whole }
    }
}

impl From<Version> for v1::Version {
    fn from(version: Version) -> Self {
        Self { epoch: version.epoch, revision: version.revision }
    }
}

impl From<v1::Version> for Version {
    fn from(version: v1::Version) -> Self {
        Self { epoch: version.epoch, revision: version.revision }
    }
}

impl From<&Caller> for v1::Caller {
    fn from(caller: &Caller) -> Self {
        Self {
            spiffe_id: caller.id.to_string(),
            namespace: caller.namespace.to_string(),
            attributes: caller.attributes.clone(),
            attestation: Some(v1::Attestation {
                provider: caller.attestation.provider.to_string(),
                kind: caller.attestation.kind.to_string(),
                issued_at_ms: caller.attestation.issued_at.0,
                expires_at_ms: caller.attestation.expires_at.0,
            }),
        }
    }
}

impl TryFrom<&v1::Caller> for Caller {
    type Error = Invalid;

    fn try_from(caller: &v1::Caller) -> Result<Self> {
        let attestation = required(&caller.attestation, "caller.attestation")?;
        Ok(Self {
            id: SpiffeId::new(&caller.spiffe_id).map_err(|_| Invalid("caller.spiffe_id"))?,
            namespace: Namespace::new(&caller.namespace).map_err(|_| Invalid("caller.namespace"))?,
            attributes: caller.attributes.clone(),
            attestation: Attestation {
                provider: attestation.provider.as_str().into(),
                kind: attestation.kind.as_str().into(),
                issued_at: UnixMillis(attestation.issued_at_ms),
                expires_at: UnixMillis(attestation.expires_at_ms),
            },
        })
    }
}

impl From<&Slice> for v1::Slice {
    fn from(slice: &Slice) -> Self {
        Self {
            version: Some(slice.version.into()),
            caller: Some((&slice.caller).into()),
            workloads: slice.workloads.iter().map(ToString::to_string).collect(),
            egress: slice.egress.as_str().to_owned(),
            destinations: slice.destinations.iter().map(Into::into).collect(),
            providers: slice.providers.iter().map(Into::into).collect(),
            policies: slice.policies.iter().map(Into::into).collect(),
            conditions: slice.conditions.iter().map(Into::into).collect(),
            blocks: slice.blocks.iter().map(Into::into).collect(),
            bypasses: slice.bypasses.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<&v1::Slice> for Slice {
    type Error = Invalid;

    fn try_from(slice: &v1::Slice) -> Result<Self> {
        Ok(Self {
            version: (*required(&slice.version, "slice.version")?).into(),
            caller: required(&slice.caller, "slice.caller")?.try_into()?,
            workloads: list(&slice.workloads, "slice.workloads")?,
            egress: match slice.egress.as_str() {
                "observe" => Egress::Observe,
                "enforce" => Egress::Enforce,
                _ => return Err(Invalid("slice.egress")),
            },
            destinations: slice.destinations.iter().map(TryInto::try_into).collect::<Result<_>>()?,
            providers: slice.providers.iter().map(TryInto::try_into).collect::<Result<_>>()?,
            policies: slice.policies.iter().map(TryInto::try_into).collect::<Result<_>>()?,
            conditions: slice.conditions.iter().map(TryInto::try_into).collect::<Result<_>>()?,
            blocks: slice.blocks.iter().map(TryInto::try_into).collect::<Result<_>>()?,
            bypasses: slice.bypasses.iter().map(TryInto::try_into).collect::<Result<_>>()?,
        })
    }
}

impl From<&Destination> for v1::Destination {
    fn from(destination: &Destination) -> Self {
        let version = |version: &HttpVersion| match version {
            HttpVersion::Http1 => "http/1.1".to_owned(),
            HttpVersion::Http2 => "h2".to_owned(),
        };
        Self {
            name: destination.name.to_string(),
            hosts: destination.hosts.iter().map(ToString::to_string).collect(),
            ports: destination.ports.iter().map(|port| u32::from(*port)).collect(),
            addresses: destination.addresses.iter().map(ToString::to_string).collect(),
            protocol: match destination.protocol {
                Protocol::Http => "http".to_owned(),
                Protocol::Tcp => "tcp".to_owned(),
            },
            http_versions: destination.http_versions.iter().map(version).collect(),
            tls: match destination.tls {
                TlsMode::Terminate => "terminate".to_owned(),
                TlsMode::Passthrough => "passthrough".to_owned(),
            },
            resolve: match destination.resolve {
                Resolution::Name => "name".to_owned(),
                Resolution::Application => "application".to_owned(),
            },
            insecure: destination.insecure,
            ca_bundle: destination.ca_bundle.clone(),
            sensitivity: destination.sensitivity.clone(),
            server_name: destination.server_name.as_ref().map(ToString::to_string).unwrap_or_default(),
            client_certificate: destination
                .client_certificate
                .map(|certificate| certificate.as_str().to_owned())
                .unwrap_or_default(),
            redact: destination.redact,
        }
    }
}

impl TryFrom<&v1::Destination> for Destination {
    type Error = Invalid;

    fn try_from(destination: &v1::Destination) -> Result<Self> {
        let port = |port: &u32| u16::try_from(*port).map_err(|_| Invalid("destination.ports"));
        let version = |text: &String| match text.as_str() {
            "http/1.1" => Ok(HttpVersion::Http1),
            "h2" => Ok(HttpVersion::Http2),
            _ => Err(Invalid("destination.http_versions")),
        };
        Ok(Self {
            name: parse(&destination.name, "destination.name")?,
            hosts: list::<HostPattern>(&destination.hosts, "destination.hosts")?,
            ports: destination.ports.iter().map(port).collect::<Result<_>>()?,
            addresses: list(&destination.addresses, "destination.addresses")?,
            protocol: match destination.protocol.as_str() {
                "http" => Protocol::Http,
                "tcp" => Protocol::Tcp,
                _ => return Err(Invalid("destination.protocol")),
            },
            http_versions: destination.http_versions.iter().map(version).collect::<Result<_>>()?,
            tls: match destination.tls.as_str() {
                "terminate" => TlsMode::Terminate,
                "passthrough" => TlsMode::Passthrough,
                _ => return Err(Invalid("destination.tls")),
            },
            resolve: match destination.resolve.as_str() {
                "" | "name" => Resolution::Name,
                // Without TLS nothing would prove the server.
                "application" if !destination.insecure => Resolution::Application,
                _ => return Err(Invalid("destination.resolve")),
            },
            insecure: destination.insecure,
            ca_bundle: destination.ca_bundle.clone(),
            sensitivity: destination.sensitivity.clone(),
            server_name: optional(&destination.server_name, "destination.server_name")?,
            client_certificate: match destination.client_certificate.as_str() {
                "" => None,
                "svid" => Some(ClientCertificate::Svid),
                _ => return Err(Invalid("destination.client_certificate")),
            },
            redact: destination.redact,
        })
    }
}

impl From<&ProviderFace> for v1::Provider {
    fn from(provider: &ProviderFace) -> Self {
        Self {
            name: provider.name.to_string(),
            revision: provider.revision,
            header: provider.injection.header.clone(),
            prefix: provider.injection.prefix.clone(),
        }
    }
}

impl TryFrom<&v1::Provider> for ProviderFace {
    type Error = Invalid;

    fn try_from(provider: &v1::Provider) -> Result<Self> {
        if provider.header.is_empty() {
            return Err(Invalid("provider.header"));
        }
        Ok(Self {
            name: parse(&provider.name, "provider.name")?,
            revision: provider.revision,
            injection: Injection { header: provider.header.clone(), prefix: provider.prefix.clone() },
        })
    }
}

impl From<&CompiledPolicy> for v1::Policy {
    fn from(policy: &CompiledPolicy) -> Self {
        let text =
            |reference: &Option<ResourceRef>| reference.as_ref().map(ToString::to_string).unwrap_or_default();
        Self {
            name: policy.name.to_string(),
            effect: match policy.effect {
                Effect::Permit => "permit".to_owned(),
                Effect::Forbid => "forbid".to_owned(),
            },
            cedar: policy.cedar.clone(),
            destination: text(&policy.destination),
            rules: policy
                .rules
                .iter()
                .map(|rule| v1::Rule {
                    methods: rule.methods.clone(),
                    paths: rule.paths.clone(),
                    credential: text(&rule.credential),
                })
                .collect(),
            credential: text(&policy.credential),
            conditions: policy.conditions.iter().map(ToString::to_string).collect(),
            ttl_seconds: policy.ttl_seconds,
            reads_clock: policy.reads_clock,
        }
    }
}

impl TryFrom<&v1::Policy> for CompiledPolicy {
    type Error = Invalid;

    fn try_from(policy: &v1::Policy) -> Result<Self> {
        let rule = |rule: &v1::Rule| {
            Ok(Rule {
                methods: rule.methods.clone(),
                paths: rule.paths.clone(),
                credential: optional(&rule.credential, "policy.rules.credential")?,
            })
        };
        Ok(Self {
            name: parse(&policy.name, "policy.name")?,
            effect: match policy.effect.as_str() {
                "permit" => Effect::Permit,
                "forbid" => Effect::Forbid,
                _ => return Err(Invalid("policy.effect")),
            },
            cedar: policy.cedar.clone(),
            destination: optional(&policy.destination, "policy.destination")?,
            rules: policy.rules.iter().map(rule).collect::<Result<_>>()?,
            credential: optional(&policy.credential, "policy.credential")?,
            conditions: list(&policy.conditions, "policy.conditions")?,
            ttl_seconds: policy.ttl_seconds,
            reads_clock: policy.reads_clock,
        })
    }
}

impl From<&Condition> for v1::Condition {
    fn from(condition: &Condition) -> Self {
        let kind = match &condition.kind {
            ConditionKind::TimeWindow { days, from_minute, to_minute, time_zone } => {
                v1::condition::Kind::TimeWindow(v1::TimeWindow {
                    days: days.iter().map(|day| u32::from(*day)).collect(),
                    from_minute: u32::from(*from_minute),
                    to_minute: u32::from(*to_minute),
                    time_zone: time_zone.clone(),
                })
            }
            ConditionKind::AttestedWithin { seconds } => {
                v1::condition::Kind::AttestedWithin(v1::AttestedWithin { seconds: *seconds })
            }
        };
        Self { name: condition.name.to_string(), kind: Some(kind) }
    }
}

impl TryFrom<&v1::Condition> for Condition {
    type Error = Invalid;

    fn try_from(condition: &v1::Condition) -> Result<Self> {
        const MINUTES: u32 = 24 * 60;
        let minute = |value: u32| match u16::try_from(value) {
            Ok(minute) if value <= MINUTES => Ok(minute),
            _ => Err(Invalid("condition.time_window")),
        };
        let day = |day: &u32| match u8::try_from(*day) {
            Ok(day) if day < 7 => Ok(day),
            _ => Err(Invalid("condition.time_window.days")),
        };
        // A kind that this version does not know is refused, and with it the slice: it must not be skipped.
        let kind = match required(&condition.kind, "condition.kind")? {
            v1::condition::Kind::TimeWindow(window) => ConditionKind::TimeWindow {
                days: window.days.iter().map(day).collect::<Result<_>>()?,
                from_minute: minute(window.from_minute)?,
                to_minute: minute(window.to_minute)?,
                time_zone: window.time_zone.clone(),
            },
            v1::condition::Kind::AttestedWithin(within) => {
                ConditionKind::AttestedWithin { seconds: within.seconds }
            }
        };
        Ok(Self { name: parse(&condition.name, "condition.name")?, kind })
    }
}

impl From<&Block> for v1::Block {
    fn from(block: &Block) -> Self {
        let (kind, name) = match &block.target {
            BlockTarget::Workload(name) => ("workload", name.to_string()),
            BlockTarget::Destination(name) => ("destination", name.to_string()),
            BlockTarget::Provider(name) => ("credentialprovider", name.to_string()),
            BlockTarget::Everything => ("everything", String::new()),
        };
        Self { id: block.id.clone(), kind: kind.to_owned(), name, reason: block.reason.clone() }
    }
}

impl TryFrom<&v1::Block> for Block {
    type Error = Invalid;

    fn try_from(block: &v1::Block) -> Result<Self> {
        let name = || parse(&block.name, "block.name");
        let target = match block.kind.as_str() {
            "workload" => BlockTarget::Workload(name()?),
            "destination" => BlockTarget::Destination(name()?),
            "credentialprovider" => BlockTarget::Provider(name()?),
            "everything" => BlockTarget::Everything,
            _ => return Err(Invalid("block.kind")),
        };
        Ok(Self { id: block.id.clone(), target, reason: block.reason.clone() })
    }
}

impl From<&Bypass> for v1::Bypass {
    fn from(bypass: &Bypass) -> Self {
        Self {
            id: bypass.id.clone(),
            workload: bypass.workload.to_string(),
            until_ms: bypass.until.0,
            reason: bypass.reason.clone(),
        }
    }
}

impl TryFrom<&v1::Bypass> for Bypass {
    type Error = Invalid;

    fn try_from(bypass: &v1::Bypass) -> Result<Self> {
        Ok(Self {
            id: bypass.id.clone(),
            workload: parse(&bypass.workload, "bypass.workload")?,
            until: UnixMillis(bypass.until_ms),
            reason: bypass.reason.clone(),
        })
    }
}

impl From<&RequestFacts> for v1::Request {
    fn from(facts: &RequestFacts) -> Self {
        Self {
            action: facts.action.as_str().to_owned(),
            method: facts.method.clone(),
            host: facts.host.to_string(),
            port: u32::from(facts.port),
            path: facts.path.clone(),
            headers: facts.headers.clone(),
        }
    }
}

impl TryFrom<&v1::Request> for RequestFacts {
    type Error = Invalid;

    fn try_from(request: &v1::Request) -> Result<Self> {
        Ok(Self {
            action: match request.action.as_str() {
                "http" => Action::Http,
                "grpc" => Action::Grpc,
                "connect" => Action::Connect,
                _ => return Err(Invalid("request.action")),
            },
            method: request.method.clone(),
            host: HostName::new(&request.host).map_err(|_| Invalid("request.host"))?,
            port: u16::try_from(request.port).map_err(|_| Invalid("request.port"))?,
            path: request.path.clone(),
            headers: request.headers.clone().into_iter().collect::<BTreeMap<_, _>>(),
        })
    }
}

impl From<Record> for v1::Record {
    fn from(record: Record) -> Self {
        Self {
            stream: record.stream,
            sequence: record.sequence,
            previous: record.previous.0.to_vec(),
            payload: record.payload,
            hash: record.hash.0.to_vec(),
        }
    }
}

impl TryFrom<&v1::Record> for Record {
    type Error = Invalid;

    fn try_from(record: &v1::Record) -> Result<Self> {
        Ok(Self {
            stream: record.stream.clone(),
            sequence: record.sequence,
            previous: hash(&record.previous, "record.previous")?,
            payload: record.payload.clone(),
            hash: hash(&record.hash, "record.hash")?,
        })
    }
}

/// The records that a report has in short.
impl TryFrom<v1::ReportRequest> for Vec<Record> {
    type Error = Invalid;

    fn try_from(report: v1::ReportRequest) -> Result<Self> {
        let shapes = Shapes::new(report.shapes)?;
        let mut previous = hash(&report.previous, "previous")?;
        let mut records = Self::with_capacity(report.records.len());
        for (sequence, record) in (report.first..).zip(report.records) {
            let payload = payload::read(record, |number| shapes.find(number))?;
            let record = Record::after(previous, &report.stream, sequence, payload);
            previous = record.hash;
            records.push(record);
        }
        if previous != hash(&report.hash, "hash")? {
            return Err(Invalid("hash"));
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice() -> Slice {
        let reference = |text: &str| text.parse::<ResourceRef>().unwrap();
        Slice {
            version: Version { epoch: 3, revision: 41 },
            caller: Caller {
                id: SpiffeId::new("spiffe://demo/ns/payments/sa/billing").unwrap(),
                namespace: Namespace::new("payments").unwrap(),
                attributes: [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into(),
                attestation: Attestation {
                    provider: "demo".into(),
                    kind: "oidc".into(),
                    issued_at: UnixMillis(1),
                    expires_at: UnixMillis(2),
                },
            },
            workloads: vec![reference("payments/billing")],
            egress: Egress::Enforce,
            destinations: vec![Destination {
                name: reference("payments/api"),
                hosts: vec!["*.example.com".parse().unwrap()],
                ports: vec![443],
                addresses: vec!["10.0.0.0/8".parse().unwrap()],
                protocol: Protocol::Http,
                http_versions: vec![HttpVersion::Http2, HttpVersion::Http1],
                tls: TlsMode::Terminate,
                resolve: Resolution::Application,
                insecure: false,
                ca_bundle: "pem".into(),
                sensitivity: "high".into(),
                server_name: Some("inside.example.com".parse().unwrap()),
                client_certificate: Some(ClientCertificate::Svid),
                redact: true,
            }],
            providers: vec![ProviderFace {
                name: reference("payments/token"),
                revision: 7,
                injection: Injection { header: "authorization".into(), prefix: "Bearer ".into() },
            }],
            policies: vec![CompiledPolicy {
                name: reference("payments/p"),
                effect: Effect::Permit,
                cedar: "permit(principal, action, resource);".into(),
                destination: Some(reference("payments/api")),
                rules: vec![Rule {
                    methods: vec!["GET".into()],
                    paths: vec!["/**".into()],
                    credential: None,
                }],
                credential: Some(reference("payments/token")),
                conditions: vec![reference("payments/hours")],
                ttl_seconds: Some(300),
                reads_clock: true,
            }],
            conditions: vec![
                Condition {
                    name: reference("payments/hours"),
                    kind: ConditionKind::TimeWindow {
                        days: vec![0, 6],
                        from_minute: 480,
                        to_minute: 1080,
                        time_zone: "Europe/Berlin".into(),
                    },
                },
                Condition {
                    name: reference("payments/fresh"),
                    kind: ConditionKind::AttestedWithin { seconds: 60 },
                },
            ],
            blocks: vec![Block {
                id: "b1".into(),
                target: BlockTarget::Workload(reference("payments/billing")),
                reason: "test".into(),
            }],
            bypasses: vec![Bypass {
                id: "y1".into(),
                workload: reference("payments/billing"),
                until: UnixMillis(1000),
                reason: "the proxy is broken".into(),
            }],
        }
    }

    #[test]
    fn a_slice_reads_back_and_its_hash_is_its_content() {
        let message = v1::Slice::from(&slice());
        assert_eq!(Slice::try_from(&message).unwrap(), slice());
        assert_eq!(slice_hash(&message), slice_hash(&v1::Slice::from(&slice())));
        let mut other = slice();
        other.policies[0].ttl_seconds = None;
        assert_ne!(slice_hash(&message), slice_hash(&v1::Slice::from(&other)));
    }

    #[test]
    fn what_is_not_understood_refuses_the_slice() {
        let spoil: [fn(&mut v1::Slice); 7] = [
            |s| s.egress = "perhaps".into(),
            |s| s.conditions[0].kind = None,
            |s| s.policies[0].effect = "maybe".into(),
            |s| s.blocks[0].kind = "planet".into(),
            |s| s.destinations[0].ports = vec![70_000],
            |s| s.destinations[0].server_name = "*".into(),
            |s| s.destinations[0].client_certificate = "passport".into(),
        ];
        for spoil in spoil {
            let mut message = v1::Slice::from(&slice());
            spoil(&mut message);
            assert!(Slice::try_from(&message).is_err());
        }
    }

    #[test]
    fn a_report_has_its_records_and_one_that_was_changed_has_none() {
        let part = |part: &'static [u8], shape| v1::ShapedRecord { shape, parts: vec![part.into()] };
        let report = || v1::ReportRequest {
            stream: "proxy/a".to_owned(),
            first: 7,
            previous: vec![1; 32],
            shapes: vec![v1::Shape { number: 3, pieces: vec![b"<"[..].into(), b">"[..].into()] }],
            records: [part(b"a", 0), part(b"b", 3)].map(|record| record.encode_to_vec().into()).to_vec(),
            hash: Vec::new(),
        };
        let first = Record::after(Hash([1; 32]), "proxy/a", 7, vec![b'a']);
        let second = Record::after(first.hash, "proxy/a", 8, b"<b>".to_vec());
        let hash = second.hash.0.to_vec();
        let whole = v1::ReportRequest { hash: hash.clone(), ..report() };
        assert_eq!(Vec::<Record>::try_from(whole), Ok(vec![first, second]));
        let mut changed = v1::ReportRequest { hash, ..report() };
        changed.records[0] = part(b"c", 0).encode_to_vec().into();
        assert_eq!(Vec::<Record>::try_from(changed.clone()), Err(Invalid("hash")));
        changed.shapes.clear();
        assert_eq!(Vec::<Record>::try_from(changed), Err(Invalid("records.shape")));
        assert!(Vec::<Record>::try_from(report()).is_err());
    }
}
