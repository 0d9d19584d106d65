//! `countersign status`

use model::{UnixMillis, Version};
use wire::v1;

use super::now;
use crate::arguments::Cli;
use crate::client;
use crate::exit::{Exit, Refusal};
use crate::output::{Output, Tone};
use crate::table::Cell;

/// Shows the proxies that are connected.
///
/// # Errors
/// If the control plane can't be asked.
pub async fn status(cli: &Cli, output: &Output) -> Result<Exit, Refusal> {
    let answer = client::connect(cli).await?.status(v1::StatusRequest {}).await?.into_inner();
    let good = answer.proxies.iter().all(|proxy| state(proxy) == "ready");
    if output.is_structured() {
        let proxies: Vec<_> = answer
            .proxies
            .iter()
            .map(|proxy| {
                serde_json::json!({
                    "caller": proxy.caller, "instance": proxy.instance, "running": version(proxy.running),
                    "wanted": version(proxy.wanted), "refused": proxy.refused, "grants": proxy.grants,
                    "sessionEnds": UnixMillis(proxy.session_ends_ms).to_string(), "version": proxy.proxy_version,
                    "egress": proxy.egress, "redirect": proxy.redirect, "notCarried": proxy.not_carried,
                    "leftOut": proxy.left_out, "state": state(proxy),
                })
            })
            .collect();
        let bypasses: Vec<_> = answer.bypasses.iter().map(bypass_json).collect();
        output.document(
            "Status",
            serde_json::json!({
                "version": version(answer.version), "proxies": proxies, "bypasses": bypasses,
            }),
        );
    } else {
        let policy = version(answer.version);
        output.answer(&format!("CONTROL PLANE  v{} · policy {policy}\n\n", answer.control_plane_version));
        for bypass in &answer.bypasses {
            output.answer(&bypass_line(bypass));
        }
        let rows: Vec<Vec<Cell>> = answer
            .proxies
            .iter()
            .map(|proxy| {
                let caller = proxy.caller.split_once("//").map_or(proxy.caller.as_str(), |(_, rest)| rest);
                vec![
                    Cell::toned(Tone::Bold, caller),
                    proxy.instance.clone().into(),
                    version(proxy.running).into(),
                    proxy.grants.to_string().into(),
                    output.time(UnixMillis(proxy.last_seen_ms), now()).into(),
                    proxy.egress.clone().into(),
                    Cell::toned(if state(proxy) == "ready" { Tone::Good } else { Tone::Bad }, state(proxy)),
                ]
            })
            .collect();
        output.table(&["CALLER", "INSTANCE", "POLICY", "GRANTS", "LAST", "EGRESS", "STATE"], &rows);
        output.answer(&remarks(&answer.proxies));
    }
    Ok(if good { Exit::Done } else { Exit::No })
}

/// What stands above everything else for as long as it lasts.
fn bypass_line(bypass: &v1::Bypass) -> String {
    let until = UnixMillis(bypass.until_ms);
    format!(
        "BYPASSED       workload/{} until {until}: {} ({})\n\n",
        bypass.workload, bypass.reason, bypass.id
    )
}

fn bypass_json(bypass: &v1::Bypass) -> serde_json::Value {
    serde_json::json!({
        "id": bypass.id, "workload": bypass.workload, "until": UnixMillis(bypass.until_ms).to_string(),
        "reason": bypass.reason,
    })
}

fn state(proxy: &v1::ProxyStatus) -> &'static str {
    if !proxy.refused.is_empty() {
        "refused"
    } else if proxy.running != proxy.wanted {
        "behind"
    } else if !proxy.not_carried.is_empty() {
        "not carried"
    } else {
        "ready"
    }
}

/// What stands below the table: why a mode is not carried, or what it does not reach.
fn remarks(proxies: &[v1::ProxyStatus]) -> String {
    let lines: Vec<String> = proxies
        .iter()
        .flat_map(|proxy| {
            let said = [&proxy.refused, &proxy.not_carried, &proxy.left_out];
            said.into_iter()
                .filter(|text| !text.is_empty())
                .map(|text| format!("{}: {text}\n", proxy.instance))
                .collect::<Vec<_>>()
        })
        .collect();
    if lines.is_empty() { String::new() } else { format!("\n{}", lines.concat()) }
}

fn version(version: Option<v1::Version>) -> String {
    version.map(|version| Version::from(version).to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_that_is_not_carried_is_no_good_state() {
        let ready = v1::ProxyStatus { instance: "7d".to_owned(), ..v1::ProxyStatus::default() };
        let not_carried = v1::ProxyStatus { not_carried: "UDP passes".to_owned(), ..ready.clone() };
        let left_out = v1::ProxyStatus { left_out: "port 22".to_owned(), ..ready.clone() };
        assert_eq!((state(&ready), state(&not_carried), state(&left_out)), ("ready", "not carried", "ready"));
        assert_eq!(remarks(&[ready, not_carried, left_out]), "\n7d: UDP passes\n7d: port 22\n");
    }
}
