//! What the cluster's API server is able to do.

use k8s_openapi::apimachinery::pkg::version::Info;

/// The first version with native sidecars on by default, 1.29 (KEP-753, beta).
const NATIVE_SIDECARS: (u32, u32) = (1, 29);

/// Whether an API server of this version knows native sidecars; one whose version can't be read is taken for an old one.
#[must_use]
pub fn knows_native_sidecars(version: &Info) -> bool {
    number(&version.major).zip(number(&version.minor)).is_some_and(|version| version >= NATIVE_SIDECARS)
}

/// Providers add to the minor version: `29+`.
fn number(text: &str) -> Option<u32> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knows(major: &str, minor: &str) -> bool {
        knows_native_sidecars(&Info { major: major.into(), minor: minor.into(), ..Info::default() })
    }

    #[test]
    fn native_sidecars_come_with_1_29() {
        assert!(knows("1", "29") && knows("1", "29+") && knows("1", "36") && knows("2", "0"));
        assert!(!knows("1", "28") && !knows("1", "28+") && !knows("1", "20"));
        assert!(!knows("", "") && !knows("1", "+") && !knows("one", "29"));
    }
}
