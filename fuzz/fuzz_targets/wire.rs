//! Any bytes as a frame: `cargo xtask fuzz wire`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tenet_forward::model::fuzz::wire(bytes));
