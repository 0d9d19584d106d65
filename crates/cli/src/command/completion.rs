//! What a shell offers next: commands, flags, and names as they are at this moment.

use std::time::Duration;

use clap::Parser as _;
use clap_complete::CompletionCandidate;
use clap_complete::env::Shells;
use resources::kind::Kind;
use wire::v1;

use crate::arguments::Cli;
use crate::client;
use crate::exit::{Exit, Refusal};
use crate::naming;
use crate::output::Output;

/// Nobody waits longer for a suggestion.
const PATIENCE: Duration = Duration::from_millis(300);

/// Prints what a shell needs to ask us.
///
/// # Errors
/// If there is no such shell.
pub fn script(output: &Output, shell: &str) -> Result<Exit, Refusal> {
    let shells = Shells::builtins();
    let Some(completer) = shells.completer(shell) else {
        let known = shells.names().collect::<Vec<_>>().join(", ");
        return Err(Refusal::plain(
            Exit::Usage,
            format!("`{shell}` is not a shell that is known; known are {known}"),
        ));
    };
    let mut script = Vec::new();
    completer.write_registration("COMPLETE", "countersign", "countersign", "countersign", &mut script)?;
    output.answer(&String::from_utf8_lossy(&script));
    Ok(Exit::Done)
}

fn candidates(words: impl IntoIterator<Item = String>) -> Vec<CompletionCandidate> {
    words.into_iter().map(CompletionCandidate::new).collect()
}

/// Kinds for `get`.
#[must_use]
pub fn kinds() -> Vec<CompletionCandidate> {
    candidates(naming::kinds())
}

/// Kinds for `delete`.
#[must_use]
pub fn document_kinds() -> Vec<CompletionCandidate> {
    candidates(Kind::ALL.map(Kind::lower))
}

/// Names of the kind that stands before.
#[must_use]
pub fn names() -> Vec<CompletionCandidate> {
    let words: Vec<String> = std::env::args().collect();
    let kind = words.iter().skip(1).find_map(|word| naming::Named::read(word, None, "").ok());
    let all = kind.map(|named| live(&named.kind)).unwrap_or_default();
    candidates(all.into_iter().map(|reference| match reference.namespace.as_str() {
        "" => reference.name,
        namespace => format!("{namespace}/{}", reference.name),
    }))
}

/// Workloads, for a question about one.
#[must_use]
pub fn workloads() -> Vec<CompletionCandidate> {
    candidates(live("Workload").into_iter().map(|found| format!("{}/{}", found.namespace, found.name)))
}

/// What can be revoked.
#[must_use]
pub fn revocable() -> Vec<CompletionCandidate> {
    let kinds = [Kind::Workload, Kind::Destination, Kind::CredentialProvider];
    let documents = kinds.into_iter().flat_map(|kind| live(kind.as_str()));
    let all = documents.chain(live("grants")).map(|reference| super::label(Some(&reference)));
    candidates(all.chain(["everything".to_owned()]))
}

/// What can be explained without a question: the ids of decisions are in `countersign audit`.
#[must_use]
pub fn explainable() -> Vec<CompletionCandidate> {
    let words = ["last", "context"].into_iter().chain(Kind::ALL.map(Kind::as_str));
    let codes = model::error::TABLE.iter().map(|entry| entry.text);
    candidates(words.chain(codes).map(str::to_owned))
}

/// What there is of a kind, if the control plane says so at once.
fn live(kind: &str) -> Vec<v1::Reference> {
    let ask = async {
        // Where the control plane is, is in the environment, or where it is by default.
        let cli = Cli::try_parse_from(["countersign", "status"]).ok()?;
        let request = v1::GetRequest { kind: kind.to_owned(), namespace: String::new(), name: String::new() };
        let answer = client::connect(&cli).await.ok()?.get(request).await.ok()?;
        Some(answer.into_inner().items.into_iter().filter_map(|item| item.reference).collect())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = runtime.ok().and_then(|runtime| {
        runtime.block_on(async { tokio::time::timeout(PATIENCE, ask).await.ok().flatten() })
    });
    asked.unwrap_or_default()
}
