//! By what applications trust us: one bundle of the image's roots, the operator's and our CA, in the two forms that
//! runtimes read.
//!
//! Never our CA alone: most runtimes take the bundle instead of their own roots. A bundle that is there already and says
//! the same is not touched, since runtimes may be reading it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use p12_keystore::{Certificate, KeyStore, KeyStoreEntry, Pkcs12ImportPolicy};
use rustls::pki_types::CertificateDer;

/// What is trusted.
pub struct Bundle {
    ours: Vec<u8>,
    /// Sorted, none twice.
    others: BTreeSet<Vec<u8>>,
}

/// Key derivations of the PKCS#12. It holds no secret and its password is known to everybody, so they protect nothing.
const ITERATIONS: u32 = 1000;

impl Bundle {
    /// Of our CA and all other roots.
    #[must_use]
    pub fn new(ours: &CertificateDer<'static>, others: &[CertificateDer<'static>]) -> Self {
        let others = others.iter().filter(|other| *other != ours).map(|other| other.to_vec()).collect();
        Self { ours: ours.to_vec(), others }
    }

    /// Writes it as PEM: for all but Java.
    ///
    /// # Errors
    /// If the directory can't be written to.
    pub fn write_pem(&self, path: &Path) -> anyhow::Result<()> {
        let pem: String = self.all().map(service::roots::to_pem).collect();
        if std::fs::read(path).is_ok_and(|there| there == pem.as_bytes()) {
            return Ok(());
        }
        write(path, pem.as_bytes())
    }

    /// Writes it as a PKCS#12 with this password: for Java. PBES2 with AES-256, SHA-256 in the MAC, and the attribute that
    /// makes an entry trusted to Java, which is how `keytool` of Java 17 writes it; Java reads it from 8u301 on.
    ///
    /// # Errors
    /// If the directory can't be written to.
    pub fn write_pkcs12(&self, path: &Path, password: &str) -> anyhow::Result<()> {
        let store = self.key_store();
        if std::fs::read(path).is_ok_and(|there| says_the_same(&there, password, &store)) {
            return Ok(());
        }
        let writer = store.writer(password).encryption_iterations(ITERATIONS).mac_iterations(ITERATIONS);
        let pkcs12 = writer.write().context("the trust bundle for Java could not be made")?;
        write(path, &pkcs12)
    }

    fn all(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.ours.as_slice()).chain(self.others.iter().map(Vec::as_slice))
    }

    /// Roots that can't be read as certificates are left out: Java would refuse the whole store.
    fn key_store(&self) -> KeyStore {
        let mut store = KeyStore::new();
        let readable = self.all().filter_map(|der| Certificate::from_der(der).ok());
        for (number, certificate) in readable.enumerate() {
            let alias = if number == 0 { "countersign".to_owned() } else { format!("root-{number:03}") };
            store.add_entry(&alias, KeyStoreEntry::Certificate(certificate));
        }
        store
    }
}

/// Salts differ each time, so it is what is inside that is compared.
fn says_the_same(pkcs12: &[u8], password: &str, wanted: &KeyStore) -> bool {
    KeyStore::from_pkcs12(pkcs12, password, Pkcs12ImportPolicy::Strict)
        .is_ok_and(|there| there.entries().eq(wanted.entries()))
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| {
            format!("could not make the directory of the trust bundle {}", path.display())
        })?;
    }
    service::files::write_atomically(path, content, 0o644)
        .with_context(|| format!("could not write the trust bundle {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(name: &str) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn both_forms_have_all_roots_and_are_written_once() {
        let directory = tempfile::tempdir().unwrap();
        let (ours, others) = (root("ours"), [root("a"), root("b"), root("ü")]);
        let (pem, p12) =
            (directory.path().join("trust/bundle.pem"), directory.path().join("trust/bundle.p12"));
        let write = |bundle: Bundle| {
            bundle.write_pem(&pem).unwrap();
            bundle.write_pkcs12(&p12, "changeit").unwrap();
            [&pem, &p12].map(|path| std::fs::metadata(path).unwrap().modified().unwrap())
        };
        let first = write(Bundle::new(&ours, &others));
        assert_eq!(write(Bundle::new(&ours, &others)), first, "not touched");
        assert_eq!(std::fs::read_to_string(&pem).unwrap().matches("BEGIN CERTIFICATE").count(), 4);
        let read = || {
            let bytes = std::fs::read(&p12).unwrap();
            // This policy takes only what is marked as trusted.
            KeyStore::from_pkcs12(&bytes, "changeit", Pkcs12ImportPolicy::Strict).unwrap()
        };
        assert_eq!(read().entries_len(), 4);
        let Some(KeyStoreEntry::Certificate(found)) = read().entry("countersign").cloned() else { panic!() };
        assert_eq!(found.as_der(), ours.as_ref());
        write(Bundle::new(&ours, &others[..1]));
        assert_eq!(read().entries_len(), 2, "written anew when the roots change");
    }

    #[test]
    fn a_root_that_is_none_spoils_neither() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(&root("ours"), &[CertificateDer::from(vec![1, 2, 3])]);
        assert_eq!(bundle.key_store().entries_len(), 1);
        bundle.write_pem(&directory.path().join("b.pem")).unwrap();
    }
}
