//! The one order over everything that the store ever held.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// (epoch, revision) of the store. A restored backup starts a new epoch, so that a version is never used twice.
///
/// Ordered by epoch, then revision. Written `epoch.revision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// Grows when a store is restored or replaced.
    pub epoch: u64,
    /// Grows with each change within an epoch.
    pub revision: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.revision)
    }
}

impl FromStr for Version {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, revision) = text.split_once('.').ok_or("a version is written epoch.revision")?;
        match (epoch.parse(), revision.parse()) {
            (Ok(epoch), Ok(revision)) => Ok(Self { epoch, revision }),
            _ => Err("a version is two numbers, written epoch.revision"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_epoch_is_later_than_any_revision() {
        let old = Version { epoch: 1, revision: u64::MAX };
        let new = Version { epoch: 2, revision: 0 };
        assert!(new > old);
        assert_eq!("2.7".parse(), Ok(Version { epoch: 2, revision: 7 }));
        assert!("2".parse::<Version>().is_err());
    }
}
