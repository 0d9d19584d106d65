//! HTTP/1: how the bytes arrive makes no difference, another parser reads what we let through as we do, and what we
//! write means what we have read.
#![no_main]

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use protocols::http1::body::{Piece, Reader};
use protocols::http1::head::{self, AnswerHead, Bounds, Fields, Length, RequestHead, Scan};
use protocols::http1::write::{self, Framing};

const BOUNDS: Bounds = Bounds { bytes: 16 << 10, fields: 100 };

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // The first byte says how the rest is cut.
    let Some((cut, bytes)) = data.split_first() else { return };
    let end = Scan::default().end(bytes, BOUNDS);
    let mut scan = Scan::default();
    let steps = (0..bytes.len()).step_by(usize::from(*cut).max(1)).chain([bytes.len()]);
    let found = steps.filter(|length| *length > 0).find_map(|length| scan.end(&bytes[..length], BOUNDS).transpose());
    assert_eq!(end.clone().transpose().is_some_and(|end| end.is_ok()), found.is_some_and(|end| end.is_ok()));
    let Ok(Some(end)) = end else { return };
    let whole = Bytes::copy_from_slice(&bytes[..end]);
    if let Ok(read) = head::request(&whole, 0) {
        request(&whole, &read);
        body(Reader::of_request(read.fields.length), &bytes[end..], *cut);
    }
    if let Ok(read) = head::answer(&whole, 0) {
        answer(&whole, &read);
        body(Reader::of_answer(read.fields.length), &bytes[end..], *cut);
    }
});

fn request(whole: &[u8], read: &RequestHead) {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut other = httparse::Request::new(&mut fields);
    if other.parse(whole).is_ok_and(|status| status.is_complete()) {
        assert_eq!(other.method, Some(read.method.as_str()));
        same(other.headers, &read.fields);
    }
    let mut out = Vec::new();
    let framing = framing(read.fields.length);
    let asked = (&read.method, &read.target);
    write::request(&mut out, asked, &read.fields.headers, Some(&read.fields.spelling), framing);
    let again = head::request(&out.into(), 0).expect("what we write can be read");
    assert_eq!(again.method, read.method);
    assert_eq!(unframed(&again.fields), unframed(&read.fields));
    assert_eq!(again.fields.length, read.fields.length);
}

fn answer(whole: &[u8], read: &AnswerHead) {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut other = httparse::Response::new(&mut fields);
    if other.parse(whole).is_ok_and(|status| status.is_complete()) {
        assert_eq!(other.code, Some(read.status.as_u16()));
        same(other.headers, &read.fields);
    }
    let mut out = Vec::new();
    let line = (read.status, Some(&read.reason[..]));
    let (fields, framing) = (&read.fields, framing(read.fields.length));
    write::answer(&mut out, fields.version, line, &fields.headers, Some(&fields.spelling), framing, true);
    let again = head::answer(&out.into(), 0).expect("what we write can be read");
    assert_eq!((again.status, &again.reason), (read.status, &read.reason));
    assert_eq!(again.fields.length, read.fields.length);
}

/// The fields but those of the framing, which are written anew.
fn unframed(fields: &Fields) -> HeaderMap {
    let mut headers = fields.headers.clone();
    headers.remove(http::header::CONTENT_LENGTH);
    headers.remove(http::header::TRANSFER_ENCODING);
    headers
}

fn framing(length: Length) -> Framing {
    match length {
        Length::Unsaid => Framing::None,
        Length::Exactly(length) => Framing::Length(length),
        Length::Chunked => Framing::Chunked,
    }
}

fn same(other: &[httparse::Header<'_>], fields: &Fields) {
    assert_eq!(other.len(), fields.headers.len());
    for field in other {
        let value = field.value.trim_ascii();
        assert!(fields.headers.get_all(field.name).iter().any(|ours| ours.as_bytes().trim_ascii() == value));
    }
}

/// What a body says, read at once and in pieces.
fn body(reader: Reader, bytes: &[u8], cut: u8) {
    let again = match reader.left() {
        Some(left) => Reader::of_answer(Length::Exactly(left)),
        None if reader.ends_with_connection() => Reader::of_answer(Length::Unsaid),
        None => Reader::of_answer(Length::Chunked),
    };
    let whole = read(reader, bytes, bytes.len().max(1));
    let pieces = read(again, bytes, usize::from(cut).max(1));
    // What comes before a fault may be taken further in one than in the other.
    assert_eq!(whole.is_ok(), pieces.is_ok());
    if let (Ok(whole), Ok(pieces)) = (whole, pieces) {
        assert_eq!(whole, pieces);
    }
}

fn read(mut reader: Reader, bytes: &[u8], step: usize) -> Result<(Vec<u8>, HeaderMap, Vec<u8>, bool), protocols::Malformed> {
    let (mut unread, mut data, mut trailers) = (BytesMut::new(), Vec::new(), HeaderMap::new());
    for part in bytes.chunks(step) {
        unread.extend_from_slice(part);
        loop {
            match reader.next(&mut unread)? {
                Piece::Data(piece) => data.extend_from_slice(&piece),
                Piece::Trailers(fields) => trailers = fields,
                Piece::More | Piece::End => break,
            }
        }
    }
    // What is left of a line that has not ended is the same, however it came.
    Ok((data, trailers, unread.to_vec(), reader.is_over()))
}
