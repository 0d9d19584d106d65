//! A JWT of the control plane's own: the destination verifies it by the control plane's JWKS.

use model::{Caller, Code, Failure, GrantId, Secret, UnixMillis};
use resources::kind::JwtSpec;
use resources::values;
use serde_json::{Map, Value, json};

use crate::Issued;

/// A token lives this long unless its provider says otherwise, in seconds.
const TTL_DEFAULT: u32 = 300;

/// And never longer than this, whatever a document says.
const TTL_MOST: u32 = resources::validate::TTL_MAX;

/// `nbf` lies this far back, for destinations whose clock is behind.
const NOT_BEFORE_SECS: i64 = 10;

/// Signs with the key that is in use. Implemented by whoever keeps the keys.
pub trait Signer: Send + Sync {
    /// The key's id, for the header.
    fn key_id(&self) -> &str;

    /// Signs, by ES256 (RFC 7518 §3.4): ECDSA over P-256 with SHA-256, as the two numbers one after the other.
    ///
    /// # Errors
    /// If the key can't be used.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Failure>;
}

/// Makes a token for a caller.
///
/// # Errors
/// [`Code::IssuerRefused`] if a claim needs an attribute that the caller does not have.
pub fn issue(
    spec: &JwtSpec,
    issuer: &str,
    caller: &Caller,
    policy_ttl: Option<u32>,
    signer: &dyn Signer,
    now: UnixMillis,
) -> Result<Issued, Failure> {
    let grant = GrantId(uuid::Uuid::new_v4().simple().to_string().into());
    let configured = spec.ttl.as_deref().and_then(values::duration).unwrap_or(TTL_DEFAULT);
    let ttl = configured.min(policy_ttl.unwrap_or(u32::MAX)).min(TTL_MOST);
    let expires_at = UnixMillis::from_secs(now.as_secs()).plus_secs(i64::from(ttl));
    let mut claims = Map::new();
    for (name, value) in &spec.claims {
        claims.insert(name.clone(), filled(name, value, caller)?);
    }
    // After the provider's own, so that none of them can take the place of one of these.
    claims.insert("iss".to_owned(), issuer.into());
    claims.insert("sub".to_owned(), caller.id.as_str().into());
    claims.insert("aud".to_owned(), json!(spec.audience));
    claims.insert("iat".to_owned(), now.as_secs().into());
    claims.insert("nbf".to_owned(), now.plus_secs(-NOT_BEFORE_SECS).as_secs().into());
    claims.insert("exp".to_owned(), expires_at.as_secs().into());
    claims.insert("jti".to_owned(), grant.0.as_ref().into());
    let credential = signed(&Value::Object(claims), signer)?;
    Ok(Issued { grant, credential, expires_at })
}

/// A claim with its `{attribute}`s replaced.
fn filled(name: &str, value: &Value, caller: &Caller) -> Result<Value, Failure> {
    let Some(template) = value.as_str() else { return Ok(value.clone()) };
    let text = values::fill_template(template, |attribute| {
        caller.attributes.get(attribute).cloned().ok_or_else(|| {
            let detail =
                format!("claim `{name}` needs `{attribute}`, which the caller's evidence does not prove");
            Failure::new(Code::IssuerRefused, detail)
        })
    })?;
    Ok(Value::String(text))
}

/// The compact serialisation (RFC 7515 §3.1).
fn signed(claims: &Value, signer: &dyn Signer) -> Result<Secret, Failure> {
    use base64::Engine as _;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let header = json!({ "alg": "ES256", "typ": "JWT", "kid": signer.key_id() });
    let message =
        format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
    let signature = signer.sign(message.as_bytes())?;
    Ok(Secret::new(format!("{message}.{}", encode(&signature)).into_bytes()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use jsonwebtoken::{Algorithm, DecodingKey, Validation};
    use model::Attestation;
    use model::name::{Namespace, SpiffeId};

    use super::*;

    struct Key(EcdsaKeyPair);

    impl Signer for Key {
        fn key_id(&self) -> &str {
            "k1"
        }

        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Failure> {
            Ok(self.0.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec())
        }
    }

    fn caller() -> Caller {
        Caller {
            id: SpiffeId::new("spiffe://demo/ns/payments/sa/billing").unwrap(),
            namespace: Namespace::new("payments").unwrap(),
            attributes: [("kubernetes.pod.name".to_owned(), "billing-1".to_owned())].into(),
            attestation: Attestation {
                provider: "p".into(),
                kind: "oidc".into(),
                issued_at: UnixMillis(0),
                expires_at: UnixMillis(0),
            },
        }
    }

    fn spec(claims: &[(&str, Value)]) -> JwtSpec {
        JwtSpec {
            audience: vec!["https://a.example".into()],
            ttl: Some("10m".into()),
            claims: claims.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect::<BTreeMap<_, _>>(),
        }
    }

    fn now() -> UnixMillis {
        UnixMillis::from_system(std::time::SystemTime::now())
    }

    #[test]
    fn a_token_verifies_and_says_who() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let public = pair.public_key().as_ref().to_vec();
        let claims =
            [("team", json!("payments")), ("pod", json!("{kubernetes.pod.name}")), ("iss", json!("forged"))];
        let issued =
            issue(&spec(&claims), "https://issuer", &caller(), Some(120), &Key(pair), now()).unwrap();
        let token = std::str::from_utf8(issued.credential.expose()).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&["https://a.example"]);
        validation.set_issuer(&["https://issuer"]);
        let (x, y) = (&public[1..33], &public[33..]);
        use base64::Engine as _;
        let b64 = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let key = DecodingKey::from_ec_components(&b64(x), &b64(y)).unwrap();
        let claims = jsonwebtoken::decode::<Value>(token, &key, &validation).unwrap().claims;
        assert_eq!(claims["sub"], "spiffe://demo/ns/payments/sa/billing");
        assert_eq!((&claims["team"], &claims["pod"]), (&json!("payments"), &json!("billing-1")));
        assert_eq!(claims["jti"], *issued.grant.0);
        assert_eq!(
            claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
            120,
            "the shorter of the two"
        );
    }

    #[test]
    fn a_claim_that_nobody_proved_is_refused() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let claims = [("x", json!("{kubernetes.node.name}"))];
        let failure =
            issue(&spec(&claims), "https://issuer", &caller(), None, &Key(pair), now()).unwrap_err();
        assert_eq!(failure.code, Code::IssuerRefused);
    }
}
