//! Bounds on what one peer can make us hold or wait for; docs/limits.md has them in one table.

use std::time::Duration;

use protocols::http1::head::Bounds;

use crate::config::Settings;
use crate::upstream::connect::Patience;

/// All bounds, from the settings.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For connecting to an upstream.
    pub patience: Patience,
    /// For the head of an answer.
    pub answer: Duration,
    /// For the first bytes of a connection, for its handshake, and for a request's head.
    pub head: Duration,
    /// For a connection on which no request is open.
    pub idle: Duration,
    /// For a body of which nothing moves.
    pub body: Duration,
    /// The same for what may be silent for long: event streams, gRPC, WebSocket.
    pub stream: Duration,
    /// Connections at a time, on each worker.
    pub connections: usize,
    /// Requests at a time, on each worker.
    pub requests: usize,
    /// Bytes of a request's body.
    pub body_bytes: u64,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Fields of a request's head.
    pub headers: usize,
    /// Streams at a time on one HTTP/2 connection of the application.
    pub streams: u32,
    /// Streams of one HTTP/2 connection that the application may give up within [`RESETS_WITHIN`].
    pub resets: u32,
    /// Bytes of memory.
    pub memory: usize,
}

/// Within how long [`Limits::resets`] streams may be given up.
pub const RESETS_WITHIN: Duration = Duration::from_secs(10);

impl Limits {
    /// The bounds that the settings say; 0 is no bound where the setting says so.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let connect = Duration::from_secs(settings.connect_timeout);
        let unbounded = |seconds| if seconds == 0 { Duration::MAX } else { Duration::from_secs(seconds) };
        Self {
            patience: Patience { connect, handshake: connect },
            answer: Duration::from_secs(settings.answer_timeout),
            head: settings.head_patience(),
            idle: Duration::from_secs(settings.idle_timeout),
            body: unbounded(settings.body_timeout),
            stream: unbounded(settings.stream_timeout),
            connections: settings.max_connections,
            requests: settings.max_requests,
            body_bytes: if settings.max_body_mib == 0 { u64::MAX } else { settings.max_body_mib << 20 },
            head_bytes: settings.max_header_kib << 10,
            headers: settings.max_headers,
            streams: settings.max_streams,
            resets: settings.max_resets,
            memory: settings.max_memory_mib << 20,
        }
    }

    /// What the head of a request in HTTP/1 may have.
    #[must_use]
    pub const fn head_bounds(&self) -> Bounds {
        Bounds { bytes: self.head_bytes, fields: self.headers }
    }
}
