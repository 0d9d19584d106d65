//! What must outlive a replica, as transactions of the domain.
//!
//! One trait, so that SQLite in a file and a shared database answer the same questions and pass the same tests
//! (`store::suite`). Every change gets the next revision; whoever serves from memory asks [`Store::changes_since`].

pub mod seal;
pub mod sqlite;
#[cfg(test)]
mod suite;

use std::collections::BTreeMap;

use async_trait::async_trait;
use model::audit::{Hash, Record, What};
use model::slice::{Block, BlockTarget, Bypass, Egress};
use model::{Caller, GrantId, InstanceId, Namespace, ResourceRef, SpiffeId, UnixMillis, Version};
use resources::kind::Kind;

/// A document as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDocument {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: ResourceRef,
    /// The document as JSON: `apiVersion`, `kind`, `metadata`, `spec`.
    pub json: String,
    /// The revision at which it last changed.
    pub revision: u64,
    /// When it was first applied.
    pub created_at: UnixMillis,
    /// When it last changed.
    pub changed_at: UnixMillis,
    /// Who last changed it: `unix:UID`, `token:NAME`, or [`SYNCHRONISED`].
    pub author: String,
    /// Whose it is.
    pub owner: Owner,
}

/// The author of what is synchronised from a cluster.
pub const SYNCHRONISED: &str = "kubernetes";

/// Whose a document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It was applied.
    Applied,
    /// A custom resource: read-only for `apply` and `delete`.
    CustomResource {
        /// The one that it is, of all that ever had its name.
        uid: String,
        /// The generation that the document says.
        generation: i64,
    },
}

/// What became of a synchronisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronised {
    /// It is made, under this version.
    Done(Version),
    /// The documents were changed meanwhile: look again.
    MovedOn,
    /// A later term has begun: whoever asked is not the one to change anything.
    Deposed,
}

/// A change to what policy is compiled from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentChange {
    /// Creates or replaces.
    Put {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: ResourceRef,
        /// The whole document as JSON.
        json: String,
        /// Whose it is.
        owner: Owner,
    },
    /// Removes.
    Delete {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: ResourceRef,
    },
    /// Sets what a namespace says of egress.
    Egress {
        /// The namespace.
        namespace: Namespace,
        /// `None` if it says nothing any more.
        egress: Option<Egress>,
    },
}

/// A block as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBlock {
    /// Id, target, reason.
    pub block: Block,
    /// Since when.
    pub since: UnixMillis,
    /// Who set it.
    pub author: String,
}

/// A bypass as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBypass {
    /// Id, workload, end, reason.
    pub bypass: Bypass,
    /// Since when.
    pub since: UnixMillis,
    /// Who set it.
    pub author: String,
}

/// All that policy is compiled from, read in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The version of it.
    pub version: Version,
    /// All documents.
    pub documents: Vec<StoredDocument>,
    /// All blocks that stand.
    pub blocks: Vec<StoredBlock>,
    /// All bypasses, those that have ended too until another is set.
    pub bypasses: Vec<StoredBypass>,
    /// What namespaces say of egress.
    pub namespaces: BTreeMap<Namespace, Egress>,
}

/// A proxy's proof, to be bound to its instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The running copy; unique within the trust provider that the caller's attestation names.
    pub instance: InstanceId,
    /// Whom the evidence proved, with all that it proved.
    pub caller: Caller,
    /// SHA-256 of the proxy's public key (SPKI, DER).
    pub key: [u8; 32],
}

/// What became of a [`Binding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// First use of this instance, or the key that it always had.
    Same,
    /// A new key, proved by newer evidence: it has replaced the older session.
    Replaced,
    /// Another key with evidence that is not newer: replay. Nothing was changed.
    Replayed,
}

/// A credential that was made. Never the credential itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredGrant {
    /// Its id.
    pub id: GrantId,
    /// For whom.
    pub caller: SpiffeId,
    /// Whose channel asked.
    pub instance: InstanceId,
    /// For which destination.
    pub destination: ResourceRef,
    /// By which provider.
    pub provider: ResourceRef,
    /// SHA-256 of the credential.
    pub hash: [u8; 32],
    /// When it was made.
    pub issued_at: UnixMillis,
    /// When it ends.
    pub expires_at: UnixMillis,
    /// When it was revoked, if it was.
    pub revoked_at: Option<UnixMillis>,
}

/// A private key with its public part, sealed at rest.
#[derive(Clone, Debug)]
pub struct StoredKey {
    /// `ca`, `jwt`, `checkpoint`, `fingerprint`: what it is for.
    pub purpose: String,
    /// Its id; the `kid` of a JWT key.
    pub id: String,
    /// PKCS#8 in DER, or raw bytes for a symmetric key: unsealed.
    pub private: model::Secret,
    /// Certificate in DER for `ca`; SPKI in DER for signing keys; empty for symmetric keys.
    pub public: Vec<u8>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// From when it signs. It is published from `created_at`.
    pub active_from: UnixMillis,
    /// When it is no longer published, if that is known.
    pub retires_at: Option<UnixMillis>,
}

/// A signed statement about the heads of all streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Numbered from 1.
    pub number: u64,
    /// The signed bytes: JSON with number, time, hash of the checkpoint before, and each stream's head.
    pub body: Vec<u8>,
    /// ECDSA P-256 with SHA-256 over `body`.
    pub signature: Vec<u8>,
    /// Which key signed.
    pub key_id: String,
}

/// The last record of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The stream.
    pub stream: String,
    /// Its last number.
    pub sequence: u64,
    /// Its last hash.
    pub hash: Hash,
}

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed or can't be reached: try again later.
    #[error("store: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema can't be brought up to date.
    #[error("store: schema migration: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A sealed value can't be opened: wrong key file, or the row was changed.
    #[error("store: a sealed value can't be opened ({0}): wrong sealing key, or the row was changed")]
    Sealed(String),
    /// A record does not follow the one before it. Nothing of the batch was stored.
    #[error("store: record {sequence} of stream {stream} does not follow the one before it")]
    Chain {
        /// The stream.
        stream: String,
        /// The record.
        sequence: u64,
    },
    /// What was read is not what was written: a bug, or somebody changed the database.
    #[error("store: {0}")]
    Corrupt(String),
}

/// The store of one installation, shared by all replicas.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The version now.
    async fn version(&self) -> Result<Version, StoreError>;

    /// All that policy is compiled from.
    async fn state(&self) -> Result<State, StoreError>;

    /// Waits until the version is later than `seen`, at most as long as the store thinks good, and returns the
    /// version then (which may be `seen`). A replica learns of another's change here.
    async fn changes_since(&self, seen: Version) -> Result<Version, StoreError>;

    /// Applies all changes or none, under one new revision, with one audit event each in the replica's stream.
    /// `expected` is the version under which they were validated: if the store has moved on meanwhile, nothing is
    /// changed, the answer is `None`, and the caller validates again.
    async fn change_documents(
        &self,
        expected: Version,
        changes: &[DocumentChange],
        author: &str,
        now: UnixMillis,
    ) -> Result<Option<Version>, StoreError>;

    /// Begins a term of synchronisation, later than all before it; changes of earlier ones are refused from now on.
    async fn begin_term(&self) -> Result<u64, StoreError>;

    /// As [`Store::change_documents`], in a term.
    async fn synchronise(
        &self,
        term: u64,
        expected: Version,
        changes: &[DocumentChange],
        now: UnixMillis,
    ) -> Result<Synchronised, StoreError>;

    /// Sets a block; an equal target that is blocked already is left as it is (`false`).
    async fn block(
        &self,
        block: &Block,
        author: &str,
        now: UnixMillis,
    ) -> Result<(StoredBlock, bool, Version), StoreError>;

    /// Lifts the block of a target; `None` if there is none.
    async fn lift(
        &self,
        target: &BlockTarget,
        author: &str,
        now: UnixMillis,
    ) -> Result<Option<(StoredBlock, Version)>, StoreError>;

    /// Sets a bypass in place of an earlier one of its workload, and forgets those that have ended.
    async fn bypass(
        &self,
        bypass: &Bypass,
        author: &str,
        now: UnixMillis,
    ) -> Result<(StoredBypass, Version), StoreError>;

    /// Ends the bypass of a workload; `None` if none is in force.
    async fn lift_bypass(
        &self,
        workload: &ResourceRef,
        author: &str,
        now: UnixMillis,
    ) -> Result<Option<(StoredBypass, Version)>, StoreError>;

    /// Binds a key to an instance, or refuses it as replay.
    async fn bind(&self, binding: &Binding, now: UnixMillis) -> Result<Bound, StoreError>;

    /// The binding whose key this is; `None` if no instance is bound to it (any more).
    async fn binding(&self, key: &[u8; 32]) -> Result<Option<Binding>, StoreError>;

    /// All instances whose evidence has not ended, newest first, at most `limit`.
    async fn bindings(&self, now: UnixMillis, limit: u32) -> Result<Vec<Binding>, StoreError>;

    /// Remembers a grant before it is handed out.
    async fn record_grant(&self, grant: &StoredGrant) -> Result<(), StoreError>;

    /// Grants that have not expired; of one caller, or of all.
    async fn live_grants(
        &self,
        caller: Option<&SpiffeId>,
        now: UnixMillis,
    ) -> Result<Vec<StoredGrant>, StoreError>;

    /// Revokes a grant; `None` if there is no such grant. Revoking again changes nothing.
    async fn revoke_grant(&self, id: &GrantId, now: UnixMillis) -> Result<Option<StoredGrant>, StoreError>;

    /// Stores records that continue their streams; records that are there already, byte for byte, are skipped.
    /// Returns each stream's last stored number.
    async fn append_records(
        &self,
        records: &[Record],
        now: UnixMillis,
    ) -> Result<Vec<(String, u64)>, StoreError>;

    /// Lets this caller and instance write to a stream, if nobody else has before. `false` if somebody has.
    async fn bind_stream(
        &self,
        stream: &str,
        caller: &SpiffeId,
        instance: &InstanceId,
        now: UnixMillis,
    ) -> Result<bool, StoreError>;

    /// Appends events to this replica's own stream.
    async fn append_events(&self, events: &[What], now: UnixMillis) -> Result<(), StoreError>;

    /// The last record of a stream.
    async fn head(&self, stream: &str) -> Result<Option<Head>, StoreError>;

    /// The heads of all streams, ordered by name.
    async fn heads(&self) -> Result<Vec<Head>, StoreError>;

    /// Records by the order in which they were stored: those after `cursor`, at most `limit`, each with its cursor
    /// and the time at which it was stored.
    async fn records_after(
        &self,
        cursor: i64,
        limit: u32,
    ) -> Result<Vec<(i64, UnixMillis, Record)>, StoreError>;

    /// Records of one stream after `sequence`, at most `limit`.
    async fn stream_records(&self, stream: &str, after: u64, limit: u32) -> Result<Vec<Record>, StoreError>;

    /// Adds a checkpoint.
    async fn add_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError>;

    /// All checkpoints, oldest first.
    async fn checkpoints(&self) -> Result<Vec<Checkpoint>, StoreError>;

    /// Keys of a purpose, oldest first.
    async fn keys(&self, purpose: &str) -> Result<Vec<StoredKey>, StoreError>;

    /// Adds a key; of two replicas that add the first key of a purpose at once, one wins and both read the winner's.
    async fn add_key(&self, key: &StoredKey, only_if_first: bool) -> Result<(), StoreError>;

    /// Sets when a key is no longer published, and deletes those of its purpose whose time has passed `now`.
    async fn retire_key(
        &self,
        purpose: &str,
        id: &str,
        retires_at: UnixMillis,
        now: UnixMillis,
    ) -> Result<(), StoreError>;
}
