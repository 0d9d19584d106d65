//! The keys of the installation: for tokens, checkpoints and fingerprints; made, published, rotated, retired.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use issuers::jwt::Signer;
use model::{Code, Failure, Secret, UnixMillis};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::store::{Store, StoreError, StoredKey};

/// For tokens.
pub const JWT: &str = "jwt";
/// For checkpoints of the audit.
pub const CHECKPOINT: &str = "checkpoint";
/// For fingerprints of standing credentials.
pub const FINGERPRINT: &str = "fingerprint";

/// How long others may keep the key set, in seconds: the `max-age` of the JWKS.
pub const CACHE_SECS: i64 = 300;

/// A new key is published this long before it signs: twice as long as anybody keeps the set without it.
const PUBLISHED_AHEAD_SECS: i64 = 2 * CACHE_SECS;

/// A key signs this long, then the next one does.
const SIGNS_SECS: i64 = 24 * 3600;

/// A key stays published until its last token is dead: a token's longest life, and the cache's.
const STAYS_SECS: i64 = 3600 + CACHE_SECS;

/// How often rotation is looked at.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(60);

/// A key pair that signs by ES256.
pub struct SigningKey {
    id: String,
    pair: EcdsaKeyPair,
}

impl SigningKey {
    fn of(stored: &StoredKey) -> Result<Self, StoreError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, stored.private.expose())
            .map_err(|_| StoreError::Corrupt(format!("key {} can't be read", stored.id)))?;
        Ok(Self { id: stored.id.clone(), pair })
    }

    /// The uncompressed point: 4, x, y.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }
}

impl Signer for SigningKey {
    fn key_id(&self) -> &str {
        &self.id
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Failure> {
        let signature = self.pair.sign(&SystemRandom::new(), message);
        let signature =
            signature.map_err(|_| Failure::new(Code::IssuerUnreachable, "the signing key can't be used"))?;
        Ok(signature.as_ref().to_vec())
    }
}

/// The installation's keys, as the store has them.
#[derive(Clone)]
pub struct Keys {
    store: Arc<dyn Store>,
}

impl Keys {
    /// Makes what is not there yet. The very first key signs at once: nobody can have kept a set without it.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn open(store: Arc<dyn Store>, now: UnixMillis) -> Result<Self, StoreError> {
        for purpose in [JWT, CHECKPOINT] {
            if store.keys(purpose).await?.is_empty() {
                store.add_key(&made(purpose, now, now)?, true).await?;
            }
        }
        if store.keys(FINGERPRINT).await?.is_empty() {
            let key = StoredKey {
                purpose: FINGERPRINT.to_owned(),
                id: "1".to_owned(),
                private: Secret::new(rand::random::<[u8; 32]>().to_vec()),
                public: Vec::new(),
                created_at: now,
                active_from: now,
                retires_at: None,
            };
            store.add_key(&key, true).await?;
        }
        Ok(Self { store })
    }

    /// The key that signs tokens now.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn signing(&self, now: UnixMillis) -> Result<SigningKey, StoreError> {
        self.newest_active(JWT, now).await
    }

    /// The key that signs checkpoints now.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn checkpoint(&self, now: UnixMillis) -> Result<SigningKey, StoreError> {
        self.newest_active(CHECKPOINT, now).await
    }

    async fn newest_active(&self, purpose: &str, now: UnixMillis) -> Result<SigningKey, StoreError> {
        let keys = self.store.keys(purpose).await?;
        let active = keys.iter().filter(|key| key.active_from <= now).max_by_key(|key| key.active_from);
        let newest = active.ok_or_else(|| StoreError::Corrupt(format!("there is no {purpose} key")))?;
        SigningKey::of(newest)
    }

    /// The key for fingerprints.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn fingerprint(&self) -> Result<Secret, StoreError> {
        let keys = self.store.keys(FINGERPRINT).await?;
        let key = keys
            .into_iter()
            .next()
            .ok_or_else(|| StoreError::Corrupt("there is no fingerprint key".into()))?;
        Ok(key.private)
    }

    /// The public keys of a purpose, by id: the uncompressed points.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn public_points(&self, purpose: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        Ok(self.store.keys(purpose).await?.into_iter().map(|key| (key.id, key.public)).collect())
    }

    /// The key set (RFC 7517 §5): every key that signs, will sign, or has signed what may still be good.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn jwks(&self) -> Result<Value, StoreError> {
        let keys = self.public_points(JWT).await?;
        Ok(json!({ "keys": keys.iter().map(|(id, point)| jwk(id, point)).collect::<Vec<_>>() }))
    }

    /// Makes the next token key when the one that signs has signed long enough, and retires those whose last token is
    /// dead.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn rotate(&self, now: UnixMillis) -> Result<(), StoreError> {
        let mut keys = self.store.keys(JWT).await?;
        keys.sort_by_key(|key| key.active_from);
        let Some(newest) = keys.last() else { return Ok(()) };
        if now >= newest.active_from.plus_secs(SIGNS_SECS - PUBLISHED_AHEAD_SECS) {
            let next = made(JWT, now, now.plus_secs(PUBLISHED_AHEAD_SECS))?;
            tracing::info!(key = %next.id, signs_from = %next.active_from, "the next token key is published");
            self.store.add_key(&next, false).await?;
            keys.push(next);
        }
        for pair in keys.windows(2) {
            // A key is done when the next one signs; its last token dies a while later.
            self.store.retire_key(JWT, &pair[0].id, pair[1].active_from.plus_secs(STAYS_SECS), now).await?;
        }
        Ok(())
    }

    /// Looks at rotation for as long as the program runs.
    pub async fn keep_rotating(self) {
        loop {
            if let Err(error) = self.rotate(crate::now()).await {
                tracing::error!(%error, "token keys could not be rotated");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn made(purpose: &str, now: UnixMillis, active_from: UnixMillis) -> Result<StoredKey, StoreError> {
    let failed = |_| StoreError::Corrupt("a key could not be made".to_owned());
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
        .map_err(failed)?;
    let private = Secret::new(pkcs8.as_ref().to_vec());
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private.expose())
        .map_err(|_| StoreError::Corrupt("a key could not be made".to_owned()))?;
    let public = pair.public_key().as_ref().to_vec();
    Ok(StoredKey {
        purpose: purpose.to_owned(),
        id: thumbprint(&public),
        private,
        public,
        created_at: now,
        active_from,
        retires_at: None,
    })
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// The coordinates of an uncompressed point on P-256 (SEC 1 §2.3.3).
fn coordinates(point: &[u8]) -> (String, String) {
    (base64(point.get(1..33).unwrap_or_default()), base64(point.get(33..65).unwrap_or_default()))
}

/// RFC 7638 §3.
fn thumbprint(point: &[u8]) -> String {
    let (x, y) = coordinates(point);
    base64(&Sha256::digest(format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#)))
}

/// RFC 7518 §6.2.
fn jwk(id: &str, point: &[u8]) -> Value {
    let (x, y) = coordinates(point);
    json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": id, "alg": "ES256", "use": "sig" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::seal::SealingKey;
    use crate::store::sqlite::SqliteStore;

    #[tokio::test]
    async fn a_key_is_published_before_it_signs_and_until_its_tokens_are_dead() {
        let directory = tempfile::tempdir().unwrap();
        let sealing = SealingKey::new(&[1; 32]).unwrap();
        let store =
            SqliteStore::open(&directory.path().join("c.db"), sealing, "control/0".into()).await.unwrap();
        let start = UnixMillis(1_795_514_400_000);
        let keys = Keys::open(Arc::new(store), start).await.unwrap();
        let first = keys.signing(start).await.unwrap().id;
        let ids = async || -> Vec<String> {
            keys.public_points(JWT).await.unwrap().into_iter().map(|(id, _)| id).collect()
        };
        keys.rotate(start).await.unwrap();
        assert_eq!(ids().await, [first.clone()]);
        let ahead = start.plus_secs(SIGNS_SECS - PUBLISHED_AHEAD_SECS);
        keys.rotate(ahead).await.unwrap();
        assert_eq!(ids().await.len(), 2, "published ahead");
        assert_eq!(keys.signing(ahead).await.unwrap().id, first, "but it does not sign yet");
        let second = keys.signing(start.plus_secs(SIGNS_SECS)).await.unwrap().id;
        assert_ne!(second, first);
        let dead = start.plus_secs(SIGNS_SECS + STAYS_SECS);
        keys.rotate(dead.plus_secs(-1)).await.unwrap();
        assert_eq!(ids().await.len(), 2, "its last token may still be good");
        keys.rotate(dead).await.unwrap();
        assert_eq!(ids().await, [second]);
    }
}
