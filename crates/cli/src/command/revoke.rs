//! `countersign revoke`

use std::io::{BufRead as _, IsTerminal as _};

use model::UnixMillis;
use resources::kind::Kind;
use wire::v1;
use wire::v1::revoke_request::Target;

use super::now;
use crate::arguments::{Cli, Form, Revoke};
use crate::client;
use crate::exit::{Exit, Refusal};
use crate::output::{Output, ago};

/// Blocks, lifts a block, or drops a grant.
///
/// # Errors
/// If what is named is not there, or the control plane can't be asked.
pub async fn revoke(cli: &Cli, output: &Output, asked: &Revoke) -> Result<Exit, Refusal> {
    let target = target(asked)?;
    if matches!(target, Target::Everything(_)) && !asked.lift && !asked.yes {
        confirm(output)?;
    }
    let request = v1::RevokeRequest {
        target: Some(target),
        lift: asked.lift,
        reason: asked.reason.clone(),
        wait_ms: asked.wait,
    };
    let answer = client::connect(cli).await?.revoke(request).await?.into_inner();
    if output.form() == Form::Json {
        output.json(
            "RevokeResult",
            serde_json::json!({
                "object": asked.target, "verb": answer.verb, "block": answer.block_id, "proxies": answer.proxies,
                "confirmed": answer.confirmed,
                "lastExpiry": (answer.last_expiry_ms > 0).then(|| UnixMillis(answer.last_expiry_ms).to_string()),
            }),
        );
    } else {
        output.answer(&format!("{}\n", sentence(asked, &answer)));
    }
    Ok(if answer.confirmed == answer.proxies { Exit::Done } else { Exit::No })
}

fn sentence(asked: &Revoke, answer: &v1::RevokeResponse) -> String {
    let verb = match (answer.verb.as_str(), asked.lift, answer.since_ms) {
        ("unchanged", true, _) => return format!("{} unchanged: it is not blocked", asked.target),
        ("unchanged", false, since) => {
            let word = if asked.target.starts_with("grant/") { "revoked" } else { "blocked" };
            format!("unchanged: already {word} {} ago", ago(now().millis_since(UnixMillis(since))))
        }
        (verb, _, _) => verb.to_owned(),
    };
    let mut sentence =
        format!("{} {verb}; {} of {} proxies confirmed", asked.target, answer.confirmed, answer.proxies);
    if answer.last_expiry_ms > 0 {
        let until = UnixMillis(answer.last_expiry_ms);
        sentence.push_str(&format!("; a token that was already sent stays good until {until}"));
    }
    sentence
}

fn target(asked: &Revoke) -> Result<Target, Refusal> {
    if asked.target == "everything" {
        return Ok(Target::Everything(true));
    }
    let usage = || {
        let message = format!(
            "`{}` can't be revoked: name workload/NAME, destination/NAME, credentialprovider/NAME, grant/ID or everything",
            asked.target
        );
        Refusal::plain(Exit::Usage, message)
    };
    let (kind, name) = asked.target.split_once('/').ok_or_else(usage)?;
    if kind == "grant" {
        return Ok(Target::Grant(name.to_owned()));
    }
    let kind = Kind::parse(kind).ok_or_else(usage)?;
    if asked.namespace.is_empty() {
        return Err(Refusal::plain(Exit::Usage, format!("a {kind} belongs to a namespace: give it with -n")));
    }
    Ok(Target::Block(v1::Reference {
        kind: kind.as_str().to_owned(),
        namespace: asked.namespace.clone(),
        name: name.to_owned(),
    }))
}

/// Everything at once is asked about first; nobody is there to ask in a script.
fn confirm(output: &Output) -> Result<(), Refusal> {
    if !std::io::stdin().is_terminal() {
        return Err(Refusal::plain(
            Exit::Usage,
            "this stops every call of every workload; give --yes to do it",
        ));
    }
    output.talk("This stops every call of every workload. Go on? [y/N]");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    if line.trim().eq_ignore_ascii_case("y") {
        Ok(())
    } else {
        Err(Refusal::plain(Exit::No, "nothing was revoked"))
    }
}
