//! Credentials and headers: exactly one value is left, and it is ours.
#![no_main]

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use protocols::edit::{Edit, header_value};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(value) = header_value("Bearer ", data) {
        assert!(value.is_sensitive() && value.len() > "Bearer ".len());
        assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
    }
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(50) {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(line.len()));
        let name = HeaderName::from_bytes(name);
        let value = HeaderValue::from_bytes(value.get(1..).unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    protocols::http::strip_hop_by_hop(&mut headers);
    Edit::new([]).apply(&mut headers, Some((&AUTHORIZATION, &HeaderValue::from_static("ours"))));
    let left: Vec<_> = headers.get_all(AUTHORIZATION).iter().collect();
    assert_eq!(left, ["ours"]);
    assert!(!headers.contains_key("connection") && !headers.contains_key("transfer-encoding"));
});
