//! The responder: UDP and TCP, one pair of sockets in every VM, all in one process.

use crate::record::Record;
use crate::tool::serve::{self, PORT};
use crate::{Error, Result};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;
use tenet_hostnet::Netns;

const STACK: usize = 128 << 10;

/// Answers for all VMs of a recorded lab until the process is ended.
pub fn respond(dir: &Path) -> Result<()> {
    let record = Record::load(dir, &dir.display().to_string())?;
    // Guests answer themselves.
    for vm in record.vms.iter().filter(|v| !v.real) {
        let netns = Netns::open(&vm.netns)?;
        // One socket for both families, or for IPv4 alone on a kernel without IPv6.
        let on = |any: IpAddr| {
            Ok::<_, io::Error>((UdpSocket::bind((any, PORT))?, TcpListener::bind((any, PORT))?))
        };
        let bind = || on(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| on(Ipv4Addr::UNSPECIFIED.into()));
        let (udp, tcp) = netns.run(bind)?.map_err(Error::io(format!("listen in VM {}", vm.name)))?;
        let name = vm.name.to_string();
        let copy = name.clone();
        let threads =
            std::thread::Builder::new().stack_size(STACK).spawn(move || serve::datagrams(&udp, &name));
        threads.map_err(Error::io("start a thread"))?;
        let threads =
            std::thread::Builder::new().stack_size(STACK).spawn(move || serve::connections(&tcp, &copy));
        threads.map_err(Error::io("start a thread"))?;
    }
    loop {
        std::thread::park();
    }
}

/// Asks from a VM who is at an address; nobody, if nobody answers in time.
pub fn ask(netns: &Netns, who: IpAddr, patience: Duration) -> Result<Option<String>> {
    let failed = || format!("ask {who} from {}", netns.label());
    let socket = netns.run(|| UdpSocket::bind((serve::unspecified(who), 0)))?.map_err(Error::io(failed()))?;
    serve::ask(&socket, who, patience, rand::random()).map_err(Error::io(failed()))
}
