//! A certificate authority for a test's services.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

/// A root, and the certificates that it signs.
#[derive(Debug)]
pub struct Certificates {
    issuer: Issuer<'static, KeyPair>,
    root: String,
}

/// A certificate with its key, both PEM.
#[derive(Debug)]
pub struct Leaf {
    /// The chain.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Certificates {
    /// A new root.
    ///
    /// # Errors
    /// If the cryptography fails.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = named(name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        backdate(&mut parameters);
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let root = parameters.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(parameters, key), root })
    }

    /// The root's certificate (PEM).
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// A server's certificate for these names.
    ///
    /// # Errors
    /// If a name is none, or the cryptography fails.
    pub fn server(&self, names: &[&str]) -> anyhow::Result<Leaf> {
        self.leaf(names, |_| ())
    }

    /// The same, already expired.
    ///
    /// # Errors
    /// If a name is none, or the cryptography fails.
    pub fn expired(&self, names: &[&str]) -> anyhow::Result<Leaf> {
        self.leaf(names, |parameters| {
            parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(2020, 2, 1);
        })
    }

    /// A client's certificate: of this name, and of this group (the subject's organisation, as Kubernetes reads it).
    ///
    /// # Errors
    /// If the cryptography fails.
    pub fn client(&self, name: &str, group: &str) -> anyhow::Result<Leaf> {
        self.leaf(&[], |parameters| {
            parameters.distinguished_name = named(name);
            parameters.distinguished_name.push(DnType::OrganizationName, group);
            parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    fn leaf(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> anyhow::Result<Leaf> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names.clone())?;
        parameters.distinguished_name = named(names.first().map_or("server", String::as_str));
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.use_authority_key_identifier_extension = true;
        backdate(&mut parameters);
        change(&mut parameters);
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = parameters.signed_by(&key, &self.issuer)?.pem();
        Ok(Leaf { certificate, key: key.serialize_pem() })
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Valid for this century: a test's clock is no subject of these.
fn backdate(parameters: &mut CertificateParams) {
    parameters.not_before = rcgen::date_time_ymd(2024, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2099, 1, 1);
}
