//! What a proxy found out about the redirect that leads to it, and what that means for a mode that was pushed.

use serde::{Deserialize, Serialize};

use crate::slice::Egress;

/// What the rules carry, as the proxy found it by dialling its sentinels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// Whether it leads to the proxy.
    pub state: RedirectState,
    /// Whether what is not TCP is rejected.
    pub rejects_other: bool,
    /// Whether nothing but loopback and the proxy itself is left out.
    pub whole: bool,
}

/// Whether the redirect leads to the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RedirectState {
    /// Not known yet.
    #[default]
    Unknown,
    /// It does, for IPv4 and IPv6.
    Installed,
    /// It does not, or not for both.
    Gone,
    /// It does, and catches the proxy's own connections too.
    Loop,
    /// It does, but another process has the proxy's UID and is exempt like it.
    Shared,
    /// The proxy was told that there is none: applications name it as their proxy.
    Unused,
}

impl RedirectState {
    /// As status and the wire write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Installed => "installed",
            Self::Gone => "gone",
            Self::Loop => "loop",
            Self::Shared => "shared",
            Self::Unused => "unused",
        }
    }

    /// What [`Self::as_str`] wrote; what a newer proxy may say is unknown.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let all = [Self::Installed, Self::Gone, Self::Loop, Self::Shared, Self::Unused];
        all.into_iter().find(|state| state.as_str() == text).unwrap_or_default()
    }
}

impl Redirect {
    /// Why the rules can't carry the egress mode that was pushed; `None` if they can, or nothing is known yet.
    #[must_use]
    pub const fn shortfall(&self, egress: Egress) -> Option<&'static str> {
        match (self.state, egress) {
            (RedirectState::Gone, _) => Some(
                "the redirect is gone: calls go around the proxy; reinstall it with `countersign-proxy capture install`",
            ),
            (RedirectState::Loop, _) => Some(
                "the redirect catches the proxy's own connections: reinstall it with the proxy's UID or mark",
            ),
            (RedirectState::Shared, _) => Some(
                "another process runs with the proxy's UID, and its calls go around the proxy: give the proxy one of its own",
            ),
            (RedirectState::Unused, Egress::Enforce) => {
                Some("no redirect: `enforce` reaches only calls that name the proxy themselves")
            }
            (RedirectState::Installed, Egress::Enforce) if !self.rejects_other => Some(
                "the installed rules can't carry `enforce`: what is not TCP passes; reinstall them with `--other reject`",
            ),
            _ => None,
        }
    }

    /// What `enforce` does not reach because `capture install` was told so.
    #[must_use]
    pub const fn note(&self, egress: Egress) -> Option<&'static str> {
        match (self.state, egress) {
            (RedirectState::Installed, Egress::Enforce) if !self.whole => {
                Some("`enforce` does not reach what `capture install` was told to leave out")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_carried_or_it_is_said_why_not() {
        let redirect = |state, rejects_other, whole| Redirect { state, rejects_other, whole };
        let installed = redirect(RedirectState::Installed, true, true);
        assert_eq!((installed.shortfall(Egress::Enforce), installed.note(Egress::Enforce)), (None, None));
        let passes = redirect(RedirectState::Installed, false, false);
        assert!(passes.shortfall(Egress::Enforce).is_some_and(|why| why.contains("--other reject")));
        assert_eq!(passes.shortfall(Egress::Observe), None);
        assert!(passes.note(Egress::Enforce).is_some() && passes.note(Egress::Observe).is_none());
        let gone = redirect(RedirectState::Gone, false, false);
        assert!(gone.shortfall(Egress::Observe).is_some());
        let unused = redirect(RedirectState::Unused, false, false);
        assert!(unused.shortfall(Egress::Enforce).is_some() && unused.shortfall(Egress::Observe).is_none());
        assert_eq!(Redirect::default().shortfall(Egress::Enforce), None);
    }

    #[test]
    fn a_state_reads_back() {
        let all = [RedirectState::Installed, RedirectState::Gone, RedirectState::Loop, RedirectState::Shared];
        for state in all.into_iter().chain([RedirectState::Unused]) {
            assert_eq!(RedirectState::parse(state.as_str()), state);
        }
        assert_eq!(RedirectState::parse("of a newer proxy"), RedirectState::Unknown);
    }
}
