//! Open vSwitch's userspace datapath as a contestant.

use super::wire::{Side, ethtool};
use super::{PA, ip};
use crate::bench::load::Vm;
use anyhow::{Context as _, Result};
use std::path::Path;
use tenet_hostnet::Netns;
use tenet_tests::ovs::{Ovs, missing};

/// One on each host: a bridge with the wire and the host's address, and one with the VM and a VXLAN tunnel.
pub fn start(side: &Side, folder: &Path, vms: &[Vm; 2]) -> Result<Vec<Ovs>> {
    if let Some(why) = missing() {
        anyhow::bail!("{why}; `--ovs` installs it");
    }
    let mut switches = Vec::new();
    for (i, pa) in PA.iter().enumerate() {
        let (h, u) = (&side.hosts[i], format!("u{}", i + 1));
        let ovs = Ovs::start(&Netns::open(h)?, &folder.join(format!("ovs{i}"))).context("start it")?;
        ip(&format!("-n {h} addr del {pa}/24 dev {u}"))?;
        ovs.add_bridge("br-phy", &[&u])?;
        ip(&format!("-n {h} addr add {pa}/24 dev br-phy"))?;
        ip(&format!("-n {h} link set br-phy mtu 1600 up"))?;
        ovs.add_bridge("br-int", &["vm"])?;
        let remote = format!("options:remote_ip={}", PA[1 - i]);
        ovs.add_tunnel("br-int", "vx", "vxlan", &[&remote, "options:key=5001"])?;
        switches.push(ovs);
        // It cannot finish open checksums nor cut large frames, so the guest must.
        ethtool(&vms[i].netns, "eth0", &["tx", "off"])?;
    }
    Ok(switches)
}
