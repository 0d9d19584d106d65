//! The audit of the whole installation: checkpoints over all streams, and the proof that nothing was changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use issuers::jwt::Signer as _;
use model::audit::{Break, Follower};
use model::{Code, UnixMillis};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::keys::{CHECKPOINT, Keys};
use crate::store::{Checkpoint, Store, StoreError};

/// How often the heads are signed, if they have moved.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);

/// Records looked at in one go.
const PAGE: u32 = 1000;

/// What a checkpoint signs.
#[derive(Debug, Serialize, Deserialize)]
struct Body {
    number: u64,
    time: UnixMillis,
    /// SHA-256 of the checkpoint before, its body and signature, in hexadecimal.
    previous: String,
    /// By stream: the last number and its hash in hexadecimal.
    heads: BTreeMap<String, (u64, String)>,
}

/// What became of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamVerdict {
    /// Its name: whose it is.
    pub stream: String,
    /// Its last number.
    pub last: u64,
    /// Where it does not hold, if it does not.
    pub broken: Option<Break>,
}

/// What became of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Every stream.
    pub streams: Vec<StreamVerdict>,
    /// All records.
    pub records: u64,
    /// All checkpoints.
    pub checkpoints: u64,
}

impl Report {
    /// Whether everything holds.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.streams.iter().all(|stream| stream.broken.is_none())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn link(checkpoint: &Checkpoint) -> String {
    hex(&Sha256::digest([&checkpoint.body[..], &checkpoint.signature].concat()))
}

/// Signs the heads of all streams, if one has moved since the last checkpoint.
///
/// # Errors
/// If the store fails.
pub async fn checkpoint(store: &dyn Store, keys: &Keys, now: UnixMillis) -> Result<bool, StoreError> {
    let heads: BTreeMap<String, (u64, String)> = store
        .heads()
        .await?
        .into_iter()
        .map(|head| (head.stream, (head.sequence, head.hash.to_string())))
        .collect();
    let last = store.checkpoints().await?.pop();
    let unchanged = last.as_ref().and_then(|last| serde_json::from_slice::<Body>(&last.body).ok());
    if heads.is_empty() || unchanged.is_some_and(|body| body.heads == heads) {
        return Ok(false);
    }
    let body = Body {
        number: last.as_ref().map_or(1, |last| last.number + 1),
        time: now,
        previous: last.as_ref().map(link).unwrap_or_default(),
        heads,
    };
    let number = body.number;
    let body = serde_json::to_vec(&body).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let key = keys.checkpoint(now).await?;
    let signature = key.sign(&body).map_err(|failure| StoreError::Corrupt(failure.to_string()))?;
    store.add_checkpoint(&Checkpoint { number, body, signature, key_id: key.key_id().to_owned() }).await?;
    Ok(true)
}

/// Signs for as long as the program runs.
pub async fn keep_signing(store: Arc<dyn Store>, keys: Keys) {
    loop {
        tokio::time::sleep(CHECKPOINT_EVERY).await;
        if let Err(error) = checkpoint(&*store, &keys, crate::now()).await {
            tracing::error!(%error, "the heads of the audit could not be signed");
        }
    }
}

/// Follows every chain from its first record to its last, and holds it against every checkpoint.
///
/// # Errors
/// If the store fails. What it finds is in the report.
pub async fn verify(store: &dyn Store, keys: &Keys) -> Result<Report, StoreError> {
    let checkpoints = store.checkpoints().await?;
    let mut report = Report { checkpoints: checkpoints.len() as u64, ..Report::default() };
    let signed = match signed_heads(&checkpoints, keys).await? {
        Ok(signed) => signed,
        Err(broken) => {
            report.streams.push(StreamVerdict {
                stream: "checkpoints".to_owned(),
                last: 0,
                broken: Some(broken),
            });
            BTreeMap::new()
        }
    };
    let mut streams: Vec<String> = store.heads().await?.into_iter().map(|head| head.stream).collect();
    // A stream that was signed once and is gone altogether must not be forgotten.
    streams.extend(signed.keys().filter(|stream| !streams.contains(stream)).cloned().collect::<Vec<_>>());
    streams.sort();
    let nothing = BTreeMap::new();
    for stream in streams {
        let verdict = follow(store, &stream, signed.get(&stream).unwrap_or(&nothing)).await?;
        report.records += verdict.last;
        report.streams.push(verdict);
    }
    Ok(report)
}

/// By stream, the hashes that were signed at some of its numbers.
type Signed = BTreeMap<String, BTreeMap<u64, String>>;

async fn signed_heads(checkpoints: &[Checkpoint], keys: &Keys) -> Result<Result<Signed, Break>, StoreError> {
    let points: BTreeMap<String, Vec<u8>> = keys.public_points(CHECKPOINT).await?.into_iter().collect();
    let mut signed = Signed::new();
    let mut previous = String::new();
    for (index, checkpoint) in checkpoints.iter().enumerate() {
        let broken = |detail: &str| Break {
            at: checkpoint.number,
            code: Code::ChainBroken,
            detail: format!("checkpoint {} {detail}", checkpoint.number),
        };
        let point = points.get(&checkpoint.key_id).map(Vec::as_slice).unwrap_or_default();
        let good = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(&checkpoint.body, &checkpoint.signature)
            .is_ok();
        if !good {
            return Ok(Err(broken("is not signed by this installation")));
        }
        let Ok(body) = serde_json::from_slice::<Body>(&checkpoint.body) else {
            return Ok(Err(broken("can't be read")));
        };
        if body.number != index as u64 + 1 || body.number != checkpoint.number || body.previous != previous {
            return Ok(Err(broken("does not follow the one before it")));
        }
        previous = link(checkpoint);
        for (stream, (sequence, hash)) in body.heads {
            signed.entry(stream).or_default().insert(sequence, hash);
        }
    }
    Ok(Ok(signed))
}

async fn follow(
    store: &dyn Store,
    stream: &str,
    signed: &BTreeMap<u64, String>,
) -> Result<StreamVerdict, StoreError> {
    let mut follower = Follower::default();
    let verdict = |last, broken| StreamVerdict { stream: stream.to_owned(), last, broken };
    loop {
        let records = store.stream_records(stream, follower.last, PAGE).await?;
        if records.is_empty() {
            break;
        }
        for record in &records {
            if let Err(broken) = follower.take(record) {
                return Ok(verdict(follower.last, Some(broken)));
            }
            if signed.get(&record.sequence).is_some_and(|hash| *hash != record.hash.to_string()) {
                let detail = format!("record {} is not the one that a checkpoint signed", record.sequence);
                let broken = Break { at: record.sequence, code: Code::ChainBroken, detail };
                return Ok(verdict(follower.last, Some(broken)));
            }
        }
    }
    let owed = signed.keys().next_back().copied().filter(|signed| *signed > follower.last);
    let broken = owed.map(|signed| Break {
        at: follower.last + 1,
        code: Code::ChainGap,
        detail: format!("a checkpoint signed record {signed}, but the stream ends at {}", follower.last),
    });
    Ok(verdict(follower.last, broken))
}

#[cfg(test)]
mod tests {
    use model::audit::{Gap, What};

    use super::*;
    use crate::store::seal::SealingKey;
    use crate::store::sqlite::SqliteStore;

    const NOW: UnixMillis = UnixMillis(1_795_514_400_000);

    struct Story {
        _directory: tempfile::TempDir,
        path: std::path::PathBuf,
        store: Arc<SqliteStore>,
        keys: Keys,
    }

    async fn story() -> Story {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.db");
        let sealing = SealingKey::new(&[1; 32]).unwrap();
        let store = Arc::new(SqliteStore::open(&path, sealing, "control/0".into()).await.unwrap());
        let keys = Keys::open(store.clone(), NOW).await.unwrap();
        let story = Story { _directory: directory, path, store, keys };
        story.write(5).await;
        assert!(checkpoint(&*story.store, &story.keys, NOW).await.unwrap());
        assert!(!checkpoint(&*story.store, &story.keys, NOW).await.unwrap(), "nothing has moved");
        story.write(3).await;
        assert!(checkpoint(&*story.store, &story.keys, NOW).await.unwrap());
        story
    }

    impl Story {
        async fn write(&self, count: usize) {
            let event = What::Gap(Gap { count: None, reason: "test".into() });
            self.store.append_events(&vec![event; count], NOW).await.unwrap();
        }

        /// Changes the database behind everybody's back.
        async fn tamper(&self, sql: &'static str) {
            let pool = sqlx::SqlitePool::connect(&format!("sqlite:{}", self.path.display())).await.unwrap();
            assert_eq!(sqlx::query(sql).execute(&pool).await.unwrap().rows_affected(), 1);
        }

        async fn verdict(&self) -> Option<(String, u64, Code)> {
            let report = verify(&*self.store, &self.keys).await.unwrap();
            let broken = report.streams.into_iter().find(|stream| stream.broken.is_some())?;
            broken.broken.map(|at| (broken.stream, at.at, at.code))
        }
    }

    #[tokio::test]
    async fn what_nobody_touched_is_whole() {
        let story = story().await;
        let report = verify(&*story.store, &story.keys).await.unwrap();
        assert!(report.is_whole());
        assert_eq!((report.records, report.checkpoints), (8, 2));
    }

    #[tokio::test]
    async fn an_edit_a_gap_and_a_lost_tail_are_found() {
        let cases: [(&'static str, u64, Code); 4] = [
            (
                "UPDATE records SET payload = cast(replace(payload, 'test', 'tset') AS BLOB) WHERE sequence = 3",
                3,
                Code::ChainBroken,
            ),
            ("DELETE FROM records WHERE sequence = 4", 4, Code::ChainGap),
            ("DELETE FROM records WHERE sequence = 8", 8, Code::ChainGap),
            ("UPDATE records SET hash = zeroblob(32) WHERE sequence = 2", 2, Code::ChainBroken),
        ];
        for (sql, at, code) in cases {
            let story = story().await;
            story.tamper(sql).await;
            assert_eq!(story.verdict().await, Some(("control/0".to_owned(), at, code)), "{sql}");
        }
    }

    #[tokio::test]
    async fn a_chain_that_was_written_anew_is_not_the_one_that_was_signed() {
        let story = story().await;
        // Somebody with the database alone writes the last record anew, with a hash that fits.
        let records = story.store.stream_records("control/0", 6, 10).await.unwrap();
        let forged = model::audit::Record::after(records[0].hash, "control/0", 8, b"{}".to_vec());
        let pool = sqlx::SqlitePool::connect(&format!("sqlite:{}", story.path.display())).await.unwrap();
        sqlx::query("UPDATE records SET payload = ?, hash = ? WHERE sequence = 8")
            .bind(&forged.payload)
            .bind(&forged.hash.0[..])
            .execute(&pool)
            .await
            .unwrap();
        assert_eq!(story.verdict().await, Some(("control/0".to_owned(), 8, Code::ChainBroken)));
    }

    #[tokio::test]
    async fn a_changed_checkpoint_is_found() {
        let story = story().await;
        story
            .tamper("UPDATE checkpoints SET body = cast(replace(body, '1', '2') AS BLOB) WHERE number = 2")
            .await;
        assert_eq!(story.verdict().await.unwrap().0, "checkpoints");
    }
}
