//! Bytes and messages, without sockets: detection, ClientHello, HTTP heads and edits. Fuzzed.
