//! Identity in, ephemeral credential out: one file per kind.
