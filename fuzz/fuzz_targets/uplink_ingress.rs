//! Any bytes at the ingress of the uplink: `cargo xtask fuzz uplink_ingress`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tenet_forward::model::fuzz::uplink_ingress(bytes));
