//! `countersign doctor`: which of the runtimes here trust the proxy, and what to set for those that do not.
//!
//! Asked by running them: what a runtime reads depends on how it was built, and reading its environment says less than
//! one handshake.

pub mod probes;
pub mod report;
pub mod run;

use std::net::ToSocketAddrs as _;
use std::time::Duration;

use service::trust::Bundle;

use crate::arguments::{Cli, Doctor};
use crate::exit::{Exit, Refusal};
use crate::output::Output;

pub use report::{Finding, Trust};

/// Runs the runtimes that are here and says which trust the proxy: [`Exit::No`] if one does not, or can't be said to.
///
/// # Errors
/// If nothing answers at the URL, or there is no runtime to ask.
pub async fn doctor(_: &Cli, output: &Output, asked: &Doctor) -> Result<Exit, Refusal> {
    let target = run::Target::parse(&asked.url)
        .ok_or_else(|| Refusal::plain(Exit::Usage, format!("`{}` is not an https URL", asked.url)))?;
    reachable(&target)?;
    let probes: Vec<_> = probes::PROBES
        .iter()
        .filter(|probe| asked.only.is_empty() || asked.only.iter().any(|name| name == probe.runtime))
        .collect();
    if let Some(unknown) = asked.only.iter().find(|name| !probes::PROBES.iter().any(|p| p.runtime == *name)) {
        let known: Vec<_> = probes::PROBES.iter().map(|probe| probe.runtime).collect();
        let message = format!("`{unknown}` is not a runtime that doctor knows: {}", known.join(", "));
        return Err(Refusal::plain(Exit::Usage, message));
    }
    let mut findings = Vec::new();
    // One after the other: some of them are slow to start, and none is to run out of time because of the others.
    for probe in probes {
        findings.extend(run::ask(probe, &target).await);
    }
    if findings.is_empty() {
        let message = "none of the runtimes that doctor knows is installed here".to_owned();
        return Err(Refusal::plain(Exit::Error, message));
    }
    let bundle = Bundle::at(&asked.bundle);
    if output.is_structured() {
        output.document("Doctor", report::json(&asked.url, &findings, &bundle));
    } else {
        output.answer(&report::text(&asked.url, &findings, &bundle, &|mark| output.mark(mark)));
    }
    let all = findings.iter().all(|finding| finding.trust == Trust::Yes);
    Ok(if all { Exit::Done } else { Exit::No })
}

/// Without this, every runtime would be unsure for one and the same reason.
fn reachable(target: &run::Target) -> Result<(), Refusal> {
    let nothing = |why: String| {
        let mut refusal =
            Refusal::plain(Exit::Error, format!("nothing answers at {}: {why}", target.authority()));
        refusal.help =
            "Run it where the application runs, beside countersign-proxy; or give --url of a host that a policy covers."
                .to_owned();
        refusal
    };
    let addresses =
        (target.host.as_str(), target.port).to_socket_addrs().map_err(|error| nothing(error.to_string()))?;
    let mut last = "the name has no address".to_owned();
    for address in addresses {
        match std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(nothing(last))
}
