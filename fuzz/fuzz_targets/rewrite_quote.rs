//! Any bytes as the packet that a router's error quotes: `cargo xtask fuzz rewrite_quote`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tenet_forward::model::rewrite_fuzz::rewrite_quote(bytes));
