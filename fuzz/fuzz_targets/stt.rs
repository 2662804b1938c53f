//! Any bytes as segments of STT: `cargo xtask fuzz stt`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tenet_stt::fuzz::segments(bytes));
