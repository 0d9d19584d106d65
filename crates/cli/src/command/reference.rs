//! `countersign reference`: pages of the documentation that the program itself knows.

use std::fmt::Write as _;

use model::error::TABLE;

use crate::exit::{Exit, Refusal};
use crate::output::Output;

/// Prints a page.
///
/// # Errors
/// If there is no such page.
pub fn reference(output: &Output, page: &str) -> Result<Exit, Refusal> {
    match page {
        "errors" => output.answer(&errors()),
        _ => {
            return Err(Refusal::plain(Exit::Usage, format!("there is no page `{page}`; there is `errors`")));
        }
    }
    Ok(Exit::Done)
}

/// The table of codes.
#[must_use]
pub fn errors() -> String {
    let mut page = String::from(
        "# Codes\n\n\
         Generated from the program; `make gen` writes it anew.\n\
         `CS`, the digit of the stage, three digits; a code is never used again for another meaning.\n\
         On HTTP/1.1 the code stands in the reason phrase, and in the headers `countersign-code` and `proxy-status` always.\n\n\
         | code | title | HTTP | retry helps | what it means | what to do |\n|---|---|---|---|---|---|\n",
    );
    for entry in TABLE {
        let status = entry.status.map_or("–".to_owned(), |status| status.to_string());
        let retry = if entry.retryable { "yes" } else { "no" };
        let _ = writeln!(
            page,
            "| {} | {} | {status} | {retry} | {} | {} |",
            entry.text, entry.title, entry.meaning, entry.remedy
        );
    }
    page
}
