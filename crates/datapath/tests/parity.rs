//! The programs in the kernel and the same decision in user space give the same verdict and the same bytes.
//!
//! `TENET_PARITY_SEED` and `TENET_PARITY_FRAMES` choose other frames; a failure prints the seed.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use aya::maps::MapData;
use common::{Pins, root};
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};
use tenet_datapath::{Datapath, Hook, Image, Role};
use tenet_forward::model::{self, Outcome, rewrite, rewrite_traffic, site, traffic};
use tenet_forward::{Action, Meta};
use tenet_hostnet::{Links, Netns};
use tenet_tables::{
    Bucket, DropKey, DropReason, METHOD_GENEVE, METHOD_NVGRE, METHOD_STT, METHOD_VXLAN, Port, STT_PORT,
};
use tenet_wire::checksum;
use zerocopy::{FromBytes as _, IntoBytes as _};

const FRAMES: u32 = 45_000;
const TEST_RUN: i64 = 10;
const LOOKUP: i64 = 1;
const UPDATE: i64 = 2;

/// `TC_ACT_SHOT`, `TC_ACT_REDIRECT`, and "not ours" as the kernel's programs return it.
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;
const PASS: i32 = -1;

#[test]
fn kernel_and_user_space_agree_on_every_frame() {
    with_kernel(|_| {}, compare);
}

#[test]
fn kernel_and_user_space_agree_on_all_tunnels() {
    with_kernel(|site| site.mix_methods(&TUNNELS), compare);
}

#[test]
fn kernel_and_user_space_agree_on_all_tunnels_over_ipv6() {
    let over_ipv6 = |site: &mut site::Site| {
        site.mix_methods(&TUNNELS);
        site.move_to_ipv6();
    };
    with_kernel(over_ipv6, compare);
}

const TUNNELS: [u8; 4] = [METHOD_NVGRE, METHOD_VXLAN, METHOD_GENEVE, METHOD_STT];

fn compare(kernel: &Kernel<'_>, site: &site::Site) {
    kernel.compare(&site.image, 30, |dice| traffic::sample(dice, site));
}

/// Figures: `cargo test -p tenet-datapath --test parity -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn time_of_a_neighbours_frame() {
    with_kernel(|_| {}, |kernel, site| kernel.measure(site));
}

/// Whether the kernel makes a frame IPv6 in place, which the hub and frames of the other family need (6.4).
fn turns() -> bool {
    tenet_datapath::check().iter().any(|f| f.name == "version-aware adjust_room" && f.ok)
}

fn with_kernel(change: impl Fn(&mut site::Site), check: impl Fn(&Kernel<'_>, &site::Site) + Send + Sync) {
    if !root() {
        return;
    }
    let netns = Netns::anonymous().unwrap();
    let links = Links::in_netns(&netns).unwrap();
    let mut interfaces = [0; site::PORTS];
    let far = Netns::anonymous().unwrap();
    for (i, interface) in interfaces.iter_mut().enumerate() {
        let (name, peer) = (format!("p{i}"), format!("v{i}"));
        links.add_veth(&name, &peer, &far).unwrap();
        links.quiet(&name).unwrap();
        links.set_up(&name).unwrap();
        *interface = links.index(&name).unwrap();
    }
    links.add_veth("up", "router", &far).unwrap();
    links.quiet("up").unwrap();
    links.set_up("up").unwrap();
    // Where the hub's frames go does not show in a test run; only that they are given to a veth.
    links.add_veth("hub", "inside", &far).unwrap();
    links.quiet("hub").unwrap();
    links.set_up("hub").unwrap();
    let mut site = site::site(interfaces, links.index("up").unwrap());
    if turns() {
        site.taps(links.index("hub").unwrap());
    }
    change(&mut site);

    let pins = Pins::new(&netns, Hook::Auto);
    let datapath = pins.open();
    datapath.apply(&Image::default().operations_to(&site.image)).unwrap();
    let maps = pins.options.bpffs.join("maps");
    let kernel = Kernel::open(&datapath, &maps);
    netns.run(|| check(&kernel, &site)).unwrap();
}

#[test]
fn kernel_and_user_space_agree_on_rewritten_frames() {
    if !root() {
        return;
    }
    let netns = Netns::anonymous().unwrap();
    let links = Links::in_netns(&netns).unwrap();
    let far = Netns::anonymous().unwrap();
    let veth = |name: &str, peer: &str| {
        links.add_veth(name, peer, &far).unwrap();
        links.quiet(name).unwrap();
        links.set_up(name).unwrap();
        links.index(name).unwrap()
    };
    let interfaces = std::array::from_fn(|i| veth(&format!("p{i}"), &format!("v{i}")));
    let uplink = veth("up", "router");
    let image = rewrite::image(0, uplink, |n| interfaces[usize::from(n)]);

    let pins = Pins::new(&netns, Hook::Auto);
    let datapath = pins.open();
    datapath.apply(&Image::default().operations_to(&image)).unwrap();
    let maps = pins.options.bpffs.join("maps");
    let kernel = Kernel::open(&datapath, &maps);
    let next = |dice: &mut traffic::Dice| rewrite_traffic::sample(dice, &interfaces, uplink);
    netns.run(|| kernel.compare(&image, 15, next)).unwrap();
}

/// The loaded programs, and the maps that tell what they did.
struct Kernel<'a> {
    port_in: BorrowedFd<'a>,
    uplink_in: BorrowedFd<'a>,
    drops: MapData,
    ports: MapData,
    cpus: usize,
    /// Whether the kernel can be told that a frame is of the other IP version.
    turns: bool,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

impl<'a> Kernel<'a> {
    fn open(datapath: &'a Datapath, maps: &std::path::Path) -> Self {
        Self {
            port_in: datapath.program_fd(Role::Port),
            uplink_in: datapath.program_fd(Role::Uplink),
            drops: MapData::from_pin(maps.join("DROPS")).unwrap(),
            ports: MapData::from_pin(maps.join("PORTS")).unwrap(),
            cpus: aya::util::nr_cpus().unwrap(),
            turns: tenet_datapath::turns_versions().is_ok(),
        }
    }

    /// What a kernel that makes no IPv4 out of IPv6 in place may leave of a short frame: as much as an IPv6 header takes,
    /// filled up behind the packet's end. (STT's headers go another way.)
    fn padded(&self, sample: &traffic::Sample, mut wanted: Vec<u8>, got: &[u8]) -> Vec<u8> {
        const LEAST: usize = 54;
        let ty = |bytes: &[u8]| bytes.get(12..14).map(<[u8]>::to_vec);
        let outside_v6 = ty(&sample.bytes) == Some(vec![0x86, 0xdd]);
        let bare = wanted.len() < LEAST && ty(&wanted) != Some(vec![0x86, 0xdd]);
        if !self.turns && sample.from_wire && outside_v6 && bare && got.len() == LEAST {
            wanted.resize(LEAST, 0);
        }
        wanted
    }

    fn compare(&self, image: &Image, kinds: usize, next: impl Fn(&mut traffic::Dice) -> traffic::Sample) {
        let seed = number("TENET_PARITY_SEED", 1);
        let frames = number("TENET_PARITY_FRAMES", u64::from(FRAMES));
        println!("seed {seed}, {frames} frames");
        let mut dice = traffic::Dice::new(seed);
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        let mut of_ipv6 = 0;
        for n in 0..frames {
            let sample = next(&mut dice);
            let head = |b: &[u8]| format!("{:02x?}", &b[..b.len().min(120)]);
            let context = || format!("seed {seed}, frame {n}: {:?}\n{}", sample.meta, head(&sample.bytes));
            let wanted = reference(&sample, image);
            let before = self.drops(sample.meta.ifindex);
            let program = if sample.from_wire { self.uplink_in } else { self.port_in };
            let Some((code, bytes)) = self.run(program, &sample) else {
                *seen.entry("not run: too short for this kernel".to_owned()).or_default() += 1;
                continue;
            };
            let after = self.drops(sample.meta.ifindex);
            let unreal = is_unreal(&sample.meta, &wanted);
            let (wanted_code, wanted_drop) =
                if unreal { (SHOT, Some(DropReason::KernelRefused)) } else { expected(&wanted.action) };
            let dropped: Vec<DropReason> =
                DropReason::ALL.iter().copied().filter(|r| after[r] != before[r]).collect();
            assert_eq!(
                (code, &dropped),
                (wanted_code, &Vec::from_iter(wanted_drop)),
                "wanted {:?}\n{}",
                wanted.action,
                context()
            );
            assert!(
                unreal || bytes == numbered(self.padded(&sample, wanted.frame.bytes.clone(), &bytes), &bytes),
                "wanted {:?}\n{}\nbut got\n{}\nof {}",
                wanted.action,
                head(&wanted.frame.bytes),
                head(&bytes),
                context()
            );
            if wanted.activated {
                self.restore(sample.meta.ifindex, image, &context());
            }
            *seen.entry(label(&wanted)).or_default() += 1;
            let of = |at: usize| sample.bytes.get(at..at + 2) == Some(&[0x86, 0xdd]);
            of_ipv6 += u64::from(of(12) || sample.from_wire && of(54));
        }
        println!("{of_ipv6:7} frames of IPv6");
        assert!(of_ipv6 * 3 > frames, "{of_ipv6} frames of IPv6 are too few");
        for (what, times) in &seen {
            println!("{times:7} {what}");
        }
        assert!(seen.len() >= kinds, "the traffic is too tame: {seen:?}");
    }

    /// How long the program takes for a frame that it does not change: to a neighbour on the same host.
    fn measure(&self, site: &site::Site) {
        let (from, to) = (site.machines[1], site.machines[0]);
        for (what, v6, protocol) in
            [("udp4", false, 17), ("tcp4", false, 6), ("udp6", true, 17), ("tcp6", true, 6)]
        {
            let mut bytes = [&to.mac[..], &from.mac].concat();
            if v6 {
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 100, protocol, 64]);
                bytes.extend(from.ca6());
                bytes.extend(to.ca6());
            } else {
                bytes.extend([8, 0, 0x45, 0, 0, 120, 0, 0, 0, 0, 64, protocol, 0, 0]);
                bytes.extend(from.ca);
                bytes.extend(to.ca);
            }
            bytes.extend([0, 9, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10]);
            bytes.resize(bytes.len() + 86, 0);
            let sample = traffic::Sample {
                from_wire: false,
                meta: Meta { ifindex: site.interfaces[1], len: bytes.len() as u32, ..Meta::default() },
                bytes,
            };
            let mut times: Vec<u32> = (0..9).map(|_| self.repeat(&sample, 200_000)).collect();
            times.sort_unstable();
            println!("{what}: {} ns, median of {times:?}", times[4]);
        }
    }

    fn repeat(&self, sample: &traffic::Sample, times: u32) -> u32 {
        let (code, _, duration) = self.run_times(self.port_in, sample, times).unwrap();
        assert_eq!(code, REDIRECT);
        duration
    }

    /// Drops of an interface so far, by reason.
    fn drops(&self, ifindex: u32) -> BTreeMap<DropReason, u64> {
        let map = self.drops.fd().as_fd().as_raw_fd();
        let count = |reason: DropReason| {
            let key = DropKey { ifindex, reason: reason as u32 };
            let mut per_cpu = vec![0u64; self.cpus];
            element(LOOKUP, map, key.as_bytes(), per_cpu.as_mut_bytes()).map_or(0, |()| per_cpu.iter().sum())
        };
        DropReason::ALL.iter().map(|r| (*r, count(*r))).collect()
    }

    /// Checks that the kernel activated a port, and prepares it again.
    fn restore(&self, ifindex: u32, image: &Image, context: &str) {
        let map = self.ports.fd().as_fd().as_raw_fd();
        let mut port = [0u8; size_of::<Port>()];
        element(LOOKUP, map, ifindex.as_bytes(), &mut port).unwrap();
        assert_eq!(Port::read_from_bytes(&port).unwrap().state, tenet_tables::PORT_ACTIVE, "{context}");
        let mut port = *image.ports[&ifindex].as_bytes().first_chunk::<{ size_of::<Port>() }>().unwrap();
        element(UPDATE, map, ifindex.as_bytes(), &mut port).unwrap();
    }

    /// Runs a program on a frame; its code and the frame after it, if the kernel takes the frame at all.
    fn run(&self, program: BorrowedFd<'_>, sample: &traffic::Sample) -> Option<(i32, Vec<u8>)> {
        self.run_times(program, sample, 1).map(|(code, bytes, _)| (code, bytes))
    }

    /// As [`Self::run`], so many times on the same frame; and what one time took, in nanoseconds.
    fn run_times(
        &self,
        program: BorrowedFd<'_>,
        sample: &traffic::Sample,
        times: u32,
    ) -> Option<(i32, Vec<u8>, u32)> {
        let mut context = Context::zeroed(&sample.meta);
        let mut out = vec![0u8; 4096];
        let mut attributes = TestRun {
            program: program.as_raw_fd() as u32,
            retval: 0,
            data_size_in: sample.bytes.len() as u32,
            data_size_out: out.len() as u32,
            data_in: sample.bytes.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            repeat: times,
            duration: 0,
            context_size_in: size_of::<Context>() as u32,
            context_size_out: 0,
            context_in: (&raw mut context) as u64,
            context_out: 0,
            flags: 0,
            cpu: 0,
            batch_size: 0,
            pad: 0,
        };
        // SAFETY: all addresses are of live buffers as long as said.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, TEST_RUN, &raw mut attributes, size_of::<TestRun>()) };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            // Newer kernels run no program on a frame that ends before its network header does.
            let short = error.raw_os_error() == Some(libc::EINVAL) && sample.bytes.len() < 54;
            assert!(short, "{error}: {sample:?}");
            return None;
        }
        out.truncate(attributes.data_size_out as usize);
        Some((attributes.retval as i32, out, attributes.duration))
    }
}

/// What the frame does in user space. Every frame meets fresh tables and a full bucket, as in the kernel.
fn reference(sample: &traffic::Sample, image: &Image) -> Outcome {
    if sample.from_wire {
        return model::uplink_in(&sample.bytes, &sample.meta, image);
    }
    let prepared =
        image.ports.get(&sample.meta.ifindex).is_some_and(|p| p.state == tenet_tables::PORT_PREPARED);
    let mut bucket = Bucket { flood_tokens: u64::from(u32::MAX), ..Bucket::default() };
    if prepared {
        return model::port_in(&sample.bytes, &sample.meta, &mut image.clone(), &mut bucket, 0);
    }
    // Only an activation changes the tables.
    let mut image = std::borrow::Cow::Borrowed(image);
    model::port_in(&sample.bytes, &sample.meta, image.to_mut(), &mut bucket, 0)
}

/// What user space makes of an STT frame, with the number that the kernel gave it.
fn numbered(mut wanted: Vec<u8>, got: &[u8]) -> Vec<u8> {
    let tcp = match wanted.get(12..14) {
        Some([8, 0]) if wanted.get(23) == Some(&6) => 34,
        Some([0x86, 0xdd]) if wanted.get(20) == Some(&6) => 54,
        _ => return wanted,
    };
    let (id, sum) = (tcp + 8..tcp + 12, tcp + 16..tcp + 18);
    let (Some(number), true) = (got.get(id.clone()), wanted.len() >= tcp + 20) else { return wanted };
    if wanted[tcp + 2..tcp + 4] != STT_PORT.to_be_bytes() || wanted[id.clone()] != [0; 4] {
        return wanted;
    }
    wanted[id].copy_from_slice(number);
    let old = u16::from_ne_bytes([wanted[sum.start], wanted[sum.start + 1]]);
    let change = u32::from(checksum::fold(checksum::sum_bytes(number)));
    wanted[sum].copy_from_slice(&checksum::mend(old, change).to_ne_bytes());
    wanted
}

fn expected(action: &Action) -> (i32, Option<DropReason>) {
    match action {
        Action::Pass => (PASS, None),
        // The example site has no slow device.
        Action::Drop(reason) | Action::Slow(reason) => (SHOT, Some(*reason)),
        Action::Port { .. } | Action::Hub { .. } | Action::Wire | Action::WireByMark | Action::Back(None) => {
            (REDIRECT, None)
        }
        Action::Back(Some(reason)) => (REDIRECT, Some(*reason)),
    }
}

/// Whether the kernel cannot encapsulate the frame because a test run gives large frames a size of segments but no
/// kind, which no real one lacks. The decision is compared all the same.
fn is_unreal(meta: &Meta, wanted: &Outcome) -> bool {
    let encapsulates = match wanted.action {
        Action::Wire | Action::Hub { .. } => true,
        Action::Drop(reason) => reason == DropReason::Replicated,
        Action::Pass | Action::Port { .. } | Action::Back(_) | Action::WireByMark | Action::Slow(_) => false,
    };
    meta.gso_size != 0 && encapsulates
}

fn label(outcome: &Outcome) -> String {
    match outcome.action {
        Action::Pass => "pass".to_owned(),
        Action::Drop(reason) => format!("drop {}", reason.name()),
        Action::Port { peer, .. } => format!("port, peer {peer}"),
        Action::Hub { .. } => "port by the hub".to_owned(),
        Action::Back(None) => "answer".to_owned(),
        Action::Back(Some(reason)) => format!("error {}", reason.name()),
        Action::Wire => format!("wire, moved {}", outcome.moved != 0),
        Action::WireByMark => "wire by mark".to_owned(),
        Action::Slow(reason) => format!("slow {}", reason.name()),
    }
}

fn element(command: i64, map: RawFd, key: &[u8], value: &mut [u8]) -> std::io::Result<()> {
    #[repr(C)]
    struct Element {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let element = Element {
        map: map as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: key and value are live and as long as the map says.
    match unsafe { libc::syscall(libc::SYS_bpf, command, &raw const element, size_of::<Element>()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// `union bpf_attr`, as `BPF_PROG_TEST_RUN` reads it.
#[repr(C)]
struct TestRun {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// `struct __sk_buff`, of which the kernel takes a few fields; the others must be zero.
#[repr(C)]
struct Context {
    words: [u32; 48],
}

impl Context {
    const MARK: usize = 2;
    const IFINDEX: usize = 10;
    const GSO_SIZE: usize = 44;

    fn zeroed(meta: &Meta) -> Self {
        let mut words = [0; 48];
        words[Self::MARK] = meta.mark;
        words[Self::IFINDEX] = meta.ifindex;
        words[Self::GSO_SIZE] = meta.gso_size;
        Self { words }
    }
}
