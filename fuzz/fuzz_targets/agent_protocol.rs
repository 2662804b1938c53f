//! `cargo xtask fuzz agent_protocol`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tenet_fuzz::agent_protocol(bytes));
