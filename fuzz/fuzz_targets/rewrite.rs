//! Any bytes at a host with rewrite addresses: `cargo xtask fuzz rewrite`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tenet_forward::model::rewrite_fuzz::rewrite(bytes));
