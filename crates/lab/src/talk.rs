//! Talk from a lab's VM, whichever it is: a namespace or a guest.

use crate::tool::{self, Probe, Stream};
use crate::{Lab, Result};
use std::net::IpAddr;
use std::time::Duration;

impl Lab {
    /// Asks from a VM who is at an address; nobody, if nobody answers in time.
    pub fn ask_from(&self, vm: &str, who: IpAddr, patience: Duration) -> Result<Option<String>> {
        if !self.vm_record(vm)?.real {
            return tool::ask(self.vm(vm)?.netns(), who, patience);
        }
        // The guest's program is patient for two seconds by itself.
        let said = self.guest(vm)?.exec_within(
            ["tenet-guest".to_owned(), "ask".to_owned(), who.to_string()],
            patience + Duration::from_secs(20),
        )?;
        Ok((said.code == 0).then(|| said.stdout().trim_end().to_owned()))
    }

    /// Starts a probe in a VM.
    pub fn probe_from(&self, vm: &str, who: IpAddr, expected: &str, per_second: u32) -> Result<Probe> {
        if self.vm_record(vm)?.real {
            Probe::start_in(&self.guest(vm)?, who, expected, per_second)
        } else {
            Probe::start(self.vm(vm)?.netns(), who, expected, per_second)
        }
    }

    /// Starts a stream in a VM.
    pub fn stream_from(&self, vm: &str, who: IpAddr, pace: Duration) -> Result<Stream> {
        if self.vm_record(vm)?.real {
            Stream::start_in(&self.guest(vm)?, who, pace)
        } else {
            Stream::start(self.vm(vm)?.netns(), who, pace)
        }
    }
}
