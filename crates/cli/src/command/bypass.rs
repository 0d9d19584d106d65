//! `countersign bypass`

use model::UnixMillis;
use resources::kind::Kind;
use resources::values;
use wire::v1;

use super::wait_ms;
use crate::arguments::{Bypass, Cli};
use crate::client;
use crate::exit::{Exit, Refusal};
use crate::naming::{Named, with_nearest};
use crate::output::Output;

/// Begins a bypass, or ends it.
///
/// # Errors
/// If the workload is not there, the time is not one, or the control plane can't be asked.
pub async fn bypass(cli: &Cli, output: &Output, asked: &Bypass) -> Result<Exit, Refusal> {
    let request = v1::BypassRequest {
        workload: Some(workload(asked)?),
        for_ms: match &asked.duration {
            Some(text) => milliseconds(text)?,
            None => 0,
        },
        reason: asked.reason.clone().unwrap_or_default(),
        lift: asked.lift,
        wait_ms: wait_ms(&asked.wait)?,
    };
    let named = request.workload.clone().unwrap_or_default();
    let mut client = client::connect(cli).await?;
    let answer = match client.bypass(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Err(with_nearest(status.into(), &mut client, &named).await),
    };
    let bypass = answer.bypass.clone().unwrap_or_default();
    if output.is_structured() {
        output.document(
            "BypassResult",
            serde_json::json!({
                "object": asked.target, "verb": answer.verb, "bypass": bypass.id, "reason": bypass.reason,
                "until": answer.bypass.is_some().then(|| UnixMillis(bypass.until_ms).to_string()),
                "proxies": answer.proxies, "confirmed": answer.confirmed,
            }),
        );
    } else {
        output.answer(&format!("{}\n", sentence(asked, &answer, &bypass)));
    }
    Ok(if answer.confirmed == answer.proxies { Exit::Done } else { Exit::WaitedInVain })
}

fn sentence(asked: &Bypass, answer: &v1::BypassResponse, bypass: &v1::Bypass) -> String {
    let confirmed = format!("{} of {} proxies confirmed", answer.confirmed, answer.proxies);
    match answer.verb.as_str() {
        "unchanged" => format!("{} unchanged: it is not bypassed", asked.target),
        "lifted" => format!("{} is no longer bypassed; {confirmed}", asked.target),
        verb => format!(
            "{} {verb} until {} (bypass {}); {confirmed}; its connections pass untouched, without a credential",
            asked.target,
            UnixMillis(bypass.until_ms),
            bypass.id
        ),
    }
}

fn milliseconds(text: &str) -> Result<i64, Refusal> {
    let seconds = values::duration(text).ok_or_else(|| {
        Refusal::plain(Exit::Usage, format!("`{text}` is not a time: write 30s, 10m or 2h, 24h at most"))
    })?;
    Ok(i64::from(seconds) * 1000)
}

fn workload(asked: &Bypass) -> Result<v1::Reference, Refusal> {
    let reference = Named::document(&asked.target, None, &asked.namespace)?;
    if reference.kind == Kind::Workload.as_str() {
        return Ok(reference);
    }
    Err(Refusal::plain(Exit::Usage, format!("`{}` can't be bypassed: name workload/NAME", asked.target)))
}
