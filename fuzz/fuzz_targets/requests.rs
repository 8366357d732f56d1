#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leno_control_plane::fuzz::requests(data));
