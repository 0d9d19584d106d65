//! Documents into what a proxy is told: one slice for each caller.

use std::collections::BTreeSet;

use model::name::{Namespace, ResourceRef};
use model::slice::{
    Block, BlockTarget, Bypass, CompiledPolicy, Condition, Effect, Egress, ProviderFace, Rule, Slice,
};
use model::{Caller, Code, Destination, Injection, Version};
use resources::kind::{AccessPolicySpec, CredentialProviderSpec, DestinationSpec, Kind, RuleSpec, Spec};
use resources::{Diagnostic, Document, Set, values};

use crate::cedar::{self, Checked, Source};
use crate::windows;

/// All documents, checked and compiled.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    workloads: Vec<Workload>,
    destinations: Vec<Destination>,
    providers: Vec<ResourceRef>,
    faces: Vec<Injection>,
    conditions: Vec<Condition>,
    policies: Vec<(ResourceRef, CompiledPolicy)>,
    guardrails: Vec<CompiledPolicy>,
}

#[derive(Clone, Debug)]
struct Workload {
    name: ResourceRef,
    selector: std::collections::BTreeMap<String, String>,
    egress: Option<Egress>,
}

/// Egress modes that are set outside documents.
#[derive(Clone, Debug, Default)]
pub struct EgressDefaults {
    /// The control plane's configuration.
    pub configured: Egress,
    /// By namespace.
    pub namespaces: std::collections::BTreeMap<Namespace, Egress>,
}

/// Compiles a set that [`resources::validate`] found nothing wrong with.
///
/// # Errors
/// What only compiling shows: expressions that do not type-check, unknown time zones.
pub fn compile(set: &Set) -> Result<Compiled, Vec<Diagnostic>> {
    let mut compiled = Compiled::default();
    let mut found = Vec::new();
    for document in set.iter() {
        match &document.spec {
            Spec::Workload(spec) => compiled.workloads.push(Workload {
                name: document.name.clone(),
                selector: spec.selector.clone(),
                egress: spec.egress.as_deref().and_then(values::egress),
            }),
            Spec::Destination(spec) => compiled.destinations.push(destination(&document.name, spec)),
            Spec::CredentialProvider(spec) => {
                compiled.providers.push(document.name.clone());
                compiled.faces.push(injection(spec));
            }
            Spec::Condition(spec) => {
                let kind = values::condition(spec).map(|kind| windows::Condition::new(&kind).map(|_| kind));
                match kind {
                    Some(Ok(kind)) => {
                        compiled.conditions.push(Condition { name: document.name.clone(), kind })
                    }
                    Some(Err(problem)) => {
                        let at = document.at("/spec/timeWindow/timeZone");
                        found.push(Diagnostic::error(Code::InvalidValue, at, problem));
                    }
                    // The validation has said so.
                    None => {}
                }
            }
            Spec::AccessPolicy(spec) => match access_policy(document, spec, set) {
                Ok(Some((workload, policy))) => compiled.policies.push((workload, policy)),
                Ok(None) => {}
                Err(wrong) => found.extend(wrong),
            },
            Spec::Guardrail(spec) => {
                let rules: Vec<Rule> = spec.deny.iter().map(|rule| compiled_rule(rule, None)).collect();
                let policy = Source {
                    id: &document.name.to_string(),
                    effect: Effect::Forbid,
                    scope: None,
                    rules: rules.len(),
                    conditions: &[],
                    when: spec.when.as_deref(),
                    reason: spec.reason.as_deref(),
                };
                match checked(document, &policy) {
                    Ok(checked) => compiled.guardrails.push(CompiledPolicy {
                        name: document.name.clone(),
                        effect: Effect::Forbid,
                        cedar: checked.text,
                        destination: None,
                        rules,
                        credential: None,
                        conditions: Vec::new(),
                        ttl_seconds: None,
                        reads_clock: checked.sees.clock,
                    }),
                    Err(wrong) => found.extend(wrong),
                }
            }
            Spec::TrustProvider(_) => {}
        }
    }
    if found.is_empty() { Ok(compiled) } else { Err(found) }
}

/// `None` if a reference leads nowhere: the validation has said so, and what is not whole allows nothing.
fn access_policy(
    document: &Document,
    spec: &AccessPolicySpec,
    set: &Set,
) -> Result<Option<(ResourceRef, CompiledPolicy)>, Vec<Diagnostic>> {
    let namespace = document.name.namespace.as_ref();
    let resolve = |kind, text: &str| set.resolve(kind, text, namespace).ok().map(|found| found.name.clone());
    let (Some(workload), Some(destination)) =
        (resolve(Kind::Workload, &spec.workload), resolve(Kind::Destination, &spec.destination))
    else {
        return Ok(None);
    };
    let mut conditions = Vec::new();
    for text in &spec.conditions {
        let Some(name) = resolve(Kind::Condition, text) else { return Ok(None) };
        conditions.push(name);
    }
    let credential = match &spec.credential {
        None => None,
        Some(text) => match resolve(Kind::CredentialProvider, text) {
            Some(name) => Some(name),
            None => return Ok(None),
        },
    };
    let mut rules = Vec::new();
    for rule in &spec.allow {
        let credential = match &rule.credential {
            None => None,
            Some(text) => match resolve(Kind::CredentialProvider, text) {
                Some(name) => Some(name),
                None => return Ok(None),
            },
        };
        rules.push(compiled_rule(rule, credential));
    }
    if rules.is_empty() {
        return Ok(None);
    }
    let condition_names: Vec<String> = conditions.iter().map(ToString::to_string).collect();
    let checked = checked(
        document,
        &Source {
            id: &document.name.to_string(),
            effect: Effect::Permit,
            scope: Some((&workload.to_string(), &destination.to_string())),
            rules: rules.len(),
            conditions: &condition_names,
            when: spec.when.as_deref(),
            reason: None,
        },
    )?;
    let policy = CompiledPolicy {
        name: document.name.clone(),
        effect: Effect::Permit,
        cedar: checked.text,
        destination: Some(destination),
        rules,
        credential,
        conditions,
        ttl_seconds: spec.ttl.as_deref().and_then(values::duration),
        reads_clock: checked.sees.clock,
    };
    Ok(Some((workload, policy)))
}

/// What is wrong with the expressions of documents, whatever else may be: people are told all at once, so this does not
/// wait for references that lead somewhere.
#[must_use]
pub fn expressions(documents: &[Document]) -> Vec<Diagnostic> {
    let wrong = documents.iter().filter_map(|document| {
        let (effect, scope, when) = match &document.spec {
            Spec::AccessPolicy(spec) => (Effect::Permit, Some(("a", "b")), spec.when.as_deref()?),
            Spec::Guardrail(spec) => (Effect::Forbid, None, spec.when.as_deref()?),
            _ => return None,
        };
        let alone =
            Source { id: "p", effect, scope, rules: 0, conditions: &[], when: Some(when), reason: None };
        checked(document, &alone).err()
    });
    wrong.flatten().collect()
}

fn checked(document: &Document, source: &Source<'_>) -> Result<Checked, Vec<Diagnostic>> {
    let diagnostic = |bad: cedar::BadExpression| {
        let at = document.within("/spec/when", bad.offset, bad.length);
        Diagnostic::error(Code::InvalidExpression, at, bad.message).help(match bad.help.as_str() {
            "" => "`countersign explain context` lists what an expression can see".to_owned(),
            help => help.to_owned(),
        })
    };
    cedar::compile(source).map_err(|all| all.into_iter().map(diagnostic).collect())
}

fn compiled_rule(rule: &RuleSpec, credential: Option<ResourceRef>) -> Rule {
    Rule { methods: rule.methods.clone(), paths: rule.paths.clone(), credential }
}

fn destination(name: &ResourceRef, spec: &DestinationSpec) -> Destination {
    use model::destination::{Protocol, Resolution, TlsMode};
    let default_ports: &[u16] = if spec.insecure { &[443, 80] } else { &[443] };
    Destination {
        name: name.clone(),
        hosts: spec.hosts.iter().filter_map(|host| host.parse().ok()).collect(),
        ports: if spec.ports.is_empty() { default_ports.to_vec() } else { spec.ports.clone() },
        addresses: spec.addresses.iter().filter_map(|text| values::network(text)).collect(),
        protocol: spec.protocol.as_deref().and_then(values::protocol).unwrap_or(Protocol::Http),
        http_versions: spec.http_versions.iter().filter_map(|text| values::http_version(text)).collect(),
        tls: spec.tls.as_deref().and_then(values::tls_mode).unwrap_or(TlsMode::Terminate),
        resolve: spec.resolve.as_deref().and_then(values::resolution).unwrap_or(Resolution::Name),
        insecure: spec.insecure,
        redact: spec.redact,
        ca_bundle: spec.ca_bundle.clone().unwrap_or_default(),
        server_name: spec.server_name.as_deref().and_then(|name| name.parse().ok()),
        client_certificate: spec.client_certificate.as_deref().and_then(values::client_certificate),
        sensitivity: spec.sensitivity.clone().unwrap_or_default(),
    }
}

fn injection(spec: &CredentialProviderSpec) -> Injection {
    match &spec.inject {
        Some(inject) => {
            Injection { header: inject.header.to_ascii_lowercase(), prefix: inject.prefix.clone() }
        }
        // RFC 6750 §2.1.
        None => Injection { header: "authorization".to_owned(), prefix: "Bearer ".to_owned() },
    }
}

impl Compiled {
    /// Names of the workloads that a caller matches: those of its own namespace whose selector it fulfils.
    #[must_use]
    pub fn workloads_of(&self, caller: &Caller) -> Vec<ResourceRef> {
        self.matching(caller).map(|workload| workload.name.clone()).collect()
    }

    fn matching<'a>(&'a self, caller: &'a Caller) -> impl Iterator<Item = &'a Workload> {
        self.workloads.iter().filter(|workload| {
            workload.name.namespace.as_ref() == Some(&caller.namespace)
                && values::selects(&workload.selector, &caller.attributes)
        })
    }

    /// All that concerns one caller, and nothing else. `revision_of` gives the revision at which a credential provider
    /// last changed; the slice's own version is the one given, for the caller of this function to replace if an
    /// earlier slice was equal.
    #[must_use]
    pub fn slice_for(
        &self,
        caller: &Caller,
        blocks: &[Block],
        bypasses: &[Bypass],
        egress: &EgressDefaults,
        version: Version,
        revision_of: &dyn Fn(&ResourceRef) -> u64,
    ) -> Slice {
        let matching: Vec<&Workload> = self.matching(caller).collect();
        let workloads: Vec<ResourceRef> = matching.iter().map(|workload| workload.name.clone()).collect();
        let own = self.policies.iter().filter(|(workload, _)| workloads.contains(workload));
        let mut policies: Vec<CompiledPolicy> = own.map(|(_, policy)| policy.clone()).collect();
        let destinations: BTreeSet<&ResourceRef> =
            policies.iter().filter_map(|p| p.destination.as_ref()).collect();
        let destinations: Vec<Destination> =
            self.destinations.iter().filter(|d| destinations.contains(&d.name)).cloned().collect();
        let providers: BTreeSet<ResourceRef> = policies.iter().flat_map(credentials).cloned().collect();
        let conditions: BTreeSet<ResourceRef> = policies.iter().flat_map(|p| p.conditions.clone()).collect();
        let concerns = |block: &&Block| match &block.target {
            BlockTarget::Workload(name) => workloads.contains(name),
            BlockTarget::Destination(name) => destinations.iter().any(|d| d.name == *name),
            BlockTarget::Provider(name) => providers.contains(name),
            BlockTarget::Everything => true,
        };
        let strictest = matching
            .iter()
            .filter_map(|workload| workload.egress)
            .chain(egress.namespaces.get(&caller.namespace).copied())
            .chain([egress.configured])
            .max()
            .unwrap_or_default();
        // A caller that no policy names needs no guardrail either: nothing is allowed that could be forbidden.
        if !policies.is_empty() {
            policies.extend(self.guardrails.iter().cloned());
        }
        Slice {
            version,
            caller: caller.clone(),
            egress: strictest,
            providers: self.faces_of(&providers, revision_of),
            conditions: self.conditions.iter().filter(|c| conditions.contains(&c.name)).cloned().collect(),
            blocks: blocks.iter().filter(concerns).cloned().collect(),
            bypasses: bypasses.iter().filter(|b| workloads.contains(&b.workload)).cloned().collect(),
            workloads,
            destinations,
            policies,
        }
    }

    fn faces_of(
        &self,
        wanted: &BTreeSet<ResourceRef>,
        revision_of: &dyn Fn(&ResourceRef) -> u64,
    ) -> Vec<ProviderFace> {
        let all = self.providers.iter().zip(&self.faces);
        all.filter(|(name, _)| wanted.contains(*name))
            .map(|(name, injection)| ProviderFace {
                name: name.clone(),
                revision: revision_of(name),
                injection: injection.clone(),
            })
            .collect()
    }

    /// The access policies that cover a destination, for messages.
    #[must_use]
    pub fn covering(&self, destination: &ResourceRef) -> Vec<&ResourceRef> {
        let covers =
            |policy: &&(ResourceRef, CompiledPolicy)| policy.1.destination.as_ref() == Some(destination);
        self.policies.iter().filter(covers).map(|(_, policy)| &policy.name).collect()
    }
}

/// All credentials that a policy may use.
pub(crate) fn credentials(policy: &CompiledPolicy) -> impl Iterator<Item = &ResourceRef> {
    policy.credential.iter().chain(policy.rules.iter().filter_map(|rule| rule.credential.as_ref()))
}
