//! `cargo xtask fuzz site_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tenet_fuzz::site_file(bytes));
