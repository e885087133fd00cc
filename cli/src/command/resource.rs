//! `oast resource`: the farm's own records as `oast apply` made them.

use oast_daemon::exit::Exit;
use oast_daemon::random;
use oast_proto::v1;

use super::block_on;
use crate::client::Client;
use crate::context::Connect;
use crate::fail::Fail;
use crate::output::{DECLINED, Output, confirm, table};
use crate::shape;

/// Look at and delete what `oast apply` makes
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List fleets, repositories and teams
    List {
        /// Only this kind
        #[arg(value_enum)]
        kind: Option<Kind>,
    },
    /// Print a resource as the YAML that `oast apply` takes
    Show {
        /// Its kind
        #[arg(value_enum)]
        kind: Kind,
        /// Its name
        name: String,
    },
    /// Delete a resource
    Delete {
        /// Its kind
        #[arg(value_enum)]
        kind: Kind,
        /// Its name
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// A kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// What serves an image.
    #[value(alias = "fleets", alias = "Fleet")]
    Fleet,
    /// Where pipelines come from.
    #[value(alias = "repositories", alias = "repo", alias = "Repository")]
    Repository,
    /// Who owns all of it.
    #[value(alias = "teams", alias = "Team")]
    Team,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Fleet => "Fleet",
            Kind::Repository => "Repository",
            Kind::Team => "Team",
        }
    }
}

/// Lists, shows or deletes.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let (connect, output) = (&args.connect, args.output);
    block_on(async {
        match &args.command {
            Command::List { kind } => list(connect, output, *kind).await,
            Command::Show { kind, name } => show(connect, output, *kind, name).await,
            Command::Delete { kind, name, yes } => delete(connect, *kind, name, *yes).await,
        }
    })
}

async fn find(client: &Client, kind: Option<Kind>) -> Result<Vec<shape::Resource>, tonic::Status> {
    let request = v1::ListResourcesRequest {
        kind: kind.map_or(String::new(), |kind| kind.word().to_owned()),
    };
    let found = client
        .call(|member| {
            let request = request.clone();
            async move { member.resources().list_resources(request).await }
        })
        .await?;
    Ok(found
        .resources
        .into_iter()
        .map(shape::Resource::from)
        .collect())
}

/// Lists resources.
pub async fn list(connect: &Connect, output: Output, kind: Option<Kind>) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let mut found = find(&client, kind).await?;
    if let Some(team) = connect.said_team() {
        found.retain(|resource| resource.team == team);
    }
    let empty = "There is nothing yet: `oast apply -f FILE` makes it.";
    output.list(
        &found,
        |resource| &resource.name,
        empty,
        |found| {
            let rows = found.iter().map(|resource| {
                [
                    resource.kind.clone(),
                    resource.name.clone(),
                    resource.team.clone(),
                    resource.revision.to_string(),
                ]
            });
            table(["KIND", "NAME", "TEAM", "REVISION"], rows)
        },
    )?;
    Ok(Exit::Ok)
}

/// Shows a resource.
pub async fn show(
    connect: &Connect,
    output: Output,
    kind: Kind,
    name: &str,
) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let found = find(&client, Some(kind)).await?;
    match found.into_iter().find(|resource| resource.name == name) {
        Some(resource) => {
            output.one(name, &resource, || resource.document.clone())?;
            Ok(Exit::Ok)
        }
        None => Err(Fail::new(
            Exit::NotFound,
            format!("there is no {} `{name}`", kind.word()),
        )
        .hint(format!(
            "`oast resource list {}` shows what there is",
            kind.word().to_lowercase()
        ))
        .into()),
    }
}

async fn delete(connect: &Connect, kind: Kind, name: &str, yes: bool) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    if !confirm(&format!("Delete {} {name}?", kind.word()), yes)? {
        return Ok(DECLINED);
    }
    let request = v1::DeleteResourceRequest {
        request_id: random::request_id(),
        kind: kind.word().to_owned(),
        name: name.to_owned(),
    };
    client
        .call(|member| {
            let request = request.clone();
            async move { member.resources().delete_resource(request).await }
        })
        .await?;
    crate::output::note(format!("{} {name} is deleted.", kind.word()));
    Ok(Exit::Ok)
}
