//! The text of the redirect: pure, so that it can be read, compared and tested.

use std::fmt::Write as _;

use ipnet::IpNet;

/// What is redirected, and what not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    /// Port of the proxy on 127.0.0.1 and ::1.
    pub proxy_port: u16,
    /// Its own connections, by owner.
    pub proxy_uid: Option<u32>,
    /// Its own connections, by mark.
    pub proxy_mark: Option<u32>,
    /// Networks that are not redirected.
    pub exclude_cidrs: Vec<IpNet>,
    /// Networks that are redirected; empty for all.
    pub include_cidrs: Vec<IpNet>,
    /// Ports that are not redirected.
    pub exclude_ports: Vec<u16>,
    /// Ports that are redirected; empty for all.
    pub include_ports: Vec<u16>,
    /// UIDs that are not redirected.
    pub exclude_uids: Vec<u32>,
}

/// The table that holds the rules; nobody else's rules are in it, so it is replaced and removed as a whole.
pub const TABLE: &str = "inet countersign";

/// The rules, for one `nft -f -`: nft applies a file in one step or not at all, and the first two lines make it the same
/// whether an older table is there or not.
#[must_use]
pub fn install(redirect: &Redirect) -> String {
    let mut text = format!("table {TABLE} {{}}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    // -100 is `dstnat`, by number: nft 1.0.6 (Debian 12) knows that name only for prerouting.
    text.push_str("\tchain output {\n\t\ttype nat hook output priority -100; policy accept;\n");
    for rule in exemptions(redirect) {
        let _ = writeln!(text, "\t\t{rule}");
    }
    let ports = match redirect.include_ports.as_slice() {
        [] => "meta l4proto tcp".to_owned(),
        ports => format!("tcp dport {}", set(ports)),
    };
    let to = redirect.proxy_port;
    let (v4, v6) = by_family(&redirect.include_cidrs);
    if redirect.include_cidrs.is_empty() {
        let _ = writeln!(text, "\t\t{ports} redirect to :{to}");
    }
    if !v4.is_empty() {
        let _ = writeln!(text, "\t\tip daddr {} {ports} redirect to :{to}", set(&v4));
    }
    if !v6.is_empty() {
        let _ = writeln!(text, "\t\tip6 daddr {} {ports} redirect to :{to}", set(&v6));
    }
    text.push_str("\t}\n}\n");
    text
}

/// Removes the table, whether it is there or not.
#[must_use]
pub fn remove() -> String {
    format!("table {TABLE} {{}}\ndelete table {TABLE}\n")
}

fn exemptions(redirect: &Redirect) -> Vec<String> {
    let mut rules = Vec::new();
    if let Some(mark) = redirect.proxy_mark {
        rules.push(format!("meta mark {mark:#x} return"));
    }
    if let Some(uid) = redirect.proxy_uid {
        rules.push(format!("meta skuid {uid} return"));
    }
    if !redirect.exclude_uids.is_empty() {
        rules.push(format!("meta skuid {} return", set(&redirect.exclude_uids)));
    }
    // Loopback, and this host's own addresses: they never leave it.
    rules.push("fib daddr type local return".to_owned());
    if !redirect.exclude_ports.is_empty() {
        rules.push(format!("tcp dport {} return", set(&redirect.exclude_ports)));
    }
    let (v4, v6) = by_family(&redirect.exclude_cidrs);
    if !v4.is_empty() {
        rules.push(format!("ip daddr {} return", set(&v4)));
    }
    if !v6.is_empty() {
        rules.push(format!("ip6 daddr {} return", set(&v6)));
    }
    rules
}

fn by_family(networks: &[IpNet]) -> (Vec<IpNet>, Vec<IpNet>) {
    networks.iter().map(IpNet::trunc).partition(|network| matches!(network, IpNet::V4(_)))
}

fn set<T: std::fmt::Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    format!("{{ {} }}", items.join(", "))
}

/// What is not redirected, for people.
#[must_use]
pub fn exclusions(redirect: &Redirect) -> Vec<String> {
    let mut lines = vec!["loopback and this host's own addresses".to_owned()];
    if let Some(uid) = redirect.proxy_uid {
        lines.push(format!("the proxy's own connections (UID {uid})"));
    }
    if let Some(mark) = redirect.proxy_mark {
        lines.push(format!("the proxy's own connections (mark {mark:#x})"));
    }
    lines.extend(redirect.exclude_uids.iter().map(|uid| format!("connections of UID {uid}")));
    lines.extend(redirect.exclude_ports.iter().map(|port| format!("port {port}")));
    lines.extend(redirect.exclude_cidrs.iter().map(|network| format!("network {network}")));
    if !redirect.include_ports.is_empty() {
        lines.push(format!("every port but {}", set(&redirect.include_ports)));
    }
    if !redirect.include_cidrs.is_empty() {
        lines.push(format!("every network but {}", set(&redirect.include_cidrs)));
    }
    lines.push("what is not TCP".to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_that_captures_everything() {
        let redirect = Redirect { proxy_port: 15001, proxy_uid: Some(1337), ..Redirect::default() };
        insta::assert_snapshot!(install(&redirect), @r"
        table inet countersign {}
        delete table inet countersign
        table inet countersign {
        	chain output {
        		type nat hook output priority -100; policy accept;
        		meta skuid 1337 return
        		fib daddr type local return
        		meta l4proto tcp redirect to :15001
        	}
        }
        ");
    }

    #[test]
    fn everything_that_can_be_said() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let redirect = Redirect {
            proxy_port: 15001,
            proxy_uid: None,
            proxy_mark: Some(0x1337),
            exclude_cidrs: nets(&["10.1.2.3/8", "fd00::/8"]),
            include_cidrs: nets(&["0.0.0.0/0", "2000::/3"]),
            exclude_ports: vec![22, 25],
            include_ports: vec![80, 443],
            exclude_uids: vec![0],
        };
        insta::assert_snapshot!(install(&redirect), @r"
        table inet countersign {}
        delete table inet countersign
        table inet countersign {
        	chain output {
        		type nat hook output priority -100; policy accept;
        		meta mark 0x1337 return
        		meta skuid { 0 } return
        		fib daddr type local return
        		tcp dport { 22, 25 } return
        		ip daddr { 10.0.0.0/8 } return
        		ip6 daddr { fd00::/8 } return
        		ip daddr { 0.0.0.0/0 } tcp dport { 80, 443 } redirect to :15001
        		ip6 daddr { 2000::/3 } tcp dport { 80, 443 } redirect to :15001
        	}
        }
        ");
    }
}
