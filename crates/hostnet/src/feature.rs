//! Offloads of a link by the names that `ethtool -k` shows (ethtool's ioctls of linux/ethtool.h, kernel 2.6.39).

use crate::device::ethtool;
use crate::links::check_name;
use crate::{Error, Links, Result};
use std::io;

const GET_SET_SIZE: u32 = 0x37;
const GET_STRINGS: u32 = 0x1b;
const GET_FEATURES: u32 = 0x3a;
const SET_FEATURES: u32 = 0x3b;
/// `ETH_SS_FEATURES`.
const FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`, bytes.
const NAME: usize = 32;
/// Words of a block of 32 features: available, requested, active, never changed.
const BLOCK: usize = 4;

impl Links {
    /// Whether a link's offload of that name (as `tx-gre-segmentation`) is on; `None`: it cannot be changed here, or
    /// this kernel has none of the name.
    ///
    /// # Errors
    /// If there is no such link.
    pub fn feature(&self, link: &str, feature: &str) -> Result<Option<bool>> {
        check_name(link)?;
        let action = format!("read the offloads of link {link:?} in {}", self.netns().label());
        self.netns().run(|| get(link, feature))?.map_err(Error::system(action))
    }

    /// Turns an offload on or off, as `ethtool -K` does; whether it is so now: a driver may refuse quietly.
    ///
    /// # Errors
    /// If there is no such link, or its driver refuses aloud.
    pub fn set_feature(&self, link: &str, feature: &str, on: bool) -> Result<bool> {
        check_name(link)?;
        let action = format!("set {feature} of link {link:?} in {}", self.netns().label());
        let set = || {
            let Some(at) = position(link, feature)? else { return Ok(false) };
            let blocks = blocks(link)?.len() / BLOCK;
            // The header, then for each block which of its features are meant, and what they shall be.
            let mut request = vec![SET_FEATURES, u32::try_from(blocks).unwrap_or(u32::MAX)];
            for block in 0..blocks {
                let bit = if at / 32 == block { 1 << (at % 32) } else { 0 };
                request.extend([bit, if on { bit } else { 0 }]);
            }
            ethtool(link, &mut request)?;
            Ok(get(link, feature)? == Some(on))
        };
        self.netns().run(set)?.map_err(Error::system(action))
    }
}

fn get(link: &str, feature: &str) -> io::Result<Option<bool>> {
    let Some(at) = position(link, feature)? else { return Ok(None) };
    let blocks = blocks(link)?;
    let word = |n: usize| blocks.get(at / 32 * BLOCK + n).is_some_and(|w| w >> (at % 32) & 1 != 0);
    Ok(word(0).then(|| word(2)))
}

/// Where the kernel lists a feature.
fn position(link: &str, feature: &str) -> io::Result<Option<usize>> {
    let count = count(link)?;
    let mut data = vec![0; 3 + count * NAME / 4];
    if let [command, set, len, ..] = data.as_mut_slice() {
        (*command, *set, *len) = (GET_STRINGS, FEATURES, u32::try_from(count).unwrap_or(0));
    }
    ethtool(link, &mut data)?;
    let bytes: Vec<u8> = data.iter().skip(3).flat_map(|w| w.to_ne_bytes()).collect();
    let name = |bytes: &[u8]| bytes.split(|b| *b == 0).next() == Some(feature.as_bytes());
    Ok(bytes.chunks(NAME).position(name))
}

/// How many features the kernel knows.
fn count(link: &str) -> io::Result<usize> {
    // Command, reserved, a mask of 64 bits, and one number for the one set asked for.
    let [a, b, c, d, e, f, g, h] = (1u64 << FEATURES).to_ne_bytes();
    let mask = [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])];
    let mut data = [GET_SET_SIZE, 0, mask[0], mask[1], 0];
    ethtool(link, &mut data)?;
    let [.., count] = data;
    Ok(count as usize)
}

/// All features, in blocks of 32.
fn blocks(link: &str) -> io::Result<Vec<u32>> {
    let blocks = count(link)?.div_ceil(32);
    let mut data = vec![0; 2 + blocks * BLOCK];
    if let [command, size, ..] = data.as_mut_slice() {
        (*command, *size) = (GET_FEATURES, u32::try_from(blocks).unwrap_or(0));
    }
    ethtool(link, &mut data)?;
    Ok(data.split_off(2))
}
