//! The baseline: a plain Linux bridge on every host, and one as the wire between them.

use super::fabric::{CLIENT, Fabric, Namespaces, Nic, PREFIX, Settled, move_memory, nics, tap};
use super::qmp::Qmp;
use anyhow::Result;
use tenet_hostnet::{Links, Netns};

/// Three hosts with bridges.
pub struct Bridges {
    hosts: [Netns; 2],
    client: Netns,
    nics: Vec<Nic>,
    _namespaces: Namespaces,
}

impl Bridges {
    /// Makes them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn up(prefix: &str, guests: usize) -> Result<Self> {
        let all = Namespaces::new(&format!("{prefix}-b"));
        let fabric = all.add("wire")?;
        let wire = Links::in_netns(&fabric)?;
        wire.add_bridge("br0")?;
        wire.set_up("br0")?;
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
            let links = plug(host, name)?;
            links.add_bridge("br0")?;
            links.set_up("br0")?;
            links.set_master("up0", Some("br0"))?;
            for nic in &nics {
                tap(host, nic)?;
                links.set_master(&nic.device, Some("br0"))?;
            }
        }
        Ok(Self { hosts, client, nics, _namespaces: all })
    }
}

impl Fabric for Bridges {
    fn name(&self) -> &'static str {
        "Linux bridges"
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

    fn settle(&self, _nic: usize, _to: usize) -> Result<Settled> {
        Ok(Settled::default())
    }

    fn reset(&self, _nic: usize) -> Result<()> {
        Ok(())
    }
}
