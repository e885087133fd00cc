//! Compiles the part of etcd's API that the bench speaks.

#![allow(
    clippy::disallowed_macros,
    reason = "a build script speaks to cargo through its output"
)]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["etcd.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
