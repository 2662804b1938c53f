//! One link as the kernel describes it.

use crate::netlink::{Message, attrs, string_of, u32_of};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const IFINFO: usize = 16;
pub(crate) const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MTU: u16 = 4;
pub(crate) const IFLA_LINK: u16 = 5;
pub(crate) const IFLA_MASTER: u16 = 10;
pub(crate) const IFLA_TXQLEN: u16 = 13;
pub(crate) const IFLA_CARRIER: u16 = 33;
const IFLA_OPERSTATE: u16 = 16;
pub(crate) const IFLA_LINKINFO: u16 = 18;
pub(crate) const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
pub(crate) const IFLA_NET_NS_FD: u16 = 28;
const IFLA_LINK_NETNSID: u16 = 37;
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const TUN_TYPE_TUN: u8 = 1;
/// `tx_dropped` in `struct rtnl_link_stats64`, whose fields are numbers of 64 bits.
const TX_DROPPED: usize = 7;
pub(crate) const IFF_UP: u32 = 1;
pub(crate) const IFF_ALLMULTI: u32 = 1 << 9;
const IFF_LOWER_UP: u32 = 1 << 16;

/// What a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// No kind of its own: a NIC, or the loopback.
    Plain,
    /// One end of a veth pair.
    Veth,
    /// A tap, mostly a VM's.
    Tap,
    /// A tun: IP packets without Ethernet headers.
    Tun,
    /// A bond of NICs.
    Bond,
    /// A VLAN on another link.
    Vlan,
    /// A bridge.
    Bridge,
    /// Something else, by the kernel's name.
    Other(String),
}

/// Operational state (RFC 2863 §3.1.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperState {
    /// The driver does not say (loopback, some virtual devices).
    Unknown,
    /// Part of the hardware is missing.
    NotPresent,
    /// No carrier, or set down.
    Down,
    /// A link below it is down.
    LowerLayerDown,
    /// Under test.
    Testing,
    /// Waits for something outside, such as 802.1X.
    Dormant,
    /// Up.
    Up,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Number of the link, unique in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Largest packet behind the Ethernet header.
    pub mtu: u32,
    /// Ethernet address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Set up by the administrator.
    pub up: bool,
    /// Whether the link is up and something is at the other end.
    pub carrier: bool,
    /// Whether something is at the other end, also of a link that is down: of a tap, whether somebody has it open.
    pub connected: bool,
    /// Whether it was told to take all multicast frames, whatever groups were joined (`ALLMULTI`); what the kernel asks of
    /// it by itself, as for a bridge, does not show.
    pub all_multicast: bool,
    /// Operational state.
    pub state: OperState,
    /// What it is.
    pub kind: Kind,
    /// The bridge or bond it belongs to.
    pub master: Option<u32>,
    /// The link below (VLAN) or at the other end (veth); a number in another namespace if `lower_elsewhere`.
    pub lower: Option<u32>,
    /// Whether `lower` is in another namespace.
    pub lower_elsewhere: bool,
    /// What an owner has noted on it (`ip link set … alias`).
    pub alias: Option<String>,
    /// Packets that may wait for whoever takes them.
    pub queue_len: u32,
    /// Whether it is a tap or tun that must be opened with several queues in mind.
    pub multi_queue: bool,
    /// Packets that it was given and did not take: of a tap, those that came while nobody had it open (counted since
    /// Linux 6.11) or while its queue was full.
    pub tx_dropped: u64,
}

impl Link {
    pub(crate) fn parse(message: &Message) -> Self {
        let flags = message.u32_at(8);
        let mut link = Self {
            index: message.u32_at(4),
            name: String::new(),
            mtu: 0,
            mac: None,
            up: flags & IFF_UP != 0,
            carrier: flags & IFF_LOWER_UP != 0,
            connected: flags & IFF_LOWER_UP != 0,
            all_multicast: flags & IFF_ALLMULTI != 0,
            state: OperState::Unknown,
            kind: Kind::Plain,
            master: None,
            lower: None,
            lower_elsewhere: false,
            alias: None,
            queue_len: 0,
            multi_queue: false,
            tx_dropped: 0,
        };
        for (kind, value) in message.attrs(IFINFO) {
            match kind {
                IFLA_IFNAME => link.name = string_of(value),
                IFLA_MTU => link.mtu = u32_of(value),
                IFLA_ADDRESS => link.mac = value.try_into().ok(),
                IFLA_OPERSTATE => link.state = oper_state(value.first().copied().unwrap_or(0)),
                IFLA_MASTER => link.master = Some(u32_of(value)),
                IFLA_LINK => link.lower = Some(u32_of(value)),
                IFLA_LINK_NETNSID => link.lower_elsewhere = true,
                IFLA_LINKINFO => {
                    link.kind = parse_kind(value);
                    link.multi_queue = link.kind == Kind::Tap && is_multi_queue(value);
                }
                IFLA_IFALIAS => link.alias = Some(string_of(value)).filter(|a| !a.is_empty()),
                IFLA_CARRIER => link.connected = value.first().is_some_and(|b| *b != 0),
                IFLA_TXQLEN => link.queue_len = u32_of(value),
                IFLA_STATS64 => link.tx_dropped = figure(value, TX_DROPPED),
                _ => {}
            }
        }
        link
    }
}

/// A figure of the link's statistics.
fn figure(stats: &[u8], number: usize) -> u64 {
    let bytes = stats.chunks_exact(8).nth(number).and_then(|b| b.try_into().ok());
    bytes.map_or(0, u64::from_ne_bytes)
}

fn oper_state(number: u8) -> OperState {
    match number {
        1 => OperState::NotPresent,
        2 => OperState::Down,
        3 => OperState::LowerLayerDown,
        4 => OperState::Testing,
        5 => OperState::Dormant,
        6 => OperState::Up,
        _ => OperState::Unknown,
    }
}

fn is_multi_queue(info: &[u8]) -> bool {
    let data = attrs(info).find(|(kind, _)| *kind == IFLA_INFO_DATA).map(|(_, value)| value);
    attrs(data.unwrap_or_default())
        .any(|(kind, value)| kind == IFLA_TUN_MULTI_QUEUE && value.first().is_some_and(|b| *b != 0))
}

fn parse_kind(info: &[u8]) -> Kind {
    let find = |wanted| attrs(info).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let Some(name) = find(IFLA_INFO_KIND).map(string_of) else { return Kind::Plain };
    match name.as_str() {
        "veth" => Kind::Veth,
        "bond" => Kind::Bond,
        "vlan" => Kind::Vlan,
        "bridge" => Kind::Bridge,
        "tun" => {
            let data = find(IFLA_INFO_DATA).unwrap_or_default();
            let is_tun = attrs(data)
                .any(|(kind, value)| kind == IFLA_TUN_TYPE && value.first() == Some(&TUN_TYPE_TUN));
            if is_tun { Kind::Tun } else { Kind::Tap }
        }
        _ => Kind::Other(name),
    }
}
