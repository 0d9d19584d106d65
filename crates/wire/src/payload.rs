//! Payloads of audit records as they travel, and as they lie in a proxy's spool: what they have in common is said once.
//!
//! A record is the encoding of a [`v1::ShapedRecord`], which names a [`v1::Shape`]. The hash chain knows nothing of that: it
//! is over the payload, which comes out byte for byte as the proxy meant it.

use prost::Message as _;
use prost::bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::convert::Invalid;
use crate::v1;

/// Text in a shape, in bytes. With the number of records in a message it bounds what their payloads take.
pub const SHAPE_BYTES_MAX: usize = 2048;

/// How a record begins: with the number of its shape, as one byte, which is to be written over the last of these.
/// Numbers up to 127 are their own encoding (Protocol Buffers' "Base 128 Varints").
pub const RECORD_BEGIN: [u8; 2] = [1 << 3, 0];

/// Appends a part to a record.
pub fn put_part(record: &mut Vec<u8>, part: &[u8]) {
    encode_key(2, WireType::LengthDelimited, record);
    encode_varint(part.len() as u64, record);
    record.extend_from_slice(part);
}

/// Reads a record whose shape can be found by its number.
///
/// # Errors
/// If it is not one, or there is no such shape.
pub fn read<'a>(record: Bytes, find: impl FnOnce(u32) -> Option<&'a v1::Shape>) -> Result<Vec<u8>, Invalid> {
    let record = v1::ShapedRecord::decode(record).map_err(|_| Invalid("records"))?;
    let pieces = match record.shape {
        0 => &[Bytes::new(), Bytes::new()][..],
        number => &find(number).ok_or(Invalid("records.shape"))?.pieces,
    };
    if pieces.len() != record.parts.len() + 1 {
        return Err(Invalid("records.parts"));
    }
    let length = |all: &[Bytes]| all.iter().map(Bytes::len).sum::<usize>();
    let mut payload = Vec::with_capacity(length(pieces) + length(&record.parts));
    for (number, piece) in pieces.iter().enumerate() {
        payload.extend_from_slice(piece);
        payload.extend_from_slice(record.parts.get(number).map_or(&[], |part| part));
    }
    Ok(payload)
}

/// The shapes of a message, with what a stranger may have made of them checked.
pub(crate) struct Shapes(Vec<v1::Shape>);

impl Shapes {
    pub(crate) fn new(mut shapes: Vec<v1::Shape>) -> Result<Self, Invalid> {
        shapes.sort_by_key(|shape| shape.number);
        let text = |shape: &v1::Shape| shape.pieces.iter().map(Bytes::len).sum::<usize>();
        let told_apart = shapes.windows(2).all(|pair| pair[0].number < pair[1].number);
        if !told_apart || shapes.iter().any(|shape| shape.number == 0 || text(shape) > SHAPE_BYTES_MAX) {
            return Err(Invalid("shapes"));
        }
        Ok(Self(shapes))
    }

    pub(crate) fn find(&self, number: u32) -> Option<&v1::Shape> {
        let at = self.0.binary_search_by_key(&number, |shape| shape.number).ok()?;
        self.0.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(shape: u8, parts: &[&[u8]]) -> Bytes {
        let mut record = RECORD_BEGIN.to_vec();
        record[1] = shape;
        parts.iter().for_each(|part| put_part(&mut record, part));
        record.into()
    }

    fn shape(number: u32, pieces: &[&'static [u8]]) -> v1::Shape {
        v1::Shape { number, pieces: pieces.iter().copied().map(Bytes::from_static).collect() }
    }

    #[test]
    fn a_payload_is_pieces_and_parts_in_turn() {
        let shapes = Shapes::new(vec![shape(9, &[b"<", b"|", b">"]), shape(2, &[b"all"])]).unwrap();
        let read = |record| read(record, |number| shapes.find(number));
        assert_eq!(read(record(9, &[b"a", b""])), Ok(b"<a|>".to_vec()));
        assert_eq!(read(record(2, &[])), Ok(b"all".to_vec()));
        assert_eq!(read(record(0, &[&[b'x'; 300]])), Ok(vec![b'x'; 300]));
        // As another writer would leave it out.
        assert_eq!(read(Bytes::from_static(&[0x12, 1, b'y'])), Ok(b"y".to_vec()));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let shapes = Shapes::new(vec![shape(1, &[b"<", b">"])]).unwrap();
        let read = |record| read(record, |number| shapes.find(number));
        assert_eq!(read(record(1, &[])), Err(Invalid("records.parts")));
        assert_eq!(read(record(1, &[b"a", b"b"])), Err(Invalid("records.parts")));
        assert_eq!(read(record(0, &[])), Err(Invalid("records.parts")));
        assert_eq!(read(record(2, &[b"a"])), Err(Invalid("records.shape")));
        assert_eq!(read(Bytes::from_static(&[0x12, 200])), Err(Invalid("records")));
        assert!(Shapes::new(vec![shape(0, &[b"a"])]).is_err());
        assert!(Shapes::new(vec![shape(1, &[b"a"]), shape(1, &[b"b"])]).is_err());
        assert!(Shapes::new(vec![shape(1, &[&[b'a'; SHAPE_BYTES_MAX], b"b"])]).is_err());
    }
}
