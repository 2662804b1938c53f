//! The UDP ports of VXLAN and Geneve, and how they change: receivers first, as with methods.
//!
//! One port at a time. While [`Site::switching`] names another port, hosts take frames there as well, and go on sending
//! to the present one. Then they send to the new one, and still take frames at the old one ([`Site::leaving`]) until all
//! of them have switched.

use crate::{Desired, Method, Site};
use serde::{Deserialize, Serialize};

/// UDP ports of the methods that have one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UdpPorts {
    /// VXLAN's.
    pub vxlan: u16,
    /// Geneve's.
    pub geneve: u16,
}

/// A UDP port at which hosts take a method's frames beside the one that they send to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct OtherPort {
    /// Whose.
    pub method: Method,
    /// The port.
    pub port: u16,
}

impl Site {
    /// The ports that frames are sent to, or will be once a change is over.
    #[must_use]
    pub fn wanted_ports(&self) -> UdpPorts {
        self.switching.unwrap_or(self.sent_ports())
    }

    /// The port at which hosts take frames beside those that they send to, while a change is under way.
    #[must_use]
    pub fn other_port(&self) -> Option<OtherPort> {
        let wanted = self.wanted_ports();
        let coming = [
            (Method::Vxlan, self.vxlan_port, wanted.vxlan),
            (Method::Geneve, self.geneve_port, wanted.geneve),
        ];
        let coming = coming.into_iter().find(|(_, sent, wanted)| sent != wanted);
        self.leaving.or(coming.map(|(method, _, port)| OtherPort { method, port }))
    }

    /// The next step of a change, to be written when all hosts have the present one; none if there is no change.
    #[must_use]
    pub fn next_ports(self) -> Option<Self> {
        if self.leaving.is_some() {
            return Some(Self { leaving: None, ..self });
        }
        let OtherPort { method, port } = self.other_port()?;
        let mut next = self;
        let sent = if method == Method::Vxlan { &mut next.vxlan_port } else { &mut next.geneve_port };
        next.leaving = Some(OtherPort { method, port: std::mem::replace(sent, port) });
        next.switching = next.switching.filter(|wanted| *wanted != next.sent_ports());
        Some(next)
    }

    const fn sent_ports(&self) -> UdpPorts {
        UdpPorts { vxlan: self.vxlan_port, geneve: self.geneve_port }
    }
}

impl Desired {
    /// What to write so that the methods get these UDP ports: at once where there is no host, else step by step.
    #[must_use]
    pub fn with_udp_ports(&self, wanted: UdpPorts) -> Site {
        let site = self.site.value;
        if self.hosts.is_empty() {
            return Site {
                vxlan_port: wanted.vxlan,
                geneve_port: wanted.geneve,
                switching: None,
                leaving: None,
                ..site
            };
        }
        Site { switching: Some(wanted).filter(|w| *w != site.sent_ports()), ..site }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Host, Name, Object};

    fn site() -> Desired {
        let mut desired = Desired::default();
        let name = Name::new("h1").unwrap();
        desired.put(Object::Host(Host { name, pa: [192, 168, 1, 1].into(), rewrite_pool: vec![] }), 1);
        desired
    }

    /// Ports sent to, and the other one that is taken.
    type Step = (u16, u16, Option<(Method, u16)>);

    fn steps(mut site: Site) -> Vec<Step> {
        let mut all = Vec::new();
        loop {
            all.push((site.vxlan_port, site.geneve_port, site.other_port().map(|o| (o.method, o.port))));
            match site.next_ports() {
                Some(next) => site = next,
                None => return all,
            }
        }
    }

    #[test]
    fn a_port_is_taken_before_it_is_sent_to_and_after() {
        use Method::{Geneve, Vxlan};
        let begun = site().with_udp_ports(UdpPorts { vxlan: 8472, geneve: 6081 });
        assert_eq!(
            steps(begun),
            [(4789, 6081, Some((Vxlan, 8472))), (8472, 6081, Some((Vxlan, 4789))), (8472, 6081, None)]
        );
        // One after the other.
        let begun = site().with_udp_ports(UdpPorts { vxlan: 8472, geneve: 7000 });
        assert_eq!(
            steps(begun),
            [
                (4789, 6081, Some((Vxlan, 8472))),
                (8472, 6081, Some((Vxlan, 4789))),
                (8472, 6081, Some((Geneve, 7000))),
                (8472, 7000, Some((Geneve, 6081))),
                (8472, 7000, None),
            ]
        );
    }

    #[test]
    fn a_change_can_be_given_up_at_any_point() {
        let mut desired = site();
        let back = UdpPorts { vxlan: 4789, geneve: 6081 };
        desired.site.value = desired.with_udp_ports(UdpPorts { vxlan: 8472, geneve: 6081 });
        assert_eq!(desired.with_udp_ports(back), Site::default(), "nobody sent to it yet");
        desired.site.value = desired.site.value.next_ports().unwrap();
        // The old one is taken all the way back.
        let taken: Vec<_> =
            steps(desired.with_udp_ports(back)).into_iter().map(|(v, _, o)| (v, o.map(|o| o.1))).collect();
        assert_eq!(taken, [(8472, Some(4789)), (8472, Some(4789)), (4789, Some(8472)), (4789, None)]);
    }

    #[test]
    fn without_hosts_there_is_nobody_to_wait_for() {
        let now = Desired::default().with_udp_ports(UdpPorts { vxlan: 8472, geneve: 7000 });
        assert_eq!(steps(now), [(8472, 7000, None)]);
    }
}
