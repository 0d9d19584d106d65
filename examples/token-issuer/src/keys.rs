//! The signing key: made once, kept in a file.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

/// A key that signs with ES256.
pub(crate) struct Key {
    encoding: EncodingKey,
    jwk: Jwk,
    kid: String,
}

impl Key {
    /// The key of this file, which is made if there is none.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        if !path.exists() {
            create(path).with_context(|| format!("could not write a new key to {}", path.display()))?;
        }
        let pem = std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
        let encoding = EncodingKey::from_ec_pem(&pem)
            .with_context(|| format!("{} is no P-256 key in PKCS#8 form", path.display()))?;
        let mut jwk = Jwk::from_encoding_key(&encoding, Algorithm::ES256)?;
        // RFC 7638: the same key has the same id after a restart.
        let kid = jwk.thumbprint(ThumbprintHash::SHA256)?;
        jwk.common.key_id = Some(kid.clone());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { encoding, jwk, kid })
    }

    /// The public half, as it is published.
    pub(crate) fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// A signed token.
    pub(crate) fn sign(&self, claims: &impl Serialize) -> anyhow::Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.kid.clone());
        Ok(jsonwebtoken::encode(&header, claims, &self.encoding)?)
    }
}

/// Two that start at once agree: the file appears whole, and only the first one's stays.
fn create(path: &Path) -> anyhow::Result<()> {
    let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?.serialize_pem();
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&draft, path);
    std::fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once() {
        let directory = std::env::temp_dir().join(format!("token-issuer-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("key.pem");
        let first = Key::open(&path).unwrap().kid;
        let again = Key::open(&path).unwrap().kid;
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(first, again);
    }
}
