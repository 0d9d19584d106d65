//! Runs one runtime against the URL, with the environment that doctor itself was given.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::probes::{Answered, DISTRUST, NOT_INSTALLED, Probe};
use super::report::{Finding, Trust};

/// How long one runtime may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    url: String,
    /// The host's name.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Target {
    /// Reads `https://host:port/path`; `None` if it is something else.
    pub fn parse(url: &str) -> Option<Self> {
        let uri: http::Uri = url.parse().ok()?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https"))?.to_owned();
        Some(Self { url: url.to_owned(), host, port: uri.port_u16().unwrap_or(443) })
    }

    /// `host:port`.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Puts the target into a template: `{url}`, `{base}` (which ends in a slash), `{host}`, `{authority}`, and
    /// `{directory}` for a place to write to.
    fn fill(&self, template: &str, directory: &Path) -> String {
        template
            .replace("{url}", &self.url)
            .replace("{base}", &format!("{}/", self.url.trim_end_matches('/')))
            .replace("{host}", &self.host)
            .replace("{authority}", &self.authority())
            .replace("{directory}", &directory.display().to_string())
    }

    fn is_local(&self) -> bool {
        self.host == "localhost"
    }
}

/// What a runtime says; `None` if it is not installed here.
pub async fn ask(probe: &Probe, target: &Target) -> Option<Finding> {
    let programs: Option<Vec<PathBuf>> = probe.programs.iter().map(|program| find(program)).collect();
    let program = programs?.into_iter().next()?;
    let directory = Scratch::new()?;
    let mut command = Command::new(&program);
    for arg in probe.args {
        command.arg(target.fill(arg, &directory.0));
    }
    for (name, value) in probe.env {
        command.env(name, target.fill(value, &directory.0));
    }
    if target.is_local() {
        // The proxy's own port is not to be reached through a proxy that the environment names.
        command.env("NO_PROXY", "localhost").env("no_proxy", "localhost");
    }
    command.current_dir(&directory.0).stdin(Stdio::null()).kill_on_drop(true);
    let (trust, said) = match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => (Trust::Unsure, format!("it did not end in {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => (Trust::Unsure, format!("it could not be started: {error}")),
        Ok(Ok(output)) => {
            let exit = output.status.code().unwrap_or(-1);
            if exit == NOT_INSTALLED {
                return None;
            }
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            (judge(probe, exit, &said), last_line(&said))
        }
    };
    let set = service::trust::read_by(probe.runtime)
        .filter(|variable| std::env::var_os(variable.name).is_some_and(|value| !value.is_empty()))
        .map(|variable| variable.name)
        .collect();
    Some(Finding {
        runtime: probe.runtime,
        version: version(probe, &program).await,
        trust,
        set,
        said,
        otherwise: probe.otherwise,
    })
}

/// Distrust is looked for first: some of them say in the end only that they found nothing.
fn judge(probe: &Probe, exit: i32, said: &str) -> Trust {
    let said = said.to_lowercase();
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| said.contains(phrase));
    let answered = match probe.answered {
        Answered::Exit(codes) => codes.contains(&exit),
        Answered::Says(phrases) => exit == 0 || says(phrases),
    };
    match (says(DISTRUST), answered) {
        (true, _) => Trust::No,
        (false, true) => Trust::Yes,
        (false, false) => Trust::Unsure,
    }
}

/// The last line that is about something, cut to what fits a line.
fn last_line(said: &str) -> String {
    let line = said.lines().rev().map(str::trim).find(|line| line.chars().any(char::is_alphanumeric));
    line.unwrap_or_default().chars().filter(|c| !c.is_control()).take(160).collect()
}

/// The first number that it gives for its version; empty if it has none.
async fn version(probe: &Probe, program: &Path) -> String {
    if probe.version.is_empty() {
        return String::new();
    }
    let mut command = Command::new(program);
    command.args(probe.version).stdin(Stdio::null()).kill_on_drop(true);
    let Ok(Ok(output)) = tokio::time::timeout(PATIENCE, command.output()).await else {
        return String::new();
    };
    first_number(&String::from_utf8_lossy(&output.stdout))
}

fn first_number(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c == ',');
    let number = |word: &str| {
        let word = word.trim_start_matches(|c: char| !c.is_ascii_digit());
        word.contains('.').then(|| word.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect())
    };
    words.take(12).find_map(number).unwrap_or_default()
}

/// A program on the path.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// A directory that ends with the question.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Option<Self> {
        let unique = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos();
        let path = std::env::temp_dir().join(format!("countersign-doctor-{}-{unique}", std::process::id()));
        // Fails if somebody else made it first: then it is not ours to run anything in.
        std::fs::create_dir(&path).ok()?;
        Some(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::probes::PROBES;
    use super::*;

    fn probe(runtime: &str) -> &'static Probe {
        PROBES.iter().find(|probe| probe.runtime == runtime).unwrap()
    }

    /// What they really say, of trust and of its lack.
    #[test]
    fn answers_are_told_apart() {
        let cases: [(&str, i32, &str, Trust); 17] = [
            ("curl", 0, "", Trust::Yes),
            (
                "curl",
                60,
                "curl: (60) SSL certificate problem: unable to get local issuer certificate",
                Trust::No,
            ),
            ("curl", 77, "curl: (77) error setting certificate verify locations:  CAfile: /none", Trust::No),
            ("curl", 28, "curl: (28) Operation timed out", Trust::Unsure),
            ("wget", 5, "ERROR: The certificate of ‘localhost’ is not trusted.", Trust::No),
            ("wget", 8, "https://a.example/: 2026-11-25 ERROR 403: Denied by policy CS5001.", Trust::Yes),
            ("openssl", 1, "verify error:num=20:unable to get local issuer certificate", Trust::No),
            (
                "python ssl",
                1,
                "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>",
                Trust::No,
            ),
            (
                "node",
                1,
                "TypeError: fetch failed SELF_SIGNED_CERT_IN_CHAIN Error: self-signed certificate",
                Trust::No,
            ),
            (
                "java",
                1,
                "keytool error: javax.net.ssl.SSLHandshakeException: PKIX path building failed: x",
                Trust::No,
            ),
            ("java", 1, "the trustAnchors parameter must be non-empty", Trust::No),
            ("java", 1, "keytool error: java.security.cert.CRLException: No CRL data found", Trust::Yes),
            (
                "go",
                1,
                "tls: failed to verify certificate: x509: certificate signed by unknown authority",
                Trust::No,
            ),
            ("go", 1, "invalid response from proxy \"https://localhost\": invalid character 'c'", Trust::Yes),
            (
                "git",
                128,
                "fatal: https://localhost/info/refs not valid: is this a git repository?",
                Trust::Yes,
            ),
            (
                "pip",
                1,
                "There was a problem confirming the ssl certificate\nERROR: No matching distribution found",
                Trust::No,
            ),
            ("cargo", 101, "[60] SSL peer certificate or SSH remote key was not OK", Trust::No),
        ];
        for (runtime, exit, said, trust) in cases {
            assert_eq!(judge(probe(runtime), exit, said), trust, "{runtime} {said}");
        }
    }

    #[test]
    fn every_runtime_that_a_variable_is_for_is_asked() {
        for variable in service::trust::VARIABLES {
            for runtime in variable.read_by {
                assert!(PROBES.iter().any(|probe| probe.runtime == *runtime), "{runtime}");
            }
        }
        for probe in PROBES {
            let helped = service::trust::read_by(probe.runtime).next().is_some();
            assert_ne!(helped, !probe.otherwise.is_empty(), "{} has exactly one remedy", probe.runtime);
        }
    }

    #[test]
    fn versions_and_urls() {
        assert_eq!(first_number("curl 7.88.1 (x86_64-pc-linux-gnu) libcurl/7.88.1"), "7.88.1");
        assert_eq!(first_number("go version go1.26.8 linux/amd64"), "1.26.8");
        assert_eq!(first_number("v20.20.2\n"), "20.20.2");
        assert_eq!(first_number("none"), "");
        let target = Target::parse("https://localhost:15021/").unwrap();
        assert_eq!(target.authority(), "localhost:15021");
        assert_eq!(Target::parse("https://a.example/b").unwrap().port, 443);
        assert!(Target::parse("http://a.example/").is_none() && Target::parse("a.example").is_none());
    }
}
