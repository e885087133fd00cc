//! `oast whoami`: who the farm takes the caller for.

use oast_daemon::exit::Exit;
use oast_proto::v1;

use crate::context::Connect;
use crate::output::{Output, facts};
use crate::shape;

/// Show who you are to the farm
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

/// Asks the farm.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    super::block_on(async {
        let client = args.connect.client()?;
        let identity = client
            .call(|member| async move { member.operator().who_am_i(v1::WhoAmIRequest {}).await })
            .await?;
        let identity = shape::Identity::from(identity);
        args.output.one(&identity.name, &identity, || {
            let team = if identity.team.is_empty() {
                "every team"
            } else {
                identity.team.as_str()
            };
            facts(&[
                ("Name", identity.name.clone()),
                ("Role", identity.role.clone()),
                ("Team", team.to_owned()),
                ("Farm", identity.farm.clone()),
                ("Version", identity.version.clone()),
                ("Members", client.addresses().join(", ")),
            ])
        })?;
        Ok(Exit::Ok)
    })
}
