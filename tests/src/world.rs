//! A lab that the tests of one file share.

use std::fmt::Display;
use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tenet_api::client::Client;
use tenet_api::rest::{HostStatus, NetworkPatch, PortCounters, Status};
use tenet_hostnet::Netns;
use tenet_lab::{Guests, Lab, LabOptions};
use tenet_model::{Family, Method};
use tenet_wire::Mac;

use crate::Nic;

/// How long hosts may take to be in sync again.
const SYNC: Duration = Duration::from_secs(20);

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
});

/// Runs a future to its end.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.block_on(future)
}

/// Says, past the capture of the test's output, that something is not tested here.
pub fn skipped(why: impl Display) {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    _ = writeln!(std::io::stderr(), "SKIPPED: {name}: {why}");
}

/// What keeps labs from running here, if anything does.
#[must_use]
pub fn missing() -> Option<String> {
    // SAFETY: the call takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root".to_owned());
    }
    if let Err(e) = Netns::anonymous() {
        return Some(format!("needs network namespaces: {e}"));
    }
    None
}

/// The `tenet` binary of the profile that the tests were built in.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let found = test.ancestors().skip(2).map(|dir| dir.join("tenet")).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("there is no `tenet` beside {}: run `cargo build` first", test.display()))
}

/// Waits until `condition` gives a value.
///
/// # Panics
/// If it gives none within `patience`.
pub fn until<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let (begin, patience) = (Instant::now(), tenet_lab::patience(patience));
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begin.elapsed() < patience, "not within {} ms: {what}", patience.as_millis());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How a lab is set up, besides its site.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Agents are forced to use clsact.
    pub clsact: bool,
    /// The provider network's family, if not the site's.
    pub underlay: Option<Family>,
    /// Hosts have ranges of rewrite addresses.
    pub rewrite_pools: bool,
    /// Largest packet of all VMs, if not what the method leaves.
    pub vm_mtu: Option<u32>,
    /// VMs that are real guests.
    pub guests: &'static [&'static str],
}

impl Setup {
    /// As the site has it.
    pub const PLAIN: Self =
        Self { clsact: false, underlay: None, rewrite_pools: false, vm_mtu: None, guests: &[] };
    /// Ready for any method: rewrite addresses, and packets that fit whatever is put around them.
    pub const ANY_METHOD: Self = Self { rewrite_pools: true, vm_mtu: Some(1408), ..Self::PLAIN };
}

/// A running lab with its controller's client.
#[derive(Debug)]
pub struct World {
    /// The lab.
    pub lab: Lab,
    /// A client whose changes wait until they are applied.
    pub client: Client,
}

impl World {
    /// Brings a lab up.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn up(tag: &str, site: &str, clsact: bool) -> Self {
        Self::up_as(tag, site, Setup { clsact, ..Setup::PLAIN })
    }

    /// Brings a lab up that is set up otherwise.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn up_as(tag: &str, site: &str, setup: Setup) -> Self {
        Self::try_up(tag, site, setup).unwrap_or_else(|e| panic!("{e}"))
    }

    fn try_up(tag: &str, site: &str, setup: Setup) -> Result<Self, String> {
        let name = format!("t{}{tag}", std::process::id());
        let mut options = LabOptions::new(&name, binary()).map_err(chain)?;
        site.clone_into(&mut options.site.text);
        options.site.name = format!("{tag}.yaml");
        options.clsact = setup.clsact;
        options.underlay = setup.underlay;
        options.rewrite_pools = setup.rewrite_pools;
        options.vm_mtu = setup.vm_mtu;
        if !setup.guests.is_empty() {
            options.guests = Guests::These(setup.guests.iter().map(|vm| vm.parse().unwrap()).collect());
        }
        let lab = block_on(Lab::up(options)).map_err(chain)?;
        let client = lab.client().map_err(chain)?;
        Ok(Self { lab, client })
    }

    /// Changes a network's method and waits until senders and receivers have it.
    ///
    /// # Panics
    /// If the controller refuses or a host does not follow.
    pub fn set_method(&self, network: &str, method: Method) {
        let patch = NetworkPatch { method: Some(method) };
        let reply = block_on(self.client.set_network(&network.parse().unwrap(), &patch));
        let reply = reply.unwrap_or_else(|e| panic!("{network} to {method}: {}", chain(e)));
        assert!(reply.applied.as_ref().is_some_and(|a| a.complete), "{network} to {method}: {reply:?}");
        let now = block_on(self.client.network(&network.parse().unwrap())).unwrap();
        assert_eq!((now.method, now.switching), (method, None), "{network}");
    }

    /// A VM's NIC.
    #[must_use]
    pub fn nic(&self, vm: &str) -> Nic {
        let handle = self.lab.vm(vm).unwrap();
        let port = &handle.record().ports[0];
        let address = port.addresses.iter().find_map(|a| match a {
            std::net::IpAddr::V4(a) => Some(*a),
            std::net::IpAddr::V6(_) => None,
        });
        let gateway = match port.gateway(Family::V4) {
            Some(std::net::IpAddr::V4(a)) => a,
            Some(std::net::IpAddr::V6(_)) | None => Ipv4Addr::UNSPECIFIED,
        };
        let mac = Mac::new(port.mac.expect("a port with a MAC").octets());
        Nic::open(handle.netns(), vm, &port.link, mac, address.expect("a port with an IPv4 address"), gateway)
    }

    /// Names of all VMs.
    #[must_use]
    pub fn vms(&self) -> Vec<String> {
        self.lab.record().vms.iter().map(|v| v.name.to_string()).collect()
    }

    /// A VM's first IPv4 address.
    #[must_use]
    pub fn ip(&self, vm: &str) -> Ipv4Addr {
        match self.lab.vm(vm).unwrap().address() {
            Some(std::net::IpAddr::V4(a)) => a,
            other => panic!("{vm} has the address {other:?}"),
        }
    }

    /// The host where a VM is.
    #[must_use]
    pub fn host_of(&self, vm: &str) -> String {
        self.lab.vm(vm).unwrap().host().expect("an attached VM").to_string()
    }

    /// Desired, applied, proven.
    #[must_use]
    pub fn status(&self) -> Status {
        block_on(self.client.status()).unwrap()
    }

    /// One host's part of the status.
    #[must_use]
    pub fn host_status(&self, host: &str) -> HostStatus {
        self.status().hosts.into_iter().find(|h| h.name.as_str() == host).expect("a known host")
    }

    /// Waits until every host is proven to hold what is desired.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn in_sync(&self) {
        block_on(self.lab.in_sync(SYNC)).unwrap_or_else(|e| panic!("{}", chain(e)));
    }

    /// A port's (`contoso/sql/eth0`) or uplink's (`uplink:eth0`) counters on a host.
    #[must_use]
    pub fn counters(&self, host: &str, port: &str) -> PortCounters {
        let name = host.parse().unwrap();
        // The controller waits seconds for a host's answer, which a busy host may need longer for.
        let counters = until(&format!("{host} says its counters"), Duration::from_secs(3), || {
            block_on(self.client.counters(Some(&name))).ok()
        });
        assert!(counters.missing.is_empty(), "{:?}", counters.missing);
        let found = counters.ports.iter().find(|p| p.port == port && p.host.as_str() == host);
        let names: Vec<_> = counters.ports.iter().map(|p| &p.port).collect();
        found.unwrap_or_else(|| panic!("{host} has no counters of {port}, only of {names:?}")).clone()
    }

    /// A host's metrics, asked on the host itself.
    ///
    /// # Panics
    /// If its agent does not answer.
    #[must_use]
    pub fn metric_text(&self, host: &str) -> String {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 7445))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        self.lab.host(host).unwrap().netns().run(ask).unwrap().unwrap()
    }

    /// The sum of a host's metrics whose line begins with this name and holds this text.
    ///
    /// # Panics
    /// If its agent does not answer.
    #[must_use]
    pub fn metric(&self, host: &str, name: &str, holds: &str) -> u64 {
        let text = self.metric_text(host);
        let lines = text.lines().filter(|l| l.starts_with(name) && l.contains(holds));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// Counters of a VM's first port where it is now.
    #[must_use]
    pub fn vm_counters(&self, vm: &str) -> PortCounters {
        let handle = self.lab.vm(vm).unwrap();
        let port = handle.record().ports[0].name.to_string();
        self.counters(&self.host_of(vm), &port)
    }

    /// Counters of a host's uplink.
    #[must_use]
    pub fn uplink_counters(&self, host: &str) -> PortCounters {
        let device = self.lab.host(host).unwrap().record().uplink.clone();
        self.counters(host, &format!("uplink:{device}"))
    }

    /// Drops of a VM's port for a reason.
    #[must_use]
    pub fn vm_drops(&self, vm: &str, reason: &str) -> u64 {
        self.vm_counters(vm).drops.get(reason).copied().unwrap_or_default()
    }

    /// Drops of a host's uplink for a reason.
    #[must_use]
    pub fn uplink_drops(&self, host: &str, reason: &str) -> u64 {
        self.uplink_counters(host).drops.get(reason).copied().unwrap_or_default()
    }
}

/// An error with all its causes in one line.
fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

enum State {
    Unborn,
    Up(Box<World>),
    Failed(String),
}

/// One lab for all tests of a file: brought up by the first that needs it, used by one at a time, taken down when the
/// process ends.
pub struct Fixture {
    state: Mutex<State>,
    tag: &'static str,
    site: &'static str,
    setup: Setup,
}

/// All fixtures of the process that have a lab.
static FIXTURES: Mutex<Vec<&'static Fixture>> = Mutex::new(Vec::new());

impl Fixture {
    /// A fixture whose lab's name holds this (short) tag.
    #[must_use]
    pub const fn new(tag: &'static str, site: &'static str) -> Self {
        Self::set_up(tag, site, Setup::PLAIN)
    }

    /// The same with agents that are forced to use clsact.
    #[must_use]
    pub const fn with_clsact(tag: &'static str, site: &'static str) -> Self {
        Self::set_up(tag, site, Setup { clsact: true, ..Setup::PLAIN })
    }

    /// The same, set up otherwise.
    #[must_use]
    pub const fn set_up(tag: &'static str, site: &'static str, setup: Setup) -> Self {
        Self { state: Mutex::new(State::Unborn), tag, site, setup }
    }

    /// The lab, in sync; `None` (said aloud) if labs cannot run here.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn world(&'static self) -> Option<Guard> {
        if let Some(why) = missing() {
            skipped(why);
            return None;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Unborn) {
            *state = match World::try_up(self.tag, self.site, self.setup) {
                Ok(world) => State::Up(Box::new(world)),
                Err(why) => State::Failed(why),
            };
            let mut fixtures = FIXTURES.lock().unwrap_or_else(PoisonError::into_inner);
            if fixtures.is_empty() {
                // SAFETY: the function given takes nothing, returns nothing and does not unwind.
                unsafe { libc::atexit(take_down) };
            }
            fixtures.push(self);
        }
        if let State::Failed(why) = &*state {
            panic!("the lab did not come up: {why}");
        }
        let guard = Guard(state);
        guard.in_sync();
        Some(guard)
    }
}

/// Statics are not dropped, and a lab must not outlive its tests.
extern "C" fn take_down() {
    _ = std::panic::catch_unwind(|| {
        let fixtures = FIXTURES.lock().unwrap_or_else(PoisonError::into_inner);
        for fixture in fixtures.iter() {
            let mut state = fixture.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let State::Up(world) = std::mem::replace(&mut *state, State::Unborn)
                && let Err(e) = world.lab.down()
            {
                _ = writeln!(std::io::stderr(), "{}", chain(e));
            }
        }
    });
}

/// The lab while a test uses it.
pub struct Guard(MutexGuard<'static, State>);

impl Deref for Guard {
    type Target = World;
    fn deref(&self) -> &World {
        match &*self.0 {
            State::Up(world) => world,
            State::Unborn | State::Failed(_) => unreachable!("a guard is made for a lab that is up"),
        }
    }
}

impl DerefMut for Guard {
    fn deref_mut(&mut self) -> &mut World {
        match &mut *self.0 {
            State::Up(world) => world,
            State::Unborn | State::Failed(_) => unreachable!("a guard is made for a lab that is up"),
        }
    }
}
