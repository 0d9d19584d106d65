//! What people copy: examples and the manifests of `make e2e`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::objects::{as_its_type, assert_kept};
use super::{called, text};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn objects(file: &Path) -> Vec<Value> {
    let content = std::fs::read_to_string(file).unwrap();
    serde_saphyr::from_multiple(&content).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

#[test]
fn every_object_that_people_copy_is_wholly_of_its_type() {
    let mut seen = 0;
    for folder in ["examples/kubernetes", "tests/e2e", "deploy/manifests"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            // Our own kinds are for the command line to judge.
            let ours = |object: &Value| text(object, "/apiVersion").starts_with("countersign.dev/");
            for object in objects(&file).into_iter().filter(|object| !ours(object)) {
                let place = format!("{}: {}", file.display(), called(&object));
                let known = as_its_type(&object).unwrap_or_else(|error| panic!("{place}: {error:#}"));
                assert_kept(&object, &known, &place);
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "{seen}");
}

#[test]
fn with_the_key_and_without_it_differ_by_the_label_and_the_key() {
    let folder = root().join("examples/kubernetes");
    let mut with = objects(&folder.join("with-a-key.yaml"));
    let mut without = objects(&folder.join("without-a-key.yaml"));
    let label = without[0]["metadata"]["labels"].as_object_mut().unwrap().remove("countersign.dev/inject");
    assert_eq!(label, Some(Value::from("enabled")));
    let before = with.len();
    with.retain(|object| object["kind"] != "Secret");
    assert_eq!(before - with.len(), 1, "one Secret");
    let mut keys = 0;
    for object in &mut with {
        if let Some(container) = object.pointer_mut("/spec/template/spec/containers/0") {
            let environment = container.as_object_mut().unwrap().remove("env").unwrap();
            assert_eq!(
                environment.pointer("/0/valueFrom/secretKeyRef/name"),
                Some(&Value::from("payments-key"))
            );
            keys += 1;
        }
    }
    assert_eq!(keys, 2, "one application in each language");
    assert_eq!(with, without);
}
