//! The probe plugin, built from its source for each version of the ABI.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
};

use leno_wasm_host::{Digest, Engine, Module};

pub fn build_all(engine: &Engine) -> HashMap<String, Module> {
    ["abi010", "abi020", "abi021"]
        .map(|abi| (abi.to_owned(), compile(engine, &std::fs::read(build(abi)).unwrap())))
        .into()
}

/// Compiling takes seconds where the compiler itself is built without optimisation: once is enough.
fn compile(engine: &Engine, bytes: &[u8]) -> Module {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe-native");
    if let Ok(Some(module)) = Module::load_cached(engine, &cache, Digest::of(bytes)) {
        return module;
    }
    let module = Module::compile(engine, bytes).unwrap();
    module.save(&cache).unwrap();
    module
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
