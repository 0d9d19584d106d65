//! Text for git, which shows it line by line as `remote: …`, if it is `text/plain` (git's `http.c`).

use super::{Form, Said};

pub(super) fn form(said: &Said<'_>) -> Form {
    let entry = said.code.entry();
    // A terminal shows it: what could move its cursor is no letter of ours.
    let detail: String = said.detail.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = format!(
        "{} {}\n{detail}\n{}\nRefused by countersign on this side, not by the server; decision {}\n",
        said.code,
        entry.title,
        entry.remedy_for(said.decision),
        said.decision
    );
    Form::new("text/plain", text)
}

#[cfg(test)]
mod tests {
    use model::{Code, DecisionId};

    use super::*;

    #[test]
    fn what_a_stranger_wrote_stays_on_its_line() {
        let said = Said {
            code: Code::NoPolicyAllows,
            detail: "a\u{1b}[2J\r\nb",
            decision: DecisionId(7),
            nearest: &[],
        };
        let made = form(&said);
        let text = std::str::from_utf8(&made.body).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(!text.contains('\u{1b}'));
    }
}
