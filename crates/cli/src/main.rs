//! `countersign`

fn main() {}
