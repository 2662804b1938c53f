//! The emulated machine: started, listened to, and ended in time.

use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Memory for the kernel, all of its files, and the tables of two hosts.
const MEGABYTES: &str = "2048";
/// Emulation always: where `/dev/kvm` can be opened, it need not work. The timer of an emulated machine may be late.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet loglevel=4 no_timer_check nowatchdog mitigations=off \
                            rcupdate.rcu_cpu_stall_suppress=1";

/// Boots a kernel and gives each line of its console to `hear`, until the machine ends.
///
/// # Errors
/// If it cannot be started, or does not end in time.
pub fn boot(
    kernel: &Path,
    files: &Path,
    log: &Path,
    limit: Duration,
    mut hear: impl FnMut(&str),
) -> Result<()> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEGABYTES]);
    command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(files).args(["-append", COMMAND_LINE]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let begin = Instant::now();
    let mut machine = Machine(command.spawn().context("start qemu-system-x86_64")?);
    let console = machine.0.stdout.take().context("the machine has no console")?;
    let mut record = File::create(log).with_context(|| format!("write {}", log.display()))?;
    let (tell, told) = mpsc::channel();
    // Ends with the machine: its end of the pipe closes then.
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            if tell.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()).is_err() {
                return;
            }
        }
    });
    loop {
        match told.recv_timeout(limit.saturating_sub(begin.elapsed())) {
            Ok(line) => {
                writeln!(record, "{:7.1} {line}", begin.elapsed().as_secs_f64())?;
                hear(&line);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                bail!("not done after {} s; what it said is in {}", limit.as_secs(), log.display())
            }
        }
    }
}

/// Ends with us.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
