//! Whom a request is for: what was read can be written and read again.
#![no_main]

use protocols::http::{Host, parse_authority};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(authority) = parse_authority(text) {
        let host = match &authority.host {
            Host::Name(name) => name.to_string(),
            Host::Address(std::net::IpAddr::V6(v6)) => format!("[{v6}]"),
            Host::Address(v4) => v4.to_string(),
        };
        let written = authority.port.map_or(host.clone(), |port| format!("{host}:{port}"));
        assert_eq!(parse_authority(&written), Ok(authority));
    }
});
