//! Addresses: which of them nobody may be led to, and in which order they are tried.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses that a covered or an explicit-proxy call may not go to unless its destination lists them: loopback,
/// link-local (most clouds' metadata services among them), unspecified, multicast, and the metadata services that have
/// addresses elsewhere; also where IPv6 only wraps such an IPv4 address.
#[must_use]
pub fn is_special(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_special_v4(v4),
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
                || is_metadata_v6(v6)
                || wrapped(v6).is_some_and(is_special_v4)
        }
    }
}

fn is_special_v4(v4: Ipv4Addr) -> bool {
    v4.is_loopback()
        || v4.is_link_local()
        || v4.is_unspecified()
        || v4.is_multicast()
        || v4.is_broadcast()
        || v4.octets()[0] == 0
        // Azure's wire server (Azure documentation, "What is IP address 168.63.129.16?"); Alibaba Cloud's metadata;
        // Oracle Cloud's. The others of `capture::rules::METADATA` are link-local.
        || [[168, 63, 129, 16], [100, 100, 100, 200], [192, 0, 0, 192]].contains(&v4.octets())
}

fn is_metadata_v6(v6: Ipv6Addr) -> bool {
    // fd00:ec2::/32 is AWS's (EC2 user guide), fd20:ce::254 Google Cloud's (Compute Engine documentation).
    v6.segments()[..2] == [0xfd00, 0x0ec2] || v6 == Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)
}

/// The IPv4 address in an IPv4-compatible (RFC 4291 §2.5.5.1), NAT64 (RFC 6052 §2.1) or 6to4 (RFC 3056 §2) address.
fn wrapped(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

/// Whether this host has the address itself.
#[must_use]
pub fn is_own(address: IpAddr) -> bool {
    // The kernel lets a socket be bound to addresses of this host alone.
    address.to_canonical().is_loopback() || std::net::UdpSocket::bind((address, 0)).is_ok()
}

/// The order in which addresses are tried (RFC 8305 §4): the first one first, then the families in turn, each in the
/// order in which its addresses came.
#[must_use]
pub fn interleaved(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let Some(first_is_v6) = addresses.first().map(IpAddr::is_ipv6) else { return addresses };
    let (same, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut ordered = Vec::with_capacity(same.len() + other.len());
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    loop {
        match (same.next(), other.next()) {
            (None, None) => return ordered,
            (one, two) => ordered.extend([one, two].into_iter().flatten()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_in_every_spelling() {
        let special = [
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "::1",
            "fe80::1",
            "::ffff:169.254.169.254",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:a9fe:a9fe::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "::ffff:192.0.0.192",
            "0.0.0.0",
            "::",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "ff02::1",
        ];
        for text in special {
            assert!(is_special(text.parse().unwrap()), "{text}");
        }
        for text in
            ["10.0.0.1", "192.168.1.1", "203.0.113.9", "fd77::1", "2001:db8::1", "64:ff9b::203.0.113.9"]
        {
            assert!(!is_special(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn families_take_turns_after_the_first() {
        let addresses =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let given = addresses(&["::1", "::2", "::3", "10.0.0.1", "10.0.0.2"]);
        assert_eq!(interleaved(given), addresses(&["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"]));
        let given = addresses(&["10.0.0.1", "::1", "::2"]);
        assert_eq!(interleaved(given), addresses(&["10.0.0.1", "::1", "::2"]));
        assert_eq!(interleaved(Vec::new()), Vec::<IpAddr>::new());
    }

    #[test]
    fn own_addresses_are_known() {
        for own in ["127.0.0.1", "127.3.2.1", "::1", "0.0.0.0", "::ffff:127.0.0.1"] {
            assert!(is_own(own.parse().unwrap()), "{own}");
        }
        assert!(!is_own("203.0.113.9".parse().unwrap()));
    }
}
