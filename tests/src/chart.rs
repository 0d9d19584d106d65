//! What the chart's `values.yaml` says of its values, in comments that begin with a value's path.

use anyhow::Context as _;
use serde_json::Value;

/// A value of the chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Documented {
    /// Where it stands: `webhook.replicaCount`.
    pub path: String,
    /// What it is unless set otherwise.
    pub default: Value,
    /// What it is for.
    pub meaning: String,
}

/// The heading under which the chart's README has the table.
const HEADING: &str = "## Values\n";

/// Every value that a comment speaks of, in the file's order.
///
/// # Errors
/// If the file is no YAML, or a comment speaks of a value that is not there.
pub fn documented(values: &str) -> anyhow::Result<Vec<Documented>> {
    let tree: Value = serde_saphyr::from_str(values).context("values.yaml")?;
    let mut found: Vec<Documented> = Vec::new();
    let mut open = false;
    for line in values.lines().map(str::trim) {
        let Some(comment) = line.strip_prefix("# ") else {
            open = false;
            continue;
        };
        match comment.split_once(": ") {
            Some((path, meaning)) if is_path(path) => {
                let pointer = format!("/{}", path.replace('.', "/"));
                let default = tree
                    .pointer(&pointer)
                    .with_context(|| format!("values.yaml speaks of {path}, which is not there"))?;
                found.push(Documented {
                    path: path.to_owned(),
                    default: default.clone(),
                    meaning: meaning.to_owned(),
                });
                open = true;
            }
            _ if open => {
                let last = found.last_mut().context("a comment has begun")?;
                last.meaning = format!("{} {comment}", last.meaning);
            }
            _ => {}
        }
    }
    Ok(found)
}

fn is_path(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '.')
}

/// The chart's README with its table as it should be; what stands above the table stays.
///
/// # Errors
/// If it has no heading for the table, or the values can't be read.
pub fn readme(current: &str, values: &str) -> anyhow::Result<String> {
    let (above, _) = current.split_once(HEADING).with_context(|| format!("no line {HEADING:?}"))?;
    let mut text = format!(
        "{above}{HEADING}\nGenerated from `values.yaml`; `make gen` writes it anew.\n\n| value | default | meaning |\n|---|---|---|\n"
    );
    for value in documented(values)? {
        let default = match &value.default {
            Value::String(text) if text.is_empty() => String::new(),
            Value::String(text) => format!("`{text}`"),
            Value::Array(items) if items.is_empty() => String::new(),
            Value::Object(map) if map.is_empty() => String::new(),
            other => format!("`{other}`"),
        };
        text.push_str(&format!("| `{}` | {default} | {} |\n", value.path, value.meaning.replace('|', "\\|")));
    }
    Ok(text)
}
