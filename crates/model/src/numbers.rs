//! Numbers with a meaning, and the methods.

use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};

/// Why a number is not a VSID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("VSID {0} is out of range: use 4096 to 16777214 (0xFFFFFE)")]
pub struct VsidError(pub u32);

/// A virtual subnet's 24-bit number on the wire: 4096 to 0xFFFFFE (RFC 7637 §3.4 reserves the rest).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vsid(u32);

impl Vsid {
    /// The lowest.
    pub const MIN: Self = Self(4096);
    /// The highest.
    pub const MAX: Self = Self(0xFF_FFFE);

    /// Checks and takes a number.
    ///
    /// # Errors
    /// [`VsidError`] if it is out of range.
    pub const fn new(n: u32) -> Result<Self, VsidError> {
        if n >= Self::MIN.0 && n <= Self::MAX.0 { Ok(Self(n)) } else { Err(VsidError(n)) }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vsid {
    type Error = VsidError;
    fn try_from(n: u32) -> Result<Self, VsidError> {
        Self::new(n)
    }
}

impl From<Vsid> for u32 {
    fn from(v: Vsid) -> Self {
        v.0
    }
}

impl fmt::Display for Vsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A network's short number inside the site, which scopes customer addresses in the kernel's maps; from 1 on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetId(pub u32);

/// Why a text is not a MAC that a port can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six hexadecimal bytes.
    #[error("`{0}` is not a MAC address: write six hexadecimal bytes as in 02:00:00:00:00:01")]
    Form(String),
    /// Group bit set, or all zero.
    #[error("`{0}` is no MAC of a NIC: it is a group address or all zero")]
    NotUnicast(String),
}

/// A port's Ethernet address: unicast and not zero (IEEE 802-2014 §8.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Checks and takes six bytes.
    ///
    /// # Errors
    /// [`MacError::NotUnicast`] for group and zero addresses.
    pub fn new(octets: [u8; 6]) -> Result<Self, MacError> {
        let mac = Self(octets);
        if octets[0] & 1 != 0 || octets == [0; 6] {
            Err(MacError::NotUnicast(mac.to_string()))
        } else {
            Ok(mac)
        }
    }

    /// The bytes in wire order.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = MacError;
    fn from_str(text: &str) -> Result<Self, MacError> {
        let form = || MacError::Form(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for o in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(form)?;
            *o = u8::from_str_radix(part, 16).ok().filter(|_| !part.starts_with('+')).ok_or_else(form)?;
        }
        if parts.next().is_some() { Err(form()) } else { Self::new(octets) }
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;
    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(m: Mac) -> Self {
        m.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The two kinds of IP addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    #[must_use]
    pub const fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Why a text is not a method.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a method: use nvgre, vxlan, geneve, stt or rewrite")]
pub struct MethodError(pub String);

/// How a network's frames cross the provider network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// RFC 7637.
    #[default]
    Nvgre,
    /// RFC 7348.
    Vxlan,
    /// RFC 8926, without options.
    Geneve,
    /// draft-davie-stt-08.
    Stt,
    /// Every customer address has a provider address of its own, and nothing is added (HNV's IP Rewrite).
    Rewrite,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Nvgre, Self::Vxlan, Self::Geneve, Self::Stt, Self::Rewrite];

    /// The name in CLI, API and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nvgre => "nvgre",
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
            Self::Stt => "stt",
            Self::Rewrite => "rewrite",
        }
    }

    /// Bytes that the method takes from the provider network's MTU, inner Ethernet header included.
    #[must_use]
    pub const fn overhead(self, outer: Family) -> u16 {
        let over_ipv4 = match self {
            Self::Nvgre => 42,
            Self::Vxlan | Self::Geneve => 50,
            // So that a frame that no offload splits always fits one segment.
            Self::Stt => 72,
            Self::Rewrite => return 0,
        };
        match outer {
            Family::V4 => over_ipv4,
            Family::V6 => over_ipv4 + 20,
        }
    }
}

impl FromStr for Method {
    type Err = MethodError;
    fn from_str(text: &str) -> Result<Self, MethodError> {
        let found = Self::ALL.into_iter().find(|m| m.name() == text);
        found.ok_or_else(|| MethodError(text.to_owned()))
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_names_and_overheads() {
        let all = Method::ALL.map(|m| (m.name(), m.overhead(Family::V4), m.overhead(Family::V6)));
        let expected =
            [("nvgre", 42, 62), ("vxlan", 50, 70), ("geneve", 50, 70), ("stt", 72, 92), ("rewrite", 0, 0)];
        assert_eq!(all, expected);
        assert!(Method::ALL.iter().all(|m| m.name().parse() == Ok(*m)));
        assert!("VXLAN".parse::<Method>().is_err());
    }

    #[test]
    fn vsid_keeps_its_range() {
        for (n, legal) in [(0, false), (4095, false), (4096, true), (0xFF_FFFE, true), (0xFF_FFFF, false)] {
            assert_eq!(Vsid::new(n).is_ok(), legal, "{n}");
        }
    }

    #[test]
    fn mac_takes_both_separators_and_refuses_groups() {
        for (text, legal) in [
            ("02:00:00:00:00:01", true),
            ("02-00-00-00-00-01", true),
            ("01:00:00:00:00:01", false),
            ("00:00:00:00:00:00", false),
            ("02:00:00:00:00", false),
            ("02:00:00:00:00:01:02", false),
            ("+2:00:00:00:00:01", false),
            ("0x:00:00:00:00:01", false),
        ] {
            assert_eq!(text.parse::<Mac>().is_ok(), legal, "{text}");
        }
    }
}
