//! `countersign delete`

use resources::kind::Kind;
use wire::v1;

use super::{changes_json, diagnostics_json, label, read_files, show_diagnostics};
use crate::arguments::{Cli, Delete, Form};
use crate::client;
use crate::exit::{Exit, Refusal};
use crate::output::Output;

/// Deletes documents.
///
/// # Errors
/// If what is named is not there, or the control plane can't be asked.
pub async fn delete(cli: &Cli, output: &Output, asked: &Delete) -> Result<Exit, Refusal> {
    let request = v1::DeleteRequest { references: references(asked)?, dry_run: asked.dry_run };
    let answer = client::connect(cli).await?.delete(request).await?.into_inner();
    if output.form() == Form::Json {
        output.json(
            "DeleteResult",
            serde_json::json!({
                "changes": changes_json(&answer.changes), "diagnostics": diagnostics_json(&answer.diagnostics),
            }),
        );
    } else {
        show_diagnostics(output, &answer.diagnostics, &[]);
    }
    if answer.diagnostics.iter().any(|diagnostic| diagnostic.severity == "error") {
        if output.form() != Form::Json {
            output.talk("Nothing was deleted.");
        }
        return Ok(Exit::No);
    }
    if output.form() != Form::Json {
        let note = if asked.dry_run { " (dry run)" } else { "" };
        for change in &answer.changes {
            output.answer(&format!("{} {}{note}\n", label(change.reference.as_ref()), change.verb));
        }
    }
    Ok(Exit::Done)
}

fn references(asked: &Delete) -> Result<Vec<v1::Reference>, Refusal> {
    if !asked.file.is_empty() {
        let files: Vec<(String, String)> =
            read_files(&asked.file)?.into_iter().map(|file| (file.name, file.text)).collect();
        let namespace = Some(asked.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let (documents, wrong) = resources::parse(&files, namespace);
        if let Some(first) = wrong.first() {
            return Err(Refusal { exit: Exit::No, ..Refusal::coded(first.code, first.message.clone()) });
        }
        return Ok(documents
            .iter()
            .map(|document| v1::Reference {
                kind: document.kind().as_str().to_owned(),
                namespace: document.name.namespace.as_ref().map(ToString::to_string).unwrap_or_default(),
                name: document.name.name.to_string(),
            })
            .collect());
    }
    let kind = asked.kind.clone().unwrap_or_default();
    let (kind, name) = match (kind.split_once('/'), &asked.name) {
        (Some((kind, name)), None) => (kind.to_owned(), name.to_owned()),
        (None, Some(name)) => (kind, name.clone()),
        _ => return Err(Refusal::plain(Exit::Usage, "name one document: KIND NAME, or KIND/NAME")),
    };
    let Some(known) = Kind::parse(&kind) else {
        return Err(Refusal::plain(Exit::Usage, format!("`{kind}` is not a kind of document")));
    };
    if known.is_namespaced() && asked.namespace.is_empty() {
        return Err(Refusal::plain(
            Exit::Usage,
            format!("a {known} belongs to a namespace: give it with -n"),
        ));
    }
    Ok(vec![v1::Reference { kind: known.as_str().to_owned(), namespace: asked.namespace.clone(), name }])
}
