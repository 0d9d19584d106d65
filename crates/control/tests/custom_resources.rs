//! Custom resources: what becomes of them in the store and in their status, and what a review of one is answered.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeMap;

use control::kubernetes::controller::plan::{InForce, Observed, Plan, plan};
use control::kubernetes::controller::resource::Resource;
use control::kubernetes::controller::status;
use control::kubernetes::validate;
use control::store::{DocumentChange, Owner, State, StoredDocument};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionReview};
use model::slice::Egress;
use model::{Namespace, ResourceRef, UnixMillis, Version};
use policy::compile::EgressDefaults;
use resources::{Document, Kind, Set};
use serde_json::{Value, json};

/// A custom resource of namespace `payments` (or of none), as an API server has it: its UID is its name.
fn object(kind: Kind, name: &str, generation: i64, spec: &str) -> DynamicObject {
    let spec: Value = serde_saphyr::from_str(spec).unwrap();
    let namespace = kind.is_namespaced().then_some("payments");
    serde_json::from_value(json!({
        "apiVersion": "countersign.dev/v1alpha1",
        "kind": kind.as_str(),
        "metadata": {
            "name": name, "namespace": namespace, "uid": format!("uid-{name}"), "generation": generation,
            "resourceVersion": "1", "creationTimestamp": "2026-11-26T00:00:00Z",
            "annotations": { "argocd.argoproj.io/tracking-id": "x" },
            "managedFields": [{ "manager": "kubectl" }],
        },
        "spec": spec,
    }))
    .unwrap()
}

fn resource(kind: Kind, name: &str, generation: i64, spec: &str) -> Resource {
    Resource::read(kind, &object(kind, name, generation, spec)).unwrap()
}

const WORKLOAD: &str = "selector: { kubernetes.serviceaccount: billing }";
const DESTINATION: &str = "hosts: [api.stripe.com]";
const CREDENTIAL: &str = "jwt: { audience: [stripe] }";
const POLICY: &str =
    "{ workload: billing, destination: stripe, credential: token, allow: [{ methods: [GET] }] }";

fn whole() -> Vec<Resource> {
    vec![
        resource(Kind::Workload, "billing", 1, WORKLOAD),
        resource(Kind::Destination, "stripe", 1, DESTINATION),
        resource(Kind::CredentialProvider, "token", 1, CREDENTIAL),
        resource(Kind::AccessPolicy, "charges", 1, POLICY),
    ]
}

/// A store as it is after plans were carried out.
#[derive(Default)]
struct Store(BTreeMap<(Kind, ResourceRef), StoredDocument>, BTreeMap<Namespace, Egress>);

impl Store {
    fn state(&self) -> State {
        State {
            version: Version::default(),
            documents: self.0.values().cloned().collect(),
            blocks: Vec::new(),
            bypasses: Vec::new(),
            namespaces: self.1.clone(),
        }
    }

    /// Plans for what was observed, and carries it out.
    fn meet(&mut self, resources: &[Resource]) -> Plan {
        self.meet_with(resources, &[])
    }

    fn meet_with(&mut self, resources: &[Resource], namespaces: &[(&str, Egress)]) -> Plan {
        let namespaces = namespaces.iter().map(|(name, egress)| (Namespace::new(name).unwrap(), *egress));
        let observed = Observed { resources: resources.iter().collect(), namespaces: namespaces.collect() };
        let planned = plan(&observed, &self.state());
        for change in &planned.changes {
            self.make(change.clone());
        }
        assert_eq!(
            plan(&observed, &self.state()).changes,
            [],
            "a plan that was carried out leaves nothing to do"
        );
        planned
    }

    fn make(&mut self, change: DocumentChange) {
        match change {
            DocumentChange::Put { kind, name, json, owner } => {
                let time = UnixMillis(0);
                let stored = StoredDocument {
                    kind,
                    name: name.clone(),
                    json,
                    revision: 1,
                    created_at: time,
                    changed_at: time,
                    author: String::new(),
                    owner,
                };
                self.0.insert((kind, name), stored);
            }
            DocumentChange::Delete { kind, name } => drop(self.0.remove(&(kind, name)).unwrap()),
            DocumentChange::Egress { namespace, egress } => {
                match egress {
                    Some(egress) => self.1.insert(namespace, egress),
                    None => self.1.remove(&namespace),
                };
            }
        }
    }

    fn apply(&mut self, kind: Kind, name: &str, spec: &str) {
        let document = resource(kind, name, 1, spec).document.unwrap();
        let (name, json) = (document.name.clone(), document.to_json().to_string());
        self.make(DocumentChange::Put { kind, name, json, owner: Owner::Applied });
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        self.0.contains_key(&(kind, format!("payments/{name}").parse().unwrap()))
    }
}

/// The conditions of the last resource, one a line.
fn said(resources: &[Resource], plan: &Plan) -> String {
    let (resource, verdict) = (resources.last().unwrap(), plan.verdicts.last().unwrap());
    let now = Time(Timestamp::UNIX_EPOCH);
    status::conditions(verdict, resource.generation, &[], &now)
        .iter()
        .map(|said| format!("{}={} {}: {}", said.type_, said.status, said.reason, said.message))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn resources_come_into_force_together_and_leave_with_their_objects() {
    let mut store = Store::default();
    let planned = store.meet(&whole());
    assert_eq!(planned.changes.len(), 4);
    insta::assert_snapshot!(said(&whole(), &planned), @r#"
    Accepted=True Accepted: it is valid
    ResolvedRefs=True ResolvedRefs: all that it names is there
    Programmed=True Programmed: decisions are made by it
    "#);
    let planned = store.meet(&whole()[..3]);
    assert_eq!(planned.changes.len(), 1, "it vanished while nobody looked");
    assert!(!store.has(Kind::AccessPolicy, "charges") && store.has(Kind::Destination, "stripe"));
    store.meet(&[]);
    assert!(store.0.is_empty());
}

#[test]
fn what_tools_write_beside_the_spec_changes_nothing() {
    let mut store = Store::default();
    store.meet(&whole());
    let mut object = object(Kind::Workload, "billing", 1, WORKLOAD);
    object.metadata.annotations = Some([("fluxcd.io/sync".to_owned(), "2".to_owned())].into());
    let mut resources = whole();
    resources[0] = Resource::read(Kind::Workload, &object).unwrap();
    assert_eq!(store.meet(&resources).changes, []);
}

#[test]
fn a_policy_that_names_what_is_not_there_grants_nothing_until_it_is() {
    let mut store = Store::default();
    let mut resources = whole();
    resources.remove(1);
    let planned = store.meet(&resources);
    assert!(!store.has(Kind::AccessPolicy, "charges"));
    insta::assert_snapshot!(said(&resources, &planned), @r#"
    Accepted=True Accepted: it is valid
    ResolvedRefs=False RefNotFound: CS0104 spec.destination: there is no Destination `stripe`
    Programmed=False RefNotFound: it grants nothing until all that it names is there
    "#);
    let planned = store.meet(&whole());
    assert_eq!(planned.verdicts[3].in_force, InForce::This);
    assert!(store.has(Kind::AccessPolicy, "charges"));
    // And no more, once it is gone again: not by what it was before either.
    store.meet(&resources);
    assert!(!store.has(Kind::AccessPolicy, "charges"));
}

#[test]
fn a_policy_that_is_pointed_at_nothing_does_not_go_on_as_it_was() {
    let mut store = Store::default();
    store.meet(&whole());
    let mut resources = whole();
    resources[3] = resource(Kind::AccessPolicy, "charges", 2, &POLICY.replace("stripe", "adyen"));
    store.meet(&resources);
    assert!(!store.has(Kind::AccessPolicy, "charges"));
}

#[test]
fn what_was_applied_can_be_named_and_is_taken_over_by_a_resource_of_its_name() {
    let mut store = Store::default();
    store.apply(Kind::Destination, "stripe", "hosts: [other.example]");
    let mut resources = whole();
    let destination = resources.remove(1);
    assert_eq!(store.meet(&resources).verdicts[2].in_force, InForce::This);
    let key = (Kind::Destination, "payments/stripe".parse().unwrap());
    assert_eq!(store.0[&key].owner, Owner::Applied);
    // An invalid one changes nothing, and leaves what was applied where it is.
    resources.push(resource(Kind::Destination, "stripe", 1, "hosts: []"));
    store.meet(&resources);
    assert_eq!(store.0[&key].owner, Owner::Applied);
    resources.pop();
    resources.push(destination);
    store.meet(&resources);
    assert_eq!(store.0[&key].owner, Owner::CustomResource { uid: "uid-stripe".into(), generation: 1 });
}

#[test]
fn a_resource_that_is_invalid_on_arrival_grants_nothing_and_says_so() {
    let mut store = Store::default();
    let mut resources = whole();
    resources[3] = resource(Kind::AccessPolicy, "charges", 1, &POLICY.replace("allow", "alow"));
    let planned = store.meet(&resources);
    assert!(!store.has(Kind::AccessPolicy, "charges") && store.has(Kind::Destination, "stripe"));
    insta::assert_snapshot!(said(&resources, &planned), @r#"
    Accepted=False UnknownField: CS0102 spec.alow: unknown field `alow` (did you mean `allow`?)
    ResolvedRefs=Unknown NotAccepted: it is not valid
    Programmed=False NotAccepted: nothing of it is in force
    "#);
}

#[test]
fn an_edit_that_is_invalid_changes_nothing() {
    let guardrail = |generation, when: &str| {
        vec![resource(Kind::Guardrail, "office", generation, &format!("when: {when}"))]
    };
    let mut store = Store::default();
    store.meet(&guardrail(1, "'true'"));
    let edited = guardrail(2, "context.nonsense");
    let planned = store.meet(&edited);
    assert_eq!(store.0.len(), 1, "a slip takes no guardrail away");
    insta::assert_snapshot!(said(&edited, &planned), @r#"
    Accepted=False InvalidExpression: CS0105 spec.when: `nonsense` is not something that an expression can see (did you mean `now`?)
    ResolvedRefs=Unknown NotAccepted: it is not valid
    Programmed=False EarlierGeneration: it is not valid; generation 1 stays in force until it is, or is deleted
    "#);
    // A restart has nothing but the store.
    let planned = store.meet(&edited);
    assert_eq!((planned.changes.len(), planned.verdicts[0].in_force), (0, InForce::Earlier(1)));
    let planned = store.meet(&guardrail(3, "'false'"));
    assert_eq!(planned.verdicts[0].in_force, InForce::This);
}

#[test]
fn a_resource_that_was_made_anew_does_not_inherit_from_the_one_before() {
    let mut store = Store::default();
    store.meet(&whole());
    let mut resources = whole();
    let mut object = object(Kind::AccessPolicy, "charges", 1, &POLICY.replace("GET", "get"));
    object.metadata.uid = Some("another".to_owned());
    resources[3] = Resource::read(Kind::AccessPolicy, &object).unwrap();
    assert_eq!(store.meet(&resources).verdicts[3].in_force, InForce::Nothing);
    assert!(!store.has(Kind::AccessPolicy, "charges"));
}

#[test]
fn a_workload_that_permits_less_takes_policies_with_it_and_their_earlier_versions() {
    let mut store = Store::default();
    store.meet(&whole());
    let mut resources = whole();
    resources[0] = resource(Kind::Workload, "billing", 2, &format!("{WORKLOAD}\ndestinations: [other]"));
    let planned = store.meet(&resources);
    assert_eq!(planned.verdicts[0].in_force, InForce::This, "its list only takes away");
    assert!(!store.has(Kind::AccessPolicy, "charges"));
    insta::assert_snapshot!(said(&resources, &planned), @r#"
    Accepted=False NotPermitted: CS0107 spec.destination: workload `billing` is not permitted destination `stripe` (its `destinations` are other)
    ResolvedRefs=Unknown NotAccepted: it is not valid
    Programmed=False NotAccepted: nothing of it is in force
    "#);
    resources[3] = resource(Kind::AccessPolicy, "charges", 2, &POLICY.replace("GET", "get"));
    store.meet(&resources);
    assert!(!store.has(Kind::AccessPolicy, "charges"), "what it was before is not right any more either");
}

#[test]
fn egress_modes_of_namespaces_come_and_go() {
    let mut store = Store::default();
    store.meet_with(&[], &[("a", Egress::Enforce), ("b", Egress::Observe)]);
    store.meet_with(&[], &[("b", Egress::Enforce)]);
    assert_eq!(store.1, [(Namespace::new("b").unwrap(), Egress::Enforce)].into());
}

#[test]
fn a_condition_keeps_the_time_since_when_it_holds() {
    let mut store = Store::default();
    let resources = whole();
    let planned = store.meet(&resources);
    let (first, later) = (Time(Timestamp::UNIX_EPOCH), Time("2026-11-26T00:00:00Z".parse().unwrap()));
    let before = status::conditions(&planned.verdicts[3], 1, &[], &first);
    assert_eq!(status::conditions(&planned.verdicts[3], 1, &before, &later), before);
    let planned = store.meet(&resources[..1].iter().chain(&resources[2..]).cloned().collect::<Vec<_>>());
    let after = status::conditions(&planned.verdicts[2], 1, &before, &later);
    let times: Vec<&Time> = after.iter().map(|condition| &condition.last_transition_time).collect();
    assert_eq!(times, [&first, &later, &later], "it is accepted since the first time");
}

#[test]
fn what_arrived_together_is_one_set_of_changes() {
    let mut resources = whole();
    resources.extend((0..200).map(|i| resource(Kind::AccessPolicy, &format!("p{i}"), 1, POLICY)));
    assert_eq!(Store::default().meet(&resources).changes.len(), 204);
}

/// What an API server is answered about an object.
fn review(operation: &str, new: Option<&DynamicObject>, old: Option<&DynamicObject>, set: &Set) -> String {
    let object = new.or(old).unwrap();
    let kind = object.types.as_ref().unwrap().kind.clone();
    let review: AdmissionReview<DynamicObject> = serde_json::from_value(json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "operation": operation, "userInfo": {}, "name": object.metadata.name,
            "namespace": object.metadata.namespace, "dryRun": false,
            "kind": { "group": "countersign.dev", "version": "v1alpha1", "kind": kind },
            "resource": {
                "group": "countersign.dev", "version": "v1alpha1", "resource": Kind::parse(&kind).unwrap().plural(),
            },
            "object": new, "oldObject": old,
        },
    }))
    .unwrap();
    let request: AdmissionRequest<DynamicObject> = review.try_into().unwrap();
    let answer = validate::answer(&request, set, &EgressDefaults::default());
    let mut lines = vec![if answer.allowed { "allowed".to_owned() } else { answer.result.message.clone() }];
    lines.extend(answer.warnings.into_iter().flatten().map(|text| format!("Warning: {text}")));
    assert!(lines.iter().skip(1).all(|line| line.len() <= 256 + "Warning: ".len()));
    lines.join("\n")
}

fn created(kind: Kind, spec: &str, set: &Set) -> String {
    review("CREATE", Some(&object(kind, "charges", 1, spec)), None, set)
}

fn set() -> Set {
    let mut set = Set::default();
    for resource in whole() {
        set.insert(resource.document.unwrap());
    }
    set
}

#[test]
fn reviews_answer_with_what_the_command_line_says() {
    let set = set();
    assert_eq!(created(Kind::AccessPolicy, POLICY, &set), "allowed");
    let wrong = [
        (Kind::AccessPolicy, POLICY.replace("allow", "alow")),
        (Kind::AccessPolicy, POLICY.replace("GET", "get")),
        (Kind::AccessPolicy, POLICY.replace("allow:", "when: context.nonsense, ttl: 2h, allow:")),
        (Kind::AccessPolicy, POLICY.replace("[{ methods: [GET] }]", "true")),
        (Kind::Workload, "{ selector: {}, egress: enforec }".to_owned()),
        (Kind::Destination, "{ hosts: [], sharedWith: [UPPER] }".to_owned()),
        (Kind::Condition, "timeWindow: { from: '08:00', to: '18:00', timeZone: Europe/Berln }".to_owned()),
        (Kind::Guardrail, "reason: none".to_owned()),
    ];
    let answers: Vec<String> = wrong.iter().map(|(kind, spec)| created(*kind, spec, &set)).collect();
    insta::assert_snapshot!(answers.join("\n---\n"), @r#"
    CS0102 spec.alow: unknown field `alow` (did you mean `allow`?)
    ---
    CS0103 spec.allow[0].methods[0]: `get` must be a method in upper case
    ---
    CS0103 spec.ttl: `2h` must be between `30s` and `1h`; CS0105 spec.when: `nonsense` is not something that an expression can see (did you mean `now`?)
    ---
    CS0101 spec.allow: invalid type: boolean `true`, expected a sequence
    ---
    CS0103 spec.egress: `enforec` must be `observe` or `enforce`; CS0103 spec.selector: a selector must name at least one attribute: an empty one would match everybody
    ---
    CS0103 spec: a destination must have `hosts` or `addresses`; CS0103 spec.sharedWith[0]: `UPPER` must be a namespace, or `*` for all
    ---
    CS0103 spec.timeWindow.timeZone: `Europe/Berln` is not a time zone
    ---
    CS0103 spec: a guardrail must have `deny` or `when`
    "#);
    // Finding by finding, it is what `apply` says of the same text.
    for (kind, spec) in &wrong {
        let metadata =
            if kind.is_namespaced() { "{ name: charges, namespace: payments }" } else { "{ name: charges }" };
        let spec: Value = serde_saphyr::from_str(spec).unwrap();
        let text = format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: {kind}\nmetadata: {metadata}\nspec: {spec}\n"
        );
        let parsed = resources::parse(&[("f".to_owned(), text)], None);
        let (_, mut found) = control::proposal::put(&parsed.documents, parsed.broken, &set);
        found.extend(parsed.diagnostics);
        let answer = created(*kind, &spec.to_string(), &set);
        for found in found.iter().filter(|found| found.is_error()) {
            assert!(answer.contains(&found.message), "{answer}\nlacks\n{}", found.message);
        }
    }
}

#[test]
fn a_dangling_reference_is_admitted_with_a_warning() {
    insta::assert_snapshot!(created(Kind::AccessPolicy, POLICY, &Set::default()), @r#"
    allowed
    Warning: CS0104 spec.credential: there is no CredentialProvider `token`
    Warning: CS0104 spec.destination: there is no Destination `stripe`
    Warning: CS0104 spec.workload: there is no Workload `billing`
    Warning: accesspolicy/payments/charges grants nothing until all that it names is there
    "#);
    let spec = POLICY.replace("destination: stripe", "destination: strpie");
    let (old, new) =
        (object(Kind::AccessPolicy, "charges", 1, POLICY), object(Kind::AccessPolicy, "charges", 2, &spec));
    insta::assert_snapshot!(review("UPDATE", Some(&new), Some(&old), &set()), @r#"
    allowed
    Warning: CS0104 spec.destination: there is no Destination `strpie` (did you mean `stripe`?)
    Warning: accesspolicy/payments/charges grants nothing any more, until all that it names is there
    "#);
}

#[test]
fn what_a_change_breaks_elsewhere_is_told_and_not_refused() {
    let (old, new) = (
        object(Kind::Workload, "billing", 1, WORKLOAD),
        object(Kind::Workload, "billing", 2, &format!("{WORKLOAD}\ndestinations: []")),
    );
    insta::assert_snapshot!(review("UPDATE", Some(&new), Some(&old), &set()), @r#"
    allowed
    Warning: CS0107 spec.destination: accesspolicy/payments/charges, which is stored: workload `billing` is not permitted destination `stripe` (its `destinations` are none)
    "#);
    // The policy itself is refused, while it is not permitted.
    let mut narrow = set();
    narrow.insert(
        resource(Kind::Workload, "billing", 2, &format!("{WORKLOAD}\ndestinations: []")).document.unwrap(),
    );
    insta::assert_snapshot!(created(Kind::AccessPolicy, POLICY, &narrow), @r#"
    CS0107 spec.destination: workload `billing` is not permitted destination `stripe` (its `destinations` are none)
    "#);
}

#[test]
fn who_does_not_touch_the_spec_is_not_stopped_by_it() {
    let bad = POLICY.replace("GET", "get");
    let old = object(Kind::AccessPolicy, "charges", 1, &bad);
    let mut new = old.clone();
    new.metadata.finalizers = Some(vec!["x".to_owned()]);
    assert_eq!(review("UPDATE", Some(&new), Some(&old), &set()), "allowed");
}

#[test]
fn a_deletion_says_what_follows() {
    let policy = object(Kind::AccessPolicy, "charges", 1, POLICY);
    let destination = object(Kind::Destination, "stripe", 1, DESTINATION);
    let answers = [
        review("DELETE", None, Some(&policy), &set()),
        review("DELETE", None, Some(&destination), &set()),
        review("DELETE", None, Some(&object(Kind::Guardrail, "g", 1, "when: 'true'")), &set()),
    ];
    insta::assert_snapshot!(answers.join("\n---\n"), @r#"
    allowed
    Warning: CS0132: nothing covers destination `stripe` for workload `billing` any more: its calls will pass without a credential (egress mode `observe`) (set `egress: enforce` on the Workload, or block it with `countersign revoke`)
    ---
    allowed
    Warning: CS0110: destination/payments/stripe is still referred to by accesspolicy/payments/charges
    ---
    allowed
    "#);
}

#[test]
fn documents_are_the_same_by_both_ways() {
    let by_api = Document::from_custom_resource(
        &serde_json::to_value(object(Kind::AccessPolicy, "charges", 1, POLICY)).unwrap(),
    );
    let text = format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{ name: charges, namespace: payments }}\n\
         spec: {POLICY}\n"
    );
    let by_file = resources::parse(&[("f".to_owned(), text)], None).documents.remove(0);
    assert_eq!(by_api.unwrap().to_json(), by_file.to_json());
}
