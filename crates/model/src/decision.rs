//! Allow or deny, and why.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Code;
use crate::name::ResourceRef;
use crate::time::UnixMillis;
use crate::version::Version;

/// What policy says of one request, with all that is needed to explain it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Allow or deny.
    pub verdict: Verdict,
    /// The policies that determined it: those that allowed, or the guardrails that forbade. Empty if none allowed.
    pub policies: Vec<ResourceRef>,
    /// The policies that came closest, best first, with what each of them missed; for a deny only.
    pub nearest: Vec<NearMiss>,
    /// The version of the slice that was asked.
    pub version: Version,
    /// The first moment at which an input can change by itself; until then, for the same slice and the same facts,
    /// the decision may be reused.
    pub valid_until: UnixMillis,
}

/// The outcome of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The call may be made.
    Allow {
        /// With this credential; `None` if the policies name none.
        credential: Option<ResourceRef>,
        /// The longest life that the policies allow for it, in seconds.
        ttl_seconds: Option<u32>,
    },
    /// The call may not be made.
    Deny {
        /// Which refusal.
        code: Code,
        /// One sentence in the user's nouns, without a secret.
        reason: String,
    },
}

impl Verdict {
    /// Whether the call may be made.
    #[must_use]
    pub const fn is_allow(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

/// A policy that names this caller and destination but did not allow the call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearMiss {
    /// Which policy.
    pub policy: ResourceRef,
    /// What did not hold.
    pub failed: Vec<Miss>,
}

/// One thing that a policy asked for and the call did not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// `method`, `path`, `condition` or `when`.
    pub what: String,
    /// The value seen; never a secret, never a query.
    pub seen: String,
    /// The values allowed, as the document has them.
    pub allowed: Vec<String>,
}

/// Names one decision in answers, logs and audit: 13 characters of Crockford's base 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DecisionId(pub u64);

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl DecisionId {
    /// Its characters, which are ASCII.
    #[must_use]
    pub fn digits(self) -> [u8; 13] {
        std::array::from_fn(|i| CROCKFORD[(self.0 >> (60 - 5 * i)) as usize & 31])
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.digits()).unwrap_or_default())
    }
}

impl FromStr for DecisionId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = "a decision id is 13 letters and digits";
        if text.len() != 13 {
            return Err(refuse);
        }
        let mut value: u128 = 0;
        for byte in text.bytes() {
            let digit = CROCKFORD.iter().position(|c| *c == byte.to_ascii_uppercase()).ok_or(refuse)?;
            value = value << 5 | digit as u128;
        }
        u64::try_from(value).map(Self).map_err(|_| refuse)
    }
}

impl TryFrom<String> for DecisionId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DecisionId> for String {
    fn from(id: DecisionId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back() {
        for id in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            let text = DecisionId(id).to_string();
            assert_eq!(text.len(), 13);
            assert_eq!(text.parse(), Ok(DecisionId(id)));
        }
        assert!("ZZZZZZZZZZZZZ".parse::<DecisionId>().is_err(), "more than 64 bits");
    }
}
