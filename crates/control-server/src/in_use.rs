//! Ports that VMs use: nothing but a migration takes one to another host, whoever asks and however.

use crate::fault::Fault;
use tenet_api::rest::Problem;
use tenet_control::Control;
use tenet_model::{Change, Key, Object, Operation, Port};

/// Refuses a change that would take ports away from VMs that run with them on other hosts.
pub(crate) fn check(core: &Control, change: &Change) -> Result<(), Fault> {
    let problems: Vec<Problem> = change
        .operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::Put(Object::Port(port)) => used_elsewhere(core, port),
            Operation::Put(_) | Operation::Delete(_) => None,
        })
        .collect();
    let Some(first) = problems.first() else { return Ok(()) };
    let mut fault = Fault::conflict(first.message.clone(), first.hint.clone());
    if problems.len() > 1 {
        fault.error.message = format!("{} ports that VMs use would be taken to other hosts", problems.len());
        fault.error.hint =
            "move these VMs by `tenet vm migrate`; if none of them runs where it is any more, ask for it \
                            with --force"
                .into();
    }
    fault.error.problems = problems;
    Err(fault)
}

/// Why a port may not get the host that it shall get, if its device has a carrier where it is.
fn used_elsewhere(core: &Control, port: &Port) -> Option<Problem> {
    let (name, to) = (&port.name, port.host.as_ref()?);
    let vm = name.vm_ref();
    let desired = core.desired();
    let was = &desired.ports.get(name)?.value;
    let on = was.host.as_ref().filter(|on| *on != to)?;
    if desired.migrations.contains_key(&vm) {
        // The model refuses it, and says why.
        return None;
    }
    let (there, connected) = core.port_report(on, name)?;
    let device = was.device.as_deref().filter(|_| there.present && there.carrier)?;
    let last = if connected { "" } else { ", as its agent said last (it has no session now)" };
    Some(Problem {
        code: "in-use".into(),
        object: Key::Port(name.clone()).to_string(),
        message: format!("VM {vm} runs on host {on}: {device} has a carrier there{last}"),
        hint: format!(
            "`tenet vm migrate {vm} --to {to}` moves it; if it does not run there any more, `tenet vm detach {vm}` first, \
             or ask for it with --force"
        ),
    })
}
