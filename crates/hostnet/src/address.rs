//! Addresses, routes and neighbours of a namespace.

use crate::netlink::{CREATE, DUMP, EXCL, Message, REPLACE, Request, u32_of};
use crate::{Link, Links, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_HEADER: usize = 8;
const IFA_F_NODAD: u8 = 0x02;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_ENCAP: u16 = 22;
const LWTUNNEL_ENCAP_SEG6_LOCAL: u16 = 7;
const SEG6_LOCAL_ACTION: u16 = 1;
const SEG6_LOCAL_OIF: u16 = 7;
const SEG6_LOCAL_ACTION_END_DX2: u32 = 4;
const ROUTE_HEADER: usize = 12;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Number of the link.
    pub link: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of its prefix.
    pub prefix_len: u8,
}

/// What the kernel would do with a packet to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteAnswer {
    /// Number of the link it would leave by.
    pub link: u32,
    /// Next hop; `None` if the address is on link.
    pub gateway: Option<IpAddr>,
    /// Source address it would get.
    pub source: Option<IpAddr>,
    /// Whether the address is this host's own.
    pub local: bool,
}

impl Links {
    /// All addresses of the namespace.
    pub fn addrs(&self) -> Result<Vec<Address>> {
        let replies = self.ask("list addresses", Request::new(RTM_GETADDR, DUMP, &[0; IFA_HEADER]))?;
        Ok(replies.iter().filter(|m| m.kind == RTM_NEWADDR).filter_map(parse_address).collect())
    }

    /// The link that has this very address.
    pub fn link_of_addr(&self, ip: IpAddr) -> Result<Option<Link>> {
        match self.addrs()?.iter().find(|a| a.ip == ip) {
            Some(address) => self.by_index(address.link),
            None => Ok(None),
        }
    }

    /// Gives a link an address. IPv6 addresses are usable at once (no duplicate address detection).
    pub fn add_addr(&self, link: &str, ip: IpAddr, prefix_len: u8) -> Result<()> {
        let request = self.address_request(RTM_NEWADDR, CREATE | EXCL, link, ip, prefix_len)?;
        self.ask(&format!("add address {ip}/{prefix_len} to link {link:?}"), request).map(drop)
    }

    /// Takes an address from a link.
    pub fn delete_addr(&self, link: &str, ip: IpAddr, prefix_len: u8) -> Result<()> {
        let request = self.address_request(RTM_DELADDR, 0, link, ip, prefix_len)?;
        self.ask(&format!("delete address {ip}/{prefix_len} of link {link:?}"), request).map(drop)
    }

    fn address_request(
        &self,
        kind: u16,
        flags: u16,
        link: &str,
        ip: IpAddr,
        prefix_len: u8,
    ) -> Result<Request> {
        let index = self.index(link)?;
        let quick = if ip.is_ipv6() { IFA_F_NODAD } else { 0 };
        let [a, b, c, d] = index.to_ne_bytes();
        let header = [family(ip), prefix_len, quick, 0, a, b, c, d];
        let octets = octets(ip);
        Ok(Request::new(kind, flags, &header).attr(IFA_LOCAL, &octets).attr(IFA_ADDRESS, &octets))
    }

    /// Adds a route to the main table, or replaces the one to the same prefix; by next hop, by link, or both.
    pub fn add_route(
        &self,
        to: IpAddr,
        prefix_len: u8,
        via: Option<IpAddr>,
        link: Option<&str>,
    ) -> Result<()> {
        let request = self.route_request(RTM_NEWROUTE, CREATE | REPLACE, to, prefix_len, via, link)?;
        let how = match (via, link) {
            (Some(via), _) => format!(" via {via}"),
            (None, Some(link)) => format!(" on link {link:?}"),
            (None, None) => String::new(),
        };
        self.ask(&format!("add route {to}/{prefix_len}{how}"), request).map(drop)
    }

    /// Adds a route that takes the IPv6 header off frames to an address and sends what is inside, an Ethernet frame,
    /// out of a link (SRv6 End.DX2, RFC 8986 §4.9); or replaces the one that is there.
    pub fn add_decapsulating_route(&self, to: Ipv6Addr, link: &str) -> Result<()> {
        let index = self.index(link)?;
        let request = self.route_request(RTM_NEWROUTE, CREATE | REPLACE, to.into(), 128, None, Some(link))?;
        let request =
            request.attr(RTA_ENCAP_TYPE, &LWTUNNEL_ENCAP_SEG6_LOCAL.to_ne_bytes()).nest(RTA_ENCAP, |r| {
                r.u32(SEG6_LOCAL_ACTION, SEG6_LOCAL_ACTION_END_DX2).u32(SEG6_LOCAL_OIF, index)
            });
        self.ask(&format!("add SRv6 route {to} out of link {link:?}"), request).map(drop)
    }

    /// Deletes a route of the main table.
    pub fn delete_route(
        &self,
        to: IpAddr,
        prefix_len: u8,
        via: Option<IpAddr>,
        link: Option<&str>,
    ) -> Result<()> {
        let request = self.route_request(RTM_DELROUTE, 0, to, prefix_len, via, link)?;
        self.ask(&format!("delete route {to}/{prefix_len}"), request).map(drop)
    }

    fn route_request(
        &self,
        kind: u16,
        flags: u16,
        to: IpAddr,
        prefix_len: u8,
        via: Option<IpAddr>,
        link: Option<&str>,
    ) -> Result<Request> {
        let scope = if via.is_none() { RT_SCOPE_LINK } else { 0 };
        let header =
            [family(to), prefix_len, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0];
        let mut request = Request::new(kind, flags, &header).attr(RTA_DST, &octets(to));
        if let Some(via) = via {
            request = request.attr(RTA_GATEWAY, &octets(via));
        }
        if let Some(link) = link {
            request = request.u32(RTA_OIF, self.index(link)?);
        }
        Ok(request)
    }

    /// Asks where the kernel would send a packet; `None` if it has no route.
    pub fn route_to(&self, to: IpAddr) -> Result<Option<RouteAnswer>> {
        let bits = if to.is_ipv4() { 32 } else { 128 };
        let header = [family(to), bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let request = Request::new(RTM_GETROUTE, 0, &header).attr(RTA_DST, &octets(to));
        match self.ask(&format!("look up the route to {to}"), request) {
            Ok(replies) => Ok(replies.iter().find(|m| m.kind == RTM_NEWROUTE).map(parse_route)),
            Err(e)
                if matches!(
                    e.errno(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Tells the kernel a neighbour's Ethernet address for good.
    pub fn add_neighbour(&self, link: &str, ip: IpAddr, mac: [u8; 6]) -> Result<()> {
        let index = self.index(link)?.to_ne_bytes();
        let state = NUD_PERMANENT.to_ne_bytes();
        let header = [family(ip), 0, 0, 0, index[0], index[1], index[2], index[3], state[0], state[1], 0, 0];
        let request = Request::new(RTM_NEWNEIGH, CREATE | REPLACE, &header)
            .attr(NDA_DST, &octets(ip))
            .attr(NDA_LLADDR, &mac);
        self.ask(&format!("add neighbour {ip} to link {link:?}"), request).map(drop)
    }
}

fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| Ipv6Addr::from(v6).into())
}

/// On point-to-point links `IFA_ADDRESS` is the other end, so that `IFA_LOCAL` wins; IPv6 has only the former.
fn parse_address(message: &Message) -> Option<Address> {
    let find = |wanted| message.attrs(IFA_HEADER).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let ip = ip_of(find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?)?;
    Some(Address { link: message.u32_at(4), ip, prefix_len: message.u8_at(1) })
}

fn parse_route(message: &Message) -> RouteAnswer {
    let mut answer =
        RouteAnswer { link: 0, gateway: None, source: None, local: message.u8_at(7) == RTN_LOCAL };
    for (kind, value) in message.attrs(ROUTE_HEADER) {
        match kind {
            RTA_OIF => answer.link = u32_of(value),
            RTA_GATEWAY => answer.gateway = ip_of(value),
            RTA_PREFSRC => answer.source = ip_of(value),
            _ => {}
        }
    }
    answer
}
