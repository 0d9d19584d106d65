//! The text of the redirect: pure, so that it can be read, compared and tested.
//!
//! Two chains. `refuse` comes first: what is rejected is rejected before it is redirected. `output` redirects TCP. What
//! is exempt from one is exempt from the other. Neither depends on policy: what is not TCP is passed or rejected as
//! `capture install` was told.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::sentinel::Signal;

/// What is redirected, and what not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    /// Port of the proxy on 127.0.0.1 and ::1.
    pub proxy_port: u16,
    /// Its own connections, by owner.
    pub proxy_uid: Option<u32>,
    /// Its own connections, by mark.
    pub proxy_mark: Option<u32>,
    /// Networks that are not captured.
    pub exclude_cidrs: Vec<IpNet>,
    /// Networks that are captured; empty for all.
    pub include_cidrs: Vec<IpNet>,
    /// Ports that are not captured, of TCP and UDP.
    pub exclude_ports: Vec<u16>,
    /// TCP ports that are redirected; empty for all.
    pub include_ports: Vec<u16>,
    /// UIDs that are not captured.
    pub exclude_uids: Vec<u32>,
    /// UIDs that are captured; empty for all.
    pub include_uids: Vec<u32>,
    /// What happens to what is not TCP.
    pub other: Other,
    /// Resolvers to which DNS goes although the rest is rejected; read only if something is.
    pub resolvers: Vec<IpAddr>,
    /// Whether the metadata services of the clouds are out of the application's reach.
    pub reject_metadata: bool,
}

/// What happens to what is not TCP. UDP 443 is rejected either way: a client that speaks QUIC falls back to TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Other {
    /// It goes where it was going.
    #[default]
    Pass,
    /// The application is told at once that nobody is there.
    Reject,
}

/// The table that holds the rules; nobody else's rules are in it, so it is replaced and removed as a whole.
pub const TABLE: &str = "inet countersign";

/// Where clouds answer with credentials: IMDS (AWS, Azure, Google and others share the address), ECS, EKS, Alibaba,
/// Oracle; then AWS (EC2, EKS) and Google over IPv6. From their documentation; none of them is a range.
pub const METADATA: [IpAddr; 8] = [
    v4(169, 254, 169, 254),
    v4(169, 254, 170, 2),
    v4(169, 254, 170, 23),
    v4(100, 100, 100, 200),
    v4(192, 0, 0, 192),
    v6(0xfd00, 0x0ec2, 0x254),
    v6(0xfd00, 0x0ec2, 0x23),
    v6(0xfd20, 0x00ce, 0x254),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, d))
}

const fn v6(first: u16, second: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, last))
}

/// How a rejected packet's sender is told: a connected socket gets "connection refused" from its next call.
const REJECT: &str = "reject with icmpx port-unreachable";

/// QUIC's port.
const QUIC: u16 = 443;

/// The rules, for one `nft -f -`: nft applies a file in one step or not at all, and the first two lines make it the same
/// whether an older table is there or not.
#[must_use]
pub fn install(redirect: &Redirect) -> String {
    let mut text = format!("table {TABLE} {{}}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    // Priorities by number: nft 1.0.6 (Debian 12) knows `dstnat` only for prerouting. -150 is after connection
    // tracking (-200) and before the redirect.
    chain(&mut text, "refuse", "filter", -150, &refuse(redirect));
    text.push('\n');
    chain(&mut text, "output", "nat", -100, &output(redirect));
    text.push_str("}\n");
    text
}

/// Removes the table, whether it is there or not.
#[must_use]
pub fn remove() -> String {
    format!("table {TABLE} {{}}\ndelete table {TABLE}\n")
}

fn chain(text: &mut String, name: &str, kind: &str, priority: i32, rules: &[String]) {
    let _ = writeln!(text, "\tchain {name} {{");
    let _ = writeln!(text, "\t\ttype {kind} hook output priority {priority}; policy accept;");
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    text.push_str("\t}\n");
}

fn output(redirect: &Redirect) -> Vec<String> {
    let to = format!("redirect to :{}", redirect.proxy_port);
    // Ahead of the proxy's own exemption, since it is the proxy that dials them; and only if the chain before this one
    // has seen them, so that neither chain can be missing unnoticed.
    let mut rules = sentinels(&carried(redirect), &format!("meta mark {SEEN:#x} {to}"));
    rules.extend(own(redirect));
    rules.extend(sentinels(&[Signal::OwnTraffic], &to));
    rules.extend(exemptions(redirect, "tcp"));
    if exempts_dns(redirect) {
        rules.extend(dns(redirect, "tcp"));
    }
    let ports = match redirect.include_ports.as_slice() {
        [] => "meta l4proto tcp".to_owned(),
        ports => format!("tcp dport {}", set(ports)),
    };
    rules.extend(scopes(redirect).into_iter().map(|scope| format!("{scope}{ports} {to}")));
    rules
}

/// What the rules say of themselves, to a proxy that may not read them.
fn carried(redirect: &Redirect) -> Vec<Signal> {
    let mut signals = vec![Signal::Redirected];
    if redirect.other == Other::Reject {
        signals.push(Signal::OtherRejected);
    }
    if is_whole(redirect) {
        signals.push(Signal::Whole);
    }
    signals
}

/// Whether nothing but the proxy and loopback is left out.
fn is_whole(redirect: &Redirect) -> bool {
    redirect.exclude_cidrs.is_empty()
        && redirect.include_cidrs.is_empty()
        && redirect.exclude_ports.is_empty()
        && redirect.include_ports.is_empty()
        && redirect.exclude_uids.is_empty()
        && redirect.include_uids.is_empty()
}

/// Mark on the packets to a sentinel, and on no others, between the two chains.
const SEEN: u32 = 0xc5c5;

fn sentinels(signals: &[Signal], to: &str) -> Vec<String> {
    let ports: Vec<u16> = signals.iter().map(|signal| signal.port()).collect();
    let ports = set(&ports);
    vec![
        format!("ip daddr 127.0.0.1 tcp dport {ports} {to}"),
        format!("ip6 daddr ::1 tcp dport {ports} {to}"),
    ]
}

fn refuse(redirect: &Redirect) -> Vec<String> {
    let mut rules = sentinels(&carried(redirect), &format!("meta mark set {SEEN:#x}"));
    rules.extend(own(redirect));
    rules.push(LOCAL.to_owned());
    if exempts_dns(redirect) {
        rules.extend(dns(redirect, "udp"));
        rules.extend(dns(redirect, "tcp"));
    }
    if redirect.reject_metadata {
        let (v4, v6) = by_family(&METADATA.map(IpNet::from));
        for to in [format!("ip daddr {}", set(&v4)), format!("ip6 daddr {}", set(&v6))] {
            rules.push(format!("{to} meta l4proto tcp reject with tcp reset"));
            rules.push(format!("{to} {REJECT}"));
        }
    }
    rules.extend(exemptions(redirect, "udp").into_iter().filter(|rule| rule != LOCAL));
    if captures_link_local(redirect) {
        rules.push(format!("{}ip6 daddr {LINK_LOCAL} meta l4proto tcp reject with tcp reset", who(redirect)));
    }
    if redirect.other == Other::Reject {
        // Answers of a server in this namespace are not calls of it.
        rules.push("ct direction reply return".to_owned());
        // Without these no address is found and no packet fits: the kernel sends them, an application can't.
        rules.push(
            "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, \
             mld2-listener-report } return"
                .to_owned(),
        );
        rules.push(
            "icmp type { destination-unreachable, time-exceeded, parameter-problem } return".to_owned(),
        );
        rules.push(
            "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } return"
                .to_owned(),
        );
        rules
            .extend(scopes(redirect).into_iter().map(|scope| format!("{scope}meta l4proto != tcp {REJECT}")));
    } else if redirect.include_ports.is_empty() || redirect.include_ports.contains(&QUIC) {
        rules.extend(scopes(redirect).into_iter().map(|scope| format!("{scope}udp dport {QUIC} {REJECT}")));
    }
    rules
}

fn own(redirect: &Redirect) -> Vec<String> {
    let mark = redirect.proxy_mark.map(|mark| format!("meta mark {mark:#x} return"));
    let uid = redirect.proxy_uid.map(|uid| format!("meta skuid {uid} return"));
    mark.into_iter().chain(uid).collect()
}

/// Loopback, and this host's own addresses: they never leave it.
const LOCAL: &str = "fib daddr type local return";

fn exemptions(redirect: &Redirect, transport: &str) -> Vec<String> {
    let mut rules = Vec::new();
    if !redirect.exclude_uids.is_empty() {
        rules.push(format!("meta skuid {} return", set(&redirect.exclude_uids)));
    }
    rules.push(LOCAL.to_owned());
    if !redirect.exclude_ports.is_empty() {
        rules.push(format!("{transport} dport {} return", set(&redirect.exclude_ports)));
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

/// Where nothing is rejected DNS needs no exception: over UDP it passes, over TCP it is a connection like another.
fn exempts_dns(redirect: &Redirect) -> bool {
    redirect.other == Other::Reject || redirect.reject_metadata
}

fn dns(redirect: &Redirect, transport: &str) -> Vec<String> {
    let resolvers: Vec<IpNet> = redirect.resolvers.iter().copied().map(IpNet::from).collect();
    let (v4, v6) = by_family(&resolvers);
    let mut rules = Vec::new();
    if !v4.is_empty() {
        rules.push(format!("ip daddr {} {transport} dport 53 return", set(&v4)));
    }
    if !v6.is_empty() {
        rules.push(format!("ip6 daddr {} {transport} dport 53 return", set(&v6)));
    }
    rules
}

/// Whom and what the last rules concern: one text for everything, or one for each family of the networks included.
fn scopes(redirect: &Redirect) -> Vec<String> {
    let who = who(redirect);
    if redirect.include_cidrs.is_empty() {
        return vec![who];
    }
    let (v4, v6) = by_family(&redirect.include_cidrs);
    let mut scopes = Vec::new();
    if !v4.is_empty() {
        scopes.push(format!("{who}ip daddr {} ", set(&v4)));
    }
    if !v6.is_empty() {
        scopes.push(format!("{who}ip6 daddr {} ", set(&v6)));
    }
    scopes
}

fn who(redirect: &Redirect) -> String {
    match redirect.include_uids.as_slice() {
        [] => String::new(),
        uids => format!("meta skuid {} ", set(uids)),
    }
}

/// A redirect would send these from a link-local address to loopback, where they are lost without a word.
const LINK_LOCAL: &str = "fe80::/10";

fn captures_link_local(redirect: &Redirect) -> bool {
    let included = |network: &IpNet| match network {
        IpNet::V6(v6) => v6.contains(&Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
        IpNet::V4(_) => false,
    };
    redirect.include_cidrs.is_empty() || redirect.include_cidrs.iter().any(included)
}

/// Merged where they overlap: a set of nft may not hold two that do. A network of one address is written as one.
fn by_family(networks: &[IpNet]) -> (Vec<String>, Vec<String>) {
    let merged = IpNet::aggregate(&networks.iter().map(IpNet::trunc).collect());
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = merged.into_iter().partition(|net| matches!(net, IpNet::V4(_)));
    let text = |net: &IpNet| match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.to_string(),
    };
    (v4.iter().map(text).collect(), v6.iter().map(text).collect())
}

fn set<T: std::fmt::Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    format!("{{ {} }}", items.join(", "))
}

/// What is rejected, for people.
#[must_use]
pub fn rejections(redirect: &Redirect) -> Vec<String> {
    let mut lines = Vec::new();
    match redirect.other {
        Other::Reject => lines.push("what is not TCP".to_owned()),
        Other::Pass if redirect.include_ports.is_empty() || redirect.include_ports.contains(&QUIC) => {
            lines.push("UDP port 443 (QUIC)".to_owned());
        }
        Other::Pass => {}
    }
    if captures_link_local(redirect) {
        lines.push(format!("TCP to IPv6 link-local addresses ({LINK_LOCAL}), which can't be redirected"));
    }
    if redirect.reject_metadata {
        lines.extend(METADATA.iter().map(|address| format!("metadata address {address}")));
    }
    lines
}

/// What is not captured, for people.
#[must_use]
pub fn exclusions(redirect: &Redirect) -> Vec<String> {
    let mut lines = vec!["loopback and this host's own addresses".to_owned()];
    if let Some(uid) = redirect.proxy_uid {
        lines.push(format!("the proxy's own connections (UID {uid})"));
    }
    if let Some(mark) = redirect.proxy_mark {
        lines.push(format!("the proxy's own connections (mark {mark:#x})"));
    }
    lines.extend(redirect.exclude_uids.iter().map(|uid| format!("UID {uid}")));
    lines.extend(redirect.exclude_ports.iter().map(|port| format!("port {port}")));
    lines.extend(redirect.exclude_cidrs.iter().map(|network| format!("network {}", network.trunc())));
    if !redirect.include_uids.is_empty() {
        lines.push(format!("every UID but {}", set(&redirect.include_uids)));
    }
    if !redirect.include_ports.is_empty() {
        lines.push(format!("every TCP port but {}", set(&redirect.include_ports)));
    }
    if !redirect.include_cidrs.is_empty() {
        lines.push(format!("every network but {}", set(&redirect.include_cidrs)));
    }
    match redirect.other {
        Other::Pass => lines.push("what is not TCP, but for UDP port 443".to_owned()),
        Other::Reject => {
            lines.push("what the kernel itself needs of ICMP, and answers to calls from outside".to_owned())
        }
    }
    if exempts_dns(redirect) {
        lines.extend(redirect.resolvers.iter().map(|resolver| format!("DNS to {resolver}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_least_that_captures_everything() {
        let redirect = Redirect { proxy_port: 15001, proxy_uid: Some(1337), ..Redirect::default() };
        insta::assert_snapshot!(install(&redirect), @r"
        table inet countersign {}
        delete table inet countersign
        table inet countersign {
        	chain refuse {
        		type filter hook output priority -150; policy accept;
        		ip daddr 127.0.0.1 tcp dport { 15011, 15013 } meta mark set 0xc5c5
        		ip6 daddr ::1 tcp dport { 15011, 15013 } meta mark set 0xc5c5
        		meta skuid 1337 return
        		fib daddr type local return
        		ip6 daddr fe80::/10 meta l4proto tcp reject with tcp reset
        		udp dport 443 reject with icmpx port-unreachable
        	}

        	chain output {
        		type nat hook output priority -100; policy accept;
        		ip daddr 127.0.0.1 tcp dport { 15011, 15013 } meta mark 0xc5c5 redirect to :15001
        		ip6 daddr ::1 tcp dport { 15011, 15013 } meta mark 0xc5c5 redirect to :15001
        		meta skuid 1337 return
        		ip daddr 127.0.0.1 tcp dport { 15014 } redirect to :15001
        		ip6 daddr ::1 tcp dport { 15014 } redirect to :15001
        		fib daddr type local return
        		meta l4proto tcp redirect to :15001
        	}
        }
        ");
        insta::assert_snapshot!(rejections(&redirect).join("\n"), @r"
        UDP port 443 (QUIC)
        TCP to IPv6 link-local addresses (fe80::/10), which can't be redirected
        ");
        insta::assert_snapshot!(exclusions(&redirect).join("\n"), @r"
        loopback and this host's own addresses
        the proxy's own connections (UID 1337)
        what is not TCP, but for UDP port 443
        ");
    }

    #[test]
    fn everything_that_can_be_said() {
        let redirect = Redirect {
            proxy_port: 15001,
            proxy_uid: None,
            proxy_mark: Some(0x1337),
            exclude_cidrs: nets(&["10.1.2.3/8", "fd00::/8"]),
            include_cidrs: nets(&["0.0.0.0/0", "2000::/3"]),
            exclude_ports: vec![22, 25],
            include_ports: vec![80, 443],
            exclude_uids: vec![0],
            include_uids: vec![1000, 1001],
            other: Other::Pass,
            resolvers: Vec::new(),
            reject_metadata: false,
        };
        insta::assert_snapshot!(install(&redirect), @r"
        table inet countersign {}
        delete table inet countersign
        table inet countersign {
        	chain refuse {
        		type filter hook output priority -150; policy accept;
        		ip daddr 127.0.0.1 tcp dport { 15011 } meta mark set 0xc5c5
        		ip6 daddr ::1 tcp dport { 15011 } meta mark set 0xc5c5
        		meta mark 0x1337 return
        		fib daddr type local return
        		meta skuid { 0 } return
        		udp dport { 22, 25 } return
        		ip daddr { 10.0.0.0/8 } return
        		ip6 daddr { fd00::/8 } return
        		meta skuid { 1000, 1001 } ip daddr { 0.0.0.0/0 } udp dport 443 reject with icmpx port-unreachable
        		meta skuid { 1000, 1001 } ip6 daddr { 2000::/3 } udp dport 443 reject with icmpx port-unreachable
        	}

        	chain output {
        		type nat hook output priority -100; policy accept;
        		ip daddr 127.0.0.1 tcp dport { 15011 } meta mark 0xc5c5 redirect to :15001
        		ip6 daddr ::1 tcp dport { 15011 } meta mark 0xc5c5 redirect to :15001
        		meta mark 0x1337 return
        		ip daddr 127.0.0.1 tcp dport { 15014 } redirect to :15001
        		ip6 daddr ::1 tcp dport { 15014 } redirect to :15001
        		meta skuid { 0 } return
        		fib daddr type local return
        		tcp dport { 22, 25 } return
        		ip daddr { 10.0.0.0/8 } return
        		ip6 daddr { fd00::/8 } return
        		meta skuid { 1000, 1001 } ip daddr { 0.0.0.0/0 } tcp dport { 80, 443 } redirect to :15001
        		meta skuid { 1000, 1001 } ip6 daddr { 2000::/3 } tcp dport { 80, 443 } redirect to :15001
        	}
        }
        ");
        insta::assert_snapshot!(exclusions(&redirect).join("\n"), @r"
        loopback and this host's own addresses
        the proxy's own connections (mark 0x1337)
        UID 0
        port 22
        port 25
        network 10.0.0.0/8
        network fd00::/8
        every UID but { 1000, 1001 }
        every TCP port but { 80, 443 }
        every network but { 0.0.0.0/0, 2000::/3 }
        what is not TCP, but for UDP port 443
        ");
    }

    #[test]
    fn what_is_not_tcp_can_be_rejected_and_metadata_too() {
        let redirect = Redirect {
            proxy_port: 15001,
            proxy_uid: Some(1337),
            other: Other::Reject,
            resolvers: vec!["10.0.0.53".parse().unwrap(), "fd77::35".parse().unwrap()],
            reject_metadata: true,
            ..Redirect::default()
        };
        insta::assert_snapshot!(install(&redirect), @r"
        table inet countersign {}
        delete table inet countersign
        table inet countersign {
        	chain refuse {
        		type filter hook output priority -150; policy accept;
        		ip daddr 127.0.0.1 tcp dport { 15011, 15012, 15013 } meta mark set 0xc5c5
        		ip6 daddr ::1 tcp dport { 15011, 15012, 15013 } meta mark set 0xc5c5
        		meta skuid 1337 return
        		fib daddr type local return
        		ip daddr { 10.0.0.53 } udp dport 53 return
        		ip6 daddr { fd77::35 } udp dport 53 return
        		ip daddr { 10.0.0.53 } tcp dport 53 return
        		ip6 daddr { fd77::35 } tcp dport 53 return
        		ip daddr { 100.100.100.200, 169.254.169.254, 169.254.170.2, 169.254.170.23, 192.0.0.192 } meta l4proto tcp reject with tcp reset
        		ip daddr { 100.100.100.200, 169.254.169.254, 169.254.170.2, 169.254.170.23, 192.0.0.192 } reject with icmpx port-unreachable
        		ip6 daddr { fd00:ec2::23, fd00:ec2::254, fd20:ce::254 } meta l4proto tcp reject with tcp reset
        		ip6 daddr { fd00:ec2::23, fd00:ec2::254, fd20:ce::254 } reject with icmpx port-unreachable
        		ip6 daddr fe80::/10 meta l4proto tcp reject with tcp reset
        		ct direction reply return
        		icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld2-listener-report } return
        		icmp type { destination-unreachable, time-exceeded, parameter-problem } return
        		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } return
        		meta l4proto != tcp reject with icmpx port-unreachable
        	}

        	chain output {
        		type nat hook output priority -100; policy accept;
        		ip daddr 127.0.0.1 tcp dport { 15011, 15012, 15013 } meta mark 0xc5c5 redirect to :15001
        		ip6 daddr ::1 tcp dport { 15011, 15012, 15013 } meta mark 0xc5c5 redirect to :15001
        		meta skuid 1337 return
        		ip daddr 127.0.0.1 tcp dport { 15014 } redirect to :15001
        		ip6 daddr ::1 tcp dport { 15014 } redirect to :15001
        		fib daddr type local return
        		ip daddr { 10.0.0.53 } tcp dport 53 return
        		ip6 daddr { fd77::35 } tcp dport 53 return
        		meta l4proto tcp redirect to :15001
        	}
        }
        ");
        insta::assert_snapshot!(rejections(&redirect).join("\n"), @r"
        what is not TCP
        TCP to IPv6 link-local addresses (fe80::/10), which can't be redirected
        metadata address 169.254.169.254
        metadata address 169.254.170.2
        metadata address 169.254.170.23
        metadata address 100.100.100.200
        metadata address 192.0.0.192
        metadata address fd00:ec2::254
        metadata address fd00:ec2::23
        metadata address fd20:ce::254
        ");
        insta::assert_snapshot!(exclusions(&redirect).join("\n"), @r"
        loopback and this host's own addresses
        the proxy's own connections (UID 1337)
        what the kernel itself needs of ICMP, and answers to calls from outside
        DNS to 10.0.0.53
        DNS to fd77::35
        ");
    }

    #[test]
    fn networks_that_overlap_are_one() {
        let (v4, v6) =
            by_family(&nets(&["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7/32", "fd00::/8", "fd77::/16"]));
        assert_eq!((v4.join(" ").as_str(), v6.join(" ").as_str()), ("10.0.0.0/8 192.0.2.7", "fd00::/8"));
    }

    #[test]
    fn quic_passes_where_its_tcp_port_is_not_captured() {
        let redirect = Redirect { proxy_port: 15001, include_ports: vec![80], ..Redirect::default() };
        assert!(!install(&redirect).contains("udp dport 443"));
        assert!(!rejections(&redirect).join("\n").contains("443"));
    }
}
