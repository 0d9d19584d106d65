//! Stage 3, protocol: what is being asked?
//!
//! Bytes become requests here, of either version of HTTP, and answers become bytes again. What a request is judged
//! by is made in one place, [`facts`], for both versions.

pub mod activity;
pub mod backlog;
pub mod body;
pub mod facts;
pub mod flood;
pub mod grpc_end;
pub mod hangup;
pub mod head;
pub mod http1;
pub mod http2;
pub mod incoming;
pub mod interim;
pub mod message;
pub mod pump;
pub mod rewind;
pub mod trailers;
pub mod tunnel;
pub mod websocket;
pub mod window;
pub mod wire;

pub use body::{Body, BodyError};
pub use message::Message;
