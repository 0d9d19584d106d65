//! Compiles the protobuf files without `protoc`: protox is a compiler written in Rust.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(
        ["countersign/v1/control_plane.proto", "countersign/v1/administration.proto"],
        ["proto"],
    )?;
    // Ordered maps: equal messages have equal bytes, and so equal hashes.
    tonic_prost_build::configure()
        .btree_map(".")
        // Sent by every call, and not copied for it.
        .bytes("countersign.v1.ReportRequest.records")
        .bytes("countersign.v1.Shape.pieces")
        .bytes("countersign.v1.ShapedRecord.parts")
        .compile_fds(descriptors)?;
    Ok(())
}
