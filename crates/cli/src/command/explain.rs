//! `countersign explain`

use model::text::nearest;
use model::{Code, DecisionId};
use policy::cedar;
use resources::kind::Kind;
use resources::reference::{self, Field};
use wire::v1;
use wire::v1::explain_request::Question;

use crate::arguments::{Cli, Explain};
use crate::client;
use crate::exit::{Exit, Refusal};
use crate::output::Output;
use crate::table::Cell;

/// Says why.
///
/// # Errors
/// If there is no such thing, or the control plane can't be asked.
pub async fn explain(cli: &Cli, output: &Output, asked: &Explain) -> Result<Exit, Refusal> {
    let question = match (asked.what.as_slice(), &asked.workload) {
        ([word], None) if word == "context" => return Ok(context(output)),
        ([word], None) if Code::parse(word).is_some() => return Ok(code(output, word)),
        ([word], None) if kind_of(word).is_some() => return document(output, word),
        ([word], None) if word == "last" || word.parse::<DecisionId>().is_ok() => {
            Question::Decision(word.clone())
        }
        ([word], None) => return Err(unknown(word)),
        ([method, url], Some(workload)) => Question::Call(v1::Hypothetical {
            workload: match &asked.namespace {
                Some(namespace) if !workload.contains('/') => format!("{namespace}/{workload}"),
                _ => workload.clone(),
            },
            method: method.clone(),
            url: url.clone(),
        }),
        ([_, _], None) => {
            return Err(Refusal::plain(
                Exit::Usage,
                "whose call? give --workload WORKLOAD with METHOD and URL",
            ));
        }
        _ => return Err(Refusal::plain(Exit::Usage, "give --workload WORKLOAD METHOD URL, both of them")),
    };
    let request = v1::ExplainRequest { question: Some(question) };
    let answer = client::connect(cli).await?.explain(request).await?.into_inner();
    if output.is_structured() {
        output.document("Explanation", serde_json::from_str(&answer.json).unwrap_or_default());
    } else {
        output.answer(&shown(output, &answer));
    }
    Ok(if answer.allowed { Exit::Done } else { Exit::No })
}

/// The kind that a word such as `AccessPolicy.spec.when` begins with.
fn kind_of(word: &str) -> Option<Kind> {
    Kind::parse(word.split('.').next().unwrap_or_default())
}

fn unknown(word: &str) -> Refusal {
    let kinds = Kind::ALL.map(Kind::as_str);
    let known = kinds.into_iter().chain(["context", "last"]);
    let (first, rest) = word.split_at(word.find('.').unwrap_or(word.len()));
    let help = match nearest(first, known) {
        Some(near) => format!("did you mean `{near}{rest}`?"),
        None => "give a decision's id, `last`, a code such as CS5001, a kind or its field, or `context`"
            .to_owned(),
    };
    Refusal { help, ..Refusal::plain(Exit::Usage, format!("`{word}` is nothing that can be explained")) }
}

/// A kind, or one of its fields with those below it.
fn document(output: &Output, word: &str) -> Result<Exit, Refusal> {
    let Some(kind) = kind_of(word) else { return Err(unknown(word)) };
    let path = word.split_once('.').map_or("", |(_, path)| path);
    // Whoever copies a path from a document leaves the brackets out, or writes an index in them.
    let bare = |path: &str| {
        path.split('.').map(|part| part.split('[').next().unwrap_or(part)).collect::<Vec<_>>().join(".")
    };
    let wanted = bare(path);
    let fields = reference::fields(kind);
    let below = |field: &&Field| {
        let field = bare(&field.path);
        wanted.is_empty() || field == wanted || field.starts_with(&format!("{wanted}."))
    };
    let found: Vec<&Field> = fields.iter().filter(below).collect();
    if found.is_empty() {
        let paths: Vec<String> = fields.iter().map(|field| bare(&field.path)).collect();
        let help = match nearest(&wanted, paths.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{kind}.{near}`?"),
            None => format!("`countersign explain {kind}` lists its fields"),
        };
        return Err(Refusal {
            help,
            ..Refusal::plain(Exit::Usage, format!("a {kind} has no field `{path}`"))
        });
    }
    if output.is_structured() {
        let items: Vec<_> = found
            .iter()
            .map(|field| {
                serde_json::json!({
                    "path": field.path, "type": field.kind, "required": field.required, "meaning": field.meaning,
                })
            })
            .collect();
        output.document("Fields", serde_json::json!({ "of": kind.as_str(), "items": items }));
        return Ok(Exit::Done);
    }
    let mut text = format!("{}\n", reference::meaning(kind));
    for field in found {
        let required = if field.required { ", required" } else { "" };
        text.push_str(&format!("\n{}  ({}{required})\n  {}\n", field.path, field.kind, field.meaning));
    }
    output.answer(&text);
    Ok(Exit::Done)
}

fn shown(output: &Output, answer: &v1::ExplainResponse) -> String {
    let mut text = format!("{}\n\n", answer.summary);
    for (index, stage) in answer.stages.iter().enumerate() {
        let mark = output.mark(&stage.mark);
        let mut lines = stage.lines.iter();
        let first = lines.next().map_or("", String::as_str);
        text.push_str(format!("{} {:<12} {mark}  {first}", index + 1, stage.stage).trim_end());
        text.push('\n');
        lines.for_each(|line| text.push_str(&format!("                  {line}\n")));
    }
    if !answer.nearest.is_empty() {
        text.push_str(&format!("\n{}\n", answer.nearest));
    }
    if let Some(code) = Code::parse(&answer.code) {
        let remedy = code.entry().remedy;
        // Whoever reads this has explained the decision.
        if !remedy.contains("countersign explain") {
            text.push_str(&format!("{remedy}\n"));
        }
        text.push_str(&format!("  more: countersign explain {code}\n"));
    }
    text
}

/// A row of the table.
fn code(output: &Output, word: &str) -> Exit {
    let Some(entry) = Code::parse(word).map(Code::entry) else { return Exit::Error };
    if output.is_structured() {
        output.document(
            "Code",
            serde_json::json!({
                "code": entry.text, "title": entry.title, "stage": entry.code.stage().as_str(), "status": entry.status,
                "retryable": entry.retryable, "meaning": entry.meaning, "remedy": entry.remedy,
            }),
        );
        return Exit::Done;
    }
    let status = entry.status.map_or("none".to_owned(), |status| status.to_string());
    output.answer(&format!(
        "{} {}\n\n{}\n\nWhat to do:  {}\nHTTP status: {status}\nStage:       {}\n",
        entry.text,
        entry.title,
        entry.meaning,
        entry.remedy,
        entry.code.stage().as_str()
    ));
    Exit::Done
}

/// What an expression can see.
fn context(output: &Output) -> Exit {
    if output.is_structured() {
        let items: Vec<_> = cedar::REFERENCE
            .iter()
            .map(
                |(name, kind, meaning)| serde_json::json!({ "name": name, "type": kind, "meaning": meaning }),
            )
            .collect();
        output.document("Context", serde_json::json!({ "items": items }));
        return Exit::Done;
    }
    let rows: Vec<Vec<Cell>> = cedar::REFERENCE
        .iter()
        .map(|(name, kind, meaning)| vec![(*name).into(), (*kind).into(), (*meaning).into()])
        .collect();
    output.table(&["NAME", "TYPE", "MEANING"], &rows);
    Exit::Done
}
