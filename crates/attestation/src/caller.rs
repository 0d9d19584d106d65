//! How a caller is named by what its evidence proved.

use std::collections::BTreeMap;

use model::name::{Namespace, SpiffeId};
use model::{Attestation, Caller, Code, Failure, InstanceId, UnixMillis};
use resources::kind::CallerSpec;

/// A caller whose evidence was verified, and the running copy that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Who.
    pub caller: Caller,
    /// Which running copy.
    pub instance: InstanceId,
}

/// When evidence was issued and when it ends.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// `iat`.
    pub issued_at: UnixMillis,
    /// `exp`.
    pub expires_at: UnixMillis,
}

/// Names the caller as the trust provider says.
///
/// # Errors
/// [`Code::EvidenceInvalid`] if an attribute that is needed is missing, or has what a name can't: a value never becomes
/// more than one segment of the path.
pub fn name(
    trust_domain: &str,
    provider: &str,
    kind: &str,
    spec: &CallerSpec,
    attributes: BTreeMap<String, String>,
    validity: Validity,
) -> Result<Verified, Failure> {
    let invalid = |detail: String| Failure::new(Code::EvidenceInvalid, detail);
    let path = fill(&spec.path, &attributes)?;
    let id = SpiffeId::new(&format!("spiffe://{trust_domain}/{path}"))
        .map_err(|error| invalid(format!("the evidence gives no name: {error}")))?;
    let namespace = Namespace::new(&fill(&spec.namespace, &attributes)?)
        .map_err(|error| invalid(format!("the evidence gives no namespace: {error}")))?;
    let instance =
        attributes.get(&spec.instance).filter(|value| !value.is_empty() && value.len() <= 256).ok_or_else(
            || invalid(format!("the evidence does not prove `{}`, which names the instance", spec.instance)),
        )?;
    Ok(Verified {
        instance: InstanceId(instance.as_str().into()),
        caller: Caller {
            id,
            namespace,
            attestation: Attestation {
                provider: provider.into(),
                kind: kind.into(),
                issued_at: validity.issued_at,
                expires_at: validity.expires_at,
            },
            attributes,
        },
    })
}

/// Puts attributes into a template. A value must be one segment of a SPIFFE ID's path (SPIFFE-ID §2.2) as it is: nothing
/// is escaped or repaired, so that two values never become one name.
fn fill(template: &str, attributes: &BTreeMap<String, String>) -> Result<String, Failure> {
    let invalid = |detail: String| Failure::new(Code::EvidenceInvalid, detail);
    resources::values::fill_template(template, |name| {
        let value =
            attributes.get(name).ok_or_else(|| invalid(format!("the evidence does not prove `{name}`")))?;
        let segment = !value.is_empty()
            && value != "."
            && value != ".."
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if segment {
            Ok(value.clone())
        } else {
            Err(invalid(format!("the evidence's `{name}` can't be part of a name")))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> CallerSpec {
        CallerSpec { path: "ns/{ns}/sa/{sa}".into(), namespace: "{ns}".into(), instance: "uid".into() }
    }

    fn named(pairs: &[(&str, &str)]) -> Result<Verified, Failure> {
        let attributes = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let validity = Validity { issued_at: UnixMillis(1), expires_at: UnixMillis(2) };
        name("demo", "p", "oidc", &spec(), attributes, validity)
    }

    #[test]
    fn attributes_make_the_name() {
        let verified = named(&[("ns", "payments"), ("sa", "billing"), ("uid", "u-1")]).unwrap();
        assert_eq!(verified.caller.id.as_str(), "spiffe://demo/ns/payments/sa/billing");
        assert_eq!((verified.caller.namespace.as_str(), &*verified.instance.0), ("payments", "u-1"));
    }

    #[test]
    fn a_value_is_one_segment_or_nothing() {
        for sa in ["a/b", "..", ".", "", "a b", "a%2fb", "{ns}", "ä"] {
            let failure = named(&[("ns", "payments"), ("sa", sa), ("uid", "u-1")]).unwrap_err();
            assert_eq!(failure.code, Code::EvidenceInvalid, "{sa}");
        }
        assert!(named(&[("ns", "payments"), ("uid", "u")]).is_err(), "an attribute is missing");
        assert!(named(&[("ns", "payments"), ("sa", "a")]).is_err(), "the instance is missing");
        assert!(named(&[("ns", "Payments"), ("sa", "a"), ("uid", "u")]).is_err(), "not a namespace");
    }
}
