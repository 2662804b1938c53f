//! The part of an image that belongs to some networks, so that a change costs what it concerns.

use std::collections::BTreeSet;
use tenet_tables::image::{Image, Prefix};
use tenet_tables::{Addr, FloodKey, Mac, MacKey, RecordKey};

/// Virtual subnets of the networks, as far as the image's subnets, records and ports tell.
pub(crate) fn vsids(image: &Image, nets: &BTreeSet<u32>) -> BTreeSet<u32> {
    let subnets = image.subnets.iter().filter(|(_, s)| nets.contains(&s.net)).map(|(vsid, _)| *vsid);
    let ports = image.ports.values().filter(|p| nets.contains(&p.net)).map(|p| p.vsid);
    let records = nets.iter().flat_map(|net| records(image, *net).map(|(_, r)| r.vsid));
    subnets.chain(ports).chain(records).collect()
}

/// The networks' entries; `MACS` and `FLOOD`, which name no network, by virtual subnet. None of `CONFIG`, `PEERS` and `POOLS`.
pub(crate) fn part(image: &Image, nets: &BTreeSet<u32>, vsids: &BTreeSet<u32>) -> Image {
    let mut part = Image::default();
    for net in nets {
        part.records.extend(records(image, *net).map(|(k, v)| (*k, *v)));
        let first = Prefix { net: *net, ca: Addr::UNSET, len: 0 };
        part.routes
            .extend(image.routes.range(first..).take_while(|(k, _)| k.net == *net).map(|(k, v)| (*k, *v)));
    }
    for vsid in vsids {
        let first = MacKey { vsid: *vsid, mac: Mac::default(), reserved: 0 };
        part.macs
            .extend(image.macs.range(first..).take_while(|(k, _)| k.vsid == *vsid).map(|(k, v)| (*k, *v)));
        let first = FloodKey { vsid: *vsid, index: 0 };
        part.flood
            .extend(image.flood.range(first..).take_while(|(k, _)| k.vsid == *vsid).map(|(k, v)| (*k, *v)));
    }
    let concerned = |vsid: &u32, net: u32| vsids.contains(vsid) || nets.contains(&net);
    part.subnets
        .extend(image.subnets.iter().filter(|(vsid, s)| concerned(vsid, s.net)).map(|(k, v)| (*k, *v)));
    part.rewrites
        .extend(image.rewrites.iter().filter(|(_, r)| concerned(&r.vsid, r.net)).map(|(k, v)| (*k, *v)));
    part.ports.extend(image.ports.iter().filter(|(_, p)| nets.contains(&p.net)).map(|(k, v)| (*k, *v)));
    part
}

/// Takes the part out of `image` and puts `new` in.
pub(crate) fn replace(image: &mut Image, old: &Image, new: &Image) {
    for operation in old.operations_to(new) {
        image.apply(operation);
    }
}

fn records(image: &Image, net: u32) -> impl Iterator<Item = (&RecordKey, &tenet_tables::Record)> {
    image.records.range(RecordKey { net, ca: Addr::UNSET }..).take_while(move |(k, _)| k.net == net)
}
