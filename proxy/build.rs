//! Compiles the `.proto` of the certificate authority, of quotas and of caches (the client's half) with protox, so that nobody needs `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../api/proto");
    let descriptors =
        protox::compile(["ca.proto", "quota.proto", "cache.proto"], ["../api/proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}
