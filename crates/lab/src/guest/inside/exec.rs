//! Runs commands for the lab: one at a time on each port, its streams and exit code sent back.

use crate::frame::{Decoder, Frame, Kind, MOST, send};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Names of the ports that are ours begin so.
const PREFIX: &str = "tenet.exec.";
/// How often a port without anybody at its other end is looked at.
const IDLE: Duration = Duration::from_millis(40);

/// Serves all ports, each on its own thread.
pub fn serve_all() -> io::Result<()> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.starts_with(PREFIX) {
            let path = format!("/dev/{}", entry.file_name().to_string_lossy());
            thread::spawn(move || loop {
                // A port that fails is opened again: without it nobody could look into the guest.
                if let Err(e) = OpenOptions::new().read(true).write(true).open(&path).and_then(serve) {
                    eprintln!("{path}: {e}");
                }
                thread::sleep(Duration::from_secs(1));
            });
        }
    }
    Ok(())
}

struct Running {
    id: u32,
    pid: u32,
    ended: Arc<AtomicBool>,
    input: Option<ChildStdin>,
}

fn serve(mut port: File) -> io::Result<()> {
    let writer = Arc::new(Mutex::new(port.try_clone()?));
    let mut decoder = Decoder::default();
    let mut running: Option<Running> = None;
    loop {
        if !decoder.read(&mut port)? {
            // Nobody is at the other end: whoever waited for the command has gone.
            decoder = Decoder::default();
            end(running.take());
            thread::sleep(IDLE);
            continue;
        }
        while let Some(frame) = decoder.next() {
            match frame.kind {
                Kind::Hello => {
                    end(running.take());
                    reply(&writer, Kind::Hello, frame.id, &[]);
                }
                Kind::Run => {
                    end(running.take());
                    match start(&frame) {
                        Ok(child) => running = Some(follow(child, frame.id, &writer)),
                        Err(e) => reply(&writer, Kind::Refused, frame.id, e.to_string().as_bytes()),
                    }
                }
                Kind::Input => {
                    if let Some(to) = running.as_mut().filter(|r| r.id == frame.id) {
                        feed(to, &frame.payload);
                    }
                }
                Kind::Output | Kind::Error | Kind::Exit | Kind::Refused => {}
            }
        }
    }
}

fn start(frame: &Frame) -> io::Result<Child> {
    let text = String::from_utf8_lossy(&frame.payload);
    let mut words = text.split('\0');
    let program = words.next().unwrap_or_default();
    Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that what the command started ends with it.
        .process_group(0)
        .spawn()
}

/// Sends on what the command says and, at its end, how it ended.
fn follow(mut child: Child, id: u32, writer: &Arc<Mutex<File>>) -> Running {
    let (pid, input) = (child.id(), child.stdin.take());
    let out = child.stdout.take().map(|s| pump(s, Kind::Output, id, writer));
    let err = child.stderr.take().map(|s| pump(s, Kind::Error, id, writer));
    let ended = Arc::new(AtomicBool::new(false));
    let (writer, over) = (writer.clone(), ended.clone());
    thread::spawn(move || {
        let status = child.wait();
        over.store(true, Ordering::Relaxed);
        // What it left running in the background may hold its streams open for ever; what it wrote itself is read
        // in the next moments.
        for stream in [out, err].into_iter().flatten() {
            for _ in 0..50 {
                if stream.is_finished() {
                    break;
                }
                thread::sleep(Duration::from_millis(4));
            }
        }
        let code = match status {
            Ok(s) => s.code().unwrap_or_else(|| 128 + s.signal().unwrap_or_default()),
            Err(_) => 255,
        };
        reply(&writer, Kind::Exit, id, &code.to_be_bytes());
    });
    Running { id, pid, ended, input }
}

fn pump(mut from: impl Read + Send + 'static, kind: Kind, id: u32, writer: &Arc<Mutex<File>>) -> thread::JoinHandle<()> {
    let writer = writer.clone();
    thread::spawn(move || {
        let mut buffer = [0; MOST];
        while let Ok(got @ 1..) = from.read(&mut buffer) {
            reply(&writer, kind, id, buffer.get(..got).unwrap_or_default());
        }
    })
}

fn feed(to: &mut Running, bytes: &[u8]) {
    // A command that reads no more has closed its end, which is its right.
    if bytes.is_empty() || to.input.as_mut().is_some_and(|i| i.write_all(bytes).is_err()) {
        to.input = None;
    }
}

fn reply(writer: &Mutex<File>, kind: Kind, id: u32, payload: &[u8]) {
    let mut port = writer.lock().unwrap_or_else(PoisonError::into_inner);
    // Whoever asked may have gone.
    _ = send(&mut *port, kind, id, payload);
}

/// Ends a command that nobody waits for any more, and what it started. What an ended one left in the background stays.
fn end(running: Option<Running>) {
    if let Some(r) = running.filter(|r| !r.ended.load(Ordering::Relaxed)) {
        _ = Command::new("kill").args(["-9", &format!("-{}", r.pid)]).stderr(Stdio::null()).status();
    }
}
