//! What holds for the whole site.

use crate::cli::SiteCommand;
use crate::command::{Context, change};
use crate::failure::Outcome;
use crate::print;
use tenet_api::rest::SettingsSpec;

/// `site …`
pub async fn site(context: &Context, command: SiteCommand) -> Outcome {
    let client = context.client()?;
    match command {
        SiteCommand::Show => context.show(&client.settings().await?, |s| {
            let since = match s.revision {
                0 => "never set".to_owned(),
                revision => format!("set at revision {revision}"),
            };
            print::line(&format!(
                "VXLAN is sent to UDP port {}, Geneve to {} ({since})",
                s.vxlan_port, s.geneve_port
            ))?;
            let coming = [("VXLAN", s.next_vxlan_port), ("Geneve", s.next_geneve_port)];
            for (method, port) in coming {
                let Some(port) = port else { continue };
                let late: Vec<&str> = s.waiting_for.iter().map(|host| host.as_str()).collect();
                let late =
                    if late.is_empty() { String::new() } else { format!(", {} to follow", late.join(", ")) };
                print::line(&format!(
                    "{method} is about to be sent to UDP port {port}: receivers first{late}"
                ))?;
            }
            print::line(if s.hosts_begin_migrations {
                "hosts begin migrations: what runs on a host may fetch a VM of another host (`virsh migrate`)"
            } else {
                "hosts begin no migrations: each is asked for by `tenet vm migrate` first"
            })
        }),
        SiteCommand::Set { vxlan_port, geneve_port, hosts_begin_migrations } => {
            let spec = SettingsSpec { vxlan_port, geneve_port, hosts_begin_migrations };
            change::report(context, &client.set_settings(&spec).await?)
        }
    }
}
