//! Load and measurement for one direction between two namespaces: bulk TCP, small UDP datagrams, TCP round trips.
//!
//! Each side is a thread that has entered the namespace of its VM, so one process does it all and a
//! measurement cannot outlive the bench. Results are plain numbers: gigabits, packets and transactions a second.

use anyhow::{Context as _, Result, bail};
use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, RawFd},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// One VM: the path of its namespace and its address.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Name in `/run/netns`.
    pub netns: String,
    /// Customer address.
    pub address: Ipv4Addr,
}

/// Transactions of [`round_trips`].
#[derive(Clone, Copy, Debug)]
pub struct RoundTrips {
    /// A second.
    pub rate: f64,
    /// Median, microseconds.
    pub p50: f64,
    /// 99th percentile, microseconds.
    pub p99: f64,
}

const WAIT: Duration = Duration::from_secs(5);

/// What bulk TCP gave and took.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    /// Gigabits a second, as received.
    pub rate: f64,
    /// Seconds of all CPUs together per gigabyte received; of the whole machine, so that softirqs count.
    pub cpu_per_gb: f64,
}

/// Seconds that all CPUs together were busy since the machine started (`/proc/stat`: all but idle and waiting).
fn busy() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let numbers = text.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1);
    let ticks: Vec<f64> = numbers.take(8).filter_map(|n| n.parse().ok()).collect();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    // SAFETY: the call takes a number and returns one.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok((ticks.iter().sum::<f64>() - idle) / per_second.max(1) as f64)
}

/// Bulk TCP from `a` to `b` over `streams` connections; the rate without a warm-up of 0.3 s.
pub fn tcp_bulk(a: &Vm, b: &Vm, streams: usize, time: Duration) -> Result<Bulk> {
    let before = busy()?;
    let (rate, bytes) = tcp_rate(a, b, streams, time)?;
    Ok(Bulk { rate, cpu_per_gb: (busy()? - before) / (bytes as f64 / 1e9) })
}

/// Gigabits a second after the warm-up, and all bytes received.
fn tcp_rate(a: &Vm, b: &Vm, streams: usize, time: Duration) -> Result<(f64, u64)> {
    const WARM_UP: Duration = Duration::from_millis(300);
    let (ready, port) = mpsc::channel();
    let to = b.clone();
    let receiver = in_netns(&b.netns, 1, move || {
        let listener = TcpListener::bind((to.address, 0))?;
        ready.send(listener.local_addr()?.port()).ok();
        let mut connections = Vec::new();
        for _ in 0..streams {
            let (connection, _) = listener.accept()?;
            connection.set_read_timeout(Some(WAIT))?;
            connections.push(connection);
        }
        let counters: Vec<_> = connections
            .into_iter()
            .map(|mut c| {
                thread::spawn(move || -> Result<(u64, u64, Duration)> {
                    let mut buffer = vec![0u8; 1 << 20];
                    let begin = Instant::now();
                    let (mut bytes, mut all, mut since) = (0u64, 0u64, None);
                    loop {
                        let n = c.read(&mut buffer)?;
                        let now = Instant::now();
                        if n == 0 {
                            break;
                        }
                        all += n as u64;
                        if since.is_some() {
                            bytes += n as u64;
                        } else if now - begin > WARM_UP {
                            since = Some(now);
                        }
                    }
                    Ok((bytes, all, since.map_or(Duration::ZERO, |s| s.elapsed())))
                })
            })
            .collect();
        let (mut rate, mut total) = (0.0, 0);
        for c in counters {
            let (bytes, all, took) = join(c)?;
            total += all;
            if took.is_zero() {
                bail!("a TCP stream carried nothing after the warm-up");
            }
            rate += bytes as f64 * 8.0 / 1e9 / took.as_secs_f64();
        }
        Ok((rate, total))
    });
    let port = port.recv_timeout(WAIT).context("the TCP receiver did not start")?;
    let target = SocketAddr::from((b.address, port));
    let sender = in_netns(&a.netns, 0, move || {
        let until = Instant::now() + WARM_UP + time;
        let senders: Vec<_> = (0..streams)
            .map(|_| {
                thread::spawn(move || -> Result<()> {
                    let mut c = TcpStream::connect_timeout(&target, WAIT)?;
                    c.set_write_timeout(Some(WAIT))?;
                    let buffer = vec![0u8; 256 << 10];
                    while Instant::now() < until {
                        c.write_all(&buffer)?;
                    }
                    Ok(())
                })
            })
            .collect();
        senders.into_iter().try_for_each(join)
    });
    join(sender)?;
    join(receiver)
}

/// Small UDP datagrams from `a` to `b` as fast as one core sends; packets a second as received.
pub fn udp_small(a: &Vm, b: &Vm, payload: usize, time: Duration) -> Result<f64> {
    let (ready, port) = mpsc::channel();
    let to = b.clone();
    let receiver = in_netns(&b.netns, 1, move || {
        let socket = UdpSocket::bind((to.address, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        receive_buffer(socket.as_raw_fd(), 4 << 20);
        ready.send(socket.local_addr()?.port()).ok();
        let end = Instant::now() + time + WAIT;
        let (mut packets, mut first, mut last) = (0u64, None, Instant::now());
        while Instant::now() < end {
            let n = receive_many(socket.as_raw_fd());
            if n == 0 {
                if packets > 0 {
                    break;
                }
                continue;
            }
            last = Instant::now();
            // The first batch starts the clock and is not counted.
            if first.is_some() { packets += n } else { first = Some(last) }
        }
        match first {
            Some(begin) if last > begin => Ok(packets as f64 / (last - begin).as_secs_f64()),
            _ => bail!("no datagram arrived"),
        }
    });
    let port = port.recv_timeout(WAIT).context("the UDP receiver did not start")?;
    let target = SocketAddr::from((b.address, port));
    let sender = in_netns(&a.netns, 0, move || {
        let socket = UdpSocket::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))?;
        socket.connect(target)?;
        let until = Instant::now() + time;
        while Instant::now() < until {
            send_many(socket.as_raw_fd(), payload);
        }
        Ok(())
    });
    join(sender)?;
    join(receiver)
}

/// One-byte TCP requests and answers, one at a time.
pub fn round_trips(a: &Vm, b: &Vm, time: Duration) -> Result<RoundTrips> {
    let (ready, port) = mpsc::channel();
    let to = b.clone();
    let server = in_netns(&b.netns, 1, move || {
        let listener = TcpListener::bind((to.address, 0))?;
        ready.send(listener.local_addr()?.port()).ok();
        let (mut c, _) = listener.accept()?;
        c.set_nodelay(true)?;
        c.set_read_timeout(Some(WAIT))?;
        let mut byte = [0u8; 1];
        while c.read(&mut byte)? == 1 {
            c.write_all(&byte)?;
        }
        Ok(())
    });
    let port = port.recv_timeout(WAIT).context("the TCP server did not start")?;
    let target = SocketAddr::from((b.address, port));
    let client = in_netns(&a.netns, 0, move || {
        let mut c = TcpStream::connect_timeout(&target, WAIT)?;
        c.set_nodelay(true)?;
        c.set_read_timeout(Some(WAIT))?;
        let mut byte = [0u8; 1];
        let mut took = Vec::new();
        let begin = Instant::now();
        while begin.elapsed() < time {
            let t = Instant::now();
            c.write_all(&byte)?;
            c.read_exact(&mut byte)?;
            took.push(t.elapsed().as_secs_f64() * 1e6);
        }
        let elapsed = begin.elapsed().as_secs_f64();
        took.sort_by(f64::total_cmp);
        let at =
            |q: f64| took.get(((took.len() as f64 * q) as usize).min(took.len().saturating_sub(1))).copied();
        match (at(0.5), at(0.99)) {
            (Some(p50), Some(p99)) => Ok(RoundTrips { rate: took.len() as f64 / elapsed, p50, p99 }),
            _ => bail!("no round trip in {elapsed:.1} s"),
        }
    });
    let result = join(client)?;
    join(server)?;
    Ok(result)
}

/// Runs `work` in a thread that has entered the namespace and is pinned to a CPU.
fn in_netns<T: Send + 'static>(
    netns: &str,
    cpu: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> thread::JoinHandle<Result<T>> {
    let netns = netns.to_owned();
    thread::spawn(move || {
        let path = format!("/run/netns/{netns}");
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        enter(&file).with_context(|| format!("enter namespace {netns}"))?;
        pin(cpu);
        work().with_context(|| format!("in namespace {netns}"))
    })
}

fn join<T>(t: thread::JoinHandle<Result<T>>) -> Result<T> {
    match t.join() {
        Ok(result) => result,
        Err(_) => bail!("a load thread panicked"),
    }
}

fn enter(namespace: &File) -> std::io::Result<()> {
    // SAFETY: setns takes an open descriptor and changes only this thread's network namespace.
    let r = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if r == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Keeps sender and receiver on cores of their own; a machine without that core just goes on unpinned.
fn pin(cpu: usize) {
    // SAFETY: cpu_set_t is plain data for which all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is initialised and the call reads only it.
    unsafe {
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

fn receive_buffer(socket: RawFd, bytes: libc::c_int) {
    // SAFETY: the option takes one int, which outlives the call.
    unsafe {
        libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const bytes).cast(), 4);
    }
}

const BATCH: usize = 32;

/// Sends a batch of datagrams of `payload` bytes (at most 1,472) on a connected socket; losses are not errors.
fn send_many(socket: RawFd, payload: usize) {
    let mut data = [0u8; 1472];
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: payload.min(data.len()) };
    // SAFETY: mmsghdr is plain data for which all zeroes means no address and no parts.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for m in &mut messages {
        m.msg_hdr.msg_iov = &raw mut part;
        m.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: headers, part and data live on this stack frame during the call.
    unsafe { libc::sendmmsg(socket, messages.as_mut_ptr(), BATCH as libc::c_uint, 0) };
}

/// Receives up to a batch of datagrams, waiting at most the socket's timeout; how many came.
fn receive_many(socket: RawFd) -> u64 {
    let mut data = [[0u8; 64]; BATCH];
    // SAFETY: iovec and mmsghdr are plain data for which all zeroes is valid.
    let (mut parts, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { std::mem::zeroed() };
    for ((m, part), d) in messages.iter_mut().zip(&mut parts).zip(&mut data) {
        *part = libc::iovec { iov_base: d.as_mut_ptr().cast(), iov_len: d.len() };
        m.msg_hdr.msg_iov = part;
        m.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: headers, parts and data live on this stack frame during the call.
    let n = unsafe {
        libc::recvmmsg(
            socket,
            messages.as_mut_ptr(),
            BATCH as libc::c_uint,
            libc::MSG_WAITFORONE as _,
            std::ptr::null_mut(),
        )
    };
    u64::try_from(n).unwrap_or(0)
}
