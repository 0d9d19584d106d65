//! The store in a file: SQLite, for one replica.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use model::audit::{Administration, Event, Hash, Record, What};
use model::name::Namespace;
use model::slice::{Block, BlockTarget, Bypass, Egress};
use model::{Attestation, Caller, GrantId, InstanceId, ResourceRef, SpiffeId, UnixMillis, Version};
use resources::kind::Kind;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection as _, Row as _, Sqlite, Transaction};
use tokio::sync::watch;

use super::seal::{Sealed, SealingKey};
use super::{
    Binding, Bound, Checkpoint, DocumentChange, Head, Owner, SYNCHRONISED, State, Store, StoreError,
    StoredBlock, StoredBypass, StoredDocument, StoredGrant, StoredKey, Synchronised,
};

/// A store in one file.
pub struct SqliteStore {
    pool: SqlitePool,
    writing: tokio::sync::Mutex<()>,
    sealing: SealingKey,
    stream: String,
    version: watch::Sender<Version>,
}

/// Whether a connection can serve again. Where a disk was full SQLite has ended the transaction by itself, sqlx's own
/// rollback then fails, and sqlx counts the transaction as open for ever: such a connection begins no other.
async fn is_reusable(connection: &mut sqlx::SqliteConnection) -> sqlx::Result<bool> {
    // What was asked of the connection before, its rollback among it, is done once this is.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// How long a look for changes waits at most.
const CHANGES_WAIT: Duration = Duration::from_secs(20);

type Result<T> = std::result::Result<T, StoreError>;
type Tx<'a> = Transaction<'a, Sqlite>;

impl SqliteStore {
    /// Opens the database, makes it if it is not there, and brings its schema up to date. `stream` names the replica's
    /// own audit stream.
    ///
    /// # Errors
    /// If the file can't be used, or its schema is newer than this program.
    pub async fn open(path: &Path, sealing: SealingKey, stream: String) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // An acknowledged audit record must survive a power cut: each commit is synced.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .after_release(|connection, _| Box::pin(is_reusable(connection)))
            .connect_with(options)
            .await?;
        restrict(path).map_err(|error| StoreError::Database(sqlx::Error::Io(error)))?;
        sqlx::migrate!("./migrations").run(&pool).await?;
        let store = Self {
            pool,
            writing: tokio::sync::Mutex::new(()),
            sealing,
            stream,
            version: watch::Sender::new(Version::default()),
        };
        store.begin_epoch().await?;
        let version = store.version().await?;
        store.version.send_replace(version);
        Ok(store)
    }

    /// A new database begins its epoch with the time, so that one that replaces another is later than it.
    async fn begin_epoch(&self) -> Result<()> {
        let epoch = UnixMillis::from_system(std::time::SystemTime::now()).as_secs();
        sqlx::query(
            "INSERT INTO meta (key, value) VALUES ('epoch', ?), ('revision', 0) ON CONFLICT DO NOTHING",
        )
        .bind(epoch)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Begins a new epoch: to be called once for a database that was restored from a backup, since its revisions after
    /// the backup have been used before.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn new_epoch(&self, now: UnixMillis) -> Result<Version> {
        let _writing = self.writing.lock().await;
        let mut tx = self.begin().await?;
        sqlx::query("UPDATE meta SET value = max(value + 1, ?) WHERE key = 'epoch'")
            .bind(now.as_secs())
            .execute(&mut *tx)
            .await?;
        let version = bump(&mut tx).await?;
        tx.commit().await?;
        self.version.send_replace(version);
        Ok(version)
    }

    async fn begin(&self) -> Result<Tx<'static>> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    async fn commit_version(&self, tx: Tx<'static>, version: Version) -> Result<()> {
        tx.commit().await?;
        self.version.send_replace(version);
        Ok(())
    }

    /// Makes changes under the next revision, and records each.
    async fn make(
        &self,
        mut tx: Tx<'static>,
        changes: &[DocumentChange],
        author: &str,
        now: UnixMillis,
    ) -> Result<Version> {
        let version = bump(&mut tx).await?;
        let mut events = Vec::new();
        for change in changes {
            let (object, verb, reason) = make_one(&mut tx, change, version, author, now).await?;
            events.push(administration(author, verb, object, version, reason));
        }
        self.append_own(&mut tx, &events, now).await?;
        self.commit_version(tx, version).await?;
        Ok(version)
    }

    async fn append_own(&self, tx: &mut Tx<'_>, events: &[What], now: UnixMillis) -> Result<()> {
        let (mut sequence, mut hash) = match head_of(tx, &self.stream).await? {
            Some(head) => (head.sequence, head.hash),
            None => (0, Hash::default()),
        };
        for what in events {
            let event = Event { time: now, what: what.clone() };
            let payload = serde_json::to_vec(&event).map_err(|e| StoreError::Corrupt(e.to_string()))?;
            sequence += 1;
            let record = Record::after(hash, &self.stream, sequence, payload);
            hash = record.hash;
            insert_record(tx, &record, now).await?;
        }
        Ok(())
    }
}

/// The database holds no usable secret, but whoever reads it reads the audit.
fn restrict(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

/// Makes a change. Returns what audit says of it: the object, the verb and the reason.
async fn make_one(
    tx: &mut Tx<'_>,
    change: &DocumentChange,
    version: Version,
    author: &str,
    now: UnixMillis,
) -> Result<(String, &'static str, &'static str)> {
    let label = |kind: &Kind, name: &ResourceRef| format!("{}/{name}", kind.lower());
    match change {
        DocumentChange::Put { kind, name, json, owner } => {
            let (uid, generation) = match owner {
                Owner::Applied => (None, None),
                Owner::CustomResource { uid, generation } => (Some(uid), Some(*generation)),
            };
            let there = sqlx::query("SELECT 1 FROM documents WHERE kind = ? AND name = ?")
                .bind(kind.as_str())
                .bind(name.to_string())
                .fetch_optional(&mut **tx)
                .await?
                .is_some();
            sqlx::query(
                "INSERT INTO documents (kind, name, json, revision, created_at, changed_at, author, owner_uid, \
                 owner_generation) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, name) DO UPDATE SET \
                 json = excluded.json, revision = excluded.revision, changed_at = excluded.changed_at, \
                 author = excluded.author, owner_uid = excluded.owner_uid, \
                 owner_generation = excluded.owner_generation",
            )
            .bind(kind.as_str())
            .bind(name.to_string())
            .bind(json)
            .bind(signed(version.revision)?)
            .bind(now.0)
            .bind(now.0)
            .bind(author)
            .bind(uid)
            .bind(generation)
            .execute(&mut **tx)
            .await?;
            Ok((label(kind, name), if there { "configured" } else { "created" }, ""))
        }
        DocumentChange::Delete { kind, name } => {
            sqlx::query("DELETE FROM documents WHERE kind = ? AND name = ?")
                .bind(kind.as_str())
                .bind(name.to_string())
                .execute(&mut **tx)
                .await?;
            Ok((label(kind, name), "deleted", ""))
        }
        DocumentChange::Egress { namespace, egress } => {
            let mode = egress.map(Egress::as_str);
            let query = match mode {
                Some(_) => {
                    "INSERT INTO namespaces (name, egress) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET \
                     egress = excluded.egress"
                }
                None => "DELETE FROM namespaces WHERE name = ?",
            };
            let query = sqlx::query(query).bind(namespace.as_str());
            match mode {
                Some(mode) => query.bind(mode).execute(&mut **tx).await?,
                None => query.execute(&mut **tx).await?,
            };
            let reason = match egress {
                Some(Egress::Enforce) => "egress mode enforce",
                Some(Egress::Observe) => "egress mode observe",
                None => "no egress mode of its own",
            };
            Ok((format!("namespace/{namespace}"), "configured", reason))
        }
    }
}

async fn bump(tx: &mut Tx<'_>) -> Result<Version> {
    sqlx::query("UPDATE meta SET value = value + 1 WHERE key = 'revision'").execute(&mut **tx).await?;
    version_of(tx).await
}

async fn version_of(tx: &mut Tx<'_>) -> Result<Version> {
    let rows = sqlx::query("SELECT key, value FROM meta").fetch_all(&mut **tx).await?;
    version_from(&rows)
}

fn version_from(rows: &[SqliteRow]) -> Result<Version> {
    let mut version = Version::default();
    for row in rows {
        let value = unsigned(row.try_get("value")?)?;
        match row.try_get::<&str, _>("key")? {
            "epoch" => version.epoch = value,
            "revision" => version.revision = value,
            _ => {}
        }
    }
    Ok(version)
}

fn unsigned(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| corrupt("a number is negative"))
}

fn signed(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| corrupt("a number is too large"))
}

fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(what.to_owned())
}

fn parsed<T: std::str::FromStr>(text: &str, what: &str) -> Result<T> {
    text.parse().map_err(|_| corrupt(&format!("{what} is not one")))
}

fn array(bytes: &[u8], what: &str) -> Result<[u8; 32]> {
    bytes.try_into().map_err(|_| corrupt(&format!("{what} has not 32 bytes")))
}

fn time(row: &SqliteRow, column: &str) -> Result<UnixMillis> {
    Ok(UnixMillis(row.try_get(column)?))
}

fn document_of(row: &SqliteRow) -> Result<StoredDocument> {
    let kind: &str = row.try_get("kind")?;
    Ok(StoredDocument {
        kind: Kind::parse(kind).ok_or_else(|| corrupt("a kind of document is not known"))?,
        name: parsed(row.try_get("name")?, "a document's name")?,
        json: row.try_get("json")?,
        revision: unsigned(row.try_get("revision")?)?,
        created_at: time(row, "created_at")?,
        changed_at: time(row, "changed_at")?,
        author: row.try_get("author")?,
        owner: match row.try_get::<Option<String>, _>("owner_uid")? {
            None => Owner::Applied,
            Some(uid) => Owner::CustomResource {
                uid,
                generation: row.try_get::<Option<i64>, _>("owner_generation")?.unwrap_or_default(),
            },
        },
    })
}

fn namespace_of(row: &SqliteRow) -> Result<(Namespace, Egress)> {
    let name = Namespace::new(row.try_get("name")?).map_err(|_| corrupt("a namespace is not one"))?;
    let egress = resources::values::egress(row.try_get("egress")?);
    Ok((name, egress.ok_or_else(|| corrupt("an egress mode is not known"))?))
}

/// A block's target as two columns.
fn target_columns(target: &BlockTarget) -> (&'static str, String) {
    match target {
        BlockTarget::Workload(name) => ("workload", name.to_string()),
        BlockTarget::Destination(name) => ("destination", name.to_string()),
        BlockTarget::Provider(name) => ("credentialprovider", name.to_string()),
        BlockTarget::Everything => ("everything", String::new()),
    }
}

fn block_of(row: &SqliteRow) -> Result<StoredBlock> {
    let name = || parsed::<ResourceRef>(row.try_get("name")?, "a block's name");
    let target = match row.try_get::<&str, _>("kind")? {
        "workload" => BlockTarget::Workload(name()?),
        "destination" => BlockTarget::Destination(name()?),
        "credentialprovider" => BlockTarget::Provider(name()?),
        "everything" => BlockTarget::Everything,
        _ => return Err(corrupt("a kind of block is not known")),
    };
    Ok(StoredBlock {
        block: Block { id: row.try_get("id")?, target, reason: row.try_get("reason")? },
        since: time(row, "since")?,
        author: row.try_get("author")?,
    })
}

fn bypass_of(row: &SqliteRow) -> Result<StoredBypass> {
    Ok(StoredBypass {
        bypass: Bypass {
            id: row.try_get("id")?,
            workload: parsed(row.try_get("workload")?, "a bypass's workload")?,
            until: time(row, "until")?,
            reason: row.try_get("reason")?,
        },
        since: time(row, "since")?,
        author: row.try_get("author")?,
    })
}

fn binding_of(row: &SqliteRow) -> Result<Binding> {
    let attributes: &str = row.try_get("attributes")?;
    let caller: &str = row.try_get("caller")?;
    let namespace: &str = row.try_get("namespace")?;
    Ok(Binding {
        instance: InstanceId(row.try_get::<&str, _>("instance")?.into()),
        key: array(row.try_get("key")?, "a key's hash")?,
        caller: Caller {
            id: SpiffeId::new(caller).map_err(|_| corrupt("a caller's name is not one"))?,
            namespace: Namespace::new(namespace).map_err(|_| corrupt("a namespace is not one"))?,
            attributes: serde_json::from_str(attributes).map_err(|_| corrupt("attributes are not JSON"))?,
            attestation: Attestation {
                provider: row.try_get::<&str, _>("provider")?.into(),
                kind: row.try_get::<&str, _>("kind")?.into(),
                issued_at: time(row, "evidence_issued_at")?,
                expires_at: time(row, "evidence_ends_at")?,
            },
        },
    })
}

fn grant_of(row: &SqliteRow) -> Result<StoredGrant> {
    Ok(StoredGrant {
        id: GrantId(row.try_get::<&str, _>("id")?.into()),
        caller: parsed(row.try_get("caller")?, "a caller's name")?,
        instance: InstanceId(row.try_get::<&str, _>("instance")?.into()),
        destination: parsed(row.try_get("destination")?, "a destination's name")?,
        provider: parsed(row.try_get("provider")?, "a provider's name")?,
        hash: array(row.try_get("hash")?, "a credential's hash")?,
        issued_at: time(row, "issued_at")?,
        expires_at: time(row, "expires_at")?,
        revoked_at: row.try_get::<Option<i64>, _>("revoked_at")?.map(UnixMillis),
    })
}

fn record_of(row: &SqliteRow) -> Result<Record> {
    Ok(Record {
        stream: row.try_get("stream")?,
        sequence: unsigned(row.try_get("sequence")?)?,
        previous: Hash(array(row.try_get("previous")?, "a record's hash")?),
        payload: row.try_get("payload")?,
        hash: Hash(array(row.try_get("hash")?, "a record's hash")?),
    })
}

async fn head_of(tx: &mut Tx<'_>, stream: &str) -> Result<Option<Head>> {
    let row =
        sqlx::query("SELECT sequence, hash FROM records WHERE stream = ? ORDER BY sequence DESC LIMIT 1")
            .bind(stream)
            .fetch_optional(&mut **tx)
            .await?;
    row.map(|row| head_from(stream, &row)).transpose()
}

fn head_from(stream: &str, row: &SqliteRow) -> Result<Head> {
    Ok(Head {
        stream: stream.to_owned(),
        sequence: unsigned(row.try_get("sequence")?)?,
        hash: Hash(array(row.try_get("hash")?, "a record's hash")?),
    })
}

async fn insert_record(tx: &mut Tx<'_>, record: &Record, now: UnixMillis) -> Result<()> {
    sqlx::query(
        "INSERT INTO records (stream, sequence, previous, payload, hash, stored_at) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(&record.stream)
    .bind(signed(record.sequence)?)
    .bind(&record.previous.0[..])
    .bind(&record.payload)
    .bind(&record.hash.0[..])
    .bind(now.0)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn administration(author: &str, verb: &str, object: String, version: Version, reason: &str) -> What {
    What::Administration(Administration {
        author: author.to_owned(),
        verb: verb.to_owned(),
        object,
        version,
        reason: reason.to_owned(),
    })
}

fn block_label(target: &BlockTarget) -> String {
    match target_columns(target) {
        (kind, name) if name.is_empty() => kind.to_owned(),
        (kind, name) => format!("{kind}/{name}"),
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn version(&self) -> Result<Version> {
        version_from(&sqlx::query("SELECT key, value FROM meta").fetch_all(&self.pool).await?)
    }

    async fn state(&self) -> Result<State> {
        let mut tx = self.pool.begin().await?;
        let version = version_of(&mut tx).await?;
        let documents =
            sqlx::query("SELECT * FROM documents ORDER BY kind, name").fetch_all(&mut *tx).await?;
        let blocks = sqlx::query("SELECT * FROM blocks ORDER BY since, id").fetch_all(&mut *tx).await?;
        let bypasses = sqlx::query("SELECT * FROM bypasses ORDER BY workload").fetch_all(&mut *tx).await?;
        let namespaces = sqlx::query("SELECT * FROM namespaces").fetch_all(&mut *tx).await?;
        Ok(State {
            version,
            documents: documents.iter().map(document_of).collect::<Result<_>>()?,
            blocks: blocks.iter().map(block_of).collect::<Result<_>>()?,
            bypasses: bypasses.iter().map(bypass_of).collect::<Result<_>>()?,
            namespaces: namespaces.iter().map(namespace_of).collect::<Result<_>>()?,
        })
    }

    async fn changes_since(&self, seen: Version) -> Result<Version> {
        let mut version = self.version.subscribe();
        let waited = tokio::time::timeout(CHANGES_WAIT, version.wait_for(|version| *version > seen)).await;
        let changed = waited.ok().and_then(|waited| waited.ok().map(|version| *version));
        match changed {
            Some(version) => Ok(version),
            None => self.version().await,
        }
    }

    async fn change_documents(
        &self,
        expected: Version,
        changes: &[DocumentChange],
        author: &str,
        now: UnixMillis,
    ) -> Result<Option<Version>> {
        let _writing = self.writing.lock().await;
        let mut tx = self.begin().await?;
        if version_of(&mut tx).await? != expected {
            return Ok(None);
        }
        let version = self.make(tx, changes, author, now).await?;
        Ok(Some(version))
    }

    async fn begin_term(&self) -> Result<u64> {
        let _writing = self.writing.lock().await;
        let row = sqlx::query(
            "INSERT INTO meta (key, value) VALUES ('term', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1 \
             RETURNING value",
        )
        .fetch_one(&self.pool)
        .await?;
        unsigned(row.try_get("value")?)
    }

    async fn synchronise(
        &self,
        term: u64,
        expected: Version,
        changes: &[DocumentChange],
        now: UnixMillis,
    ) -> Result<Synchronised> {
        let _writing = self.writing.lock().await;
        let mut tx = self.begin().await?;
        let row = sqlx::query("SELECT value FROM meta WHERE key = 'term'").fetch_optional(&mut *tx).await?;
        let current = row.map(|row| unsigned(row.try_get("value")?)).transpose()?;
        if current != Some(term) {
            return Ok(Synchronised::Deposed);
        }
        if version_of(&mut tx).await? != expected {
            return Ok(Synchronised::MovedOn);
        }
        Ok(Synchronised::Done(self.make(tx, changes, SYNCHRONISED, now).await?))
    }

    async fn block(
        &self,
        block: &Block,
        author: &str,
        now: UnixMillis,
    ) -> Result<(StoredBlock, bool, Version)> {
        let _writing = self.writing.lock().await;
        let mut tx = self.begin().await?;
        let (kind, name) = target_columns(&block.target);
        let there = sqlx::query("SELECT * FROM blocks WHERE kind = ? AND name = ?")
            .bind(kind)
            .bind(&name)
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(row) = there {
            return Ok((block_of(&row)?, false, version_of(&mut tx).await?));
        }
        sqlx::query("INSERT INTO blocks (kind, name, id, reason, since, author) VALUES (?, ?, ?, ?, ?, ?)")
            .bind(kind)
            .bind(&name)
            .bind(&block.id)
            .bind(&block.reason)
            .bind(now.0)
            .bind(author)
            .execute(&mut *tx)
            .await?;
        let version = bump(&mut tx).await?;
        let event = administration(author, "blocked", block_label(&block.target), version, &block.reason);
        self.append_own(&mut tx, &[event], now).await?;
        self.commit_version(tx, version).await?;
        Ok((StoredBlock { block: block.clone(), since: now, author: author.to_owned() }, true, version))
    }

    async fn lift(
        &self,
        target: &BlockTarget,
        author: &str,
        now: UnixMillis,
    ) -> Result<Option<(StoredBlock, Version)>> {
        let _writing = self.writing.lock().await;
        let mut tx = self.begin().await?;
        let (kind, name) = target_columns(target);
        let removed = sqlx::query("DELETE FROM blocks WHERE kind = ? AND name = ? RETURNING *")
            .bind(kind)
            .bind(&name)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(row) = removed else { return Ok(None) };
        let block = block_of(&row)?;
        let version = bump(&mut tx).await?;
        let event = administration(author, "lifted", block_label(target), version, "");
        self.append_own(&mut tx, &[event], now).await?;
        self.commit_version(tx, version).await?;
        Ok(Some((block, version)))
    }

    async fn bypass(
        &self,
        bypass: &Bypass,
        author: &str,
        now: UnixMillis,
    ) -> Result<(StoredBypass, Version)> {
        let _writing = self.writing.lock().await;
        let mut tx = self.begin().await?;
        let name = bypass.workload.to_string();
        sqlx::query("DELETE FROM bypasses WHERE workload = ? OR until <= ?")
            .bind(&name)
            .bind(now.0)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT INTO bypasses (workload, id, until, reason, since, author) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(&name)
        .bind(&bypass.id)
        .bind(bypass.until.0)
        .bind(&bypass.reason)
        .bind(now.0)
        .bind(author)
        .execute(&mut *tx)
        .await?;
        let version = bump(&mut tx).await?;
        let object = format!("workload/{name}");
        let reason = format!("{} (bypass {} until {})", bypass.reason, bypass.id, bypass.until);
        let event = administration(author, "bypassed", object, version, &reason);
        self.append_own(&mut tx, &[event], now).await?;
        self.commit_version(tx, version).await?;
        Ok((StoredBypass { bypass: bypass.clone(), since: now, author: author.to_owned() }, version))
    }

    async fn lift_bypass(
        &self,
        workload: &ResourceRef,
        author: &str,
        now: UnixMillis,
    ) -> Result<Option<(StoredBypass, Version)>> {
        let _writing = self.writing.lock().await;
        let mut tx = self.begin().await?;
        let name = workload.to_string();
        let removed = sqlx::query("DELETE FROM bypasses WHERE workload = ? AND until > ? RETURNING *")
            .bind(&name)
            .bind(now.0)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(row) = removed else { return Ok(None) };
        let lifted = bypass_of(&row)?;
        let version = bump(&mut tx).await?;
        let reason = format!("bypass {}", lifted.bypass.id);
        let event =
            administration(author, "ended the bypass of", format!("workload/{name}"), version, &reason);
        self.append_own(&mut tx, &[event], now).await?;
        self.commit_version(tx, version).await?;
        Ok(Some((lifted, version)))
    }

    async fn bind(&self, binding: &Binding, now: UnixMillis) -> Result<Bound> {
        let _writing = self.writing.lock().await;
        let mut tx = self.begin().await?;
        let attestation = &binding.caller.attestation;
        let known =
            sqlx::query("SELECT key, evidence_issued_at FROM instances WHERE provider = ? AND instance = ?")
                .bind(&*attestation.provider)
                .bind(&*binding.instance.0)
                .fetch_optional(&mut *tx)
                .await?;
        let mut bound = Bound::Same;
        let mut newest = attestation.issued_at;
        if let Some(row) = known {
            let (key, last) =
                (array(row.try_get("key")?, "a key's hash")?, time(&row, "evidence_issued_at")?);
            if key != binding.key {
                if attestation.issued_at <= last {
                    return Ok(Bound::Replayed);
                }
                bound = Bound::Replaced;
            }
            newest = newest.max(last);
        }
        let attributes = serde_json::to_string(&binding.caller.attributes)
            .map_err(|error| StoreError::Corrupt(error.to_string()))?;
        sqlx::query(
            "INSERT OR REPLACE INTO instances (provider, instance, key, caller, namespace, attributes, kind, \
             evidence_issued_at, evidence_ends_at, changed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&*attestation.provider)
        .bind(&*binding.instance.0)
        .bind(&binding.key[..])
        .bind(binding.caller.id.as_str())
        .bind(binding.caller.namespace.as_str())
        .bind(attributes)
        .bind(&*attestation.kind)
        .bind(newest.0)
        .bind(attestation.expires_at.0)
        .bind(now.0)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(bound)
    }

    async fn binding(&self, key: &[u8; 32]) -> Result<Option<Binding>> {
        let row = sqlx::query("SELECT * FROM instances WHERE key = ? ORDER BY changed_at DESC LIMIT 1")
            .bind(&key[..])
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(binding_of).transpose()
    }

    async fn bindings(&self, now: UnixMillis, limit: u32) -> Result<Vec<Binding>> {
        let rows = sqlx::query(
            "SELECT * FROM instances WHERE evidence_ends_at > ? ORDER BY changed_at DESC LIMIT ?",
        )
        .bind(now.0)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(binding_of).collect()
    }

    async fn record_grant(&self, grant: &StoredGrant) -> Result<()> {
        let _writing = self.writing.lock().await;
        sqlx::query(
            "INSERT INTO grants (id, caller, instance, destination, provider, hash, issued_at, expires_at, revoked_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&*grant.id.0)
        .bind(grant.caller.as_str())
        .bind(&*grant.instance.0)
        .bind(grant.destination.to_string())
        .bind(grant.provider.to_string())
        .bind(&grant.hash[..])
        .bind(grant.issued_at.0)
        .bind(grant.expires_at.0)
        .bind(grant.revoked_at.map(|at| at.0))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    async fn live_grants(&self, caller: Option<&SpiffeId>, now: UnixMillis) -> Result<Vec<StoredGrant>> {
        let rows = sqlx::query(
            "SELECT * FROM grants WHERE expires_at > ? AND (? IS NULL OR caller = ?) ORDER BY issued_at, id",
        )
        .bind(now.0)
        .bind(caller.map(SpiffeId::as_str))
        .bind(caller.map(SpiffeId::as_str))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(grant_of).collect()
    }

    async fn revoke_grant(&self, id: &GrantId, now: UnixMillis) -> Result<Option<StoredGrant>> {
        let _writing = self.writing.lock().await;
        let row =
            sqlx::query("UPDATE grants SET revoked_at = coalesce(revoked_at, ?) WHERE id = ? RETURNING *")
                .bind(now.0)
                .bind(&*id.0)
                .fetch_optional(&self.pool)
                .await?;
        row.as_ref().map(grant_of).transpose()
    }

    async fn append_records(&self, records: &[Record], now: UnixMillis) -> Result<Vec<(String, u64)>> {
        let _writing = self.writing.lock().await;
        let mut tx = self.begin().await?;
        let mut heads: std::collections::BTreeMap<String, Head> = std::collections::BTreeMap::new();
        for record in records {
            let broken = || StoreError::Chain { stream: record.stream.clone(), sequence: record.sequence };
            if !record.is_whole() {
                return Err(broken());
            }
            let head = match heads.get(&record.stream) {
                Some(head) => head.clone(),
                None => head_of(&mut tx, &record.stream).await?.unwrap_or_else(|| Head {
                    stream: record.stream.clone(),
                    sequence: 0,
                    hash: Hash::default(),
                }),
            };
            if record.sequence <= head.sequence {
                // Delivered before. It must be the same: another record under its number is an attempt to replace it.
                let there: Vec<u8> =
                    sqlx::query_scalar("SELECT hash FROM records WHERE stream = ? AND sequence = ?")
                        .bind(&record.stream)
                        .bind(signed(record.sequence)?)
                        .fetch_one(&mut *tx)
                        .await?;
                if there != record.hash.0 {
                    return Err(broken());
                }
                heads.insert(record.stream.clone(), head);
                continue;
            }
            if record.sequence != head.sequence + 1 || record.previous != head.hash {
                return Err(broken());
            }
            insert_record(&mut tx, record, now).await?;
            let head = Head { stream: record.stream.clone(), sequence: record.sequence, hash: record.hash };
            heads.insert(record.stream.clone(), head);
        }
        tx.commit().await?;
        Ok(heads.into_values().map(|head| (head.stream, head.sequence)).collect())
    }

    async fn bind_stream(
        &self,
        stream: &str,
        caller: &SpiffeId,
        instance: &InstanceId,
        now: UnixMillis,
    ) -> Result<bool> {
        let _writing = self.writing.lock().await;
        sqlx::query("INSERT INTO streams (stream, caller, instance, first_seen) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(stream)
            .bind(caller.as_str())
            .bind(&*instance.0)
            .bind(now.0)
            .execute(&self.pool)
            .await?;
        let row = sqlx::query("SELECT caller, instance FROM streams WHERE stream = ?")
            .bind(stream)
            .fetch_one(&self.pool)
            .await?;
        Ok(row.try_get::<&str, _>("caller")? == caller.as_str()
            && row.try_get::<&str, _>("instance")? == &*instance.0)
    }

    async fn append_events(&self, events: &[What], now: UnixMillis) -> Result<()> {
        let _writing = self.writing.lock().await;
        let mut tx = self.begin().await?;
        self.append_own(&mut tx, events, now).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn head(&self, stream: &str) -> Result<Option<Head>> {
        let mut tx = self.pool.begin().await?;
        head_of(&mut tx, stream).await
    }

    async fn heads(&self) -> Result<Vec<Head>> {
        let rows = sqlx::query(
            "SELECT stream, sequence, hash FROM records r WHERE sequence = \
             (SELECT max(sequence) FROM records WHERE stream = r.stream) ORDER BY stream",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| head_from(row.try_get("stream")?, row)).collect()
    }

    async fn records_after(&self, cursor: i64, limit: u32) -> Result<Vec<(i64, UnixMillis, Record)>> {
        let rows = sqlx::query("SELECT * FROM records WHERE cursor > ? ORDER BY cursor LIMIT ?")
            .bind(cursor)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get("cursor")?, time(row, "stored_at")?, record_of(row)?)))
            .collect()
    }

    async fn stream_records(&self, stream: &str, after: u64, limit: u32) -> Result<Vec<Record>> {
        let rows =
            sqlx::query("SELECT * FROM records WHERE stream = ? AND sequence > ? ORDER BY sequence LIMIT ?")
                .bind(stream)
                .bind(signed(after)?)
                .bind(limit)
                .fetch_all(&self.pool)
                .await?;
        rows.iter().map(record_of).collect()
    }

    async fn add_checkpoint(&self, checkpoint: &Checkpoint) -> Result<()> {
        let _writing = self.writing.lock().await;
        sqlx::query("INSERT INTO checkpoints (number, body, signature, key_id) VALUES (?, ?, ?, ?)")
            .bind(signed(checkpoint.number)?)
            .bind(&checkpoint.body)
            .bind(&checkpoint.signature)
            .bind(&checkpoint.key_id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    async fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        let rows = sqlx::query("SELECT * FROM checkpoints ORDER BY number").fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                Ok(Checkpoint {
                    number: unsigned(row.try_get("number")?)?,
                    body: row.try_get("body")?,
                    signature: row.try_get("signature")?,
                    key_id: row.try_get("key_id")?,
                })
            })
            .collect()
    }

    async fn keys(&self, purpose: &str) -> Result<Vec<StoredKey>> {
        let rows = sqlx::query("SELECT * FROM keys WHERE purpose = ? ORDER BY created_at, id")
            .bind(purpose)
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|row| {
                let id: String = row.try_get("id")?;
                let sealed =
                    Sealed { wrapped_key: row.try_get("wrapped_key")?, sealed: row.try_get("sealed")? };
                let label = format!("keys/{purpose}/{id}");
                let private = self.sealing.open(&label, &sealed).map_err(|_| StoreError::Sealed(label))?;
                Ok(StoredKey {
                    purpose: purpose.to_owned(),
                    id,
                    private,
                    public: row.try_get("public")?,
                    created_at: time(row, "created_at")?,
                    active_from: time(row, "active_from")?,
                    retires_at: row.try_get::<Option<i64>, _>("retires_at")?.map(UnixMillis),
                })
            })
            .collect()
    }

    async fn add_key(&self, key: &StoredKey, only_if_first: bool) -> Result<()> {
        let _writing = self.writing.lock().await;
        let label = format!("keys/{}/{}", key.purpose, key.id);
        let sealed = self.sealing.seal(&label, &key.private).map_err(|_| StoreError::Sealed(label))?;
        let mut tx = self.begin().await?;
        let others: i64 = sqlx::query_scalar("SELECT count(*) FROM keys WHERE purpose = ?")
            .bind(&key.purpose)
            .fetch_one(&mut *tx)
            .await?;
        if only_if_first && others > 0 {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO keys (purpose, id, wrapped_key, sealed, public, created_at, active_from, retires_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&key.purpose)
        .bind(&key.id)
        .bind(&sealed.wrapped_key)
        .bind(&sealed.sealed)
        .bind(&key.public)
        .bind(key.created_at.0)
        .bind(key.active_from.0)
        .bind(key.retires_at.map(|at| at.0))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    async fn retire_key(
        &self,
        purpose: &str,
        id: &str,
        retires_at: UnixMillis,
        now: UnixMillis,
    ) -> Result<()> {
        let _writing = self.writing.lock().await;
        sqlx::query("UPDATE keys SET retires_at = ? WHERE purpose = ? AND id = ?")
            .bind(retires_at.0)
            .bind(purpose)
            .bind(id)
            .execute(&self.pool)
            .await?;
        sqlx::query("DELETE FROM keys WHERE purpose = ? AND retires_at <= ?")
            .bind(purpose)
            .bind(now.0)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
