//! What documents would be, and what is wrong with that: the one judgement of `apply` and `delete`, of the validating
//! webhook and of the controller.

use model::Code;
use model::ResourceRef;
use model::slice::Egress;
use policy::compile;
use policy::compile::EgressDefaults;
use resources::kind::{Kind, Spec};
use resources::{Diagnostic, Document, Set, validate};

/// The set with these documents in it, and what is wrong with them there, and with others because of them. `broken` are
/// documents beside them that could not be read.
#[must_use]
pub fn put(documents: &[Document], broken: Vec<(Kind, ResourceRef)>, before: &Set) -> (Set, Vec<Diagnostic>) {
    let mut after = before.clone();
    broken.into_iter().for_each(|(kind, name)| after.note_broken(kind, name));
    for document in documents {
        after.insert(document.clone());
    }
    let mut found = validate(documents, &after);
    found.extend(policy::expressions(documents));
    found.extend(broken_elsewhere(documents, before, &after));
    if !found.iter().any(Diagnostic::is_error)
        && let Err(wrong) = compile(&after)
    {
        found.extend(wrong);
    }
    (after, found)
}

/// What is wrong with a document whatever else there is: all but its references.
#[must_use]
pub fn alone(document: &Document) -> Vec<Diagnostic> {
    let (_, mut found) = put(std::slice::from_ref(document), Vec::new(), &Set::default());
    let dangles = found.iter().any(|found| found.code == Code::DanglingReference);
    found.retain(|found| found.code != Code::DanglingReference);
    // Then `put` has not compiled it.
    if dangles && !found.iter().any(Diagnostic::is_error) {
        let mut only = Set::default();
        only.insert(document.clone());
        found.extend(compile(&only).err().unwrap_or_default());
    }
    found
}

/// What is wrong with the deletion of these documents, or follows from it.
#[must_use]
pub fn delete(removed: &[Document], before: &Set, egress: &EgressDefaults) -> Vec<Diagnostic> {
    let mut after = before.clone();
    for document in removed {
        after.remove(document.kind(), &document.name);
    }
    let mut found = Vec::new();
    for document in removed {
        let left = |referrer: &&Document| after.get(referrer.kind(), &referrer.name).is_some();
        let referrers = before.referrers(document.kind(), &document.name);
        let names: Vec<String> = referrers.into_iter().filter(left).map(Document::label).collect();
        if !names.is_empty() {
            let message = format!("{} is still referred to by {}", document.label(), names.join(", "));
            found.push(Diagnostic::error(Code::StillReferenced, document.at(""), message));
        }
        found.extend(uncovered(document, before, &after, egress));
    }
    found
}

/// A destination that nothing covers any more passes untouched in `observe`, and is refused in `enforce`: whoever
/// deletes its policy is told.
fn uncovered(document: &Document, before: &Set, after: &Set, egress: &EgressDefaults) -> Option<Diagnostic> {
    let Spec::AccessPolicy(spec) = &document.spec else { return None };
    let namespace = document.name.namespace.as_ref();
    let workload = before.resolve(Kind::Workload, &spec.workload, namespace).ok()?;
    let Spec::Workload(workload_spec) = &workload.spec else { return None };
    let own = workload_spec.egress.as_deref().and_then(resources::values::egress);
    let of_namespace = namespace.and_then(|namespace| egress.namespaces.get(namespace).copied());
    let mode = own.max(of_namespace).max(Some(egress.configured));
    let still = after.of_kind(Kind::AccessPolicy).any(|other| match &other.spec {
        Spec::AccessPolicy(other_spec) => {
            other.name.namespace.as_ref() == namespace
                && other_spec.workload == spec.workload
                && other_spec.destination == spec.destination
        }
        _ => false,
    });
    if still {
        return None;
    }
    let nothing = format!(
        "nothing covers destination `{}` for workload `{}` any more",
        spec.destination, spec.workload
    );
    let (message, help) = match mode {
        Some(Egress::Enforce) => (
            format!("{nothing}: its calls will be refused (egress mode `enforce`)"),
            "in `observe` they would pass without a credential",
        ),
        _ => (
            format!("{nothing}: its calls will pass without a credential (egress mode `observe`)"),
            "set `egress: enforce` on the Workload, or block it with `countersign revoke`",
        ),
    };
    Some(Diagnostic::warning(Code::UncoveredAfterDelete, document.at(""), message).help(help))
}

/// What a change breaks in stored documents that refer to a changed one: a policy whose destination its workload may no
/// longer use, or that is no longer shared, would quietly stop covering it.
#[must_use]
pub fn broken_elsewhere(changed: &[Document], before: &Set, after: &Set) -> Vec<Diagnostic> {
    let is = |document: &Document, other: &Document| {
        document.kind() == other.kind() && document.name == other.name
    };
    let may_refer = |document: &&Document| {
        resources::set::references(document).iter().any(|reference| {
            let name = reference.text.rsplit('/').next();
            changed.iter().any(|other| other.kind() == reference.kind && name == Some(&*other.name.name))
        })
    };
    let others = after.iter().filter(|document| !changed.iter().any(|other| is(document, other)));
    let broken = others.filter(may_refer).flat_map(|document| {
        let alone = std::slice::from_ref(document);
        let known = validate(alone, before);
        let is_new = move |found: &Diagnostic| found.is_error() && !known.contains(found);
        validate(alone, after).into_iter().filter(is_new).map(|mut found| {
            found.message = format!("{}, which is stored: {}", document.label(), found.message);
            found
        })
    });
    broken.collect()
}
