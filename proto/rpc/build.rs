//! Compiles the `.proto` files without protoc: parsed by protox, turned into Rust by tonic.
//! The descriptor set lands beside the generated code, for reflection.

use std::path::PathBuf;

use protox::prost::Message;

const SERVICES: [&str; 11] =
    ["common", "node", "wallet", "peers", "channels", "invoices", "payments", "events", "forwards", "graph", "towers"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");
    let files = SERVICES.map(|name| format!("millrace/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;

    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("millrace_v1.bin"), descriptors.encode_to_vec())?;

    // The tower is another program: what a node serves says nothing of it.
    let tower = protox::compile(["millrace/tower/v1/tower.proto"], ["proto"])?;

    // Without the transport's `connect`, which would collide with `Peers.Connect`.
    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    tonic_prost_build::configure().build_transport(false).emit_rerun_if_changed(false).compile_fds(tower)?;
    Ok(())
}
