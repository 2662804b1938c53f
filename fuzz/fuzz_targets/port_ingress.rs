//! Any bytes at the ingress of a port: `cargo xtask fuzz port_ingress`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tenet_forward::model::fuzz::port_ingress(bytes));
