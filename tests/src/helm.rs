//! The real helm, by which the project's chart is rendered and installed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::Context as _;
use serde_json::Value;

/// Exit code of `.ci/helm` where helm is not there and can't be built.
const NOT_THERE: i32 = 127;

/// Helm, with the project's chart.
#[derive(Clone, Debug)]
pub struct Helm {
    root: PathBuf,
}

impl Helm {
    /// Builds it at the first use. Where it can't be built that is said, since its part of a test is left out then.
    ///
    /// # Errors
    /// If its script can't be run.
    #[allow(clippy::print_stderr, reason = "a test says what it leaves out")]
    pub fn found() -> anyhow::Result<Option<Self>> {
        let helm = Self { root: Path::new(env!("CARGO_MANIFEST_DIR")).join("..") };
        let output = helm.run(&["version"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => Ok(Some(helm)),
            Some(NOT_THERE) => {
                eprintln!("left out: {}", said.trim());
                Ok(None)
            }
            _ => anyhow::bail!("helm: {said}"),
        }
    }

    /// The chart's directory.
    #[must_use]
    pub fn chart(&self) -> PathBuf {
        self.root.join("charts/countersign")
    }

    /// Runs it with these arguments.
    ///
    /// # Errors
    /// If its script can't be run.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> anyhow::Result<Output> {
        let script = self.root.join(".ci/helm");
        Command::new(&script).args(arguments).output().with_context(|| script.display().to_string())
    }

    /// What the chart makes for a version of Kubernetes, object by object, in the order in which helm would create them;
    /// these are arguments of `helm template`.
    ///
    /// # Errors
    /// If it renders nothing; what helm said is in the message.
    pub fn render(&self, namespace: &str, version: &str, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let chart = self.chart();
        let chart = chart.to_str().context("the chart's path is not text")?;
        let fixed = ["template", "countersign", chart, "--namespace", namespace, "--kube-version", version];
        let output = self.run(&[&fixed, arguments].concat())?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).context("what helm has rendered")?;
        Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
    }
}
