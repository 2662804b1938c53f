//! Opening a host's data plane: adopt what is pinned, create what is missing, load the programs once.

use crate::bpffs::{self, Pins};
use crate::sys::{self, ProgramInfo};
use crate::table::{PoolTrieKey, SHAPES, Table, TrieKey, describe};
use crate::{DEFAULT_BPFFS, Error, Hook, Receive, Result, Role, check, receive};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use tenet_hostnet::Links;
use tenet_tables::{
    Bucket, Config, Counters, DropKey, FloodEntry, FloodKey, LAYOUT_VERSION, MacEntry, MacKey, Peer, PeerKey,
    Pool, Port, Record, RecordKey, Rewrite, RewriteKey, Route, Subnet,
};

/// The object, as built from the sources in `ebpf/`.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/object/tenet.bpf.o"));
/// Names another object, for who works on the programs.
const OBJECT_VARIABLE: &str = "TENET_BPF_OBJECT";

/// How to open a data plane.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of the pins.
    pub bpffs: PathBuf,
    /// Where programs are to hang.
    pub hook: Hook,
    /// Object to load instead of the one built in; the variable `TENET_BPF_OBJECT` does the same.
    pub object: Option<PathBuf>,
    /// Lock file; by default one in `/run/tenet` whose name comes from `bpffs`.
    pub lock: Option<PathBuf>,
    /// How frames get from the uplink into taps.
    pub receive: Receive,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bpffs: DEFAULT_BPFFS.into(),
            hook: Hook::Auto,
            object: None,
            lock: None,
            receive: Receive::Auto,
        }
    }
}

/// Programs and maps of one host.
#[derive(Debug)]
pub struct Datapath {
    pub(crate) pins: Pins,
    pub(crate) hook: Hook,
    /// Whether this kernel has TCX, found by trying.
    pub(crate) tcx: bool,
    pub(crate) port_in: Program,
    pub(crate) uplink_in: Program,
    pub(crate) hub_out: Program,
    pub(crate) hub_in: Program,
    /// `None` with an object of before there was one.
    pub(crate) slow_in: Option<Program>,
    /// Whether this kernel can be told of a change of IP version, found by trying.
    pub(crate) turns: bool,
    /// How frames get into taps.
    pub(crate) receive: Receive,
    /// All ways, each with why it does not work here.
    pub(crate) ways: Vec<(Receive, Option<String>)>,
    pub(crate) tables: Tables,
    /// Numbers of the pinned maps.
    pub(crate) pinned: BTreeSet<u32>,
    _lock: File,
}

/// A loaded program.
#[derive(Debug)]
pub(crate) struct Program {
    pub fd: OwnedFd,
    pub info: ProgramInfo,
}

/// Figures about a loaded program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramFacts {
    /// Which one.
    pub role: Role,
    /// The kernel's number of it.
    pub id: u32,
    /// The kernel's digest of its instructions, in hex.
    pub tag: String,
    /// Instructions that the verifier walked; 0 before kernel 5.16.
    pub verified_instructions: u32,
    /// Bytes of BPF instructions.
    pub translated_size: u32,
    /// Bytes of machine code; 0 means that it is interpreted.
    pub jited_size: u32,
    /// Runs, if the sysctl `kernel.bpf_stats_enabled` is on.
    pub runs: u64,
    /// Nanoseconds in all runs, if the sysctl is on.
    pub run_ns: u64,
}

/// The maps, each with its types.
#[derive(Debug)]
pub(crate) struct Tables {
    pub config: Table<u32, Config>,
    pub ports: Table<u32, Port>,
    pub subnets: Table<u32, Subnet>,
    pub records: Table<RecordKey, Record>,
    pub rewrites: Table<RewriteKey, Rewrite>,
    pub pools: Table<PoolTrieKey, Pool>,
    pub macs: Table<MacKey, MacEntry>,
    pub routes: Table<TrieKey, Route>,
    pub peers: Table<PeerKey, Peer>,
    pub flood: Table<FloodKey, FloodEntry>,
    pub counters: Table<u32, Counters>,
    pub drops: Table<DropKey, u64>,
    pub buckets: Table<u32, Bucket>,
}

impl Datapath {
    /// Opens the data plane of a host: mounts the bpffs, adopts or creates the maps, loads the programs.
    ///
    /// Nothing that forwards is touched; programs that hang on devices stay until [`Datapath::attach`].
    ///
    /// # Errors
    /// [`Error::Busy`] if another agent has it open, [`Error::ForeignLayout`] or [`Error::ForeignMap`] if the
    /// pinned maps would be misread.
    pub fn open(options: &Options) -> Result<Self> {
        let lock = bpffs::lock(&options.bpffs, options.lock.as_deref())?;
        let pins = Pins::new(&options.bpffs);
        pins.prepare()?;
        check_layout(&pins)?;
        let tcx = sys::tcx_query(LOOPBACK).is_ok();
        if options.hook == Hook::Tcx && !tcx {
            return Err(Error::NoTcx);
        }
        let hook = options.hook;
        let (receive, ways) = receive::choose(options.receive, tcx && hook != Hook::Clsact)?;
        let turns = check::turns_versions().is_ok();
        let mut object = load(options, &pins, receive == Receive::Kernel, turns)?;
        let port_in = program(&mut object, Role::Port.program())?;
        let uplink_in = program(&mut object, Role::Uplink.program())?;
        let hub_out = program(&mut object, "hub_out")?;
        let hub_in = program(&mut object, "hub_in")?;
        // Not in an object that was built before there was such a thing.
        let slow_in = match object.program("slow_in") {
            Some(_) => Some(program(&mut object, "slow_in")?),
            None => None,
        };
        let tables = Tables::open(&pins.maps())?;
        let pinned = pinned(&pins)?;
        Ok(Self {
            pins,
            hook,
            tcx,
            port_in,
            uplink_in,
            hub_out,
            hub_in,
            slow_in,
            turns,
            receive,
            ways,
            tables,
            pinned,
            _lock: lock,
        })
    }

    /// Directory of the pins.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.pins.root
    }

    /// Where programs will be hung: [`Hook::Tcx`] or [`Hook::Clsact`].
    #[must_use]
    pub fn hook(&self) -> Hook {
        match self.hook {
            Hook::Auto if self.tcx => Hook::Tcx,
            Hook::Auto => Hook::Clsact,
            chosen => chosen,
        }
    }

    /// The way from the uplink into taps that was chosen.
    #[must_use]
    pub fn receive(&self) -> Receive {
        self.receive
    }

    /// All ways into taps, each with why it does not work here.
    #[must_use]
    pub fn ways(&self) -> &[(Receive, Option<String>)] {
        &self.ways
    }

    /// Figures about the loaded programs.
    pub fn programs(&self) -> Result<Vec<ProgramFacts>> {
        [Role::Port, Role::Uplink].map(|role| self.facts(role)).into_iter().collect()
    }

    fn facts(&self, role: Role) -> Result<ProgramFacts> {
        let info = sys::program_info(self.program(role).fd.as_fd())
            .map_err(Error::system(format!("read the facts of the {role} program")))?;
        Ok(ProgramFacts {
            role,
            id: info.id,
            tag: info.tag.iter().map(|b| format!("{b:02x}")).collect(),
            verified_instructions: info.verified_instructions,
            translated_size: info.translated_size,
            jited_size: info.jited_size,
            runs: info.runs,
            run_ns: info.run_ns,
        })
    }

    /// A loaded program, for test runs.
    #[must_use]
    pub fn program_fd(&self, role: Role) -> BorrowedFd<'_> {
        self.program(role).fd.as_fd()
    }

    pub(crate) fn program(&self, role: Role) -> &Program {
        match role {
            Role::Port => &self.port_in,
            Role::Uplink => &self.uplink_in,
        }
    }

    /// A netlink handle for the calling thread's namespace.
    pub(crate) fn links() -> Result<Links> {
        Ok(Links::here()?)
    }
}

/// The loopback has this number in every namespace.
const LOOPBACK: u32 = 1;

impl Tables {
    fn open(directory: &Path) -> Result<Self> {
        Ok(Self {
            config: Table::open(directory, "CONFIG")?,
            ports: Table::open(directory, "PORTS")?,
            subnets: Table::open(directory, "SUBNETS")?,
            records: Table::open(directory, "RECORDS")?,
            rewrites: Table::open(directory, "REWRITES")?,
            pools: Table::open(directory, "POOLS")?,
            macs: Table::open(directory, "MACS")?,
            routes: Table::open(directory, "ROUTES")?,
            peers: Table::open(directory, "PEERS")?,
            flood: Table::open(directory, "FLOOD")?,
            counters: Table::open(directory, "COUNTERS")?,
            drops: Table::open(directory, "DROPS")?,
            buckets: Table::open(directory, "BUCKETS")?,
        })
    }
}

/// Refuses pinned maps that this version would misread. A layout of 0 means that no agent ever wrote them.
fn check_layout(pins: &Pins) -> Result<()> {
    for shape in &SHAPES {
        let path = pins.maps().join(shape.name);
        let fd = match sys::obj_get(&path) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::System { action: format!("open {}", path.display()), source }),
        };
        let info = sys::map_info(fd.as_fd()).map_err(Error::system(format!("read {}", path.display())))?;
        // The layout word comes first in `CONFIG` in all versions, whatever follows it.
        if shape.name == "CONFIG" && info.value_size >= 4 && info.key_size == 4 {
            let map = sys::RawMap::new(fd).map_err(Error::system(format!("read {}", path.display())))?;
            let value = map.lookup(&[0; 4]).map_err(Error::system(format!("read {}", path.display())))?;
            let found = value.and_then(|v| v.first_chunk().copied()).map_or(0, u32::from_ne_bytes);
            if found != 0 && found != LAYOUT_VERSION {
                return Err(Error::ForeignLayout { found, ours: LAYOUT_VERSION, bpffs: pins.root.clone() });
            }
        }
        if !shape.fits(&info) {
            return Err(Error::ForeignMap {
                map: shape.name,
                found: describe(info.kind, info.key_size as usize, info.value_size as usize),
                ours: shape.describe(),
                bpffs: pins.root.clone(),
            });
        }
    }
    Ok(())
}

fn pinned(pins: &Pins) -> Result<BTreeSet<u32>> {
    let id = |path: PathBuf| {
        sys::obj_get(&path)
            .and_then(|fd| sys::map_info(fd.as_fd()))
            .map(|info| info.id)
            .map_err(Error::system(format!("read {}", path.display())))
    };
    SHAPES.iter().map(|shape| id(pins.maps().join(shape.name))).collect()
}

fn load(options: &Options, pins: &Pins, forgets: bool, turns: bool) -> Result<Ebpf> {
    let path = options.object.clone().or_else(|| std::env::var_os(OBJECT_VARIABLE).map(PathBuf::from));
    let read;
    let (bytes, from) = match &path {
        None => (OBJECT, "(built in)".to_owned()),
        Some(path) => {
            read = fs::read(path).map_err(Error::system(format!("read {}", path.display())))?;
            (read.as_slice(), path.display().to_string())
        }
    };
    let mut loader = EbpfLoader::new();
    let (forgets, turns) = (u8::from(forgets), u8::from(turns));
    // Not in an object that was built before there was such a thing.
    loader.override_global("KERNEL_FORGETS", &forgets, false);
    loader.override_global("KERNEL_TURNS", &turns, false);
    let processors = aya::util::nr_cpus().map_or(1024, |n| u32::try_from(n).unwrap_or(1024));
    loader.override_global("STT_PROCESSORS", &processors, false);
    for shape in &SHAPES {
        loader.map_pin_path(shape.name, pins.maps().join(shape.name));
    }
    let object = loader.load(bytes).map_err(|e| Error::Object { from, source: Box::new(e) })?;
    match SHAPES.iter().find(|shape| object.map(shape.name).is_none()) {
        None => Ok(object),
        Some(missing) => Err(Error::Incomplete { what: format!("map {}", missing.name) }),
    }
}

fn program(object: &mut Ebpf, name: &'static str) -> Result<Program> {
    let refused = |e| refusal(name, e);
    let missing = || Error::Incomplete { what: format!("program {name}") };
    let program: &mut SchedClassifier =
        object.program_mut(name).ok_or_else(missing)?.try_into().map_err(|_| missing())?;
    program.load().map_err(refused)?;
    let fd = program.fd().map_err(refused)?.as_fd().try_clone_to_owned();
    let fd = fd.map_err(Error::system(format!("keep program {name}")))?;
    let info =
        sys::program_info(fd.as_fd()).map_err(Error::system(format!("read the facts of program {name}")))?;
    Ok(Program { fd, info })
}

fn refusal(name: &'static str, error: ProgramError) -> Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            Error::Program { name, log: verifier_log.to_string(), source: io_error }
        }
        other => Error::Program { name, log: String::new(), source: io::Error::other(other) },
    }
}
