//! `countersign revoke`

use model::UnixMillis;
use wire::v1;
use wire::v1::revoke_request::Target;

use super::{confirm, now, wait_ms};
use crate::arguments::{Cli, Revoke};
use crate::client;
use crate::exit::{Exit, Refusal};
use crate::naming::{Named, with_nearest};
use crate::output::{Output, ago};

/// Blocks, lifts a block, or drops a grant.
///
/// # Errors
/// If what is named is not there, or the control plane can't be asked.
pub async fn revoke(cli: &Cli, output: &Output, asked: &Revoke) -> Result<Exit, Refusal> {
    let target = target(asked)?;
    if matches!(target, Target::Everything(_)) && !asked.lift && !asked.yes && !asked.dry_run {
        confirm(output, "This stops every call of every workload.", "nothing was revoked")?;
    }
    let wait_ms = wait_ms(&asked.wait)?;
    let request = v1::RevokeRequest {
        target: Some(target.clone()),
        lift: asked.lift,
        reason: asked.reason.clone(),
        wait_ms,
        dry_run: asked.dry_run,
    };
    let mut client = client::connect(cli).await?;
    let answer = match client.revoke(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            let named = match target {
                Target::Block(reference) => reference,
                Target::Grant(name) => {
                    v1::Reference { kind: "grants".to_owned(), name, ..Default::default() }
                }
                Target::Everything(_) => return Err(status.into()),
            };
            return Err(with_nearest(status.into(), &mut client, &named).await);
        }
    };
    if output.is_structured() {
        output.document(
            "RevokeResult",
            serde_json::json!({
                "object": asked.target, "verb": answer.verb, "block": answer.block_id, "proxies": answer.proxies,
                "confirmed": answer.confirmed, "dryRun": asked.dry_run,
                "lastExpiry": (answer.last_expiry_ms > 0).then(|| UnixMillis(answer.last_expiry_ms).to_string()),
            }),
        );
    } else {
        output.answer(&format!("{}\n", sentence(asked, &answer)));
    }
    Ok(if asked.dry_run || answer.confirmed == answer.proxies { Exit::Done } else { Exit::WaitedInVain })
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
    let mut sentence = match asked.dry_run {
        true => format!("{} {verb} (dry run); proxies that it concerns: {}", asked.target, answer.proxies),
        false => {
            format!("{} {verb}; {} of {} proxies confirmed", asked.target, answer.confirmed, answer.proxies)
        }
    };
    if !asked.dry_run && answer.confirmed < answer.proxies {
        sentence.push_str(&format!(" within {}: `countersign status` shows the others", asked.wait));
    }
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
    Named::document(&asked.target, None, &asked.namespace).map(Target::Block)
}
