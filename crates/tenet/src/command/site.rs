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
