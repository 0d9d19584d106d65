//! The one place that chooses the cryptography of TLS.

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// aws-lc-rs, with X25519MLKEM768 preferred. Every configuration of ours is built with it by name.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// Makes it the process's default too, for libraries that build configurations by themselves.
pub fn install() {
    // Fails only if one is installed already, which is then this one: nothing else in our programs does.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
