//! `countersign-proxy`

fn main() {}
