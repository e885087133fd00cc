//! `oast list|get|show NOUN`: the same as `oast NOUN list|show`, for hands used to it.

use clap::ValueEnum;
use oast_daemon::exit::Exit;

use super::{block_on, fleet, image, resource, rollout, run, secret, worker};
use crate::context::Connect;
use crate::fail::Fail;
use crate::output::Output;

/// List runs, images, fleets, workers and more
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// What
    #[arg(value_enum)]
    noun: Noun,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

/// Show one run, image, fleet and more; without a name, list them
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// What
    #[arg(value_enum)]
    noun: Noun,
    /// Which
    name: Option<String>,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Noun {
    #[value(alias = "run")]
    Runs,
    #[value(alias = "image")]
    Images,
    #[value(alias = "fleet")]
    Fleets,
    #[value(alias = "rollout")]
    Rollouts,
    #[value(alias = "worker")]
    Workers,
    #[value(alias = "resource")]
    Resources,
    #[value(alias = "repository", alias = "repo")]
    Repositories,
    #[value(alias = "team")]
    Teams,
    #[value(alias = "secret")]
    Secrets,
}

/// Lists.
pub fn list(args: &ListArgs) -> anyhow::Result<Exit> {
    block_on(all(args.noun, &args.connect, args.output))
}

async fn all(noun: Noun, connect: &Connect, output: Output) -> anyhow::Result<Exit> {
    match noun {
        Noun::Runs => run::list(connect, output, &run::ListArgs::default()).await,
        Noun::Images => image::list(connect, output, false).await,
        Noun::Fleets => fleet::list(connect, output).await,
        Noun::Rollouts => Err(Fail::usage("rollouts are listed by fleet")
            .hint("oast rollout list FLEET")
            .into()),
        Noun::Workers => worker::list(connect, output).await,
        Noun::Resources => resource::list(connect, output, None).await,
        Noun::Repositories => {
            resource::list(connect, output, Some(resource::Kind::Repository)).await
        }
        Noun::Teams => resource::list(connect, output, Some(resource::Kind::Team)).await,
        Noun::Secrets => secret::list(connect, output).await,
    }
}

/// Shows.
pub fn show(args: &ShowArgs) -> anyhow::Result<Exit> {
    let (connect, output) = (&args.connect, args.output);
    block_on(async {
        let Some(name) = args.name.as_deref() else {
            return all(args.noun, connect, output).await;
        };
        match args.noun {
            Noun::Runs => run::show(connect, output, name).await,
            Noun::Images => image::show(connect, output, name, false).await,
            Noun::Fleets => fleet::show(connect, output, name).await,
            Noun::Rollouts => rollout::show(connect, output, name).await,
            Noun::Repositories => {
                resource::show(connect, output, resource::Kind::Repository, name).await
            }
            Noun::Teams => resource::show(connect, output, resource::Kind::Team, name).await,
            Noun::Workers => Err(Fail::usage("workers are only listed")
                .hint("oast worker list")
                .into()),
            Noun::Resources => Err(Fail::usage("say which kind of resource")
                .hint(format!("oast resource show fleet|repository|team {name}"))
                .into()),
            Noun::Secrets => Err(Fail::usage("a secret is never shown")
                .hint("oast secret list")
                .into()),
        }
    })
}
