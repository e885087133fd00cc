//! `oast operator version`: what every member supports, and what the farm uses of it.

use oast_daemon::exit::Exit;
use oast_daemon::random;
use oast_proto::v1;

use crate::context::Connect;
use crate::output::{Output, note, table};
use crate::shape;

#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub enum Command {
    /// Show the cluster version and what each member supports
    Show,
    /// Keep the version where it is during an upgrade, so that there is a way back
    Hold,
    /// Let the version rise as soon as every member supports more; there is no way back
    Finalize,
}

pub async fn run(command: Command, connect: &Connect, output: Output) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let request_id = random::request_id();
    let found = client
        .call(|member| {
            let request_id = request_id.clone();
            async move {
                let held = match command {
                    Command::Show => {
                        return member
                            .operator()
                            .get_version(v1::GetVersionRequest {})
                            .await;
                    }
                    Command::Hold => true,
                    Command::Finalize => false,
                };
                let request = v1::HoldVersionRequest { request_id, held };
                member.operator().hold_version(request).await
            }
        })
        .await?;
    let found = shape::FarmVersion::from(found);
    output.one(&found.version.to_string(), &found, || {
        let rows = found.members.iter().map(|member| {
            let supported = match member.supported {
                0 => "not heard of".to_owned(),
                supported => supported.to_string(),
            };
            [member.member.to_string(), supported]
        });
        let held = if found.held { ", held" } else { "" };
        format!(
            "{}\ncluster version {}{held}\n",
            table(["MEMBER", "SUPPORTS"], rows),
            found.version
        )
    })?;
    if output.is_text() && found.held && found.next > found.version {
        note(format!(
            "Every member supports {}. When the upgrade is to stay: oast operator version finalize",
            found.next
        ));
    }
    Ok(Exit::Ok)
}
