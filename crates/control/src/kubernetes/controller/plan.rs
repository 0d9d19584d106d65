//! What to change in the store, and what to say of each custom resource: a pure function of what the cluster has and
//! what the store has.

use std::collections::BTreeMap;

use model::slice::Egress;
use model::{Code, Namespace, ResourceRef};
use resources::diagnostic::sentences;
use resources::kind::Kind;
use resources::{Diagnostic, Document, Set, validate};

use super::resource::Resource;
use crate::store::{DocumentChange, Owner, State, StoredDocument};

/// What the cluster has.
#[derive(Clone, Debug, Default)]
pub struct Observed<'a> {
    /// The custom resources.
    pub resources: Vec<&'a Resource>,
    /// Egress modes of namespaces that say one.
    pub namespaces: BTreeMap<Namespace, Egress>,
}

/// What follows from it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Changes of the store, to be made together.
    pub changes: Vec<DocumentChange>,
    /// What became of each custom resource, in their order.
    pub verdicts: Vec<Verdict>,
}

/// What became of a custom resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is valid: what its author should know all the same, or what is wrong with it.
    pub accepted: Result<String, Problem>,
    /// Whether what it names is there.
    pub references: References,
    /// What of it decisions are made by.
    pub in_force: InForce,
}

/// Why a custom resource is not valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The row of the table that the first finding is from.
    pub code: Code,
    /// All findings.
    pub message: String,
}

/// Whether what a custom resource names is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum References {
    /// It is.
    Resolved,
    /// It is not, or not shared.
    Dangling(String),
    /// The resource is not valid, so what it names is not looked at.
    NotLookedAt,
}

/// Which generation of a custom resource decisions are made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InForce {
    /// The one that was observed.
    This,
    /// An earlier one, which was valid.
    Earlier(i64),
    /// None.
    Nothing,
}

type Key = (Kind, ResourceRef);

/// Makes the plan.
#[must_use]
pub fn plan(observed: &Observed<'_>, state: &State) -> Plan {
    let stored: BTreeMap<Key, &StoredDocument> =
        state.documents.iter().map(|stored| ((stored.kind, stored.name.clone()), stored)).collect();
    let candidates: Vec<Candidate<'_>> =
        observed.resources.iter().map(|resource| Candidate::of(resource, &stored)).collect();
    let set = together(&candidates, state);
    let verdicts: Vec<Verdict> = candidates.iter().map(|candidate| candidate.verdict(&set)).collect();
    let mut wanted: BTreeMap<Key, (String, Owner)> = BTreeMap::new();
    for (candidate, verdict) in candidates.iter().zip(&verdicts) {
        wanted.extend(candidate.wanted(verdict.in_force));
    }
    let mut changes = documents(&stored, &wanted);
    changes.extend(namespaces(&observed.namespaces, &state.namespaces));
    Plan { changes, verdicts }
}

/// A custom resource, and the generation of it that is in the store.
struct Candidate<'a> {
    resource: &'a Resource,
    earlier: Option<(Document, i64)>,
}

impl<'a> Candidate<'a> {
    fn of(resource: &'a Resource, stored: &BTreeMap<Key, &StoredDocument>) -> Self {
        let stored = stored.get(&(resource.kind, resource.name.clone()));
        let earlier = stored.and_then(|stored| match &stored.owner {
            // Another one of the same name was another resource.
            Owner::CustomResource { uid, generation } if *uid == resource.uid => {
                Some((Document::from_json(&stored.json).ok()?, *generation))
            }
            _ => None,
        });
        Self { resource, earlier }
    }

    /// The document that is put together with the others to be looked at.
    fn document(&self) -> Option<&Document> {
        self.resource.document.as_ref().ok().or(self.earlier.as_ref().map(|(document, _)| document))
    }

    fn verdict(&self, set: &Set) -> Verdict {
        match &self.resource.document {
            Ok(document) => self.valid_alone(document, set),
            Err(wrong) => self.refused(wrong, set),
        }
    }

    fn valid_alone(&self, document: &Document, set: &Set) -> Verdict {
        let found = validate(std::slice::from_ref(document), set);
        let (errors, warnings): (Vec<_>, Vec<_>) = found.into_iter().partition(Diagnostic::is_error);
        let (dangling, wrong): (Vec<_>, Vec<_>) =
            errors.into_iter().partition(|found| found.code == Code::DanglingReference);
        if !wrong.is_empty() {
            return self.refused(&wrong, set);
        }
        let holds = !dangling.iter().any(|found| hinders(document, found));
        Verdict {
            accepted: Ok(sentences(&warnings)),
            references: match dangling.as_slice() {
                [] => References::Resolved,
                dangling => References::Dangling(sentences(dangling)),
            },
            in_force: if holds { InForce::This } else { InForce::Nothing },
        }
    }

    /// An edit that is refused changes nothing, as long as what was there before is still right.
    fn refused(&self, wrong: &[Diagnostic], set: &Set) -> Verdict {
        let still_right = |document: &Document| {
            !validate(std::slice::from_ref(document), set).iter().any(|found| hinders(document, found))
        };
        let in_force = match &self.earlier {
            Some((document, generation)) if still_right(document) => InForce::Earlier(*generation),
            _ => InForce::Nothing,
        };
        let code = wrong.first().map_or(Code::InvalidValue, |first| first.code);
        Verdict {
            accepted: Err(Problem { code, message: sentences(wrong) }),
            references: References::NotLookedAt,
            in_force,
        }
    }

    /// What the store is to have of it.
    fn wanted(&self, in_force: InForce) -> Option<(Key, (String, Owner))> {
        let (document, generation) = match (in_force, &self.resource.document, &self.earlier) {
            (InForce::This, Ok(document), _) => (document, self.resource.generation),
            (InForce::Earlier(_), _, Some((document, generation))) => (document, *generation),
            _ => return None,
        };
        let owner = Owner::CustomResource { uid: self.resource.uid.clone(), generation };
        Some(((document.kind(), document.name.clone()), (document.to_json().to_string(), owner)))
    }
}

/// Whether a document is not in force because of this. A Workload's list of destinations only takes away, and its egress
/// mode must not wait for a destination.
fn hinders(document: &Document, found: &Diagnostic) -> bool {
    found.is_error() && !(found.code == Code::DanglingReference && document.kind() == Kind::Workload)
}

/// All documents that are looked at together: those that were applied, and over them those of custom resources.
///
/// Nothing refers to a policy, and whatever is wrong with another kind is wrong with it alone. So a policy can be looked
/// at in this set, whether other policies in it are right or not.
fn together(candidates: &[Candidate<'_>], state: &State) -> Set {
    let mut set = Set::default();
    let applied = state.documents.iter().filter(|stored| stored.owner == Owner::Applied);
    for document in applied.filter_map(|stored| Document::from_json(&stored.json).ok()) {
        set.insert(document);
    }
    for document in candidates.iter().filter_map(Candidate::document) {
        set.insert(document.clone());
    }
    set
}

fn documents(
    stored: &BTreeMap<Key, &StoredDocument>,
    wanted: &BTreeMap<Key, (String, Owner)>,
) -> Vec<DocumentChange> {
    let same = |key: &Key, (json, owner): &(String, Owner)| {
        stored.get(key).is_some_and(|stored| stored.json == *json && stored.owner == *owner)
    };
    let put =
        wanted.iter().filter(|(key, wanted)| !same(key, wanted)).map(|((kind, name), (json, owner))| {
            DocumentChange::Put { kind: *kind, name: name.clone(), json: json.clone(), owner: owner.clone() }
        });
    let is_ours = |stored: &StoredDocument| matches!(stored.owner, Owner::CustomResource { .. });
    let vanished = stored.iter().filter(|(key, stored)| is_ours(stored) && !wanted.contains_key(key));
    let delete = vanished.map(|((kind, name), _)| DocumentChange::Delete { kind: *kind, name: name.clone() });
    put.chain(delete).collect()
}

fn namespaces(
    observed: &BTreeMap<Namespace, Egress>,
    stored: &BTreeMap<Namespace, Egress>,
) -> Vec<DocumentChange> {
    let differs = |namespace: &&Namespace| observed.get(*namespace) != stored.get(*namespace);
    let mut names: Vec<&Namespace> = observed.keys().chain(stored.keys()).filter(differs).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .map(|namespace| DocumentChange::Egress {
            namespace: namespace.clone(),
            egress: observed.get(namespace).copied(),
        })
        .collect()
}
