//! A decision that was made before is found again without an allocation, a lock or an await: it is what each request
//! costs.
#![allow(clippy::unwrap_used, reason = "a test's set-up")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use model::request::{Action, RequestFacts};
use model::{Attestation, Caller, HostName, Namespace, SpiffeId, UnixMillis, Version};
use policy::compile::EgressDefaults;
use policy::{Question, Snapshot, compile};
use resources::{Set, parse};

/// Counts what the thread that asks allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[expect(
    unsafe_code,
    reason = "an allocator is unsafe to write; this one counts and hands on to the system's"
)]
// SAFETY: every call is handed on as it came; counting touches no memory of the allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

const NOW: UnixMillis = UnixMillis(1_795_514_400_000);

/// Ten policies with a credential, conditions and expressions, for hosts with and without a wildcard, and a guardrail
/// that reads paths in every way.
fn documents() -> String {
    let mut text = String::from(
        r#"
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: { name: billing, namespace: payments }
spec: { selector: { sa: billing } }
---
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: { name: api, namespace: payments }
spec: { hosts: [api.example, "*.api.example"], sensitivity: high }
---
apiVersion: countersign.dev/v1alpha1
kind: CredentialProvider
metadata: { name: token, namespace: payments }
spec: { jwt: { audience: [a] } }
"#,
    );
    for number in 0..10 {
        let _ = write!(
            text,
            "---\napiVersion: countersign.dev/v1alpha1\nkind: AccessPolicy\n\
             metadata: {{ name: p{number}, namespace: payments }}\n\
             spec:\n  workload: billing\n  destination: api\n  credential: token\n\
             \x20 allow: [{{ methods: [GET], paths: [\"/v{number}/**\"] }}]\n\
             \x20 when: context.attestation.age < duration(\"1h\")\n"
        );
    }
    text.push_str(
        "---\napiVersion: countersign.dev/v1alpha1\nkind: Guardrail\nmetadata: { name: no-admin }\n\
         spec: { deny: [{ methods: [GET], paths: [/admin/**, \"/*/admin\"] }] }\n",
    );
    text
}

fn caller() -> Caller {
    Caller {
        id: SpiffeId::new("spiffe://demo/ns/payments/sa/billing").unwrap(),
        namespace: Namespace::new("payments").unwrap(),
        attributes: [("sa".to_owned(), "billing".to_owned())].into(),
        attestation: Attestation {
            provider: "cluster".into(),
            kind: "kubernetes".into(),
            issued_at: NOW.plus_secs(-600),
            expires_at: NOW.plus_secs(3000),
        },
    }
}

fn snapshot(caller: &Caller) -> Snapshot {
    let parsed = parse(&[("t".to_owned(), documents())], None);
    assert_eq!(parsed.diagnostics, []);
    let documents = parsed.documents;
    let mut set = Set::default();
    for document in &documents {
        set.insert(document.clone());
    }
    let compiled = compile(&set).unwrap();
    Snapshot::new(compiled.slice_for(
        caller,
        &[],
        &[],
        &EgressDefaults::default(),
        Version::default(),
        &|_| 1,
    ))
    .unwrap()
}

fn get(host: &str, path: &str) -> RequestFacts {
    RequestFacts {
        action: Action::Http,
        method: "GET".into(),
        host: HostName::new(host).unwrap(),
        port: 443,
        path: path.into(),
        headers: BTreeMap::new(),
    }
}

#[test]
fn a_cached_decision_costs_no_allocation() {
    let caller = Arc::new(caller());
    let snapshot = snapshot(&caller);
    for request in [
        get("api.example", "/v7/charges/42"),
        get("eu.api.example", "/v7/refunds/1"),
        get("api.example", "/v8/%61dmins/%C3%A4%20%E2%82%AC"),
    ] {
        let decide = |now| {
            let destination = snapshot.cover(&request.host, request.port).unwrap();
            snapshot.decide(&Question { caller: &caller, destination, request: &request, now })
        };
        assert!(allocations(|| assert!(decide(NOW).verdict.is_allow())) > 0, "the first is made");
        let again = allocations(|| {
            for millis in 0..500 {
                assert!(decide(NOW.plus_millis(millis)).verdict.is_allow());
            }
        });
        assert_eq!(again, 0, "the rest are found");
        // Its expressions read the clock, so that a second later it is another decision.
        assert!(allocations(|| assert!(decide(NOW.plus_millis(1500)).verdict.is_allow())) > 0);
    }
}

#[test]
fn there_is_no_lock_and_no_await_in_what_decides() {
    for file in ["snapshot.rs", "matching.rs", "windows.rs"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        for word in ["Mutex", "RwLock", "OnceLock", "LazyLock", "Condvar", "async ", ".await"] {
            assert!(!text.contains(word), "{file} has {word}");
        }
    }
}
