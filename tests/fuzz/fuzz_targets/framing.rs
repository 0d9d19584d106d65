//! HTTP/1 framing: how the bytes arrive makes no difference, and what is let through is what it says.
#![no_main]

use protocols::framing::{Answers, Requests};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // The first byte says how the rest is cut.
    let Some((cut, bytes)) = data.split_first() else { return };
    let whole = Requests::default().follow(bytes);
    let mut requests = Requests::default();
    let pieces = bytes.chunks(usize::from(*cut).max(1)).find_map(|piece| {
        let fault = requests.follow(piece).err()?;
        assert!(fault.sound <= piece.len());
        Some(fault.why)
    });
    assert_eq!(whole.as_ref().err().map(|fault| fault.why.clone()), pieces);
    if let Err(fault) = &whole {
        assert!(fault.sound <= bytes.len());
        // What was called sound is.
        assert_eq!(Requests::default().follow(&bytes[..fault.sound]), Ok(()));
    }
    let mut answers = Answers::default();
    assert_eq!(answers.follow(bytes), Ok(()), "nothing is expected");
    answers.expect();
    let whole = answers.follow(bytes).err().map(|fault| fault.why);
    answers.expect();
    let pieces = bytes.chunks(usize::from(*cut).max(1)).find_map(|piece| answers.follow(piece).err());
    assert_eq!(whole, pieces.map(|fault| fault.why));
});
