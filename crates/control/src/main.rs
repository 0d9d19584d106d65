//! `countersign-control`

fn main() {}
