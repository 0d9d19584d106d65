//! Takes a credential out of an answer that sends it back, as the answer streams by.
//!
//! A secret is replaced by as many stars, so that lengths stay what they were announced to be. The matcher keeps no
//! bytes: what it has seen of a secret is the secret's own beginning (Knuth, Morris, Pratt).

use std::borrow::Cow;

use model::Secret;

/// Beginnings of a secret that are this short are let through at the end of a chunk: nobody learns anything from them,
/// and a message that happens to end in one is not held back until the next.
const SHOWN: usize = 3;

/// Looks for one secret in one stream of bytes.
#[derive(Clone, Debug)]
pub struct Redactor {
    secret: Secret,
    /// For each prefix of the secret, the length of the longest one that is also its end.
    borders: Box<[u32]>,
    /// How much of the secret the bytes so far end in.
    matched: usize,
    /// How much of that has been let through.
    shown: usize,
}

impl Redactor {
    /// For this secret; `None` if it is too short to be told from chance.
    #[must_use]
    pub fn new(secret: Secret) -> Option<Self> {
        (secret.len() > SHOWN).then(|| Self {
            borders: borders(secret.expose()),
            secret,
            matched: 0,
            shown: 0,
        })
    }

    /// Takes the next bytes; appends to `out` what may go on. What may yet become a secret is kept back.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        out.reserve(bytes.len() + self.matched - self.shown);
        for byte in bytes {
            self.step(*byte, out);
        }
        if self.matched <= SHOWN {
            self.finish_shown(out);
        }
    }

    /// Whether something is kept back.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.matched > self.shown
    }

    /// Bytes that are kept back.
    #[must_use]
    pub fn held(&self) -> usize {
        self.matched - self.shown
    }

    /// The stream has ended: what is kept back is no secret.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.finish_shown(out);
        (self.matched, self.shown) = (0, 0);
    }

    fn finish_shown(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.secret.expose()[self.shown..self.matched]);
        self.shown = self.matched;
    }

    fn step(&mut self, byte: u8, out: &mut Vec<u8>) {
        while self.matched > 0 && self.secret.expose()[self.matched] != byte {
            self.fall_back(out);
        }
        if self.secret.expose()[self.matched] != byte {
            out.push(byte);
            return;
        }
        self.matched += 1;
        if self.matched == self.secret.len() {
            out.resize(out.len() + self.matched - self.shown, b'*');
            (self.matched, self.shown) = (0, 0);
        }
    }

    /// What was seen is not the secret, but its end may be the beginning of one.
    fn fall_back(&mut self, out: &mut Vec<u8>) {
        let shorter = self.borders[self.matched - 1] as usize;
        let leaving = self.matched - shorter;
        out.extend_from_slice(&self.secret.expose()[self.shown.min(leaving)..leaving]);
        self.shown = self.shown.saturating_sub(leaving);
        self.matched = shorter;
    }
}

fn borders(secret: &[u8]) -> Box<[u32]> {
    let mut borders = vec![0_u32; secret.len()];
    let mut matched = 0;
    for at in 1..secret.len() {
        while matched > 0 && secret[matched] != secret[at] {
            matched = borders[matched - 1] as usize;
        }
        matched += usize::from(secret[matched] == secret[at]);
        borders[at] = u32::try_from(matched).unwrap_or(u32::MAX);
    }
    borders.into_boxed_slice()
}

/// The value of a header field without the secret.
#[must_use]
pub fn redacted<'a>(value: &'a [u8], secret: &Secret) -> Cow<'a, [u8]> {
    let Some(mut redactor) = Redactor::new(secret.clone()) else { return Cow::Borrowed(value) };
    let mut out = Vec::new();
    redactor.push(value, &mut out);
    redactor.finish(&mut out);
    if out == value { Cow::Borrowed(value) } else { Cow::Owned(out) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(secret: &[u8], chunks: &[&[u8]]) -> Vec<u8> {
        let mut redactor = Redactor::new(Secret::new(secret)).unwrap();
        let mut out = Vec::new();
        for chunk in chunks {
            redactor.push(chunk, &mut out);
        }
        redactor.finish(&mut out);
        out
    }

    /// Where the secret stands, from the left, none overlapping another.
    fn places(text: &[u8], secret: &[u8]) -> Vec<usize> {
        let (mut found, mut at) = (Vec::new(), 0);
        while at + secret.len() <= text.len() {
            if text[at..].starts_with(secret) {
                found.push(at);
                at += secret.len();
            } else {
                at += 1;
            }
        }
        found
    }

    #[test]
    fn a_secret_is_found_wherever_it_is_split() {
        let (secret, text) = (b"eyJabc.def", b"x=eyJabc.def, eyJeyJabc.def; eyJabc.de");
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let out = run(secret, &[&text[..first], &text[first..second], &text[second..]]);
                assert!(
                    places(&out, secret).is_empty(),
                    "{first} {second} {}",
                    String::from_utf8_lossy(&out)
                );
                let expected = b"x=**********, eyJ**********; eyJabc.de";
                for (at, byte) in out.iter().enumerate() {
                    // Of a secret, no more than its first bytes may be seen.
                    let beginning =
                        places(text, secret).iter().any(|place| (*place..place + SHOWN).contains(&at));
                    assert!(
                        *byte == expected[at] || (beginning && *byte == text[at]),
                        "{first} {second} {at}"
                    );
                }
            }
        }
    }

    #[test]
    fn nothing_is_held_but_what_may_become_the_secret() {
        let mut redactor = Redactor::new(Secret::new(&b"eyJabc"[..])).unwrap();
        let mut out = Vec::new();
        redactor.push(b"data: one\n\n", &mut out);
        assert_eq!((out.as_slice(), redactor.is_holding()), (&b"data: one\n\n"[..], false));
        redactor.push(b"eyJa", &mut out);
        assert!(redactor.is_holding());
        redactor.push(b"x", &mut out);
        assert_eq!(out, b"data: one\n\neyJax");
        redactor.push(b"a message that ends in e", &mut out);
        assert!(!redactor.is_holding(), "the first bytes are nobody's secret");
    }

    #[test]
    fn a_header_is_left_alone_or_masked() {
        let secret = Secret::new(&b"token"[..]);
        assert!(matches!(redacted(b"Bearer other", &secret), Cow::Borrowed(_)));
        assert_eq!(&*redacted(b"Bearer token", &secret), b"Bearer *****");
    }

    proptest! {
        #[test]
        fn however_it_is_cut_lengths_stay_and_no_secret_is_left(
            secret in "[ab]{4,9}",
            text in "[ab]{0,80}",
            cuts in prop::collection::vec(0_usize..81, 0..6),
        ) {
            let (secret, text) = (secret.as_bytes(), text.as_bytes());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.push(text.len());
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts {
                chunks.push(&text[from..cut]);
                from = cut;
            }
            let out = run(secret, &chunks);
            prop_assert_eq!(out.len(), text.len());
            let found = places(text, secret);
            for at in 0..text.len() {
                let within = found.iter().find(|place| (**place..**place + secret.len()).contains(&at));
                match within {
                    Some(place) if at - place < SHOWN => prop_assert!(out[at] == b'*' || out[at] == text[at]),
                    Some(_) => prop_assert_eq!(out[at], b'*'),
                    None => prop_assert_eq!(out[at], text[at]),
                }
            }
        }
    }
}
