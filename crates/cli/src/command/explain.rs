//! `countersign explain`

use model::Code;
use policy::cedar;
use wire::v1;
use wire::v1::explain_request::Question;

use crate::arguments::{Cli, Explain, Form};
use crate::exit::{Exit, Refusal};
use crate::output::Output;
use crate::{client, table};

/// Says why.
///
/// # Errors
/// If there is no such thing, or the control plane can't be asked.
pub async fn explain(cli: &Cli, output: &Output, asked: &Explain) -> Result<Exit, Refusal> {
    let question = match (asked.what.as_slice(), &asked.workload) {
        ([word], None) if word == "context" => return Ok(context(output)),
        ([word], None) if Code::parse(word).is_some() => return Ok(code(output, word)),
        ([decision], None) => Question::Decision(decision.clone()),
        ([method, url], Some(workload)) => Question::Call(v1::Hypothetical {
            workload: workload.clone(),
            method: method.clone(),
            url: url.clone(),
        }),
        _ => {
            let usage =
                "give a decision's id, `last`, a code or `context`; or --workload WORKLOAD METHOD URL";
            return Err(Refusal::plain(Exit::Usage, usage));
        }
    };
    let request = v1::ExplainRequest { question: Some(question) };
    let answer = client::connect(cli).await?.explain(request).await?.into_inner();
    if output.form() == Form::Json {
        output.json("Explanation", serde_json::from_str(&answer.json).unwrap_or_default());
    } else {
        output.answer(&shown(output, &answer));
    }
    Ok(if answer.allowed { Exit::Done } else { Exit::No })
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
        text.push_str(&format!("{}\n", code.entry().remedy));
    }
    text
}

/// A row of the table.
fn code(output: &Output, word: &str) -> Exit {
    let Some(entry) = Code::parse(word).map(Code::entry) else { return Exit::Error };
    if output.form() == Form::Json {
        output.json(
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
    if output.form() == Form::Json {
        let items: Vec<_> = cedar::REFERENCE
            .iter()
            .map(
                |(name, kind, meaning)| serde_json::json!({ "name": name, "type": kind, "meaning": meaning }),
            )
            .collect();
        output.json("Context", serde_json::json!({ "items": items }));
        return Exit::Done;
    }
    let rows: Vec<Vec<String>> = cedar::REFERENCE
        .iter()
        .map(|(name, kind, meaning)| vec![(*name).into(), (*kind).into(), (*meaning).into()])
        .collect();
    output.answer(&table::render(&["NAME", "TYPE", "MEANING"], &rows));
    Exit::Done
}
