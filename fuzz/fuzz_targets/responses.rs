#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leno_proxy::fuzz::responses(data));
