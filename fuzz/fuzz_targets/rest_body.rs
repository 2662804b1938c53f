//! `cargo xtask fuzz rest_body`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tenet_fuzz::rest_body(bytes));
