//! The maps of `tenet-tables`, pinned by name.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuHashMap, RingBuf, lpm_trie::Key},
};
use tenet_forward::Tables;
use tenet_tables as t;

#[map]
pub static CONFIG: Array<t::Config> = Array::pinned(1, 0);
#[map]
pub static PORTS: HashMap<u32, t::Port> = HashMap::pinned(4096, 0);
#[map]
pub static SUBNETS: HashMap<u32, t::Subnet> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static RECORDS: HashMap<t::RecordKey, t::Record> = HashMap::pinned(1 << 20, BPF_F_NO_PREALLOC);
#[map]
pub static REWRITES: HashMap<t::RewriteKey, t::Rewrite> = HashMap::pinned(1 << 20, BPF_F_NO_PREALLOC);
#[map]
pub static POOLS: LpmTrie<t::PoolKey, t::Pool> = LpmTrie::pinned(4096, BPF_F_NO_PREALLOC);
#[map]
pub static MACS: HashMap<t::MacKey, t::MacEntry> = HashMap::pinned(1 << 20, BPF_F_NO_PREALLOC);
#[map]
pub static ROUTES: LpmTrie<t::RouteKey, t::Route> = LpmTrie::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static PEERS: HashMap<t::PeerKey, t::Peer> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static FLOOD: HashMap<t::FloodKey, t::FloodEntry> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static COUNTERS: PerCpuHashMap<u32, t::Counters> = PerCpuHashMap::pinned(4096, BPF_F_NO_PREALLOC);
#[map]
pub static DROPS: PerCpuHashMap<t::DropKey, u64> = PerCpuHashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static BUCKETS: HashMap<u32, t::Bucket> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);
/// When the agent last looked at the slow device's far end; 0: it does not.
#[map]
pub static JOINER: Array<u64> = Array::pinned(1, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(256 * 1024, 0);

/// Bits of a network id before those of an address in a route's key.
const NET_BITS: u32 = 32;

/// The kernel's maps as `forward` sees them.
pub struct Maps;

/// Looks at a map's value in place.
#[inline(always)]
fn see<V>(value: Option<*const V>) -> Option<&'static V> {
    // SAFETY: the pointer comes from a lookup that the verifier made us check; the kernel keeps the value's
    // memory until the program has returned, and every bit pattern is a value. Agents may write to it
    // meanwhile: `forward` relies on no two reads agreeing.
    value.map(|v| unsafe { &*v })
}

impl Tables for Maps {
    #[inline(always)]
    fn config(&self) -> Option<&t::Config> {
        see(CONFIG.get_ptr(0))
    }
    #[inline(always)]
    fn port(&self, ifindex: u32) -> Option<&t::Port> {
        see(PORTS.get_ptr(&ifindex))
    }
    #[inline(always)]
    fn subnet(&self, vsid: u32) -> Option<&t::Subnet> {
        see(SUBNETS.get_ptr(&vsid))
    }
    #[inline(always)]
    fn record(&self, key: &t::RecordKey) -> Option<&t::Record> {
        see(RECORDS.get_ptr(key))
    }
    #[inline(always)]
    fn rewrite(&self, key: &t::RewriteKey) -> Option<&t::Rewrite> {
        see(REWRITES.get_ptr(key))
    }
    #[inline(always)]
    fn in_pool(&self, pa: t::Addr) -> bool {
        POOLS.get(&Key::new(128, t::PoolKey { pa })).is_some()
    }
    #[inline(always)]
    fn mac(&self, key: &t::MacKey) -> Option<&t::MacEntry> {
        see(MACS.get_ptr(key))
    }
    #[inline(always)]
    fn route(&self, net: u32, ca: t::Addr) -> Option<&t::Route> {
        ROUTES.get(&Key::new(NET_BITS + 128, t::RouteKey { net_be: net.to_be(), ca }))
    }
    #[inline(always)]
    fn peer(&self, key: &t::PeerKey) -> Option<&t::Peer> {
        see(PEERS.get_ptr(key))
    }
    #[inline(always)]
    fn flood(&self, key: &t::FloodKey) -> Option<&t::FloodEntry> {
        see(FLOOD.get_ptr(key))
    }
}
