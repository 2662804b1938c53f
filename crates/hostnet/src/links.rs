//! A namespace's links: observe and change them.

use crate::link::{
    IFF_ALLMULTI, IFF_UP, IFLA_ADDRESS, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINK,
    IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU, IFLA_NET_NS_FD, IFLA_TXQLEN, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK,
};
use crate::netlink::{CREATE, DUMP, EXCL, Message, Refusal, Request, Socket};
use crate::{Error, Link, LinkWatch, Netns, Result};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, PoisonError};

const VETH_INFO_PEER: u16 = 1;
const IFLA_VLAN_ID: u16 = 1;

/// A handle to the links, addresses, routes and filters of one namespace.
///
/// Links are named by their name. All methods take `&self`; requests of several threads queue up.
#[derive(Debug)]
pub struct Links {
    socket: Mutex<Socket>,
    netns: Netns,
}

impl Links {
    /// The calling thread's namespace.
    pub fn here() -> Result<Self> {
        let netns = Netns::current()?;
        let socket = Socket::open().map_err(Error::system("open a netlink socket"))?;
        Ok(Self { socket: Mutex::new(socket), netns })
    }

    /// Another namespace, from wherever the caller is.
    pub fn in_netns(netns: &Netns) -> Result<Self> {
        let socket = netns.run(Socket::open)?.map_err(Error::system("open a netlink socket"))?;
        Ok(Self { socket: Mutex::new(socket), netns: netns.clone() })
    }

    /// The namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// All links in the order of their numbers.
    pub fn list(&self) -> Result<Vec<Link>> {
        let replies = self.ask("list links", Request::new(RTM_GETLINK, DUMP, &ifinfo(0, 0, 0)))?;
        Ok(replies.iter().filter(|m| m.kind == RTM_NEWLINK).map(Link::parse).collect())
    }

    /// A link by name.
    ///
    /// # Errors
    /// [`Error::NoSuchLink`] if there is none.
    pub fn get(&self, name: &str) -> Result<Link> {
        self.find(name)?.ok_or_else(|| self.missing(name))
    }

    /// A link by name, if it is there.
    pub fn find(&self, name: &str) -> Result<Option<Link>> {
        check_name(name)?;
        self.look_up(name, Request::new(RTM_GETLINK, 0, &ifinfo(0, 0, 0)).string(IFLA_IFNAME, name))
    }

    /// A link by number, if it is there.
    pub fn by_index(&self, index: u32) -> Result<Option<Link>> {
        self.look_up(&format!("#{index}"), Request::new(RTM_GETLINK, 0, &ifinfo(index, 0, 0)))
    }

    /// Number of a link.
    pub fn index(&self, name: &str) -> Result<u32> {
        Ok(self.get(name)?.index)
    }

    /// Follows changes of links and addresses from now on.
    pub fn watch(&self) -> Result<LinkWatch> {
        LinkWatch::in_netns(&self.netns)
    }

    /// Creates a veth pair: one end here, the other in `peer_netns`. Both are down.
    pub fn add_veth(&self, name: &str, peer: &str, peer_netns: &Netns) -> Result<()> {
        check_name(peer)?;
        let fd = peer_netns.as_fd().as_raw_fd().cast_unsigned();
        let action = format!("create veth {name:?} with peer {peer:?} in {}", peer_netns.label());
        self.create(name, &action, "veth", |data| {
            data.nest(VETH_INFO_PEER, |p| {
                p.raw(&ifinfo(0, 0, 0)).string(IFLA_IFNAME, peer).u32(IFLA_NET_NS_FD, fd)
            })
        })
    }

    /// Creates a bridge.
    pub fn add_bridge(&self, name: &str) -> Result<()> {
        self.create(name, &format!("create bridge {name:?}"), "bridge", |data| data)
    }

    /// Creates a VLAN on another link.
    pub fn add_vlan(&self, name: &str, lower: &str, id: u16) -> Result<()> {
        check_name(name)?;
        let lower_index = self.index(lower)?;
        let action = format!("create VLAN {id} {name:?} on {lower:?}");
        let request = Request::new(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0))
            .string(IFLA_IFNAME, name)
            .u32(IFLA_LINK, lower_index)
            .nest(IFLA_LINKINFO, |info| {
                info.string(IFLA_INFO_KIND, "vlan")
                    .nest(IFLA_INFO_DATA, |data| data.attr(IFLA_VLAN_ID, &id.to_ne_bytes()))
            });
        self.ask_named(name, &action, request)
    }

    /// Deletes a link (and with a veth its other end).
    pub fn delete_link(&self, name: &str) -> Result<()> {
        self.change(name, "delete", RTM_DELLINK, (0, 0), |r| r)
    }

    /// Sets a link up.
    pub fn set_up(&self, name: &str) -> Result<()> {
        self.change(name, "set up", RTM_NEWLINK, (IFF_UP, IFF_UP), |r| r)
    }

    /// Sets a link down.
    pub fn set_down(&self, name: &str) -> Result<()> {
        self.change(name, "set down", RTM_NEWLINK, (0, IFF_UP), |r| r)
    }

    /// Lets a link take all multicast frames, whatever groups were joined, or only those of groups that were
    /// (`ip link set … allmulticast on`).
    pub fn set_all_multicast(&self, name: &str, on: bool) -> Result<()> {
        let (flags, action) =
            if on { (IFF_ALLMULTI, "take all multicast at") } else { (0, "take no other multicast at") };
        self.change(name, action, RTM_NEWLINK, (flags, IFF_ALLMULTI), |r| r)
    }

    /// Sets a link's MTU.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> Result<()> {
        self.change(name, &format!("set MTU {mtu} of"), RTM_NEWLINK, (0, 0), |r| r.u32(IFLA_MTU, mtu))
    }

    /// Notes something on a link that its owner knows it by.
    pub fn set_alias(&self, name: &str, alias: &str) -> Result<()> {
        self.change(name, &format!("note {alias:?} on"), RTM_NEWLINK, (0, 0), |r| {
            r.string(IFLA_IFALIAS, alias)
        })
    }

    /// Sets how many packets may wait for whoever takes them.
    pub fn set_queue_len(&self, name: &str, packets: u32) -> Result<()> {
        let action = format!("let {packets} packets wait at");
        self.change(name, &action, RTM_NEWLINK, (0, 0), |r| r.u32(IFLA_TXQLEN, packets))
    }

    /// Sets a link's Ethernet address.
    pub fn set_mac(&self, name: &str, mac: [u8; 6]) -> Result<()> {
        self.change(name, "set the MAC of", RTM_NEWLINK, (0, 0), |r| r.attr(IFLA_ADDRESS, &mac))
    }

    /// Renames a link; the kernel refuses it for links that are up before 6.2.
    pub fn rename(&self, name: &str, to: &str) -> Result<()> {
        check_name(to)?;
        self.change(name, &format!("rename to {to:?}"), RTM_NEWLINK, (0, 0), |r| r.string(IFLA_IFNAME, to))
    }

    /// Puts a link into a bridge or bond, or takes it out.
    pub fn set_master(&self, name: &str, master: Option<&str>) -> Result<()> {
        let index = master.map_or(Ok(0), |m| self.index(m))?;
        self.change(name, "set the master of", RTM_NEWLINK, (0, 0), |r| r.u32(IFLA_MASTER, index))
    }

    /// Moves a link to another namespace; it loses its addresses and is down there.
    pub fn move_to(&self, name: &str, netns: &Netns) -> Result<()> {
        let fd = netns.as_fd().as_raw_fd().cast_unsigned();
        let action = format!("move to {}", netns.label());
        self.change(name, &action, RTM_NEWLINK, (0, 0), |r| r.u32(IFLA_NET_NS_FD, fd))
    }

    pub(crate) fn create(
        &self,
        name: &str,
        action: &str,
        kind: &str,
        data: impl FnOnce(Request) -> Request,
    ) -> Result<()> {
        check_name(name)?;
        let request = Request::new(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0))
            .string(IFLA_IFNAME, name)
            .nest(IFLA_LINKINFO, |info| info.string(IFLA_INFO_KIND, kind).nest(IFLA_INFO_DATA, data));
        self.ask_named(name, action, request)
    }

    fn change(
        &self,
        name: &str,
        verb: &str,
        kind: u16,
        (flags, mask): (u32, u32),
        more: impl FnOnce(Request) -> Request,
    ) -> Result<()> {
        let index = self.index(name)?;
        let request = more(Request::new(kind, 0, &ifinfo(index, flags, mask)));
        self.ask(&format!("{verb} link {name:?}"), request).map(drop)
    }

    fn look_up(&self, name: &str, request: Request) -> Result<Option<Link>> {
        match self.ask(&format!("look up link {name:?}"), request) {
            Ok(replies) => Ok(replies.iter().find(|m| m.kind == RTM_NEWLINK).map(Link::parse)),
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn ask_named(&self, name: &str, action: &str, request: Request) -> Result<()> {
        match self.ask(action, request) {
            Err(Error::Refused { source, netns, .. })
                if source.raw_os_error() == Some(libc::EEXIST) && matches!(self.find(name), Ok(Some(_))) =>
            {
                Err(Error::Exists { what: format!("link {name:?}"), netns })
            }
            other => other.map(drop),
        }
    }

    /// Sends a request; an error says what was tried and where.
    pub(crate) fn ask(&self, action: &str, request: Request) -> Result<Vec<Message>> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.request(request).map_err(|Refusal { source, why }| Error::Refused {
            action: action.to_owned(),
            netns: self.netns.label().to_owned(),
            why,
            source,
        })
    }

    pub(crate) fn missing(&self, name: &str) -> Error {
        Error::NoSuchLink { link: name.to_owned(), netns: self.netns.label().to_owned() }
    }
}

/// The fixed header of link messages.
pub(crate) fn ifinfo(index: u32, flags: u32, mask: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&mask.to_ne_bytes());
    header
}

/// Refuses what the kernel would cut or misread.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let bad = |rule| Err(Error::BadName { what: "link", name: name.to_owned(), rule });
    if name.is_empty() || name.len() > 15 {
        return bad("it must have 1 to 15 characters");
    }
    if name == "."
        || name == ".."
        || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0')
    {
        return bad("it must have no slash, colon, space or NUL");
    }
    Ok(())
}
