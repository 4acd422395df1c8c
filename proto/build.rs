//! Compiles the protocol files in pure Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/domicile/v1/kv.proto",
        "proto/domicile/v1/admin.proto",
        "proto/domicile/internal/v1/storage.proto",
        "proto/domicile/internal/v1/peer.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
