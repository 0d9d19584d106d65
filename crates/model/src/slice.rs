//! What the control plane tells a proxy about one caller: all that concerns it, and nothing else.

use crate::caller::Caller;
use crate::credential::Injection;
use crate::destination::Destination;
use crate::name::ResourceRef;
use crate::time::UnixMillis;
use crate::version::Version;

/// One caller's whole slice of policy, as the control plane compiled it.
///
/// Proxy and control plane build the same evaluator from it, so they come to the same decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The revision at which this slice last changed.
    pub version: Version,
    /// For whom. A slice for another caller than the channel's is refused.
    pub caller: Caller,
    /// The `Workload`s that the caller matches: its parents in Cedar.
    pub workloads: Vec<ResourceRef>,
    /// What happens to calls that no policy covers; the strictest of what workload, namespace and configuration say.
    pub egress: Egress,
    /// Destinations that a policy of this caller names, and no others.
    pub destinations: Vec<Destination>,
    /// Credential providers that a policy of this caller names: how to inject, never how to obtain.
    pub providers: Vec<ProviderFace>,
    /// Access policies and guardrails, compiled to Cedar.
    pub policies: Vec<CompiledPolicy>,
    /// Conditions that some policy names.
    pub conditions: Vec<Condition>,
    /// Blocks that concern this caller.
    pub blocks: Vec<Block>,
    /// Bypasses of this caller's workloads, those that have ended too: each ends by the clock.
    pub bypasses: Vec<Bypass>,
}

impl Slice {
    /// The bypass that is in force at this moment, the longest if there are several. A block of the workload or of
    /// everything wins over it.
    #[must_use]
    pub fn bypass(&self, now: UnixMillis) -> Option<&Bypass> {
        let blocks =
            |block: &Block| matches!(block.target, BlockTarget::Workload(_) | BlockTarget::Everything);
        if self.bypasses.is_empty() || self.blocks.iter().any(blocks) {
            return None;
        }
        self.bypasses.iter().filter(|bypass| bypass.until > now).max_by_key(|bypass| bypass.until)
    }

    /// Whether a destination is blocked.
    #[must_use]
    pub fn is_destination_blocked(&self, name: &ResourceRef) -> bool {
        let blocks =
            |block: &Block| matches!(&block.target, BlockTarget::Destination(blocked) if blocked == name);
        self.blocks.iter().any(blocks)
    }
}

/// What happens to a call that no policy covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Egress {
    /// It passes untouched and is recorded.
    #[default]
    Observe,
    /// It is refused.
    Enforce,
}

impl Egress {
    /// As documents and status write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

/// What a proxy knows of a credential provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderFace {
    /// Which document.
    pub name: ResourceRef,
    /// Revision of the document: part of the cache's key, so that a change of the recipe drops what was made by it.
    pub revision: u64,
    /// Where the credential goes.
    pub injection: Injection,
}

/// An access policy or a guardrail, compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledPolicy {
    /// Which document.
    pub name: ResourceRef,
    /// What it does.
    pub effect: Effect,
    /// One Cedar policy; its id is the document's name.
    pub cedar: String,
    /// For an access policy, the destination that it covers. `None` for guardrails.
    pub destination: Option<ResourceRef>,
    /// Its rules: what Cedar can't match is matched beforehand and handed over in the context by index.
    pub rules: Vec<Rule>,
    /// The credential to use, if a call under this policy gets one.
    pub credential: Option<ResourceRef>,
    /// Conditions that must hold.
    pub conditions: Vec<ResourceRef>,
    /// Longest life of a credential under this policy, in seconds; `None` leaves it to the provider.
    pub ttl_seconds: Option<u32>,
    /// Whether its own expression reads the clock: then a decision is good for a second at most.
    pub reads_clock: bool,
}

/// Whether a policy allows or forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// An `AccessPolicy`: `permit`.
    Permit,
    /// A `Guardrail`: `forbid`, which no policy can override.
    Forbid,
}

/// One entry of `allow` (or of a guardrail's `deny`). Empty lists allow everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// HTTP methods, upper case.
    pub methods: Vec<String>,
    /// Path templates: `*` is one segment, `**` any number of them.
    pub paths: Vec<String>,
    /// The credential that this rule selects instead of the policy's.
    pub credential: Option<ResourceRef>,
}

/// A fact about now that must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which document.
    pub name: ResourceRef,
    /// What must hold.
    pub kind: ConditionKind,
}

/// The kinds of condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConditionKind {
    /// Within a window of the week, in a time zone.
    TimeWindow {
        /// Days, Monday is 0.
        days: Vec<u8>,
        /// Minute of the day at which it opens.
        from_minute: u16,
        /// Minute of the day at which it closes, exclusive; less than `from_minute` if it runs past midnight.
        to_minute: u16,
        /// IANA time zone name.
        time_zone: String,
    },
    /// The evidence is not older than this many seconds.
    AttestedWithin {
        /// Seconds.
        seconds: u32,
    },
}

/// A block that stands until it is lifted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its id, by which audit and answers name it.
    pub id: String,
    /// What is blocked.
    pub target: BlockTarget,
    /// Why, as the administrator said; may be empty.
    pub reason: String,
}

/// For the day when something is wrong with us: all connections of a workload pass untouched, and nothing is injected,
/// until a moment that was set when it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bypass {
    /// Its id, by which audit and status name it.
    pub id: String,
    /// Whose connections pass.
    pub workload: ResourceRef,
    /// When it ends, by itself.
    pub until: UnixMillis,
    /// Why, as the administrator said; never empty.
    pub reason: String,
}

/// The longest bypass, in milliseconds: a day.
pub const BYPASS_MAX_MILLIS: i64 = 24 * 3600 * 1000;

/// What a block stops.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockTarget {
    /// All calls of callers that match this `Workload`.
    Workload(ResourceRef),
    /// All calls to this `Destination`.
    Destination(ResourceRef),
    /// All credentials of this `CredentialProvider`.
    Provider(ResourceRef),
    /// Everything.
    Everything,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::{Attestation, Caller};
    use crate::name::{Namespace, SpiffeId};

    fn slice(bypasses: &[(&str, i64)], blocks: &[BlockTarget]) -> Slice {
        let bypass = |(id, until): &(&str, i64)| Bypass {
            id: (*id).to_owned(),
            workload: "payments/billing".parse().unwrap(),
            until: UnixMillis(*until),
            reason: "broken".to_owned(),
        };
        let block =
            |target: &BlockTarget| Block { id: "b".into(), target: target.clone(), reason: String::new() };
        Slice {
            version: Version::default(),
            caller: Caller {
                id: SpiffeId::new("spiffe://demo/ns/payments/sa/billing").unwrap(),
                namespace: Namespace::new("payments").unwrap(),
                attributes: std::collections::BTreeMap::new(),
                attestation: Attestation {
                    provider: "p".into(),
                    kind: "k".into(),
                    issued_at: UnixMillis(0),
                    expires_at: UnixMillis(0),
                },
            },
            workloads: Vec::new(),
            egress: Egress::Enforce,
            destinations: Vec::new(),
            providers: Vec::new(),
            policies: Vec::new(),
            conditions: Vec::new(),
            blocks: blocks.iter().map(block).collect(),
            bypasses: bypasses.iter().map(bypass).collect(),
        }
    }

    #[test]
    fn a_bypass_ends_by_the_clock_and_the_longest_counts() {
        let slice = slice(&[("short", 10), ("long", 20)], &[]);
        let id = |now| slice.bypass(UnixMillis(now)).map(|bypass| bypass.id.as_str());
        assert_eq!((id(9), id(10), id(19), id(20)), (Some("long"), Some("long"), Some("long"), None));
    }

    #[test]
    fn a_block_wins() {
        let workload = BlockTarget::Workload("payments/billing".parse().unwrap());
        for target in [workload, BlockTarget::Everything] {
            assert_eq!(slice(&[("id", 10)], &[target]).bypass(UnixMillis(0)), None);
        }
        let destination = "payments/api".parse().unwrap();
        let slice = slice(&[("id", 10)], &[BlockTarget::Destination("payments/api".parse().unwrap())]);
        assert!(slice.bypass(UnixMillis(0)).is_some() && slice.is_destination_blocked(&destination));
    }
}
