//! A secret in a stream, cut anywhere: lengths stay, and beyond its first bytes nothing of the secret is left.
#![no_main]

use protocols::redact::Redactor;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [length, cut, rest @ ..] = data else { return };
    let (secret, text) = rest.split_at(usize::from(*length).min(rest.len()));
    // Stars beside a mask may look like a secret of stars.
    let Some(mut redactor) = Redactor::new(model::Secret::new(secret)).filter(|_| !secret.contains(&b'*')) else {
        return;
    };
    let mut out = Vec::new();
    for chunk in text.chunks(usize::from(*cut) + 1) {
        redactor.push(chunk, &mut out);
        assert!(redactor.held() < secret.len());
    }
    redactor.finish(&mut out);
    assert_eq!(out.len(), text.len());
    assert!(!out.windows(secret.len()).any(|window| window == secret));
});
