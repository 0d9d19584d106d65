//! Identity in, ephemeral credential out. One file for each kind of credential provider.

pub mod jwt;

use model::{GrantId, Secret, UnixMillis};

/// A credential, just made.
#[derive(Debug)]
pub struct Issued {
    /// Its id.
    pub grant: GrantId,
    /// The credential, as it goes behind the provider's prefix.
    pub credential: Secret,
    /// When it ends.
    pub expires_at: UnixMillis,
}
