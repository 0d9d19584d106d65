//! The webhook's own CA and certificate: what is held, and when which part of it is made anew.
//!
//! Pure: the time comes in, and what is to be stored comes out.

use std::collections::BTreeMap;

use anyhow::Context as _;
use k8s_openapi::ByteString;
use model::{Secret, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::certificate::certified;
use crate::authority::validity;

const DAY: i64 = 86_400;

/// Life of a CA.
const CA_LIFE_SECS: i64 = 365 * DAY;

/// A CA is in the bundle this long before it signs, so that no API server meets what it signed without knowing it.
const CA_AHEAD_SECS: i64 = 30 * DAY;

/// Life of a leaf.
const LEAF_LIFE_SECS: i64 = 30 * DAY;

/// A leaf is renewed when this much of it is left.
const LEAF_LEFT_SECS: i64 = 10 * DAY;

/// What this much is left of is too short to sign with: a leaf never outlives its CA.
const CA_LEFT_SECS: i64 = LEAF_LIFE_SECS;

/// All CAs with their keys, the oldest first, and the leaf. As a Secret of the type `kubernetes.io/tls`.
#[derive(Clone, Debug)]
pub struct OwnCa {
    authorities: Vec<Pair>,
    leaf: Pair,
}

#[derive(Clone, Debug)]
struct Pair {
    certificate: CertificateDer<'static>,
    key: Secret,
    from: UnixMillis,
    to: UnixMillis,
}

/// Keys of the Secret's data.
const LEAF: &str = "tls.crt";
const LEAF_KEY: &str = "tls.key";
const AUTHORITIES: &str = "ca.crt";
const AUTHORITY_KEYS: &str = "ca.key";

impl OwnCa {
    /// The very first one: it signs at once.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn first(names: &[String], now: UnixMillis) -> anyhow::Result<Self> {
        let authority = make_authority(now)?;
        let leaf = make_leaf(&authority, names, now)?;
        Ok(Self { authorities: vec![authority], leaf })
    }

    /// What it is to be from now on, if that is something else.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn advance(&self, names: &[String], now: UnixMillis) -> anyhow::Result<Option<Self>> {
        let mut authorities: Vec<Pair> =
            self.authorities.iter().filter(|authority| authority.to > now).cloned().collect();
        let mut changed = authorities.len() != self.authorities.len();
        let lasts = |authority: &Pair| now.plus_secs(CA_LEFT_SECS + CA_AHEAD_SECS) < authority.to;
        if !authorities.last().is_some_and(lasts) {
            authorities.push(make_authority(now)?);
            changed = true;
        }
        let signs = signing(&authorities, now);
        let mut leaf = self.leaf.clone();
        let keep = now.plus_secs(LEAF_LEFT_SECS) < leaf.to
            && is_signed_by(&leaf, signs)
            && names_of(&leaf).is_some_and(|has| has == names);
        if !keep {
            leaf = make_leaf(signs, names, now)?;
            changed = true;
        }
        Ok(changed.then_some(Self { authorities, leaf }))
    }

    /// The certificates by which the API server is to verify the webhook (PEM).
    #[must_use]
    pub fn bundle(&self) -> String {
        self.authorities.iter().map(|authority| service::roots::to_pem(&authority.certificate)).collect()
    }

    /// What the door shows.
    ///
    /// # Errors
    /// If certificate and key do not fit.
    pub fn certified(&self) -> anyhow::Result<CertifiedKey> {
        certified(vec![self.leaf.certificate.clone()], self.leaf.private())
    }

    /// As the data of a Secret.
    #[must_use]
    pub fn to_data(&self) -> BTreeMap<String, ByteString> {
        let keys: String = self.authorities.iter().map(Pair::key_pem).collect();
        [
            (LEAF, service::roots::to_pem(&self.leaf.certificate)),
            (LEAF_KEY, self.leaf.key_pem()),
            (AUTHORITIES, self.bundle()),
            (AUTHORITY_KEYS, keys),
        ]
        .map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes())))
        .into()
    }

    /// From the data of a Secret.
    ///
    /// # Errors
    /// If something is missing or can't be read.
    pub fn from_data(data: &BTreeMap<String, ByteString>) -> anyhow::Result<Self> {
        let mut authorities = pairs(data, AUTHORITIES, AUTHORITY_KEYS)?;
        authorities.sort_by_key(|authority| authority.from);
        let leaf = pairs(data, LEAF, LEAF_KEY)?.into_iter().next().context("there is no certificate")?;
        Ok(Self { authorities, leaf })
    }
}

impl Pair {
    fn new(certificate: CertificateDer<'static>, key: Secret) -> anyhow::Result<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)?;
        let [from, to] = [parsed.validity().not_before, parsed.validity().not_after]
            .map(|moment| UnixMillis::from_secs(moment.timestamp()));
        Ok(Self { certificate, key, from, to })
    }

    fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.expose().to_vec()))
    }

    fn key_pem(&self) -> String {
        service::roots::pem("PRIVATE KEY", self.key.expose())
    }
}

/// The newest that has been in the bundle for long enough, or the oldest if none has.
fn signing(authorities: &[Pair], now: UnixMillis) -> &Pair {
    let is_known = |authority: &&Pair| authority.from.plus_secs(CA_AHEAD_SECS) <= now;
    authorities.iter().rfind(is_known).unwrap_or(&authorities[0])
}

fn make_authority(now: UnixMillis) -> anyhow::Result<Pair> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // Two of them must not have the same name: an API server finds a CA by it.
    let unique = format!("Countersign webhook {:08x}", rand::random::<u32>());
    params.distinguished_name.push(DnType::CommonName, unique);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    validity(&mut params, now, CA_LIFE_SECS);
    let certificate = params.self_signed(&key)?;
    Pair::new(certificate.der().clone(), Secret::new(key.serialize_der()))
}

fn make_leaf(authority: &Pair, names: &[String], now: UnixMillis) -> anyhow::Result<Pair> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, LEAF_LIFE_SECS);
    let issuer = Issuer::from_ca_cert_der(&authority.certificate, KeyPair::try_from(&authority.private())?)?;
    let certificate = params.signed_by(&key, &issuer)?;
    Pair::new(certificate.der().clone(), Secret::new(key.serialize_der()))
}

fn is_signed_by(leaf: &Pair, authority: &Pair) -> bool {
    let parsed = x509_parser::parse_x509_certificate(&leaf.certificate)
        .and_then(|(_, leaf)| Ok((leaf, x509_parser::parse_x509_certificate(&authority.certificate)?.1)));
    parsed.is_ok_and(|(leaf, authority)| leaf.verify_signature(Some(authority.public_key())).is_ok())
}

fn names_of(leaf: &Pair) -> Option<Vec<String>> {
    use x509_parser::extensions::GeneralName;
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf.certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(std::net::IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            _ => Some(std::net::IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().map(text).collect()
}

/// Certificates and their keys, in the same order.
fn pairs(data: &BTreeMap<String, ByteString>, certificates: &str, keys: &str) -> anyhow::Result<Vec<Pair>> {
    let pem =
        |name: &str| data.get(name).map(|pem| pem.0.as_slice()).with_context(|| format!("{name} is missing"));
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem(certificates)?)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{certificates} can't be read"))?;
    let private: Vec<PrivatePkcs8KeyDer<'static>> = PrivatePkcs8KeyDer::pem_slice_iter(pem(keys)?)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{keys} can't be read"))?;
    anyhow::ensure!(
        !certificates.is_empty() && certificates.len() == private.len(),
        "{keys} does not have one key for each certificate"
    );
    let both = certificates.into_iter().zip(private);
    both.map(|(certificate, key)| Pair::new(certificate, Secret::new(key.secret_pkcs8_der().to_vec())))
        .collect()
}

#[cfg(test)]
mod tests {
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls_pki_types::{ServerName, UnixTime};

    use super::*;

    const NAME: &str = "countersign-webhook.countersign.svc";

    fn names() -> Vec<String> {
        vec![NAME.to_owned(), "127.0.0.1".to_owned()]
    }

    fn day(day: i64) -> UnixMillis {
        UnixMillis(1_795_514_400_000).plus_secs(day * DAY)
    }

    /// Whether an API server that has this bundle takes this leaf.
    fn verifies(leaf: &OwnCa, bundle: &OwnCa, now: UnixMillis) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        bundle.authorities.iter().for_each(|authority| roots.add(authority.certificate.clone()).unwrap());
        let provider = service::tls_provider::provider();
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let moment = UnixTime::since_unix_epoch(std::time::Duration::from_millis(now.0.try_into().unwrap()));
        names().iter().all(|name| {
            let name = ServerName::try_from(name.as_str()).unwrap();
            verifier.verify_server_cert(&leaf.leaf.certificate, &[], &name, &[], moment).is_ok()
        })
    }

    #[test]
    fn for_years_every_leaf_is_verified_by_the_bundles_of_a_month_before_and_by_later_ones() {
        let mut held = vec![OwnCa::first(&names(), day(0)).unwrap()];
        for today in 1..800 {
            let last = held.last().unwrap();
            let next = last.advance(&names(), day(today)).unwrap().unwrap_or_else(|| last.clone());
            let stored = OwnCa::from_data(&next.to_data()).unwrap();
            assert_eq!(stored.to_data(), next.to_data());
            held.push(next);
            let now = held.last().unwrap();
            assert!(now.authorities.len() <= 2);
            for before in [9, 29] {
                let Some(then) = usize::try_from(today - before).ok().map(|index| &held[index]) else {
                    continue;
                };
                assert!(
                    verifies(now, then, day(today)),
                    "day {today}: an API server that is {before} days behind"
                );
                if before < 10 {
                    assert!(
                        verifies(then, now, day(today)),
                        "day {today}: a replica that is {before} days behind"
                    );
                }
            }
        }
        let signed =
            held.windows(2).filter(|pair| pair[0].authorities[0].from != pair[1].authorities[0].from);
        assert_eq!(signed.count(), 2, "each CA lived a year");
        assert!(held[400].advance(&names(), day(400)).unwrap().is_none(), "nothing is due");
    }

    #[test]
    fn after_a_long_sleep_it_begins_anew() {
        let old = OwnCa::first(&names(), day(0)).unwrap();
        let new = old.advance(&names(), day(900)).unwrap().unwrap();
        assert_eq!(new.authorities.len(), 1);
        assert!(verifies(&new, &new, day(900)));
        new.certified().unwrap();
    }

    #[test]
    fn another_name_gets_another_leaf() {
        let held = OwnCa::first(&["old.ns.svc".to_owned()], day(0)).unwrap();
        let next = held.advance(&names(), day(0)).unwrap().unwrap();
        assert!(verifies(&next, &held, day(0)));
    }

    #[test]
    fn what_can_t_be_read_is_told() {
        let mut data = OwnCa::first(&names(), day(0)).unwrap().to_data();
        data.insert(AUTHORITY_KEYS.to_owned(), ByteString(b"nothing".to_vec()));
        let error = OwnCa::from_data(&data).unwrap_err();
        assert!(error.to_string().contains("ca.key"), "{error:#}");
        data.remove(AUTHORITY_KEYS);
        assert!(OwnCa::from_data(&data).unwrap_err().to_string().contains("missing"));
    }
}
