//! The probe plugin, built from its source for each version of the ABI.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
};

use leno_wasm_host::{Engine, Module};

pub fn build_all(engine: &Engine) -> HashMap<String, Module> {
    ["abi010", "abi020", "abi021"]
        .map(|abi| {
            let bytes = std::fs::read(build(abi)).unwrap();
            (abi.to_owned(), Module::compile(engine, &bytes).unwrap())
        })
        .into()
}

/// Builds with the very cargo that runs this test, into a directory of its own.
fn build(abi: &str) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kit/probe/Cargo.toml");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probe-{abi}"));
    let done = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--locked", "--target", "wasm32-wasip1"])
        .args(["--no-default-features", "--features", abi])
        .arg("--manifest-path")
        .arg(manifest)
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("RUSTFLAGS")
        .status()
        .unwrap();
    assert!(done.success(), "building the probe failed; rustup target add wasm32-wasip1");
    target.join("wasm32-wasip1/release/probe.wasm")
}
