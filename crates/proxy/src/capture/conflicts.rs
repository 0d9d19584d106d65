//! Options of `capture` that contradict each other: refused before anything is installed, so that nobody believes to be
//! captured who is not.

use std::net::IpAddr;

use ipnet::IpNet;

use super::rules::{METADATA, Other, Redirect};
use super::sentinel::Signal;

/// The first contradiction, as a sentence that says what to change.
#[must_use]
pub fn find(redirect: &Redirect) -> Option<String> {
    let checks = [no_exemption, ports, uids, networks, metadata, resolvers];
    checks.iter().find_map(|check| check(redirect))
}

fn no_exemption(redirect: &Redirect) -> Option<String> {
    (redirect.proxy_uid.is_none() && redirect.proxy_mark.is_none()).then(|| {
        "the proxy's own connections must be told from the application's: give --proxy-uid or --proxy-mark"
            .to_owned()
    })
}

fn ports(redirect: &Redirect) -> Option<String> {
    if redirect.proxy_port == 0 {
        return Some("--proxy-port 0 is no port".to_owned());
    }
    if Signal::ALL.iter().any(|signal| signal.port() == redirect.proxy_port) {
        let port = redirect.proxy_port;
        return Some(format!("--proxy-port {port} is the sentinel's; choose another for the proxy"));
    }
    let both = redirect.include_ports.iter().find(|port| redirect.exclude_ports.contains(port))?;
    Some(format!("port {both} is both in --include-port and in --exclude-port: remove it from one of them"))
}

fn uids(redirect: &Redirect) -> Option<String> {
    if let Some(uid) = redirect.proxy_uid.filter(|uid| redirect.include_uids.contains(uid)) {
        return Some(format!(
            "UID {uid} is the proxy's, so it can't be captured: remove it from --include-uid, and run the \
             application as another"
        ));
    }
    let both = redirect.include_uids.iter().find(|uid| redirect.exclude_uids.contains(uid))?;
    Some(format!("UID {both} is both in --include-uid and in --exclude-uid: remove it from one of them"))
}

fn networks(redirect: &Redirect) -> Option<String> {
    let named = |option, networks: &[IpNet]| networks.iter().map(|net| (option, *net)).collect::<Vec<_>>();
    let given =
        [named("--include-cidr", &redirect.include_cidrs), named("--exclude-cidr", &redirect.exclude_cidrs)];
    for (option, network) in given.concat() {
        if let IpNet::V6(v6) = network
            && let Some(mapped) = v6.addr().to_ipv4_mapped()
        {
            return Some(format!(
                "{option} {network}: such addresses never leave a host; their packets are IPv4, so write the \
                 network as IPv4 ({mapped})"
            ));
        }
        if network.trunc().addr().is_loopback() {
            return Some(format!("{option} {network}: loopback is never captured, so this says nothing"));
        }
    }
    redirect.include_cidrs.iter().find_map(|included| {
        let excluded = redirect.exclude_cidrs.iter().find(|excluded| excluded.contains(included))?;
        Some(format!(
            "--include-cidr {included} is wholly in --exclude-cidr {excluded}, so nothing of it would be captured: \
             remove one of them"
        ))
    })
}

fn metadata(redirect: &Redirect) -> Option<String> {
    if !redirect.reject_metadata {
        return None;
    }
    METADATA.iter().find_map(|address: &IpAddr| {
        let excluded = redirect.exclude_cidrs.iter().find(|network| network.contains(address))?;
        Some(format!(
            "--reject-metadata rejects {address}, which --exclude-cidr {excluded} leaves alone: remove one of them"
        ))
    })
}

fn resolvers(redirect: &Redirect) -> Option<String> {
    let needed = redirect.other == Other::Reject || redirect.reject_metadata;
    if !needed && !redirect.resolvers.is_empty() {
        return Some(
            "--resolver is an exception from --other reject and --reject-metadata, and neither is given"
                .to_owned(),
        );
    }
    (redirect.other == Other::Reject && redirect.resolvers.is_empty()).then(|| {
        "with --other reject no name would resolve: /etc/resolv.conf names no resolver, so give --resolver"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Redirect {
        Redirect { proxy_port: 15001, proxy_uid: Some(1337), ..Redirect::default() }
    }

    #[test]
    fn each_contradiction_is_named() {
        let nets = |text: &str| vec![text.parse().unwrap()];
        let cases = [
            ("--proxy-uid or --proxy-mark", Redirect { proxy_uid: None, ..good() }),
            ("--proxy-port 0", Redirect { proxy_port: 0, ..good() }),
            ("the sentinel's", Redirect { proxy_port: Signal::Redirected.port(), ..good() }),
            ("port 443", Redirect { include_ports: vec![443], exclude_ports: vec![443], ..good() }),
            ("UID 1337 is the proxy's", Redirect { include_uids: vec![1337], ..good() }),
            ("UID 7", Redirect { include_uids: vec![7, 8], exclude_uids: vec![7], ..good() }),
            ("as IPv4 (10.0.0.0)", Redirect { include_cidrs: nets("::ffff:10.0.0.0/104"), ..good() }),
            ("loopback", Redirect { include_cidrs: nets("127.0.0.0/8"), ..good() }),
            ("loopback", Redirect { exclude_cidrs: nets("::1/128"), ..good() }),
            (
                "wholly in --exclude-cidr 10.0.0.0/8",
                Redirect { include_cidrs: nets("10.1.0.0/16"), exclude_cidrs: nets("10.0.0.0/8"), ..good() },
            ),
            (
                "rejects 169.254.169.254",
                Redirect { reject_metadata: true, exclude_cidrs: nets("169.254.0.0/16"), ..good() },
            ),
            ("--resolver is an exception", Redirect { resolvers: vec![METADATA[0]], ..good() }),
            ("no name would resolve", Redirect { other: Other::Reject, ..good() }),
        ];
        for (part, redirect) in cases {
            let found = find(&redirect).unwrap_or_default();
            assert!(found.contains(part), "{part}: {found}");
        }
    }

    #[test]
    fn what_fits_together_is_taken() {
        let nets = |text: &str| vec![text.parse().unwrap()];
        let narrowed = Redirect {
            include_cidrs: nets("10.0.0.0/8"),
            exclude_cidrs: nets("10.1.0.0/16"),
            include_uids: vec![1000],
            exclude_uids: vec![0],
            ..good()
        };
        for redirect in [good(), narrowed, Redirect { proxy_uid: None, proxy_mark: Some(1), ..good() }] {
            assert_eq!(find(&redirect), None);
        }
    }
}
