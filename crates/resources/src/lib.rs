//! The seven kinds of document that platform teams write, and their validation.
//!
//! The same types serve files on a laptop, `countersign apply` and custom resources.

pub mod kind;
