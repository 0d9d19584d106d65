//! countersign: apply, get, delete, explain, revoke, audit.
