//! Messages into domain types and back.
