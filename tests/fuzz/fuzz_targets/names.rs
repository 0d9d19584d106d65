//! Names: what is good stays as it is when it is read again.
#![no_main]

use model::name::{HostName, HostPattern, ResourceRef, SpiffeId};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(name) = HostName::new(text) {
        assert_eq!(HostName::new(name.as_str()), Ok(name.clone()));
        assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
    }
    if let Ok(pattern) = text.parse::<HostPattern>() {
        assert_eq!(pattern.to_string().parse(), Ok(pattern));
    }
    if let Ok(reference) = text.parse::<ResourceRef>() {
        assert_eq!(reference.to_string().parse(), Ok(reference));
    }
    if let Ok(id) = SpiffeId::new(text) {
        assert!(!id.path().contains("..") || id.path().split('/').all(|s| s != ".."));
    }
});
