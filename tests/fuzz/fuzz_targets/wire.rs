//! Messages between proxy and control plane: whatever a peer sends is refused, or becomes one thing that is sent as the
//! same again; and records come out as they were put in.
#![no_main]

use model::audit::Record;
use model::slice::Slice;
use model::{Caller, RequestFacts};
use prost::Message as _;
use prost::bytes::Bytes;
use wire::{payload, v1};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(message) = v1::Slice::decode(data)
        && let Ok(slice) = Slice::try_from(&message)
    {
        let again = v1::Slice::from(&slice);
        assert_eq!(Slice::try_from(&again).ok(), Some(slice));
        let _ = wire::convert::slice_hash(&again);
    }
    if let Ok(message) = v1::Caller::decode(data)
        && let Ok(caller) = Caller::try_from(&message)
    {
        assert_eq!(Caller::try_from(&v1::Caller::from(&caller)).ok(), Some(caller));
    }
    if let Ok(message) = v1::Request::decode(data)
        && let Ok(request) = RequestFacts::try_from(&message)
    {
        assert_eq!(RequestFacts::try_from(&v1::Request::from(&request)).ok(), Some(request));
    }
    if let Ok(message) = v1::ReportRequest::decode(data) {
        let _ = Vec::<Record>::try_from(message);
    }
    // The same bytes as a record without a shape, in as many parts as there are halves.
    let mut record = payload::RECORD_BEGIN.to_vec();
    payload::put_part(&mut record, data);
    assert_eq!(payload::read(Bytes::from(record), |_| None).ok().as_deref(), Some(data));
    let _ = payload::read(Bytes::copy_from_slice(data), |_| None);
});
