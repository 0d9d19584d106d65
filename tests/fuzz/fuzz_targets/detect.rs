//! The first bytes of a connection: an answer never changes with more of them.
#![no_main]

use protocols::detect::detect;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let whole = detect(data);
    for cut in 0..data.len().min(40) {
        if let Some(early) = detect(&data[..cut]) {
            assert_eq!(whole, Some(early));
        }
    }
});
