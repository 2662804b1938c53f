//! The baseline: a plain Linux bridge on every host, and one as the wire between them; and the same with bridges that
//! learn nothing, on which a guest that moves finds what it was sent meanwhile, as on Tenet.

use super::fabric::{CLIENT, Fabric, Namespaces, Nic, PREFIX, move_memory, nics, run, tap};
use super::qmp::Qmp;
use super::result::BASELINE;
use anyhow::Result;
use tenet_hostnet::{Links, Netns};

/// The name of those that learn nothing.
pub const FLOODING: &str = "flooding bridges";

/// Three hosts with bridges.
pub struct Bridges {
    name: &'static str,
    hosts: [Netns; 2],
    client: Netns,
    nics: Vec<Nic>,
    _namespaces: Namespaces,
}

impl Bridges {
    /// Makes them: bridges that learn where a MAC is, or that pass every frame to all.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn up(prefix: &str, guests: usize, learn: bool) -> Result<Self> {
        let (name, tag) = if learn { (BASELINE, "b") } else { (FLOODING, "f") };
        let all = Namespaces::new(&format!("{prefix}-{tag}"));
        let add_bridge = |netns: &Netns| -> Result<Links> {
            let links = Links::in_netns(netns)?;
            links.add_bridge("br0")?;
            if !learn {
                run(netns.command("ip").args(["link", "set", "br0", "type", "bridge", "ageing_time", "0"]))?;
            }
            links.set_up("br0")?;
            Ok(links)
        };
        let fabric = all.add("wire")?;
        let wire = add_bridge(&fabric)?;
        let plug = |netns: &Netns, name: &str| -> Result<Links> {
            let links = Links::in_netns(netns)?;
            links.add_veth("up0", name, &fabric)?;
            links.set_up("up0")?;
            wire.set_master(name, Some("br0"))?;
            wire.set_up(name)?;
            Ok(links)
        };
        let (client, hosts) = (all.add("client")?, [all.add("h1")?, all.add("h2")?]);
        let links = plug(&client, "p-client")?;
        links.add_addr("up0", CLIENT.into(), PREFIX)?;
        let nics = nics("vm", guests, 1500);
        for (host, name) in hosts.iter().zip(["p-h1", "p-h2"]) {
            plug(host, name)?;
            let links = add_bridge(host)?;
            links.set_master("up0", Some("br0"))?;
            for nic in &nics {
                tap(host, nic)?;
                links.set_master(&nic.device, Some("br0"))?;
            }
        }
        Ok(Self { name, hosts, client, nics, _namespaces: all })
    }
}

impl Fabric for Bridges {
    fn name(&self) -> &'static str {
        self.name
    }

    fn host(&self, at: usize) -> &Netns {
        let [first, second] = &self.hosts;
        if at == 0 { first } else { second }
    }

    fn client(&self) -> &Netns {
        &self.client
    }

    fn nics(&self) -> &[Nic] {
        &self.nics
    }

    fn migrate(&self, _nic: usize, _to: usize, uri: &str, source: &mut Qmp) -> Result<()> {
        move_memory(source, uri)
    }

    fn reset(&self, _nic: usize) -> Result<()> {
        Ok(())
    }
}
