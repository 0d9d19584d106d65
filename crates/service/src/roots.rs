//! The certificates by which others are believed.

use std::path::Path;

use anyhow::Context as _;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Certificates of a PEM file.
///
/// # Errors
/// If the file can't be read, or has no certificate or one that is not valid.
pub fn from_file(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("could not read certificates from {}", path.display()))?;
    anyhow::ensure!(!certificates.is_empty(), "{} has no certificate", path.display());
    Ok(certificates)
}

/// The private key of a PEM file.
///
/// # Errors
/// If the file can't be read, or has none.
pub fn key_from_file(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path)
        .with_context(|| format!("could not read a private key from {}", path.display()))
}

/// Certificates of a PEM file, or of a directory's `.crt` and `.pem` files: there may be none, as where an optional
/// ConfigMap is mounted that is not there.
///
/// # Errors
/// If something can't be read, or a file has no certificate or one that is not valid.
pub fn from_path(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    if !path.is_dir() {
        return from_file(path);
    }
    let unread = || format!("could not read the directory {}", path.display());
    let entries: Vec<_> = path.read_dir().and_then(Iterator::collect::<Result<_, _>>).with_context(unread)?;
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "crt" || extension == "pem"));
    files.sort();
    let certificates: Vec<_> = files.iter().map(|file| from_file(file)).collect::<Result<_, _>>()?;
    Ok(certificates.concat())
}

/// The system's roots; those that can't be used are skipped, as every TLS library does.
#[must_use]
pub fn system() -> Vec<CertificateDer<'static>> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some of the system's roots could not be read");
    }
    found.certs
}

/// A store of the system's roots and the operator's.
///
/// # Errors
/// If one of the operator's roots is not usable: it was given on purpose.
pub fn store(operator: &[CertificateDer<'static>]) -> anyhow::Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(system());
    for certificate in operator {
        store.add(certificate.clone()).context("one of the given roots is not a usable CA certificate")?;
    }
    Ok(store)
}

/// A certificate in PEM.
#[must_use]
pub fn to_pem(certificate: &[u8]) -> String {
    pem("CERTIFICATE", certificate)
}

/// Something in PEM (RFC 7468), by its label: `CERTIFICATE` (§5.1) or `PRIVATE KEY` (§10).
#[must_use]
pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<String> =
        encoded.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_may_have_no_roots_and_a_file_may_not() {
        let directory = tempfile::tempdir().unwrap();
        assert!(from_path(directory.path()).unwrap().is_empty());
        assert!(from_path(&directory.path().join("ca.crt")).is_err(), "a file that is not there");

        let root = rcgen::generate_simple_self_signed(["root.example".to_owned()]).unwrap().cert;
        for name in ["a.crt", "b.pem"] {
            std::fs::write(directory.path().join(name), root.pem()).unwrap();
        }
        std::fs::write(directory.path().join("README"), "no certificate").unwrap();
        assert_eq!(from_path(directory.path()).unwrap(), [root.der().clone(), root.der().clone()]);

        std::fs::write(directory.path().join("c.crt"), "no certificate").unwrap();
        let error = from_path(directory.path()).unwrap_err().to_string();
        assert!(error.contains("c.crt"), "{error}");
    }
}
