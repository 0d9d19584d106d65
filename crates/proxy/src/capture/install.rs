//! Puts the rules in place, shows them, removes them: with `nft`, the kernel's own tool.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::conflicts;
use super::rules::{self, Redirect};

/// Installs the redirect in this network namespace, in place of an older one, in one step.
///
/// # Errors
/// If two options contradict each other, nft is not there, may not, or the kernel lacks a part; the older rules then stay.
pub fn install(redirect: &Redirect) -> anyhow::Result<()> {
    if let Some(conflict) = conflicts::find(redirect) {
        bail!("{conflict}");
    }
    apply(&rules::install(redirect)).context("the redirect could not be installed")
}

/// Removes the redirect, whether it is there or not.
///
/// # Errors
/// If nft is not there or may not.
pub fn remove() -> anyhow::Result<()> {
    apply(&rules::remove()).context("the redirect could not be removed")
}

/// The rules as the kernel has them; `None` if there are none.
///
/// # Errors
/// If nft is not there or may not.
pub fn show() -> anyhow::Result<Option<String>> {
    let output = Command::new(nft()?)
        .args(["list", "table", "inet", "countersign"])
        .output()
        .context("nft could not be run")?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    if message.contains("No such file or directory") {
        return Ok(None);
    }
    Err(explained(&message))
}

/// The resolvers that `/etc/resolv.conf` names; none if there is no such file.
#[must_use]
pub fn configured_resolvers() -> Vec<IpAddr> {
    nameservers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

/// resolv.conf(5): `nameserver` and an address, which may name an interface.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    addresses.filter_map(|address| address.split('%').next()?.parse().ok()).collect()
}

fn apply(text: &str) -> anyhow::Result<()> {
    let mut child = Command::new(nft()?)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("nft could not be run")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(text.as_bytes()).context("nft did not take the rules")?;
    }
    let output = child.wait_with_output().context("nft could not be waited for")?;
    if output.status.success() {
        return Ok(());
    }
    Err(explained(&String::from_utf8_lossy(&output.stderr)))
}

fn explained(message: &str) -> anyhow::Error {
    let message = message.trim();
    let remedy = if message.contains("Operation not permitted") {
        "CAP_NET_ADMIN is needed in this network namespace: run as root there, or in a user namespace of its own"
    } else if message.contains("not supported") || message.contains("No such file or directory") {
        "the kernel lacks a part that is needed: nf_tables with nat, fib and redirect for IPv4 and IPv6"
    } else {
        "nft did not accept the rules"
    };
    anyhow::anyhow!("{remedy}\nnft: {message}")
}

/// nft by the path, or where Debian and others have it although a user's path does not name it.
fn nft() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places
        .map(|place| place.join("nft"))
        .find(|nft| nft.is_file())
        .context("nft is not installed: apt-get install nftables, or your system's package of that name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_resolv_conf_has_them() {
        let text = "search demo.test\nnameserver 10.0.0.53\n # nameserver 10.0.0.54\nnameserver\tfe80::1%eth0\n\
            nameserver not-an-address\nnameserver\n";
        let shown: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.53", "fe80::1"]);
    }
}
