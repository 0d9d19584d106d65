//! A ClientHello, cut anywhere: what was read from a part never changes with more of it.
#![no_main]

use protocols::client_hello::parse;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let whole = parse(data);
    for cut in [data.len() / 2, data.len().saturating_sub(1)] {
        if let Ok(Some(early)) = parse(&data[..cut]) {
            assert_eq!(whole, Ok(Some(early)));
        }
    }
});
