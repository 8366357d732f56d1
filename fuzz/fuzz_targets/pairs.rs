#![no_main]

#[path = "../../wasm-host/tests/kit/embedder.rs"]
mod embedder;
#[path = "../../wasm-host/tests/guests/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::pairs(data));
