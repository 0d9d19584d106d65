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
    let (url, target) = target(asked.url.as_deref())?;
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
        output.document("Doctor", report::json(&url, &findings, &bundle));
    } else {
        output.answer(&report::text(&url, &findings, &bundle, &|mark| output.mark(mark)));
    }
    let all = findings.iter().all(|finding| finding.trust == Trust::Yes);
    Ok(if all { Exit::Done } else { Exit::No })
}

/// The proxy's own port for this question: as injection sets it, and the proxy's default. In this order: in a pod of Istio
/// the second one is Istio's.
const OWN: [&str; 2] = ["https://localhost:14021/", "https://localhost:15021/"];

/// What is called: the URL that is given, or the first of ours that answers. Where nothing does, every runtime would be
/// unsure for one and the same reason.
fn target(given: Option<&str>) -> Result<(String, run::Target), Refusal> {
    let candidates = given.map_or(OWN.to_vec(), |url| vec![url]);
    let mut silent = Vec::new();
    for url in candidates {
        let target = run::Target::parse(url)
            .ok_or_else(|| Refusal::plain(Exit::Usage, format!("`{url}` is not an https URL")))?;
        match answers(&target) {
            Ok(()) => return Ok((url.to_owned(), target)),
            Err(why) => silent.push(format!("{}: {why}", target.authority())),
        }
    }
    let mut refusal = Refusal::plain(Exit::Error, format!("nothing answers at {}", silent.join(", nor at ")));
    refusal.help =
        "Run it where the application runs, beside countersign-proxy; or give --url: that of a host that a \
                    policy covers, or https://localhost:PORT/ with the proxy's --trust-port (14021 in a pod)."
            .to_owned();
    Err(refusal)
}

fn answers(target: &run::Target) -> Result<(), String> {
    let addresses =
        (target.host.as_str(), target.port).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut last = "the name has no address".to_owned();
    for address in addresses {
        match std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_answers_both_ports_are_named() {
        // Nobody listens there in a test; who does is a proxy, which the first part then finds.
        if let Err(refusal) = target(None) {
            assert!(
                refusal.message.contains("localhost:14021") && refusal.message.contains("localhost:15021")
            );
            assert!(refusal.help.contains("14021 in a pod"), "{}", refusal.help);
        }
        assert_eq!(target(Some("http://localhost/")).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn the_url_that_is_given_is_the_one_that_is_called() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://127.0.0.1:{}/", listener.local_addr().unwrap().port());
        let (called, target) = target(Some(&url)).unwrap();
        assert_eq!((called.as_str(), target.host.as_str()), (url.as_str(), "127.0.0.1"));
    }
}
