//! `oast retry`: an ended run again, from where it failed or from a step.

use oast_daemon::exit::Exit;
use oast_daemon::random;
use oast_model::units::TimeSpan;
use oast_proto::v1;

use super::block_on;
use super::watch::{follow_run, run_id};
use crate::context::Connect;
use crate::output::{Output, note};
use crate::shape;

/// Run an ended run again: the same source and inputs, with the steps that were finished
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run, such as r-42
    #[arg(value_name = "RUN")]
    id: String,
    /// Step to begin with, by its title or its place from 1 [default: what failed]
    #[arg(long, value_name = "STEP", default_value = "")]
    from: String,
    /// Print the new run's id and do not wait for it
    #[arg(long)]
    detach: bool,
    /// Follow the run for at most this long, such as 10m; the run itself goes on
    #[arg(long, value_name = "TIME")]
    timeout: Option<TimeSpan>,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

/// Retries.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    block_on(async {
        let client = args.connect.client()?;
        let request = v1::RetryRunRequest {
            request_id: random::request_id(),
            run: run_id(&args.id)?,
            from_step: args.from.clone(),
        };
        let run = client
            .call(|member| {
                let request = request.clone();
                async move { member.runs().retry_run(request).await }
            })
            .await?;
        let id = run.id.clone();
        if args.detach {
            args.output
                .one(&id, &shape::Run::from(run), || format!("{id}\n"))?;
            return Ok(Exit::Ok);
        }
        note(format!("Run {} goes on as {id}.", request.run));
        let limit = args.timeout.map(TimeSpan::duration);
        follow_run(&client, &id, args.output, limit, true).await
    })
}
