//! `countersign audit`

use std::collections::{BTreeMap, HashMap};

use model::audit::{Event, Follower, Hash, Outcome, Record, What};
use model::{DecisionId, UnixMillis};
use serde::{Deserialize, Serialize};
use serde_json::json;
use wire::v1;

use super::now;
use crate::arguments::{Audit, AuditCommand, Cli, Form};
use crate::client;
use crate::exit::{Exit, Refusal};
use crate::output::{Output, Tone, counted};
use crate::table::Cell;

/// Lists what happened, or proves the record.
///
/// # Errors
/// If the control plane can't be asked.
pub async fn audit(cli: &Cli, output: &Output, asked: &Audit) -> Result<Exit, Refusal> {
    match &asked.command {
        Some(AuditCommand::Verify { file: None }) => verify(cli, output).await,
        Some(AuditCommand::Verify { file: Some(path) }) => verify_export(output, path),
        None => list(cli, output, asked).await,
    }
}

async fn list(cli: &Cli, output: &Output, asked: &Audit) -> Result<Exit, Refusal> {
    let since = match &asked.since {
        None => UnixMillis(0),
        Some(text) => {
            let seconds = resources::values::duration(text).ok_or_else(|| {
                Refusal::plain(Exit::Usage, format!("`{text}` is not a duration such as 10m"))
            })?;
            now().plus_secs(-i64::from(seconds))
        }
    };
    let request = v1::AuditRequest {
        since_ms: since.0,
        limit: 0,
        caller: asked.caller.clone(),
        denied_only: asked.denied,
        follow: asked.follow,
    };
    let mut answers = client::connect(cli).await?.audit(request).await?.into_inner();
    let mut events = Vec::new();
    let mut first = true;
    while let Some(answer) = answers.message().await? {
        let Some(message) = &answer.record else { continue };
        let Ok(record) = Record::try_from(message) else { continue };
        match (output.form(), asked.follow) {
            (Form::Jsonl, _) => output.answer(&format!("{}\n", json!(Exported::from(&record)))),
            (Form::Json, true) => output.answer(&format!("{}\n", item(&record))),
            (Form::Yaml, true) => output.yaml(&item(&record)),
            (Form::Name, true) => ids(output, &[record]),
            (_, true) => {
                // The header once, above what follows.
                let rows = rows_of(output, &[record]);
                if !rows.is_empty() && std::mem::take(&mut first) {
                    output.table(&TITLES, &rows);
                } else {
                    output.more_rows(&TITLES, &rows);
                }
            }
            (_, false) => events.push(record),
        }
    }
    match output.form() {
        Form::Json | Form::Yaml if !asked.follow => {
            output
                .document("AuditEventList", json!({ "items": events.iter().map(item).collect::<Vec<_>>() }));
        }
        Form::Jsonl | Form::Json | Form::Yaml => {}
        Form::Name if !asked.follow => ids(output, &events),
        _ if !asked.follow => output.table(&TITLES, &rows_of(output, &events)),
        _ => {}
    }
    Ok(Exit::Done)
}

/// An event with its place in its chain.
fn item(record: &Record) -> serde_json::Value {
    let event: serde_json::Value = serde_json::from_slice(&record.payload).unwrap_or_default();
    json!({ "stream": record.stream, "sequence": record.sequence, "hash": record.hash.to_string(), "event": event })
}

/// A line of the table.
struct Row {
    time: UnixMillis,
    caller: String,
    action: String,
    target: String,
    decision: String,
    why: String,
    credential: String,
    id: String,
    times: usize,
}

const TITLES: [&str; 8] = ["TIME", "CALLER", "ACTION", "TARGET", "DECISION", "WHY", "CREDENTIAL", "ID"];

/// The ids of decisions alone, as `explain` takes them.
fn ids(output: &Output, records: &[Record]) {
    let events = records.iter().filter_map(|record| serde_json::from_slice::<Event>(&record.payload).ok());
    let rows = events.filter_map(|event| row(&event, &HashMap::new())).filter(|row| row.id != "-");
    rows.for_each(|row| output.answer(&format!("{}\n", row.id)));
}

fn rows_of(output: &Output, records: &[Record]) -> Vec<Vec<Cell>> {
    let events: Vec<Event> = records.iter().filter_map(|r| serde_json::from_slice(&r.payload).ok()).collect();
    let outcomes: HashMap<DecisionId, &Outcome> = events
        .iter()
        .filter_map(|event| match &event.what {
            What::Outcome(outcome) => Some((outcome.decision, outcome)),
            _ => None,
        })
        .collect();
    let mut rows: Vec<Row> = Vec::new();
    let mut ordered: Vec<&Event> = events.iter().collect();
    ordered.sort_by_key(|event| event.time);
    for event in ordered {
        let Some(row) = row(event, &outcomes) else { continue };
        match rows.last_mut() {
            // Identical neighbours are one line for a person.
            Some(last) if output.is_terminal() && same(last, &row) => last.times += 1,
            _ => rows.push(row),
        }
    }
    rows.into_iter()
        .map(|row| {
            let times = if row.times > 1 { format!("{} ×{}", row.target, row.times) } else { row.target };
            let tone = if ["denied", "refused", "gone", "loop", "shared"].contains(&row.decision.as_str()) {
                Tone::Bad
            } else {
                Tone::Good
            };
            vec![
                output.time(row.time, now()).into(),
                row.caller.into(),
                row.action.into(),
                times.into(),
                Cell::toned(tone, row.decision),
                row.why.into(),
                row.credential.into(),
                row.id.into(),
            ]
        })
        .collect()
}

fn same(a: &Row, b: &Row) -> bool {
    (&a.caller, &a.action, &a.target, &a.decision, &a.why)
        == (&b.caller, &b.action, &b.target, &b.decision, &b.why)
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn list_of<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn row(event: &Event, outcomes: &HashMap<DecisionId, &Outcome>) -> Option<Row> {
    let blank = Row {
        time: event.time,
        caller: "-".to_owned(),
        action: String::new(),
        target: "-".to_owned(),
        decision: String::new(),
        why: "-".to_owned(),
        credential: "-".to_owned(),
        id: "-".to_owned(),
        times: 1,
    };
    Some(match &event.what {
        What::Intent(intent) => {
            let outcome = outcomes.get(&intent.decision).map_or("open".to_owned(), |outcome| shown(outcome));
            Row {
                caller: intent.caller.path().to_owned(),
                action: if intent.method.is_empty() { intent.action.clone() } else { intent.method.clone() },
                target: format!("{}{}", intent.authority, intent.path),
                decision: "allowed".to_owned(),
                why: format!("{} {outcome}", list_of(&intent.policies)),
                credential: intent.grant.as_ref().map_or("-".to_owned(), ToString::to_string),
                id: intent.decision.to_string(),
                ..blank
            }
        }
        What::Refusal(refusal) => Row {
            caller: refusal.caller.as_ref().map_or("-".to_owned(), |caller| caller.path().to_owned()),
            action: if refusal.method.is_empty() { refusal.action.clone() } else { refusal.method.clone() },
            target: format!("{}{}", refusal.authority, refusal.path),
            decision: "denied".to_owned(),
            why: format!("{} {}", refusal.code, refusal.code.entry().title),
            id: refusal.decision.to_string(),
            ..blank
        },
        What::Passed(passed) => Row {
            caller: passed.caller.path().to_owned(),
            action: passed.protocol.clone(),
            target: passed.name.clone().unwrap_or_else(|| passed.address.clone()),
            decision: "passed".to_owned(),
            id: passed.decision.to_string(),
            ..blank
        },
        What::StandingCredential(standing) => Row {
            caller: standing.caller.path().to_owned(),
            action: "standing".to_owned(),
            target: standing.header.clone(),
            decision: "removed".to_owned(),
            why: dash(standing.fingerprint.clone()),
            id: standing.decision.to_string(),
            ..blank
        },
        What::Issued(issued) => Row {
            caller: issued.caller.path().to_owned(),
            action: "issue".to_owned(),
            target: issued.provider.to_string(),
            decision: if issued.refused.is_some() { "refused" } else { "issued" }.to_owned(),
            why: issued.refused.map_or(list_of(&issued.policies), |code| code.to_string()),
            credential: dash(issued.grant.to_string()),
            ..blank
        },
        What::Attested(attested) => Row {
            caller: attested.caller.as_ref().map_or("-".to_owned(), |caller| caller.path().to_owned()),
            action: "attest".to_owned(),
            target: attested.instance.clone().unwrap_or_else(|| attested.peer.clone()),
            decision: if attested.refused.is_some() { "refused" } else { "attested" }.to_owned(),
            why: match attested.refused {
                Some(code) => format!("{code} {}", code.entry().title),
                None => attested.provider.clone().unwrap_or_default(),
            },
            ..blank
        },
        What::Administration(change) => Row {
            caller: change.author.clone(),
            action: "admin".to_owned(),
            target: change.object.clone(),
            decision: change.verb.clone(),
            why: dash(change.reason.clone()),
            ..blank
        },
        What::Redirect(seen) => Row {
            caller: seen.caller.as_ref().map_or("-".to_owned(), |caller| caller.path().to_owned()),
            action: "redirect".to_owned(),
            target: if seen.detail.is_empty() { "-".to_owned() } else { seen.detail.clone() },
            decision: seen.redirect.state.as_str().to_owned(),
            why: seen.code.map_or("-".to_owned(), |code| format!("{code} {}", code.entry().title)),
            ..blank
        },
        What::Gap(gap) => Row {
            action: "gap".to_owned(),
            target: gap.count.map_or("unknown".to_owned(), |count| count.to_string()),
            decision: "lost".to_owned(),
            why: gap.reason.clone(),
            ..blank
        },
        What::Outcome(_) => return None,
    })
}

fn shown(outcome: &Outcome) -> String {
    use model::audit::CallResult;
    let result = match outcome.result {
        CallResult::Completed => "",
        CallResult::Failed => "failed ",
        CallResult::Aborted => "aborted ",
        CallResult::Cut => "cut ",
        CallResult::Unknown => "unknown ",
    };
    let status = outcome.status.map(|status| status.to_string()).unwrap_or_default();
    let code = outcome.code.map(|code| format!(" {code}")).unwrap_or_default();
    format!("{result}{status}{code}").trim().to_owned()
}

async fn verify(cli: &Cli, output: &Output) -> Result<Exit, Refusal> {
    let answer = client::connect(cli).await?.verify(v1::VerifyRequest {}).await?.into_inner();
    let verdicts: Vec<Verdict> = answer
        .streams
        .iter()
        .map(|stream| Verdict {
            stream: stream.stream.clone(),
            last: stream.last,
            broken: (!stream.whole).then(|| (stream.broken_at, stream.code.clone(), stream.detail.clone())),
        })
        .collect();
    let summary = format!(
        "{} in {}, {}",
        counted(usize::try_from(answer.records).unwrap_or(usize::MAX), "record"),
        counted(answer.streams.len(), "stream"),
        counted(usize::try_from(answer.checkpoints).unwrap_or(usize::MAX), "checkpoint")
    );
    Ok(verdict(output, &verdicts, &summary))
}

/// What became of one stream.
struct Verdict {
    stream: String,
    last: u64,
    /// Where, by which code, why.
    broken: Option<(u64, String, String)>,
}

fn verdict(output: &Output, streams: &[Verdict], summary: &str) -> Exit {
    let whole = streams.iter().all(|verdict| verdict.broken.is_none());
    if output.is_structured() {
        let streams: Vec<_> = streams
            .iter()
            .map(|Verdict { stream, last, broken }| {
                let broken = broken
                    .as_ref()
                    .map(|(at, code, detail)| json!({ "at": at, "code": code, "detail": detail }));
                json!({ "stream": stream, "last": last, "broken": broken })
            })
            .collect();
        output.document("AuditVerification", json!({ "whole": whole, "streams": streams }));
    } else {
        for Verdict { stream, last, broken } in streams {
            match broken {
                None => output.answer(&format!("{} {stream} whole to {last}\n", output.mark("ok"))),
                Some((at, code, detail)) => {
                    output.answer(&format!(
                        "{} {stream} broken at record {at}: {code} {detail}\n",
                        output.mark("fail")
                    ));
                }
            }
        }
        let word = if whole { "whole" } else { "broken" };
        output.answer(&format!("{word}: {summary}\n"));
    }
    if whole { Exit::Done } else { Exit::No }
}

/// A record in an export: everything by which its chain can be followed.
#[derive(Debug, Serialize, Deserialize)]
struct Exported {
    stream: String,
    sequence: u64,
    previous: String,
    hash: String,
    /// The event, byte for byte as it was written.
    payload: String,
}

impl From<&Record> for Exported {
    fn from(record: &Record) -> Self {
        Self {
            stream: record.stream.clone(),
            sequence: record.sequence,
            previous: record.previous.to_string(),
            hash: record.hash.to_string(),
            payload: String::from_utf8_lossy(&record.payload).into_owned(),
        }
    }
}

impl Exported {
    fn record(self) -> Option<Record> {
        let hash = |text: &str| {
            let bytes: Option<Vec<u8>> =
                (0..64).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect();
            Some(Hash(bytes?.try_into().ok()?))
        };
        Some(Record {
            previous: hash(&self.previous)?,
            hash: hash(&self.hash)?,
            stream: self.stream,
            sequence: self.sequence,
            payload: self.payload.into_bytes(),
        })
    }
}

/// Follows the chains of an export. What is not in it can't be missed but at the end of a stream: that is what the
/// control plane's checkpoints are for.
fn verify_export(output: &Output, path: &std::path::Path) -> Result<Exit, Refusal> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Refusal::plain(Exit::Error, format!("{shown} can't be read: {error}")))?;
    let mut streams: BTreeMap<String, (Follower, Option<(u64, String, String)>)> = BTreeMap::new();
    let mut records = 0;
    for (index, line) in text.lines().enumerate() {
        let record =
            serde_json::from_str::<Exported>(line).ok().and_then(Exported::record).ok_or_else(|| {
                Refusal::plain(
                    Exit::Error,
                    format!("{shown}:{}: not a record of `countersign audit -o jsonl`", index + 1),
                )
            })?;
        records += 1;
        let (follower, broken) = streams.entry(record.stream.clone()).or_default();
        if broken.is_none()
            && let Err(found) = follower.take(&record)
        {
            *broken = Some((found.at, found.code.to_string(), found.detail));
        }
    }
    let verdicts: Vec<_> = streams
        .into_iter()
        .map(|(stream, (follower, broken))| Verdict { stream, last: follower.last, broken })
        .collect();
    let streams = counted(verdicts.len(), "stream");
    let summary = format!("{} in {streams} of an export", counted(records, "record"));
    Ok(verdict(output, &verdicts, &summary))
}
