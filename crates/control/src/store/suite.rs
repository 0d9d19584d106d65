//! What every store must do, whatever it is made of.

use model::audit::{Gap, Hash, Record, What};
use model::name::Namespace;
use model::slice::{Block, BlockTarget, Bypass};
use model::{Attestation, Caller, GrantId, InstanceId, Secret, SpiffeId, UnixMillis};
use resources::kind::Kind;

use super::seal::SealingKey;
use super::sqlite::SqliteStore;
use super::*;

const NOW: UnixMillis = UnixMillis(1_795_514_400_000);

async fn sqlite(directory: &std::path::Path) -> SqliteStore {
    let sealing = SealingKey::new(&[7; 32]).unwrap();
    SqliteStore::open(&directory.join("c.db"), sealing, "control/0".into()).await.unwrap()
}

fn put(name: &str, json: &str) -> DocumentChange {
    let owner = Owner::Applied;
    DocumentChange::Put { kind: Kind::Workload, name: name.parse().unwrap(), json: json.into(), owner }
}

fn binding(key: u8, issued_at: i64) -> Binding {
    Binding {
        instance: InstanceId("pod-1".into()),
        key: [key; 32],
        caller: Caller {
            id: SpiffeId::new("spiffe://demo/a").unwrap(),
            namespace: Namespace::new("a").unwrap(),
            attributes: [("k".to_owned(), "v".to_owned())].into(),
            attestation: Attestation {
                provider: "p".into(),
                kind: "oidc".into(),
                issued_at: UnixMillis(issued_at),
                expires_at: NOW.plus_secs(600),
            },
        },
    }
}

#[tokio::test]
async fn documents_change_together_under_one_revision() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let begin = store.version().await.unwrap();
    let changed =
        store.change_documents(begin, &[put("a/x", "{}"), put("a/y", "{}")], "unix:0", NOW).await.unwrap();
    let version = changed.unwrap();
    assert_eq!(version.revision, begin.revision + 1);
    assert_eq!(
        store.change_documents(begin, &[put("a/z", "{}")], "unix:0", NOW).await.unwrap(),
        None,
        "moved on"
    );
    let state = store.state().await.unwrap();
    assert_eq!((state.version, state.documents.len()), (version, 2));
    let delete = DocumentChange::Delete { kind: Kind::Workload, name: "a/x".parse().unwrap() };
    store.change_documents(version, &[delete, put("a/y", "{1}")], "unix:0", NOW).await.unwrap().unwrap();
    let state = store.state().await.unwrap();
    assert_eq!((state.documents.len(), state.documents[0].revision), (1, version.revision + 1));
    // One event for each change, in the replica's own chain.
    assert_eq!(store.head("control/0").await.unwrap().unwrap().sequence, 4);
}

#[tokio::test]
async fn a_change_wakes_who_waits_and_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(sqlite(directory.path()).await);
    let begin = store.version().await.unwrap();
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.changes_since(begin).await.unwrap() }
    });
    tokio::task::yield_now().await;
    let version = store.change_documents(begin, &[put("a/x", "{}")], "unix:0", NOW).await.unwrap().unwrap();
    assert_eq!(waiting.await.unwrap(), version);
    drop(store);
    assert_eq!(sqlite(directory.path()).await.version().await.unwrap(), version);
}

#[tokio::test]
async fn a_new_epoch_is_later_than_everything() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let before = store.version().await.unwrap();
    assert!(store.new_epoch(NOW).await.unwrap() > before);
}

#[tokio::test]
async fn a_block_stands_until_it_is_lifted() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let block = Block { id: "b1".into(), target: BlockTarget::Everything, reason: "r".into() };
    let (_, fresh, version) = store.block(&block, "unix:0", NOW).await.unwrap();
    assert!(fresh);
    let again = Block { id: "b2".into(), ..block.clone() };
    let (stored, fresh, same) = store.block(&again, "unix:0", NOW.plus_secs(9)).await.unwrap();
    assert_eq!((stored.block.id.as_str(), stored.since, fresh, same), ("b1", NOW, false, version));
    assert!(store.lift(&BlockTarget::Everything, "unix:0", NOW).await.unwrap().is_some());
    assert!(store.lift(&BlockTarget::Everything, "unix:0", NOW).await.unwrap().is_none());
}

#[tokio::test]
async fn a_key_is_bound_at_first_use_and_replaced_only_by_newer_evidence() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    assert_eq!(store.bind(&binding(1, 100), NOW).await.unwrap(), Bound::Same);
    assert_eq!(store.bind(&binding(1, 100), NOW).await.unwrap(), Bound::Same);
    assert_eq!(store.bind(&binding(2, 100), NOW).await.unwrap(), Bound::Replayed);
    assert_eq!(store.bind(&binding(2, 99), NOW).await.unwrap(), Bound::Replayed);
    assert_eq!(store.binding(&[1; 32]).await.unwrap(), Some(binding(1, 100)));
    assert_eq!(store.bind(&binding(2, 101), NOW).await.unwrap(), Bound::Replaced);
    assert_eq!(store.binding(&[1; 32]).await.unwrap(), None, "the older session has ended");
    assert_eq!(
        store.bind(&binding(1, 101), NOW).await.unwrap(),
        Bound::Replayed,
        "and can't come back with old evidence"
    );
    assert_eq!(store.bindings(NOW, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn grants_are_remembered_and_revoked_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let grant = StoredGrant {
        id: GrantId("g1".into()),
        caller: SpiffeId::new("spiffe://demo/a").unwrap(),
        instance: InstanceId("pod-1".into()),
        destination: "a/d".parse().unwrap(),
        provider: "a/p".parse().unwrap(),
        hash: [9; 32],
        issued_at: NOW,
        expires_at: NOW.plus_secs(300),
        revoked_at: None,
    };
    store.record_grant(&grant).await.unwrap();
    assert_eq!(store.live_grants(Some(&grant.caller), NOW).await.unwrap(), [grant.clone()]);
    assert!(store.live_grants(None, NOW.plus_secs(301)).await.unwrap().is_empty());
    let first = store.revoke_grant(&grant.id, NOW.plus_secs(1)).await.unwrap().unwrap();
    let second = store.revoke_grant(&grant.id, NOW.plus_secs(2)).await.unwrap().unwrap();
    assert_eq!((first.revoked_at, second.revoked_at), (Some(NOW.plus_secs(1)), Some(NOW.plus_secs(1))));
    assert!(store.revoke_grant(&GrantId("none".into()), NOW).await.unwrap().is_none());
}

#[tokio::test]
async fn records_continue_their_chain_and_are_stored_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let first = Record::after(Hash::default(), "proxy/a", 1, b"1".to_vec());
    let second = Record::after(first.hash, "proxy/a", 2, b"2".to_vec());
    let third = Record::after(second.hash, "proxy/a", 3, b"3".to_vec());
    let stored = store.append_records(&[first.clone(), second.clone()], NOW).await.unwrap();
    assert_eq!(stored, [("proxy/a".to_owned(), 2)]);
    let stored = store.append_records(&[second.clone(), third.clone()], NOW).await.unwrap();
    assert_eq!(stored, [("proxy/a".to_owned(), 3)]);
    assert_eq!(
        store.stream_records("proxy/a", 0, 10).await.unwrap(),
        [first.clone(), second.clone(), third.clone()]
    );
    let forged = Record::after(first.hash, "proxy/a", 2, b"x".to_vec());
    let gap = Record::after(third.hash, "proxy/a", 5, b"5".to_vec());
    let mut broken = Record::after(third.hash, "proxy/a", 4, b"4".to_vec());
    broken.payload = b"5".to_vec();
    for bad in [forged, gap, broken] {
        assert!(matches!(store.append_records(&[bad], NOW).await, Err(StoreError::Chain { .. })));
    }
    assert_eq!(store.heads().await.unwrap().len(), 1);
    assert_eq!(store.records_after(1, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_stream_belongs_to_who_wrote_to_it_first() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let caller = |name: &str| SpiffeId::new(&format!("spiffe://demo/{name}")).unwrap();
    let instance = |name: &str| InstanceId(name.into());
    assert!(store.bind_stream("proxy/a", &caller("a"), &instance("1"), NOW).await.unwrap());
    assert!(store.bind_stream("proxy/a", &caller("a"), &instance("1"), NOW).await.unwrap());
    assert!(!store.bind_stream("proxy/a", &caller("b"), &instance("1"), NOW).await.unwrap());
    assert!(!store.bind_stream("proxy/a", &caller("a"), &instance("2"), NOW).await.unwrap());
}

#[tokio::test]
async fn the_replicas_own_events_are_a_chain() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let gap = |reason: &str| What::Gap(Gap { count: None, reason: reason.into() });
    store.append_events(&[gap("a"), gap("b")], NOW).await.unwrap();
    store.append_events(&[gap("c")], NOW).await.unwrap();
    let records = store.stream_records("control/0", 0, 10).await.unwrap();
    assert!(records.iter().all(Record::is_whole) && records[2].previous == records[1].hash);
}

#[tokio::test]
async fn keys_are_sealed_at_rest() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let key = |id: &str| StoredKey {
        purpose: "jwt".into(),
        id: id.into(),
        private: Secret::new(b"canary-private-key".to_vec()),
        public: b"public".to_vec(),
        created_at: NOW,
        active_from: NOW,
        retires_at: None,
    };
    store.add_key(&key("1"), true).await.unwrap();
    store.add_key(&key("2"), true).await.unwrap();
    let keys = store.keys("jwt").await.unwrap();
    assert_eq!(
        (keys.len(), keys[0].id.as_str(), keys[0].private.expose()),
        (1, "1", &b"canary-private-key"[..])
    );
    store.add_key(&key("2"), false).await.unwrap();
    store.retire_key("jwt", "1", UnixMillis(1), NOW).await.unwrap();
    assert_eq!(store.keys("jwt").await.unwrap().len(), 1);
    drop(store);
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"canary"), "a private key lies in the clear");
    }
    let wrong = SealingKey::new(&[8; 32]).unwrap();
    let store = SqliteStore::open(&directory.path().join("c.db"), wrong, "control/0".into()).await.unwrap();
    assert!(matches!(store.keys("jwt").await, Err(StoreError::Sealed(_))));
}

#[tokio::test]
async fn a_bypass_replaces_the_one_before_and_can_be_lifted_while_it_lasts() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let bypass = |id: &str, until| Bypass {
        id: id.into(),
        workload: "a/x".parse().unwrap(),
        until: UnixMillis(until),
        reason: "why".into(),
    };
    let (_, first) = store.bypass(&bypass("one", NOW.0 + 1000), "unix:0", NOW).await.unwrap();
    let (stored, second) = store.bypass(&bypass("two", NOW.0 + 2000), "unix:0", NOW).await.unwrap();
    assert!(second > first && stored.author == "unix:0");
    assert_eq!(store.state().await.unwrap().bypasses, [stored.clone()]);
    let workload = "a/x".parse().unwrap();
    assert_eq!(store.lift_bypass(&workload, "unix:0", NOW.plus_secs(2)).await.unwrap(), None, "it has ended");
    let (lifted, third) = store.lift_bypass(&workload, "unix:0", NOW).await.unwrap().unwrap();
    assert!(third > second && lifted == stored);
    assert_eq!(store.lift_bypass(&workload, "unix:0", NOW).await.unwrap(), None);
    let events = store.stream_records("control/0", 0, 10).await.unwrap();
    let payloads: Vec<String> =
        events.iter().map(|record| String::from_utf8_lossy(&record.payload).into_owned()).collect();
    assert_eq!(payloads.len(), 3, "each is recorded: {payloads:?}");
    assert!(payloads[1].contains("why (bypass two until "), "{}", payloads[1]);
}

#[tokio::test]
async fn only_the_latest_term_synchronises_and_what_it_writes_has_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let begin = store.version().await.unwrap();
    assert_eq!(store.synchronise(1, begin, &[], NOW).await.unwrap(), Synchronised::Deposed, "none has begun");
    let old = store.begin_term().await.unwrap();
    let new = store.begin_term().await.unwrap();
    assert!(new > old);
    let owner = Owner::CustomResource { uid: "u".into(), generation: 3 };
    let put = |owner: &Owner| DocumentChange::Put {
        kind: Kind::Workload,
        name: "a/x".parse().unwrap(),
        json: "{}".into(),
        owner: owner.clone(),
    };
    let changes = [put(&owner)];
    assert_eq!(store.synchronise(old, begin, &changes, NOW).await.unwrap(), Synchronised::Deposed);
    assert_eq!(store.version().await.unwrap(), begin, "nothing was written");
    let Synchronised::Done(version) = store.synchronise(new, begin, &changes, NOW).await.unwrap() else {
        panic!("the latest term was refused")
    };
    assert_eq!(store.synchronise(new, begin, &changes, NOW).await.unwrap(), Synchronised::MovedOn);
    let documents = store.state().await.unwrap().documents;
    assert_eq!((&documents[0].owner, documents[0].author.as_str()), (&owner, SYNCHRONISED));
    // Who applies a document takes it over; whether he may is not the store's question.
    store.change_documents(version, &[put(&Owner::Applied)], "unix:0", NOW).await.unwrap().unwrap();
    assert_eq!(store.state().await.unwrap().documents[0].owner, Owner::Applied);
    drop(store);
    let store = sqlite(directory.path()).await;
    assert!(store.begin_term().await.unwrap() > new, "terms survive a restart");
}

#[tokio::test]
async fn namespaces_say_their_egress_mode_until_they_say_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = sqlite(directory.path()).await;
    let set = |egress| DocumentChange::Egress { namespace: Namespace::new("a").unwrap(), egress };
    for egress in [Some(Egress::Observe), Some(Egress::Enforce), None] {
        let version = store.version().await.unwrap();
        store.change_documents(version, &[set(egress)], "unix:0", NOW).await.unwrap().unwrap();
        let said = store.state().await.unwrap().namespaces;
        assert_eq!(said.get(&Namespace::new("a").unwrap()).copied(), egress);
    }
}
