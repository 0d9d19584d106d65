//! `countersign get`

use model::UnixMillis;
use serde_json::Value;
use wire::v1;

use super::{label, now};
use crate::arguments::{Cli, Form, Get};
use crate::exit::{Exit, Refusal};
use crate::output::{Output, Tone, ago};
use crate::{client, table};

/// Shows documents and state.
///
/// # Errors
/// If the control plane can't be asked, or the one that was named is not there.
pub async fn get(cli: &Cli, output: &Output, asked: &Get) -> Result<Exit, Refusal> {
    let request = v1::GetRequest {
        kind: asked.kind.clone(),
        namespace: asked.namespace.clone().unwrap_or_default(),
        name: asked.name.clone().unwrap_or_default(),
    };
    let items = client::connect(cli).await?.get(request).await?.into_inner().items;
    if items.is_empty()
        && let Some(name) = &asked.name
    {
        return Err(Refusal::coded(model::Code::NotFound, format!("there is no {} `{name}`", asked.kind)));
    }
    match output.form() {
        Form::Json => {
            output.json("List", serde_json::json!({ "items": items.iter().map(json).collect::<Vec<_>>() }))
        }
        Form::Jsonl => items.iter().for_each(|item| output.answer(&format!("{}\n", json(item)))),
        Form::Yaml => {
            for item in &items {
                let text = serde_saphyr::to_string(&json(item))
                    .map_err(|error| Refusal::plain(Exit::Error, error.to_string()))?;
                output.answer(&format!("---\n{text}"));
            }
        }
        Form::Name => {
            items.iter().for_each(|item| output.answer(&format!("{}\n", label(item.reference.as_ref()))))
        }
        Form::Text | Form::Wide => {
            if items.is_empty() {
                output.talk(&format!("no {}", asked.kind));
            } else {
                output.answer(&shown(&items, output));
            }
        }
    }
    Ok(Exit::Done)
}

fn json(item: &v1::Item) -> Value {
    serde_json::from_str(&item.json).unwrap_or_default()
}

fn shown(items: &[v1::Item], output: &Output) -> String {
    let wide = output.form() == Form::Wide;
    let mut header = vec!["NAMESPACE", "NAME", "AUTHOR"];
    if wide {
        header.push("WHAT");
    }
    header.push("AGE");
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| {
            let reference = item.reference.clone().unwrap_or_default();
            let namespace = if reference.namespace.is_empty() { "-".to_owned() } else { reference.namespace };
            let mut row = vec![namespace, output.toned(Tone::Bold, &reference.name), item.author.clone()];
            if wide {
                let value = json(item);
                row.push(value.get("spec").unwrap_or(&value).to_string());
            }
            let age = now().millis_since(UnixMillis(item.changed_at_ms));
            row.push(if output.is_terminal() {
                ago(age)
            } else {
                UnixMillis(item.changed_at_ms).to_string()
            });
            row
        })
        .collect();
    table::render(&header, &rows)
}
