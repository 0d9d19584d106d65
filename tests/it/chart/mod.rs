//! The chart, rendered by the real helm over a matrix of values and versions of Kubernetes, and judged: as objects of
//! their types, by what they say of each other, and by what our programs take.

mod examples;
mod objects;
mod values;
mod wiring;

use std::sync::OnceLock;

use serde_json::Value;
use tests::Helm;

/// The oldest that the chart is for; the last without CEL rules; the first with native sidecars; the newest.
const VERSIONS: [&str; 4] = ["1.20.0", "1.24.0", "1.29.0", "1.36.0"];

/// What one set of values makes for one version.
pub(super) struct Rendered {
    /// Which values, for which version.
    pub(super) name: String,
    /// `major.minor.patch`.
    pub(super) version: &'static str,
    pub(super) objects: Vec<Value>,
}

/// Every `ci/*-values.yaml` of the chart, for every version; nothing where there is no helm.
pub(super) fn matrix() -> &'static [Rendered] {
    // Rendered once for all tests: they only look.
    static MATRIX: OnceLock<Vec<Rendered>> = OnceLock::new();
    MATRIX.get_or_init(render)
}

fn render() -> Vec<Rendered> {
    let Some(helm) = Helm::found().unwrap() else { return Vec::new() };
    let mut rendered = Vec::new();
    let mut files: Vec<_> =
        std::fs::read_dir(helm.chart().join("ci")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        let stem = file.file_stem().unwrap().to_str().unwrap().to_owned();
        for version in VERSIONS {
            // A namespace of another name shows what is bound to the usual one.
            let namespace = if version == "1.29.0" { "security" } else { "countersign-system" };
            let objects = helm.render(namespace, version, &["--values", file.to_str().unwrap()]);
            let name = format!("{stem}, Kubernetes {version}");
            rendered.push(Rendered {
                objects: objects.unwrap_or_else(|error| panic!("{name}: {error:#}")),
                name,
                version,
            });
        }
    }
    rendered
}

/// A field's text, or an empty one.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// What an object is called when something is wrong with it.
pub(super) fn called(object: &Value) -> String {
    format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"))
}

/// Whether an object is a hook, which exists only while helm runs it.
pub(super) fn is_hook(object: &Value) -> bool {
    object.pointer("/metadata/annotations/helm.sh~1hook").is_some()
}

#[test]
fn the_chart_passes_helm_s_lint_with_every_set_of_values() {
    let Some(helm) = Helm::found().unwrap() else { return };
    let chart = helm.chart();
    for entry in std::fs::read_dir(chart.join("ci")).unwrap() {
        let file = entry.unwrap().path();
        let output = helm
            .run(&[
                "lint".as_ref(),
                "--strict".as_ref(),
                chart.as_os_str(),
                "--values".as_ref(),
                file.as_os_str(),
            ])
            .unwrap();
        assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn a_value_that_means_nothing_is_refused_by_its_name() {
    let Some(helm) = Helm::found().unwrap() else { return };
    let cases = [
        ("control.replicas=2", "replicas"),
        ("control.replicaCount=2", "replicaCount"),
        ("webhook.failurePolicy=Sometimes", "failurePolicy"),
        ("webhook.timeoutSeconds=31", "timeoutSeconds"),
        ("proxy.resources.limits.memory=1GB", "memory"),
        ("proxy.image.digest=latest", "digest"),
        ("proxy.extraArgs[0]=max-headers", "extraArgs"),
        ("trustDomain=Example.Org", "trustDomain"),
        ("egress.mode=deny", "mode"),
        ("crd.enabled=false", "crd"),
    ];
    for (set, named) in cases {
        let said = helm.render("countersign-system", "1.36.0", &["--set", set]).unwrap_err().to_string();
        assert!(said.contains(named), "{set}: {said}");
    }
    let condition = "webhook.matchConditions[0].name=a,webhook.matchConditions[0].expression=a";
    let said = helm.render("countersign-system", "1.27.0", &["--set", condition]).unwrap_err().to_string();
    assert!(said.contains("webhook.matchConditions needs Kubernetes 1.28"), "{said}");
    let said = helm.render("countersign-system", "1.19.0", &[]).unwrap_err().to_string();
    assert!(said.contains(">=1.20.0-0"), "{said}");
}
