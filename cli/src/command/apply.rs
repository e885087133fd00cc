//! `oast apply`: from files to the farm's fleets, repositories and teams, with the differences
//! shown before anything changes.
//!
//! Every file is checked here first. Then the farm is asked what would change; what it then
//! changes is bound to the revisions that were shown, so that nobody's change is run over unseen.

use std::path::PathBuf;

use anyhow::Context;
use oast_daemon::exit::Exit;
use oast_daemon::random;
use oast_model::resource::{Resource, ResourceKind, file};
use oast_proto::v1;

use super::block_on;
use crate::client::Client;
use crate::context::Connect;
use crate::fail::Fail;
use crate::output::{DECLINED, Output, confirm, count, note, plain};
use crate::shape;

/// Make or change fleets, repositories and teams from a file
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file, `-` for standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

/// Shows the differences, asks and applies.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let Some(mut wanted) = read(&args.files)? else {
        return Ok(Exit::Failed);
    };
    // Each can name one of those before it.
    wanted.sort_by_key(|resource| match resource.kind() {
        ResourceKind::Team => 0,
        ResourceKind::Repository => 1,
        ResourceKind::Fleet => 2,
    });
    block_on(apply(args, &wanted))
}

fn read(files: &[PathBuf]) -> anyhow::Result<Option<Vec<Resource>>> {
    let mut all = Some(Vec::new());
    for path in files {
        let name = if path.as_os_str() == "-" {
            "<stdin>".to_owned()
        } else {
            path.display().to_string()
        };
        let text = crate::validate::read(path).with_context(|| format!("read {name}"))?;
        let found = oast_model::resource::parse(&name, &text);
        crate::validate::complain(&name, &text, found.problems)?;
        all = all.zip(found.value).map(|(mut all, mut found)| {
            all.append(&mut found);
            all
        });
    }
    Ok(all)
}

async fn apply(args: &Args, wanted: &[Resource]) -> anyhow::Result<Exit> {
    let client = args.connect.client()?;
    let mut shown = Vec::new();
    for resource in wanted {
        shown.push(ask(&client, resource, None).await?);
    }
    let differs = |answer: &v1::ApplyResourceResponse| answer.created || !answer.changes.is_empty();
    let open = shown.iter().filter(|answer| differs(answer)).count();
    for answer in &shown {
        note(difference(answer).trim_end());
    }
    if args.dry_run || open == 0 {
        if open == 0 {
            note("Nothing to change.");
        }
        return printed(args.output, shown);
    }
    if !confirm(&format!("Apply {}?", count(open, "change")), args.yes)? {
        return Ok(DECLINED);
    }
    let mut done = Vec::new();
    for (resource, answer) in wanted.iter().zip(shown) {
        if !differs(&answer) {
            done.push(answer);
            continue;
        }
        let revision = i64::try_from(answer.revision).unwrap_or(i64::MAX);
        match ask(&client, resource, Some(revision)).await {
            Ok(mut now) => {
                now.created = answer.created;
                note(format!(
                    "{} {} is at revision {}.",
                    now.kind, now.name, now.revision
                ));
                done.push(now);
            }
            Err(err) => {
                for before in done.iter().filter(|before| differs(before)) {
                    note(format!(
                        "{} {} was applied before the error.",
                        before.kind, before.name
                    ));
                }
                return Err(err);
            }
        }
    }
    printed(args.output, done)
}

/// What people read was said already.
fn printed(output: Output, answers: Vec<v1::ApplyResourceResponse>) -> anyhow::Result<Exit> {
    if !output.is_text() {
        let answers: Vec<_> = answers
            .into_iter()
            .map(shape::ApplyResourceResponse::from)
            .collect();
        output.list(&answers, |answer| &answer.name, "", |_| String::new())?;
    }
    Ok(Exit::Ok)
}

/// What would change, or with a revision the change itself.
async fn ask(
    client: &Client,
    resource: &Resource,
    revision: Option<i64>,
) -> anyhow::Result<v1::ApplyResourceResponse> {
    let request = v1::ApplyResourceRequest {
        request_id: random::request_id(),
        document: file::to_yaml(resource),
        validate_only: revision.is_none(),
        expected_revision: revision.unwrap_or(-1),
    };
    let answer = client
        .call(|member| {
            let request = request.clone();
            async move { member.resources().apply_resource(request).await }
        })
        .await;
    answer.map_err(|status| {
        let named = format!("{} `{}`", resource.kind().as_str(), resource.name());
        match status.code() {
            // It was right by this program's rules: the farm has others.
            tonic::Code::InvalidArgument => Fail::failed(format!(
                "the farm does not take {named}: {}",
                plain(status.message())
            ))
            .hint("is the farm of an older version? `oast version`, `oast whoami`")
            .into(),
            tonic::Code::Aborted => {
                Fail::failed(format!("{named} was changed by somebody else meanwhile"))
                    .hint("the same command again shows the difference to what it is now")
                    .into()
            }
            _ => anyhow::Error::new(status).context(named),
        }
    })
}

/// `+` new, `-` gone, `~` changed.
fn difference(answer: &v1::ApplyResourceResponse) -> String {
    let named = plain(&format!("{} {}", answer.kind, answer.name));
    let mut text = match (answer.created, answer.changes.is_empty()) {
        (true, _) => format!("\u{1b}[32m+ {named}\u{1b}[0m (new)\n"),
        (false, true) => format!("  {named} (unchanged)\n"),
        (false, false) => format!("\u{1b}[33m~ {named}\u{1b}[0m\n"),
    };
    let width = answer
        .changes
        .iter()
        .map(|change| change.path.chars().count())
        .max()
        .unwrap_or(0);
    for change in &answer.changes {
        let path = plain(&change.path);
        let pad = " ".repeat(width.saturating_sub(path.chars().count()));
        let (before, after) = (plain(&change.before), plain(&change.after));
        let line = match (before.is_empty(), after.is_empty()) {
            (true, _) => format!("\u{1b}[32m  + {path}\u{1b}[0m{pad}  {after}\n"),
            (false, true) => format!("\u{1b}[31m  - {path}\u{1b}[0m{pad}  {before}\n"),
            (false, false) => format!("\u{1b}[33m  ~ {path}\u{1b}[0m{pad}  {before} -> {after}\n"),
        };
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_shown_field_by_field() {
        let change = |path: &str, before: &str, after: &str| v1::FieldChange {
            path: path.into(),
            before: before.into(),
            after: after.into(),
        };
        let answer = v1::ApplyResourceResponse {
            kind: "Fleet".into(),
            name: "web".into(),
            changes: vec![
                change("count", "6", "8"),
                change("drain.timeout", "", "5s"),
                change("health.http", "/", ""),
            ],
            ..Default::default()
        };
        assert_eq!(
            plain(&difference(&answer)),
            "~ Fleet web\n  ~ count          6 -> 8\n  + drain.timeout  5s\n  - health.http    /\n"
        );
    }
}
