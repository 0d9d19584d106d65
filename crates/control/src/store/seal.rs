//! Secrets at rest: AES-256-GCM under a data key for each row, which is wrapped by a key that is not in the database.
//!
//! The row's identity is associated data, so that a sealed value can't be moved to another row.

use std::path::Path;

use anyhow::{Context as _, bail};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use model::Secret;
use zeroize::Zeroizing;

/// The key that wraps data keys.
pub struct SealingKey(LessSafeKey);

/// A sealed value: both parts go into the row.
pub struct Sealed {
    /// The data key, wrapped.
    pub wrapped_key: Vec<u8>,
    /// The value under the data key.
    pub sealed: Vec<u8>,
}

/// Bytes of a key.
const KEY_BYTES: usize = 32;

impl SealingKey {
    /// Takes 32 bytes.
    ///
    /// # Errors
    /// If they are not 32.
    pub fn new(bytes: &[u8]) -> anyhow::Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, bytes)
            .map_err(|_| anyhow::anyhow!("a sealing key has 32 bytes"))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Reads the key from its file; `None` if there is no file.
    ///
    /// # Errors
    /// If the file can't be read, or holds something else.
    pub fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(bytes) => Self::new(&Zeroizing::new(bytes)).with_context(|| describe(path)).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| describe(path)),
        }
    }

    /// Makes a key, with its file.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn make(path: &Path) -> anyhow::Result<Self> {
        let bytes = Zeroizing::new(rand::random::<[u8; KEY_BYTES]>());
        service::files::write_atomically(path, &*bytes, 0o600).with_context(|| describe(path))?;
        Self::new(&*bytes)
    }

    /// Seals a value for one row.
    ///
    /// # Errors
    /// If the cipher refuses, which it does only for values of many gigabytes.
    pub fn seal(&self, row: &str, value: &Secret) -> anyhow::Result<Sealed> {
        let data_key = Zeroizing::new(rand::random::<[u8; KEY_BYTES]>());
        Ok(Sealed {
            sealed: encrypt(&Self::new(&*data_key)?.0, row, value.expose())?,
            wrapped_key: encrypt(&self.0, row, &*data_key)?,
        })
    }

    /// Opens a sealed value of one row.
    ///
    /// # Errors
    /// If it was sealed with another key, or for another row, or was changed.
    pub fn open(&self, row: &str, sealed: &Sealed) -> anyhow::Result<Secret> {
        let data_key = Zeroizing::new(decrypt(&self.0, row, &sealed.wrapped_key)?);
        let value = decrypt(&Self::new(&data_key)?.0, row, &sealed.sealed)?;
        Ok(Secret::new(value))
    }
}

fn describe(path: &Path) -> String {
    format!("sealing key {}", path.display())
}

fn encrypt(key: &LessSafeKey, row: &str, value: &[u8]) -> anyhow::Result<Vec<u8>> {
    let nonce = rand::random::<[u8; NONCE_LEN]>();
    let mut sealed = value.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(row.as_bytes()), &mut sealed)
        .map_err(|_| anyhow::anyhow!("the value can't be sealed"))?;
    Ok([&nonce[..], &sealed].concat())
}

fn decrypt(key: &LessSafeKey, row: &str, sealed: &[u8]) -> anyhow::Result<Vec<u8>> {
    let Some((nonce, sealed)) = sealed.split_first_chunk::<NONCE_LEN>() else {
        bail!("too short to be sealed")
    };
    let mut value = sealed.to_vec();
    let opened = key
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(row.as_bytes()), &mut value)
        .map_err(|_| anyhow::anyhow!("it does not open"))?
        .len();
    value.truncate(opened);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_in_its_own_row_with_its_own_key() {
        let (ours, theirs) = (SealingKey::new(&[1; 32]).unwrap(), SealingKey::new(&[2; 32]).unwrap());
        let sealed = ours.seal("keys/jwt/1", &Secret::new(b"canary".to_vec())).unwrap();
        assert_eq!(ours.open("keys/jwt/1", &sealed).unwrap().expose(), b"canary");
        assert!(ours.open("keys/jwt/2", &sealed).is_err());
        assert!(theirs.open("keys/jwt/1", &sealed).is_err());
        let stored = [sealed.sealed, sealed.wrapped_key].concat();
        assert!(!stored.windows(6).any(|window| window == b"canary"));
    }
}
