//! The protobuf API between proxy, control plane and command line, and its conversions into `model`.
//!
//! The messages are what a stranger sent: nothing uses one before [`convert`] has made a domain type of it.

pub mod convert;
pub mod payload;
pub mod status;

/// `countersign.v1`, generated from `proto/`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::use_self,
    clippy::large_futures,
    clippy::allow_attributes_without_reason,
    elided_lifetimes_in_paths,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("countersign.v1");
}
