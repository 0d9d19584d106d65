//! CONNECT: what is taken for a tunnel has one meaning, and a head that is complete does not change with what follows.
#![no_main]

use protocols::connect::{self, Request};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(Some(Request::Tunnel(tunnel))) = connect::request(data) {
        assert!(tunnel.port > 0 && tunnel.length <= data.len());
        assert!(data[..tunnel.length].ends_with(b"\r\n\r\n"));
        let again = connect::request(&data[..tunnel.length]);
        let Ok(Some(Request::Tunnel(again))) = again else { panic!("the head alone is another request") };
        assert_eq!((again.host, again.port, again.length), (tunnel.host, tunnel.port, tunnel.length));
        for end in 0..tunnel.length {
            assert!(!matches!(connect::request(&data[..end]), Ok(Some(Request::Tunnel(_)))));
        }
    }
    if let Ok(Some(answer)) = connect::answer(data) {
        assert!(answer.length <= data.len());
        assert_eq!(connect::answer(&data[..answer.length]), Ok(Some(answer)));
    }
    // However it comes in, the same is found.
    let found = |piece: usize| {
        let (mut follower, mut found) = (protocols::standing::Follower::default(), Vec::new());
        for bytes in data.chunks(piece) {
            follower.feed(bytes, |name, value| found.push((name.to_owned(), value.to_vec())));
        }
        found
    };
    let whole = found(data.len().max(1));
    assert!(whole.iter().all(|(name, value)| protocols::standing::is_credential(name) && !value.contains(&b'\n')));
    assert_eq!(whole, found(1));
    assert_eq!(whole, found(7));
    if let Some(password) = connect::basic_password(data) {
        assert!(password.len() < data.len());
    }
});
