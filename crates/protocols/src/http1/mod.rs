//! Messages of HTTP/1 as bytes (RFC 9112): how they are read, and how they are written.
//!
//! Read in one way or refused: [`head`] and [`body`] are stricter than the RFC asks a recipient to be, and forgive
//! nothing that two programs might read in two ways (docs/framing.md has every case). What is written ([`write`]) has
//! one meaning, and it is ours.

pub mod body;
pub mod head;
pub mod write;

use crate::Malformed;

/// The next line without its end, and how many of `bytes` it takes with it; `None` if it has not ended yet.
///
/// # Errors
/// If it ends with LF alone. That no CR or NUL is in it shows where its parts are read: nothing that they can be allows
/// one.
fn line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    let Some(end) = memchr::memchr(b'\n', bytes) else { return Ok(None) };
    let line = bytes[..end].strip_suffix(b"\r").ok_or(Malformed("a line ends with LF alone"))?;
    Ok(Some((line, end + 1)))
}

/// Without the white space that may be around a field's value (RFC 9110 §5.6.3), and no other.
fn without_spaces(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
