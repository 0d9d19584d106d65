//! What was found, for people and for programs.

use serde_json::{Value, json};
use service::trust::{self, Bundle, Form};

use crate::table;

/// Whether a runtime trusts the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It has read an answer.
    Yes,
    /// It says that it does not.
    No,
    /// It failed for another reason.
    Unsure,
}

impl Trust {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unsure => "unsure",
        }
    }
}

/// What one runtime said.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Its name.
    pub runtime: &'static str,
    /// Its version; may be empty.
    pub version: String,
    /// Whether it trusts the proxy.
    pub trust: Trust,
    /// Which of its variables are set.
    pub set: Vec<&'static str>,
    /// The last line that it said.
    pub said: String,
    /// What to do where no variable helps.
    pub otherwise: &'static str,
}

impl Finding {
    fn name(&self) -> String {
        format!("{} {}", self.runtime, self.version).trim_end().to_owned()
    }

    /// By which variables, or why not.
    fn how(&self) -> String {
        let reads: Vec<_> = trust::read_by(self.runtime).map(|variable| variable.name).collect();
        match (self.trust, reads.is_empty(), self.set.is_empty()) {
            (Trust::Yes, _, false) => self.set.join(", "),
            (Trust::Yes, _, true) => "the system's store".to_owned(),
            (_, true, _) => "reads no variable".to_owned(),
            (_, _, true) => {
                format!("{} {} not set", reads.join(", "), if reads.len() == 1 { "is" } else { "are" })
            }
            (Trust::Unsure, _, false) => format!("{} is set", self.set.join(", ")),
            (Trust::No, _, false) => format!("{} is set, and does not help", self.set.join(", ")),
        }
    }

    /// What to do; `None` if nothing is to be done.
    fn remedy(&self, bundle: &Bundle) -> Option<String> {
        if self.trust == Trust::Yes {
            return None;
        }
        if self.trust == Trust::Unsure {
            return Some("look at what it said; it failed for another reason than trust".to_owned());
        }
        let reads: Vec<_> = trust::read_by(self.runtime).collect();
        // One that is set already is the one to correct.
        let set = reads.iter().find(|variable| self.set.contains(&variable.name));
        let variable = set.or_else(|| reads.first());
        let Some(variable) = variable else {
            return Some(self.otherwise.replace("{bundle}", &bundle.pem));
        };
        let value = variable.value(bundle);
        let value = if variable.form == Form::Java { format!("'{value}'") } else { value };
        Some(format!("{}={value}", variable.name))
    }
}

/// For people. `mark` gives `ok`, `fail` and the rest their symbols.
pub fn text(url: &str, findings: &[Finding], bundle: &Bundle, mark: &dyn Fn(&str) -> String) -> String {
    let rows: Vec<Vec<String>> = findings
        .iter()
        .map(|finding| vec![finding.name(), finding.trust.as_str().to_owned(), finding.how()])
        .collect();
    let table = table::plain(&["RUNTIME", "TRUSTS", "HOW"], &rows);
    let mut text = format!("Calling {url}\n\n");
    for (index, line) in table.lines().enumerate() {
        let mark = match index.checked_sub(1).map(|index| findings[index].trust) {
            None => " ".to_owned(),
            Some(Trust::Yes) => mark("ok"),
            Some(Trust::No) => mark("fail"),
            Some(Trust::Unsure) => mark("unsure"),
        };
        text.push_str(&format!("{mark} {line}\n"));
    }
    let doubtful: Vec<_> = findings.iter().filter(|finding| finding.trust != Trust::Yes).collect();
    if doubtful.is_empty() {
        return text + "\nAll of them trust the proxy.\n";
    }
    text.push_str(&format!(
        "\n{} of {} do not trust the proxy, or may not:\n",
        doubtful.len(),
        findings.len()
    ));
    for finding in doubtful {
        text.push_str(&format!("\n{}\n  said  {}\n", finding.name(), finding.said));
        if let Some(remedy) = finding.remedy(bundle) {
            let word = if finding.trust == Trust::No && finding.otherwise.is_empty() { "set" } else { "do" };
            text.push_str(&format!("  {word:<4}  {remedy}\n"));
        }
    }
    text + "\nSet it where the application is started, not in a shell's file, and start it again: docs/trust.md.\n"
}

/// For programs.
pub fn json(url: &str, findings: &[Finding], bundle: &Bundle) -> Value {
    let runtimes: Vec<_> = findings
        .iter()
        .map(|finding| {
            let reads: Vec<_> = trust::read_by(finding.runtime).map(|variable| variable.name).collect();
            json!({
                "runtime": finding.runtime, "version": finding.version, "trusts": finding.trust.as_str(),
                "set": finding.set, "reads": reads, "said": finding.said, "remedy": finding.remedy(bundle),
            })
        })
        .collect();
    json!({ "url": url, "runtimes": runtimes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        let finding = |runtime, version: &str, trust, set: &[&'static str], said: &str, otherwise| Finding {
            runtime,
            version: version.to_owned(),
            trust,
            set: set.to_vec(),
            said: said.to_owned(),
            otherwise,
        };
        vec![
            finding("curl", "7.88.1", Trust::Yes, &["SSL_CERT_FILE"], "", ""),
            finding(
                "wget",
                "1.21.3",
                Trust::No,
                &[],
                "ERROR: The certificate is not trusted.",
                "write `ca_certificate = {bundle}` to ~/.wgetrc",
            ),
            finding(
                "node",
                "20.20.2",
                Trust::No,
                &[],
                "TypeError: fetch failed SELF_SIGNED_CERT_IN_CHAIN",
                "",
            ),
            finding(
                "java",
                "",
                Trust::No,
                &["JAVA_TOOL_OPTIONS"],
                "the trustAnchors parameter must be non-empty",
                "",
            ),
            finding("git", "2.39.5", Trust::Unsure, &["GIT_SSL_CAINFO"], "fatal: Could not resolve host", ""),
        ]
    }

    #[test]
    fn people_read_what_to_set() {
        let bundle = Bundle::at("/run/countersign/trust/ca-bundle.pem");
        let plain = |mark: &str| {
            match mark {
                "ok" => "✓",
                "fail" => "✗",
                _ => "–",
            }
            .to_owned()
        };
        insta::assert_snapshot!(text("https://localhost:15021/", &findings(), &bundle, &plain));
        insta::assert_snapshot!(text("https://localhost:15021/", &findings()[..1], &bundle, &plain));
    }

    #[test]
    fn programs_read_the_same() {
        let bundle = Bundle::at("/run/countersign/trust/ca-bundle.pem");
        insta::assert_json_snapshot!(json("https://localhost:15021/", &findings(), &bundle));
    }
}
