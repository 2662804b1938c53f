//! The kernel's side of Tenet: thin shells around `tenet-forward`.
//!
//! `port_in` stands at the ingress of every VM's port and `uplink_in` at that of every uplink. Each
//! gathers what is known about the frame, asks `forward`, and makes one call of the kernel for the
//! [`Action`](tenet_forward::Action) it gets. `hub_out` and `hub_in` bring frames for taps through the hub. No helper newer than kernel 5.15 is used.
#![no_std]
#![no_main]

mod act;
mod flood;
mod hub;
mod maps;
mod port;
mod rewrite;
mod sheets;
mod skb;
mod stt;
mod sum;
mod tell;
mod uplink;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// `bpf_redirect_peer` and others are for programs under the kernel's own licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
