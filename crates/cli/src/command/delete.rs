//! `countersign delete`

use resources::kind::Kind;
use wire::v1;

use super::{changes_json, confirm, diagnostics_json, label, read_files, show_diagnostics};
use crate::arguments::{Cli, Delete, Form};
use crate::client;
use crate::exit::{Exit, Refusal};
use crate::naming::{Named, with_nearest};
use crate::output::{Output, counted};

/// Deletes documents.
///
/// # Errors
/// If what is named is not there, or the control plane can't be asked.
pub async fn delete(cli: &Cli, output: &Output, asked: &Delete) -> Result<Exit, Refusal> {
    let references = references(asked)?;
    let guardrails = references.iter().filter(|reference| reference.kind == Kind::Guardrail.as_str()).count();
    if guardrails > 0 && !asked.yes && !asked.dry_run {
        let what = format!(
            "This removes {}: what it forbids is up to policies alone then.",
            counted(guardrails, "guardrail")
        );
        confirm(output, &what, "nothing was deleted")?;
    }
    let request = v1::DeleteRequest { references: references.clone(), dry_run: asked.dry_run };
    let mut client = client::connect(cli).await?;
    let answer = match client.delete(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => match references.as_slice() {
            [one] => return Err(with_nearest(status.into(), &mut client, one).await),
            _ => return Err(status.into()),
        },
    };
    if output.is_structured() {
        output.document(
            "DeleteResult",
            serde_json::json!({
                "changes": changes_json(&answer.changes), "diagnostics": diagnostics_json(&answer.diagnostics),
                "dryRun": asked.dry_run,
            }),
        );
    } else {
        show_diagnostics(output, &answer.diagnostics, &[]);
    }
    if answer.diagnostics.iter().any(|diagnostic| diagnostic.severity == "error") {
        output.talk("Nothing was deleted.");
        return Ok(Exit::No);
    }
    let note = if asked.dry_run { " (dry run)" } else { "" };
    for change in &answer.changes {
        let name = label(change.reference.as_ref());
        match output.form() {
            Form::Name => output.answer(&format!("{name}\n")),
            Form::Text | Form::Wide => output.answer(&format!("{name} {}{note}\n", change.verb)),
            Form::Json | Form::Jsonl | Form::Yaml => {}
        }
    }
    Ok(Exit::Done)
}

fn references(asked: &Delete) -> Result<Vec<v1::Reference>, Refusal> {
    if !asked.file.is_empty() {
        let files: Vec<(String, String)> =
            read_files(&asked.file)?.into_iter().map(|file| (file.name, file.text)).collect();
        let namespace = Some(asked.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let parsed = resources::parse(&files, namespace);
        if let Some(first) = parsed.diagnostics.first() {
            return Err(Refusal { exit: Exit::No, ..Refusal::coded(first.code, first.message.clone()) });
        }
        return Ok(parsed
            .documents
            .iter()
            .map(|document| v1::Reference {
                kind: document.kind().as_str().to_owned(),
                namespace: document.name.namespace.as_ref().map(ToString::to_string).unwrap_or_default(),
                name: document.name.name.to_string(),
            })
            .collect());
    }
    let kind = asked.kind.as_deref().unwrap_or_default();
    Ok(vec![Named::document(kind, asked.name.as_deref(), &asked.namespace)?])
}
