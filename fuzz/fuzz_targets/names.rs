//! `cargo xtask fuzz names`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tenet_fuzz::names(bytes));
