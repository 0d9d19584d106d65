//! Values, their comments, their schema and the README agree.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::chart::documented;

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/countersign")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(chart().join(name)).unwrap()
}

#[test]
fn every_value_has_its_comment_and_its_place_in_the_schema() {
    let documented: BTreeSet<String> =
        documented(&read("values.yaml")).unwrap().into_iter().map(|value| value.path).collect();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).unwrap();
    let mut in_schema = BTreeSet::new();
    leaves(&schema, "", &documented, &mut |schema, path| {
        assert!(schema.get("additionalProperties") != Some(&Value::Bool(true)), "{path}");
        in_schema.insert(path.to_owned());
    });
    // Helm itself puts this there.
    in_schema.remove("global");
    assert_eq!(in_schema, documented, "left: in the schema; right: in comments");
    // What the schema knows, the file has: the schema is closed, so that helm refuses what it does not know.
    for path in &documented {
        assert!(values.pointer(&format!("/{}", path.replace('.', "/"))).is_some(), "{path}");
    }
}

/// Calls with each value: what has no parts, or is spoken of as a whole.
fn leaves(schema: &Value, path: &str, documented: &BTreeSet<String>, each: &mut impl FnMut(&Value, &str)) {
    let Some(parts) = schema["properties"].as_object().filter(|_| !documented.contains(path)) else {
        return each(schema, path);
    };
    assert_eq!(schema["additionalProperties"], false, "{path} must be closed");
    for (name, schema) in parts {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        leaves(schema, &path, documented, each);
    }
}

#[test]
fn the_chart_s_version_is_that_of_the_programs() {
    let chart: Value = serde_saphyr::from_str(&read("Chart.yaml")).unwrap();
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_dashboard_asks_for_metrics_that_the_programs_have() {
    let dashboard = read("files/dashboards/countersign.json");
    let parsed: Value = serde_json::from_str(&dashboard).unwrap();
    assert!(parsed["panels"].as_array().unwrap().len() > 8);
    let mut sources = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates"), &mut sources);
    let mut asked = BTreeSet::new();
    for part in dashboard.split("countersign_").skip(1) {
        let name: String =
            part.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect();
        // What Prometheus makes of a histogram.
        let of = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(&name);
        asked.insert(format!("\"countersign_{of}\""));
    }
    assert!(asked.len() > 8, "{asked:?}");
    for name in asked {
        assert!(sources.iter().any(|source| source.contains(&name)), "no program counts {name}");
    }
}

/// The text of every Rust file below a folder.
fn collect(folder: &Path, sources: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(std::fs::read_to_string(path).unwrap());
        }
    }
}
