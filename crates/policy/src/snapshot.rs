//! The evaluator: what a slice says of one request, and why.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use cedar_policy::{
    Authorizer, Context, Decision as CedarDecision, Entities, Entity, EntityUid, Policy, PolicyId, PolicySet,
    Request, Response, RestrictedExpression,
};
use foldhash::HashMap;
use model::decision::{Decision, Miss, NearMiss, Verdict};
use model::name::HostPattern;
use model::request::{Action, RequestFacts};
use model::slice::{Block, BlockTarget, CompiledPolicy, Effect, ProviderFace, Rule, Slice};
use model::{Caller, Code, Destination, HostName, ResourceRef, UnixMillis, Version};
use serde::Serialize;

use crate::cedar::{self, Sees};
use crate::compile::credentials;
use crate::matching::{method_matches, path_matches, rule_matches};
use crate::windows::{Condition, Held};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Who calls, as attested last.
    pub caller: &'a Arc<Caller>,
    /// What is called: one of the slice's destinations.
    pub destination: &'a Destination,
    /// What is asked of it.
    pub request: &'a RequestFacts,
    /// When.
    pub now: UnixMillis,
}

/// A slice that can't be used. The whole of it: what one part means may depend on another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the slice can't be used: {0}")]
pub struct Refused(pub String);

/// One caller's policy, ready to decide.
pub struct Snapshot {
    slice: Slice,
    destinations: Vec<Arc<Destination>>,
    exact: HashMap<HostName, Vec<usize>>,
    wildcard: HashMap<HostName, Vec<usize>>,
    by_destination: HashMap<ResourceRef, Concern>,
    /// In the order of the slice's.
    conditions: Vec<Condition>,
    policies: PolicySet,
    authorizer: Authorizer,
    decided: ArcSwap<Decided>,
}

/// Decisions that may be used again: by all that Cedar can see of the question, for one caller as it was attested.
#[derive(Clone)]
struct Decided {
    caller: Arc<Caller>,
    decisions: HashMap<Key, Arc<Decision>>,
}

/// What concerns one destination.
struct Concern {
    /// Index of the destination.
    destination: usize,
    /// Indices of the access policies that name it, then of all guardrails.
    policies: Vec<usize>,
    /// Whether some expression among them looks at the request beyond the rules.
    reads_request: bool,
    /// Whether some expression among them reads the clock.
    reads_clock: bool,
    /// Lower-case names of the headers into which its credentials go.
    owned_headers: Vec<String>,
}

/// All that Cedar can see but the caller, where nothing reads the request beyond the rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    destination: usize,
    action: Action,
    rules: u64,
    conditions: u64,
}

/// Decisions that are kept. Keys are few (rules that matched, conditions that hold); past this the cache starts anew.
const DECIDED_MAX: usize = 512;

/// A decision whose expression reads the clock is good for this long.
const CLOCK_MILLIS: i64 = 1000;

impl Snapshot {
    /// Makes a slice ready.
    ///
    /// # Errors
    /// [`Refused`] if it holds anything that this version does not understand.
    pub fn new(slice: Slice) -> Result<Self, Refused> {
        let mut policies = PolicySet::new();
        let mut sees = Vec::new();
        for policy in &slice.policies {
            let parsed = Policy::parse(Some(PolicyId::new(policy.name.to_string())), &policy.cedar)
                .map_err(|error| Refused(format!("policy {}: {error}", policy.name)))?;
            let looks =
                Sees::of(&parsed).map_err(|unknown| Refused(format!("policy {}: {unknown}", policy.name)))?;
            sees.push(Sees { clock: looks.clock || policy.reads_clock, ..looks });
            if (parsed.effect() == cedar_policy::Effect::Permit) != (policy.effect == Effect::Permit) {
                return Err(Refused(format!("policy {} does not do what it is said to do", policy.name)));
            }
            policies.add(parsed).map_err(|error| Refused(error.to_string()))?;
        }
        let mut conditions = Vec::with_capacity(slice.conditions.len());
        for condition in &slice.conditions {
            let ready = Condition::new(&condition.kind)
                .map_err(|problem| Refused(format!("condition {}: {problem}", condition.name)))?;
            conditions.push(ready);
        }
        for policy in &slice.policies {
            let is_there = |name: &ResourceRef| slice.conditions.iter().any(|there| there.name == *name);
            if let Some(missing) = policy.conditions.iter().find(|name| !is_there(name)) {
                return Err(Refused(format!(
                    "policy {} names condition {missing}, which is not there",
                    policy.name
                )));
            }
        }
        let destinations: Vec<Arc<Destination>> = slice.destinations.iter().cloned().map(Arc::new).collect();
        let (mut exact, mut wildcard) = (HashMap::<_, Vec<_>>::default(), HashMap::<_, Vec<_>>::default());
        for (index, destination) in destinations.iter().enumerate() {
            for host in &destination.hosts {
                match host {
                    HostPattern::Exact(name) => exact.entry(name.clone()).or_default().push(index),
                    HostPattern::OneLabelBelow(name) => wildcard.entry(name.clone()).or_default().push(index),
                }
            }
        }
        let by_destination = destinations
            .iter()
            .enumerate()
            .map(|(index, destination)| (destination.name.clone(), concern(&slice, &sees, index)))
            .collect();
        let decided = Decided { caller: Arc::new(slice.caller.clone()), decisions: HashMap::default() };
        Ok(Self {
            slice,
            destinations,
            exact,
            wildcard,
            by_destination,
            conditions,
            policies,
            authorizer: Authorizer::new(),
            decided: ArcSwap::from_pointee(decided),
        })
    }

    /// The slice that it was made of.
    #[must_use]
    pub fn slice(&self) -> &Slice {
        &self.slice
    }

    /// The slice's version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.slice.version
    }

    /// The destination that a policy covers under this name and port. An exact name goes before a wildcard.
    #[must_use]
    pub fn cover(&self, host: &HostName, port: u16) -> Option<&Arc<Destination>> {
        let at_port = |indices: &Vec<usize>| {
            indices
                .iter()
                .map(|index| &self.destinations[*index])
                .find(|destination| destination.ports.contains(&port))
        };
        self.exact.get(host).and_then(at_port).or_else(|| {
            if self.wildcard.is_empty() {
                return None;
            }
            let parent = host.as_str().split_once('.')?.1;
            self.wildcard.get(parent).and_then(at_port)
        })
    }

    /// The destination that a policy covers under this address and port, for connections without a name.
    #[must_use]
    pub fn cover_address(&self, address: std::net::IpAddr, port: u16) -> Option<&Arc<Destination>> {
        self.destinations.iter().find(|destination| destination.covers_address(address, port))
    }

    /// A destination of the slice by its name.
    #[must_use]
    pub fn destination(&self, name: &ResourceRef) -> Option<&Arc<Destination>> {
        self.destinations.iter().find(|destination| destination.name == *name)
    }

    /// What is known of a credential provider.
    #[must_use]
    pub fn provider(&self, name: &ResourceRef) -> Option<&ProviderFace> {
        self.slice.providers.iter().find(|provider| provider.name == *name)
    }

    /// Lower-case names of the headers that we own at a destination: those into which a credential of its policies goes.
    #[must_use]
    pub fn owned_headers(&self, destination: &Destination) -> &[String] {
        self.by_destination.get(&destination.name).map_or(&[], |concern| concern.owned_headers.as_slice())
    }

    /// Decides.
    #[must_use]
    pub fn decide(&self, question: &Question<'_>) -> Arc<Decision> {
        if question.caller.id != self.slice.caller.id
            || question.caller.namespace != self.slice.caller.namespace
        {
            let detail = format!("this policy is not for {}", question.caller.id);
            return Arc::new(self.denied(Code::PolicyError, detail, &[]));
        }
        let Some(concern) = self.by_destination.get(&question.destination.name) else {
            return Arc::new(self.denied(
                Code::NotCovered,
                "no policy covers the destination".to_owned(),
                &[],
            ));
        };
        let held = self.held(question);
        let until = good_until(question, concern, &held);
        let Some(key) = self.key(question, concern, &held) else {
            return Arc::new(self.decide_fresh(question, concern, until));
        };
        if let Some(known) = self.known(question, &key, until) {
            return known;
        }
        let decision = Arc::new(self.decide_fresh(question, concern, until));
        // A denial says what was seen, so it is for this request only.
        if decision.verdict.is_allow() {
            self.remember(question.caller, key, &decision);
        }
        decision
    }

    /// A decision made before. One that says it is good for longer than a fresh one would be was made before the clock
    /// was set back.
    fn known(&self, question: &Question<'_>, key: &Key, until: UnixMillis) -> Option<Arc<Decision>> {
        let decided = self.decided.load();
        let known = decided.decisions.get(key)?;
        let good = known.valid_until > question.now && known.valid_until <= until;
        // Mostly it is the very same, and need not be compared.
        let same = Arc::ptr_eq(&decided.caller, question.caller) || decided.caller == *question.caller;
        (good && same).then(|| known.clone())
    }

    fn remember(&self, caller: &Arc<Caller>, key: Key, decision: &Arc<Decision>) {
        self.decided.rcu(|decided| {
            let keep = decided.caller == *caller && decided.decisions.len() < DECIDED_MAX;
            let mut decisions = if keep { decided.decisions.clone() } else { HashMap::default() };
            decisions.insert(key.clone(), decision.clone());
            Decided { caller: caller.clone(), decisions }
        });
    }

    /// The key under which a decision may be kept; `None` if it is for this request only.
    fn key(&self, question: &Question<'_>, concern: &Concern, held: &HeldConditions) -> Option<Key> {
        if concern.reads_request {
            return None;
        }
        let (mut rules, mut bit) = (0_u64, 0_u32);
        for policy in concern.policies.iter().map(|index| &self.slice.policies[*index]) {
            for rule in &policy.rules {
                if bit == u64::BITS {
                    return None;
                }
                rules |= u64::from(rule_matches(policy.effect, rule, question.request)) << bit;
                bit += 1;
            }
        }
        Some(Key {
            destination: concern.destination,
            action: question.request.action,
            rules,
            conditions: held.bits?,
        })
    }

    fn held(&self, question: &Question<'_>) -> HeldConditions {
        let attested_at = question.caller.attestation.issued_at;
        let mut held = HeldConditions { bits: Some(0), until: UnixMillis(i64::MAX) };
        for (bit, condition) in self.conditions.iter().enumerate() {
            let asked = condition.ask(question.now, attested_at);
            held.until = held.until.min(asked.until);
            held.bits = held.bits.filter(|_| bit < 64).map(|bits| bits | u64::from(asked.holds) << bit);
        }
        held
    }

    fn ask(&self, condition: &ResourceRef, now: UnixMillis, attested_at: UnixMillis) -> Held {
        let place = self.slice.conditions.iter().position(|there| there.name == *condition);
        match place.and_then(|place| self.conditions.get(place)) {
            Some(condition) => condition.ask(now, attested_at),
            None => Held { holds: false, until: UnixMillis(i64::MAX) },
        }
    }

    fn decide_fresh(&self, question: &Question<'_>, concern: &Concern, until: UnixMillis) -> Decision {
        Decision { valid_until: until, ..self.judge(question, concern) }
    }

    fn judge(&self, question: &Question<'_>, concern: &Concern) -> Decision {
        if let Some(block) = self.blocking(|target| match target {
            BlockTarget::Workload(_) | BlockTarget::Everything => true,
            BlockTarget::Destination(name) => *name == question.destination.name,
            BlockTarget::Provider(_) => false,
        }) {
            return self.denied(Code::Blocked, blocked(block), &[]);
        }
        let response = match self.ask_cedar(question, concern) {
            Ok(response) => response,
            Err(problem) => return self.denied(Code::PolicyError, problem, &[]),
        };
        // Cedar skips a policy that errs, a guardrail too; nothing may be allowed because of that.
        if let Some(error) = response.diagnostics().errors().next() {
            let detail = format!("an expression could not be evaluated: {error}");
            return self.denied(Code::PolicyError, detail, &[]);
        }
        let determining = self.determining(&response);
        if response.decision() == CedarDecision::Deny {
            return self.refusal(question, concern, &determining);
        }
        self.allowance(question, &determining)
    }

    fn refusal(
        &self,
        question: &Question<'_>,
        concern: &Concern,
        determining: &[&CompiledPolicy],
    ) -> Decision {
        if let Some(guardrail) = determining.first() {
            let mut detail =
                format!("guardrail {} forbids {}", guardrail.name, struck(guardrail, question.request));
            if let Some(reason) = self.reason_of(guardrail) {
                detail.push_str(&format!(": {reason}"));
            }
            return self.denied(Code::Forbidden, detail, determining);
        }
        let what = shown(question.request);
        let caller = question.caller.id.path();
        let detail = format!(
            "No policy allows {caller} to {what} at {}. Nothing was sent.",
            question.destination.name
        );
        Decision {
            nearest: self.near_misses(question, concern),
            ..self.denied(Code::NoPolicyAllows, detail, &[])
        }
    }

    fn allowance(&self, question: &Question<'_>, determining: &[&CompiledPolicy]) -> Decision {
        let selected: BTreeSet<&ResourceRef> = determining
            .iter()
            .flat_map(|policy| &policy.rules)
            .filter(|rule| rule.credential.is_some())
            .filter(|rule| rule_matches(Effect::Permit, rule, question.request))
            .filter_map(|rule| rule.credential.as_ref())
            .collect();
        let named: BTreeSet<&ResourceRef> = if selected.is_empty() {
            determining.iter().filter_map(|policy| policy.credential.as_ref()).collect()
        } else {
            selected
        };
        if named.len() > 1 {
            let names: Vec<String> = named.iter().map(ToString::to_string).collect();
            let detail =
                format!("the policies that allow it name different credentials: {}", names.join(", "));
            return self.denied(Code::AmbiguousCredential, detail, determining);
        }
        let credential = named.into_iter().next();
        if let (Action::Connect, Some(credential)) = (question.request.action, credential) {
            let detail = format!(
                "the policy wants {credential}, and nothing can be put into a connection that is not opened"
            );
            return self.denied(Code::NoPolicyAllows, detail, determining);
        }
        let provider_blocked =
            self.blocking(|target| matches!(target, BlockTarget::Provider(name) if Some(name) == credential));
        if let Some(block) = provider_blocked {
            return self.denied(Code::Blocked, blocked(block), determining);
        }
        Decision {
            verdict: Verdict::Allow {
                credential: credential.cloned(),
                ttl_seconds: determining.iter().filter_map(|policy| policy.ttl_seconds).min(),
            },
            policies: names(determining),
            nearest: Vec::new(),
            version: self.version(),
            valid_until: UnixMillis(i64::MAX),
        }
    }

    fn denied(&self, code: Code, reason: String, policies: &[&CompiledPolicy]) -> Decision {
        Decision {
            verdict: Verdict::Deny { code, reason },
            policies: names(policies),
            nearest: Vec::new(),
            version: self.version(),
            valid_until: UnixMillis(i64::MAX),
        }
    }

    fn blocking(&self, stops: impl Fn(&BlockTarget) -> bool) -> Option<&Block> {
        self.slice.blocks.iter().find(|block| stops(&block.target))
    }

    fn reason_of(&self, guardrail: &CompiledPolicy) -> Option<String> {
        let policy = self.policies.policy(&PolicyId::new(guardrail.name.to_string()))?;
        policy.annotation("reason").map(str::to_owned)
    }

    fn determining(&self, response: &Response) -> Vec<&CompiledPolicy> {
        let ids: HashSet<String> = response.diagnostics().reason().map(ToString::to_string).collect();
        self.slice.policies.iter().filter(|policy| ids.contains(&policy.name.to_string())).collect()
    }

    fn ask_cedar(&self, question: &Question<'_>, concern: &Concern) -> Result<Response, String> {
        let text =
            |error: &dyn std::fmt::Display| format!("the request could not be put to the policy: {error}");
        let principal = uid("Caller", question.caller.id.as_str())?;
        let resource = uid("Destination", &question.destination.name.to_string())?;
        let action = uid("Action", question.request.action.as_str())?;
        let entities = self.entities(question, &principal, &resource)?;
        let context = Context::from_pairs(self.context(question, concern)).map_err(|e| text(&e))?;
        let request = Request::new(principal, action, resource, context, None).map_err(|e| text(&e))?;
        Ok(self.authorizer.is_authorized(&request, &self.policies, &entities))
    }

    fn entities(
        &self,
        question: &Question<'_>,
        principal: &EntityUid,
        resource: &EntityUid,
    ) -> Result<Entities, String> {
        let text =
            |error: &dyn std::fmt::Display| format!("the caller could not be put to the policy: {error}");
        let parents: HashSet<EntityUid> = self
            .slice
            .workloads
            .iter()
            .map(|name| uid("Workload", &name.to_string()))
            .collect::<Result<_, _>>()?;
        let caller = Entity::new_with_tags(
            principal.clone(),
            [
                ("namespace".to_owned(), string(question.caller.namespace.as_str())),
                ("trust_domain".to_owned(), string(question.caller.id.trust_domain())),
            ],
            parents.clone(),
            question.caller.attributes.iter().map(|(key, value)| (key.clone(), string(value))),
        )
        .map_err(|e| text(&e))?;
        let sensitivity = [("sensitivity".to_owned(), string(&question.destination.sensitivity))].into();
        let destination = Entity::new(resource.clone(), sensitivity, HashSet::new()).map_err(|e| text(&e))?;
        let workloads = parents.into_iter().map(Entity::with_uid);
        Entities::from_entities([caller, destination].into_iter().chain(workloads), None)
            .map_err(|e| text(&e))
    }

    fn context(&self, question: &Question<'_>, concern: &Concern) -> Vec<(String, RestrictedExpression)> {
        let attestation = &question.caller.attestation;
        let age = question.now.millis_since(attestation.issued_at).max(0);
        let request = question.request;
        vec![
            ("now".to_owned(), datetime(question.now)),
            (
                "request".to_owned(),
                record([
                    ("method", string(&request.method)),
                    ("host", string(request.host.as_str())),
                    ("port", RestrictedExpression::new_long(i64::from(request.port))),
                    ("path", string(&request.path)),
                ]),
            ),
            (
                "attestation".to_owned(),
                record([
                    ("age", RestrictedExpression::new_duration(format!("{age}ms"))),
                    ("issued_at", datetime(attestation.issued_at)),
                    ("provider", string(&attestation.provider)),
                    ("kind", string(&attestation.kind)),
                ]),
            ),
            (
                "rules".to_owned(),
                RestrictedExpression::new_set(self.matched(request, concern).iter().map(|id| string(id))),
            ),
            (
                "conditions".to_owned(),
                RestrictedExpression::new_set(self.holding(question).iter().map(|n| string(n))),
            ),
        ]
    }

    /// Rules that match, of the policies that concern the destination: no expression may see more than the key holds.
    fn matched(&self, request: &RequestFacts, concern: &Concern) -> Vec<String> {
        let policies = concern.policies.iter().map(|index| &self.slice.policies[*index]);
        let rules = policies.flat_map(|policy| {
            policy.rules.iter().enumerate().map(move |(index, rule)| (policy, index, rule))
        });
        rules
            .filter(|(policy, _, rule)| rule_matches(policy.effect, rule, request))
            .map(|(policy, index, _)| cedar::rule_id(&policy.name.to_string(), index))
            .collect()
    }

    fn holding(&self, question: &Question<'_>) -> Vec<String> {
        let attested_at = question.caller.attestation.issued_at;
        let conditions = self.slice.conditions.iter();
        conditions
            .filter(|condition| self.ask(&condition.name, question.now, attested_at).holds)
            .map(|condition| condition.name.to_string())
            .collect()
    }

    /// Policies that name this destination and did not allow the request, those that missed least first.
    fn near_misses(&self, question: &Question<'_>, concern: &Concern) -> Vec<NearMiss> {
        let policies = concern.policies.iter().map(|index| &self.slice.policies[*index]);
        let mut near: Vec<NearMiss> = policies
            .filter(|policy| policy.effect == Effect::Permit)
            .map(|policy| NearMiss { policy: policy.name.clone(), failed: self.misses(question, policy) })
            .collect();
        near.sort_by_key(|near| near.failed.len());
        near.truncate(NEAREST_MAX);
        near
    }

    /// What a policy asked for and the request did not have; `when` if all else was there.
    fn misses(&self, question: &Question<'_>, policy: &CompiledPolicy) -> Vec<Miss> {
        let mut missed: Vec<Miss> = self
            .facts(question, policy)
            .into_iter()
            .filter(|fact| fact.held == Some(false))
            .map(|fact| Miss { what: fact.what, seen: fact.seen, allowed: fact.allowed })
            .collect();
        if missed.is_empty() {
            missed.push(Miss { what: "when".to_owned(), seen: String::new(), allowed: Vec::new() });
        }
        missed
    }

    /// What a policy looks at, and what it found. Of several rules, the one that fits best.
    fn facts(&self, question: &Question<'_>, policy: &CompiledPolicy) -> Vec<Fact> {
        let mut facts: Vec<Fact> = policy
            .rules
            .iter()
            .map(|rule| rule_facts(policy.effect, rule, question.request))
            .min_by_key(|facts| facts.iter().filter(|fact| fact.held == Some(false)).count())
            .unwrap_or_default();
        let attested_at = question.caller.attestation.issued_at;
        facts.extend(policy.conditions.iter().map(|name| Fact {
            what: "condition".to_owned(),
            held: Some(self.ask(name, question.now, attested_at).holds),
            seen: name.to_string(),
            allowed: Vec::new(),
        }));
        facts
    }

    /// Decides, and tells what every policy that concerns the destination looked at.
    #[must_use]
    pub fn explain(&self, question: &Question<'_>) -> Explanation {
        let decision = self.decide(question);
        let concern = self.by_destination.get(&question.destination.name);
        let policies = concern.map(|concern| concern.policies.as_slice()).unwrap_or_default();
        let considered = policies
            .iter()
            .map(|index| &self.slice.policies[*index])
            .map(|policy| Considered {
                name: policy.name.clone(),
                effect: match policy.effect {
                    Effect::Permit => "permit",
                    Effect::Forbid => "forbid",
                },
                determined: decision.policies.contains(&policy.name),
                facts: self.facts(question, policy),
                expression: expression_of(&policy.cedar).map(str::to_owned),
            })
            .collect();
        Explanation { decision, considered }
    }
}

/// Near misses in a decision; the rest would not be read.
const NEAREST_MAX: usize = 3;

/// A decision with all that was looked at.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The decision.
    pub decision: Arc<Decision>,
    /// Every policy and guardrail that concerns the destination.
    pub considered: Vec<Considered>,
}

/// One policy, and what it looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Considered {
    /// Which.
    pub name: ResourceRef,
    /// `permit` or `forbid`.
    pub effect: &'static str,
    /// Whether it determined the decision.
    pub determined: bool,
    /// What it looked at.
    pub facts: Vec<Fact>,
    /// Its own expression, if it has one.
    pub expression: Option<String>,
}

/// One thing that a policy looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// `method`, `path` or `condition`.
    pub what: String,
    /// Whether it was as asked; `None` if nobody asked.
    pub held: Option<bool>,
    /// The value seen.
    pub seen: String,
    /// What was allowed, as the document has it.
    pub allowed: Vec<String>,
}

struct HeldConditions {
    bits: Option<u64>,
    until: UnixMillis,
}

/// The first moment at which an input can change by itself.
fn good_until(question: &Question<'_>, concern: &Concern, held: &HeldConditions) -> UnixMillis {
    if concern.reads_clock { held.until.min(question.now.plus_millis(CLOCK_MILLIS)) } else { held.until }
}

fn concern(slice: &Slice, sees: &[Sees], destination: usize) -> Concern {
    let name = &slice.destinations[destination].name;
    let names_it = |policy: &&CompiledPolicy| {
        policy.effect == Effect::Forbid || policy.destination.as_ref() == Some(name)
    };
    let indices =
        slice.policies.iter().enumerate().filter(|(_, policy)| names_it(policy)).map(|(index, _)| index);
    let policies: Vec<usize> = indices.collect();
    let own = || policies.iter().map(|index| &slice.policies[*index]);
    let mut owned_headers: Vec<String> = own()
        .flat_map(credentials)
        .filter_map(|name| slice.providers.iter().find(|provider| provider.name == *name))
        .map(|provider| provider.injection.header.clone())
        .collect();
    owned_headers.sort_unstable();
    owned_headers.dedup();
    Concern {
        destination,
        reads_request: policies.iter().any(|index| sees[*index].request),
        reads_clock: policies.iter().any(|index| sees[*index].clock),
        owned_headers,
        policies,
    }
}

fn rule_facts(effect: Effect, rule: &Rule, request: &RequestFacts) -> Vec<Fact> {
    if request.action == Action::Connect {
        return vec![Fact {
            what: "action".to_owned(),
            held: Some(rule_matches(effect, rule, request)),
            seen: "connect".to_owned(),
            allowed: Vec::new(),
        }];
    }
    let fact = |what: &str, held: bool, seen: &str, allowed: &[String]| Fact {
        what: what.to_owned(),
        held: (!allowed.is_empty()).then_some(held),
        seen: seen.to_owned(),
        allowed: allowed.to_vec(),
    };
    vec![
        fact("method", method_matches(effect, rule, request), &request.method, &rule.methods),
        fact("path", path_matches(effect, rule, request), &request.path, &rule.paths),
    ]
}

/// What a guardrail struck at: the request, or what somebody could read it as, if no rule names it as it is. Else people
/// would look for it in the guardrail and not find it.
fn struck(guardrail: &CompiledPolicy, request: &RequestFacts) -> String {
    let names_it = |rule: &Rule| rule_matches(Effect::Permit, rule, request);
    if guardrail.rules.is_empty() || guardrail.rules.iter().any(names_it) {
        "it".to_owned()
    } else {
        format!("what {} could be read as", shown(request))
    }
}

fn shown(request: &RequestFacts) -> String {
    match request.action {
        Action::Http | Action::Grpc => format!("{} {}", request.method, request.path),
        Action::Connect => "connect".to_owned(),
    }
}

/// The document's own expression in a policy's text.
fn expression_of(cedar: &str) -> Option<&str> {
    Some(cedar.rsplit_once("\nwhen {\n")?.1.strip_suffix("\n};")?.trim())
}

fn blocked(block: &Block) -> String {
    let what = match &block.target {
        BlockTarget::Workload(name) => format!("workload {name}"),
        BlockTarget::Destination(name) => format!("destination {name}"),
        BlockTarget::Provider(name) => format!("credential provider {name}"),
        BlockTarget::Everything => "everything".to_owned(),
    };
    match block.reason.as_str() {
        "" => format!("{what} is blocked (block {})", block.id),
        reason => format!("{what} is blocked (block {}): {reason}", block.id),
    }
}

fn names(policies: &[&CompiledPolicy]) -> Vec<ResourceRef> {
    policies.iter().map(|policy| policy.name.clone()).collect()
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, String> {
    let kind = kind.parse().map_err(|_| format!("`{kind}` is not a kind of entity"))?;
    Ok(EntityUid::from_type_name_and_id(kind, cedar_policy::EntityId::new(id)))
}

fn string(text: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(text.to_owned())
}

fn datetime(moment: UnixMillis) -> RestrictedExpression {
    RestrictedExpression::new_datetime(moment.to_string())
}

fn record<const N: usize>(fields: [(&str, RestrictedExpression); N]) -> RestrictedExpression {
    // Fails only if a name is there twice, and these are constants.
    RestrictedExpression::new_record(fields.map(|(name, value)| (name.to_owned(), value)))
        .unwrap_or_else(|_| RestrictedExpression::new_bool(false))
}
