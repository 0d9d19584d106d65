//! `countersign apply`

use wire::v1;

use super::{changes_json, diagnostics_json, label, read_files, show_diagnostics};
use crate::arguments::{Apply, Cli, Form};
use crate::client;
use crate::exit::{Exit, Refusal};
use crate::output::{Output, counted};

/// Creates or changes documents.
///
/// # Errors
/// If a file can't be read or the control plane can't be asked.
pub async fn apply(cli: &Cli, output: &Output, asked: &Apply) -> Result<Exit, Refusal> {
    let files = read_files(&asked.file)?;
    let request = v1::ApplyRequest {
        files: files.clone(),
        dry_run: asked.dry_run,
        default_namespace: asked.namespace.clone(),
    };
    let answer = client::connect(cli).await?.apply(request).await?.into_inner();
    if output.is_structured() {
        output.document(
            "ApplyResult",
            serde_json::json!({
                "changes": changes_json(&answer.changes), "diagnostics": diagnostics_json(&answer.diagnostics),
                "dryRun": asked.dry_run,
            }),
        );
        let wrong = answer.diagnostics.iter().any(|diagnostic| diagnostic.severity == "error");
        return Ok(if wrong { Exit::No } else { Exit::Done });
    }
    if show_diagnostics(output, &answer.diagnostics, &files) {
        let errors = answer.diagnostics.iter().filter(|diagnostic| diagnostic.severity == "error").count();
        let found = match answer.diagnostics.len() - errors {
            0 => counted(errors, "error"),
            warnings => format!("{}, {}", counted(errors, "error"), counted(warnings, "warning")),
        };
        output.talk(&format!("{found} in {}. Nothing was applied.", counted(files.len(), "file")));
        return Ok(Exit::No);
    }
    let note = if asked.dry_run { " (dry run)" } else { "" };
    for change in &answer.changes {
        let name = label(change.reference.as_ref());
        match output.form() {
            Form::Name => output.answer(&format!("{name}\n")),
            _ => output.answer(&format!("{name} {}{note}\n", change.verb)),
        }
    }
    Ok(Exit::Done)
}
