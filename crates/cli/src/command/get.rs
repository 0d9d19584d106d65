//! `countersign get`

use model::UnixMillis;
use serde_json::{Value, json};
use wire::v1;

use super::{label, now};
use crate::arguments::{Cli, Form, Get};
use crate::client;
use crate::exit::{Exit, Refusal};
use crate::naming::{Named, with_nearest};
use crate::output::{Output, Tone, ago};
use crate::table::Cell;

/// Shows documents and state.
///
/// # Errors
/// If the control plane can't be asked, or the one that was named is not there.
pub async fn get(cli: &Cli, output: &Output, asked: &Get) -> Result<Exit, Refusal> {
    let namespace = asked.namespace.as_deref().unwrap_or_default();
    let Named { kind, namespace, name } = Named::read(&asked.kind, asked.name.as_deref(), namespace)?;
    let request = v1::GetRequest { kind: kind.clone(), namespace: namespace.clone(), name: name.clone() };
    let mut client = client::connect(cli).await?;
    let items = client.get(request).await?.into_inner().items;
    if items.is_empty() && !name.is_empty() {
        let refusal = Refusal::coded(model::Code::NotFound, format!("there is no {kind} `{name}`"));
        return Err(with_nearest(refusal, &mut client, &v1::Reference { kind, namespace, name }).await);
    }
    match output.form() {
        // One that was named is itself the answer, as it can be applied.
        Form::Json if !name.is_empty() && items.len() == 1 => {
            output.answer(&format!("{:#}\n", value(&items[0])))
        }
        Form::Json => {
            output.document("List", json!({ "items": items.iter().map(value).collect::<Vec<_>>() }))
        }
        Form::Jsonl => items.iter().for_each(|item| output.answer(&format!("{}\n", value(item)))),
        Form::Yaml => items.iter().for_each(|item| output.yaml(&value(item))),
        Form::Name => {
            items.iter().for_each(|item| output.answer(&format!("{}\n", label(item.reference.as_ref()))))
        }
        Form::Text | Form::Wide if items.is_empty() => output.talk(&format!("no {}", asked.kind)),
        Form::Text | Form::Wide => show(output, &kind, &items, namespace.is_empty()),
    }
    Ok(Exit::Done)
}

fn value(item: &v1::Item) -> Value {
    serde_json::from_str(&item.json).unwrap_or_default()
}

/// Title, and where in the item's JSON its value stands; of two places, with `|` between, the first that has one.
type Column = (&'static str, &'static str);

/// What answers "is it fine?" for a kind, between its name and its age.
fn columns(kind: &str) -> &'static [Column] {
    match kind {
        "Workload" => {
            &[("EGRESS", "/spec/egress"), ("DESTINATIONS", "/spec/destinations"), ("OWNER", "/spec/owner")]
        }
        "TrustProvider" => {
            &[("ISSUER", "/spec/oidc/issuer"), ("AUDIENCE", "/spec/oidc/audience|/spec/kubernetes/audience")]
        }
        "Destination" => &[("HOSTS", "/spec/hosts"), ("PORTS", "/spec/ports"), ("TLS", "/spec/tls")],
        "CredentialProvider" => &[("AUDIENCE", "/spec/jwt/audience"), ("TTL", "/spec/jwt/ttl")],
        "AccessPolicy" => &[
            ("WORKLOAD", "/spec/workload"),
            ("DESTINATION", "/spec/destination"),
            ("CREDENTIAL", "/spec/credential"),
        ],
        "Condition" => &[("WINDOW", "/spec/timeWindow/timeZone"), ("ATTESTED", "/spec/attestedWithin")],
        "Guardrail" => &[("REASON", "/spec/reason")],
        "blocks" => &[("BLOCK", "/id"), ("REASON", "/reason")],
        "bypasses" => &[("BYPASS", "/id"), ("UNTIL", "/until"), ("REASON", "/reason")],
        "grants" => &[
            ("CALLER", "/caller"),
            ("DESTINATION", "/destination"),
            ("UNTIL", "/expiresAt"),
            ("REVOKED", "/revokedAt"),
        ],
        "callers" => &[("WORKLOADS", "/workloads"), ("PROVIDER", "/provider")],
        _ => &[],
    }
}

fn show(output: &Output, kind: &str, items: &[v1::Item], of_all_namespaces: bool) {
    let wide = output.form() == Form::Wide;
    let namespaced = of_all_namespaces && items.iter().any(|item| !reference(item).namespace.is_empty());
    let columns = columns(kind);
    let mut header: Vec<&str> = if namespaced { vec!["NAMESPACE"] } else { Vec::new() };
    header.push("NAME");
    header.extend(columns.iter().map(|(title, _)| *title));
    if wide {
        header.extend(["AUTHOR", "REVISION"]);
    }
    header.push("AGE");
    let rows: Vec<Vec<Cell>> = items
        .iter()
        .map(|item| {
            let reference = reference(item);
            let mut row = Vec::new();
            if namespaced {
                row.push(dash(&reference.namespace));
            }
            let name = if reference.name.is_empty() { reference.kind.to_lowercase() } else { reference.name };
            row.push(Cell::toned(Tone::Bold, name));
            let value = value(item);
            let at = |places: &str| places.split('|').find_map(|place| value.pointer(place).cloned());
            row.extend(columns.iter().map(|(_, places)| dash(&text_of(at(places).as_ref()))));
            if wide {
                row.extend([dash(&item.author), item.revision.to_string().into()]);
            }
            let changed = UnixMillis(item.changed_at_ms);
            row.push(match output.is_terminal() {
                true => ago(now().millis_since(changed)).into(),
                false => changed.to_string().into(),
            });
            row
        })
        .collect();
    output.table(&header, &rows);
}

fn reference(item: &v1::Item) -> v1::Reference {
    item.reference.clone().unwrap_or_default()
}

fn dash(text: &str) -> Cell {
    if text.is_empty() { "-".into() } else { text.into() }
}

fn text_of(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            items.iter().map(|item| text_of(Some(item))).collect::<Vec<_>>().join(",")
        }
        Some(other) => other.to_string(),
    }
}
