//! `oast init`: a first pipeline, and what an editor needs to help with it.
//!
//! Writes only what is not there. A second call repairs what is missing and
//! touches nothing else, so nothing half-made can stay: each file is written
//! under another name, and given its own only when it is complete.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use oast_daemon::exit::Exit;
use oast_model::names::{PipelineName, TeamName};
use oast_model::pipeline::PIPELINE_PATH;

use crate::schema::Kind;

/// Where the pipeline's schema stands in a repository.
const PIPELINE_SCHEMA: &str = ".oast/schema/pipeline.v1.json";
/// Where the resources' schema stands.
const RESOURCE_SCHEMA: &str = ".oast/schema/resource.v1.json";

/// Write a first pipeline and the editor's settings into a folder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder, usually the top of a repository
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// The pipeline's name [default: the folder's name]
    #[arg(long)]
    name: Option<PipelineName>,
    /// The team that owns the pipeline
    #[arg(long, default_value = "demo")]
    team: TeamName,
}

/// Writes what is missing and says what was done.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut out = anstream::stdout().lock();
    for (file, outcome) in write_all(args)? {
        match outcome {
            Outcome::Written => writeln!(out, "  wrote  {file}")?,
            Outcome::Same => writeln!(out, "  kept   {file}")?,
            Outcome::Different(hint) => writeln!(out, "  kept   {file} ({hint})")?,
        }
    }
    writeln!(out, "\nNext: edit {PIPELINE_PATH}, then `oast validate`.")?;
    Ok(Exit::Ok)
}

/// What became of a file.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Written,
    Same,
    /// It was there with other content, with what to do about that.
    Different(&'static str),
}

fn write_all(args: &Args) -> anyhow::Result<Vec<(&'static str, Outcome)>> {
    let folder = args
        .folder
        .canonicalize()
        .with_context(|| format!("open the folder {}", args.folder.display()))?;
    let name = match &args.name {
        Some(name) => name.to_string(),
        None => name_of(&folder),
    };
    // The pipeline comes last: where it stands, everything that it names stands too.
    let files = [
        (
            PIPELINE_SCHEMA,
            Kind::Pipeline.text(),
            "from another version: delete it and run `oast init` to renew it",
        ),
        (
            RESOURCE_SCHEMA,
            Kind::Resource.text(),
            "from another version: delete it and run `oast init` to renew it",
        ),
        (
            ".vscode/settings.json",
            settings(),
            "`yaml.schemas` in it can name .oast/schema/*.v1.json",
        ),
        (
            ".vscode/extensions.json",
            extensions(),
            "redhat.vscode-yaml completes and checks the files",
        ),
        (
            PIPELINE_PATH,
            starter(&name, args.team.as_str()),
            "it is yours",
        ),
    ];
    let mut outcomes = Vec::new();
    for (file, content, hint) in files {
        let outcome =
            write(&folder.join(file), &content).with_context(|| format!("write {file}"))?;
        outcomes.push((
            file,
            if outcome == Outcome::Different("") {
                Outcome::Different(hint)
            } else {
                outcome
            },
        ));
    }
    Ok(outcomes)
}

fn write(path: &Path, content: &str) -> std::io::Result<Outcome> {
    // By the name itself: a dangling link is there, too, and is not written through.
    if path.symlink_metadata().is_ok() {
        let same = std::fs::read(path).is_ok_and(|there| there == content.as_bytes());
        return Ok(if same {
            Outcome::Same
        } else {
            Outcome::Different("")
        });
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        // A link fails where a rename would replace what somebody made in between.
        .and_then(|()| std::fs::hard_link(&temporary, path));
    let removed = std::fs::remove_file(&temporary);
    written.and(removed)?;
    Ok(Outcome::Written)
}

/// The folder's name as a pipeline's name, or `app`.
fn name_of(folder: &Path) -> String {
    let text = folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    let text: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let text = text.trim_matches('-');
    if PipelineName::new(text).is_ok() {
        text.to_owned()
    } else {
        "app".to_owned()
    }
}

fn settings() -> String {
    let settings = serde_json::json!({
        "yaml.schemas": {
            format!("./{PIPELINE_SCHEMA}"): [PIPELINE_PATH],
            format!("./{RESOURCE_SCHEMA}"): ["farm.yaml", "farm/*.yaml"],
        }
    });
    format!("{settings:#}\n")
}

fn extensions() -> String {
    let extensions = serde_json::json!({ "recommendations": ["redhat.vscode-yaml"] });
    format!("{extensions:#}\n")
}

fn starter(name: &str, team: &str) -> String {
    format!(
        r#"# yaml-language-server: $schema=./{PIPELINE_SCHEMA}
apiVersion: oast/v1
name: {name}
team: {team}

triggers:
  - git: {{ branches: [main] }}

bake:
  from: debian-12
  packages: [ca-certificates]
  # Each step is a layer: a step that did not change is not done again, so put what changes most last.
  steps:
    - run: echo "baked from a commit" > /etc/motd
    # - copy: {{ from: site, to: /var/www/html }}

test:
  - static: {{}}

publish: {{ image: {name}, channel: candidate }}

# A fleet is made by `oast apply -f farm.yaml`; then each new image goes to it by itself:
# rollout:
#   - fleet: {name}-prod
#     strategy: {{ canary: 1, batch: 25%, maxUnavailable: 1, soak: 30s }}
#     gates:
#       - http: {{ path: /, status: 200 }}
#     onFailure: rollback
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(folder: &Path) -> Args {
        Args {
            folder: folder.to_owned(),
            name: None,
            team: TeamName::new("demo").expect("a name"),
        }
    }

    #[test]
    fn the_first_pipeline_is_right_as_it_stands_and_with_its_comments_taken_away() {
        let text = starter("web", "demo");
        assert_eq!(
            oast_model::pipeline::parse(PIPELINE_PATH, &text).problems,
            []
        );
        let (head, tail) = text
            .split_once("# rollout:")
            .expect("a rollout to switch on");
        let on = format!("{head}rollout:{}", tail.replace("\n# ", "\n"));
        let checked = oast_model::pipeline::parse(PIPELINE_PATH, &on);
        assert_eq!(checked.problems, []);
        assert_eq!(checked.value.expect("a pipeline").rollout.len(), 1);
    }

    #[test]
    fn a_second_init_writes_only_what_is_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = write_all(&args(folder.path())).expect("init");
        assert!(
            first
                .iter()
                .all(|(_, outcome)| *outcome == Outcome::Written),
            "{first:?}"
        );

        std::fs::write(folder.path().join(PIPELINE_PATH), "mine").expect("edit");
        std::fs::remove_file(folder.path().join(RESOURCE_SCHEMA)).expect("remove");
        let second = write_all(&args(folder.path())).expect("init");
        let outcome = |file: &str| &second.iter().find(|(f, _)| *f == file).expect("a file").1;
        assert_eq!(*outcome(RESOURCE_SCHEMA), Outcome::Written);
        assert_eq!(*outcome(PIPELINE_SCHEMA), Outcome::Same);
        assert_eq!(*outcome(PIPELINE_PATH), Outcome::Different("it is yours"));
        assert_eq!(
            std::fs::read_to_string(folder.path().join(PIPELINE_PATH)).expect("read"),
            "mine"
        );
        let left = std::fs::read_dir(folder.path().join(".oast/schema"))
            .expect("list")
            .count();
        assert_eq!(left, 2, "no temporary file is left");
    }

    #[test]
    fn a_dangling_link_is_not_written_through() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("elsewhere");
        std::os::unix::fs::symlink(&target, folder.path().join(PIPELINE_PATH)).expect("link");
        write_all(&args(folder.path())).expect("init");
        assert!(!target.exists());
    }

    #[test]
    fn folders_give_names() {
        assert_eq!(name_of(Path::new("/x/My_Web.App")), "my-web-app");
        assert_eq!(name_of(Path::new("/")), "app");
        assert_eq!(name_of(Path::new("/x/2048")), "app");
    }
}
