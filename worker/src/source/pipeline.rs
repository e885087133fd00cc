//! The pipeline file of a tree: read, checked, and its triggers asked.

use std::collections::BTreeMap;

use oast_artifacts::{ArtifactStore, Tree, TreeError};
use oast_model::document::{Diagnostic, Severity};
use oast_model::names::TeamName;
use oast_model::pipeline::rules::glob_matches;
use oast_model::pipeline::{self, Pipeline, Trigger};

use crate::runner::Halt;

/// Longest pipeline file.
const FILE_MAX: u64 = 1 << 20;

/// Reads the file's text.
pub(super) fn read(store: &ArtifactStore, tree: &Tree, path: &str) -> Result<String, Halt> {
    let bytes = match store.read_file(tree, path, FILE_MAX) {
        Ok(bytes) => bytes,
        Err(TreeError::NoFile { .. }) => {
            let near = tree
                .entries()
                .iter()
                .map(|entry| entry.path.as_str())
                .find(|entry| entry.ends_with("oast.yaml") || entry.ends_with("oast.yml"));
            let hint = near.map_or_else(
                || "`oast init` writes a first one".to_owned(),
                |near| format!("there is {near}: name it in the repository's `path`"),
            );
            return Err(Halt::failed(format!(
                "the commit has no file {path}; {hint}"
            )));
        }
        Err(err @ TreeError::Store(oast_artifacts::StoreError::TooLarge { .. })) => {
            let text = oast_daemon::telemetry::chain(&err).to_string();
            return Err(Halt::failed(format!("{path}: {text}")));
        }
        Err(err) => return Err(Halt::error(&err)),
    };
    String::from_utf8(bytes)
        .map_err(|_| Halt::failed(format!("{path} is not UTF-8 text; save it as UTF-8")))
}

/// One problem in one line, as editors match it.
fn line(problem: &Diagnostic) -> String {
    let hint = problem
        .hint
        .as_ref()
        .map(|hint| format!(" (hint: {hint})"))
        .unwrap_or_default();
    format!("{problem}{hint}")
}

/// Checks the text; every error stands in the failure's details.
pub(super) fn check(
    path: &str,
    text: &str,
    team: &TeamName,
    mut warn: impl FnMut(String),
) -> Result<Pipeline, Halt> {
    let checked = pipeline::parse(path, text);
    let errors: Vec<String> = checked
        .problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .map(line)
        .collect();
    for problem in &checked.problems {
        if problem.severity != Severity::Error {
            warn(line(problem));
        }
    }
    let Some(pipeline) = checked.value else {
        let count = errors.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        return Err(Halt::Failed {
            reason: format!("{path} has {count} {noun}"),
            details: errors,
        });
    };
    if pipeline.team != *team {
        return Err(Halt::failed(format!(
            "{path} names team {}, but this run belongs to team {team}; write `team: {team}`",
            pipeline.team
        )));
    }
    Ok(pipeline)
}

/// Says why there is nothing to do when no trigger wants the push.
///
/// `changed` are the files that the push changed; none when that is not known, and then every
/// path filter matches, because a run too many is better than one too few.
pub(super) fn wanted(
    pipeline: &Pipeline,
    branch: &str,
    changed: Option<&[String]>,
) -> Result<(), Halt> {
    let mut on_branch = false;
    for trigger in &pipeline.triggers {
        let Trigger::Git(git) = trigger else { continue };
        let branches = &git.branches;
        if !branches.is_empty() && !branches.iter().any(|glob| glob_matches(glob, branch)) {
            continue;
        }
        on_branch = true;
        let paths = &git.paths;
        let matches = paths.is_empty()
            || changed.is_none_or(|changed| {
                changed
                    .iter()
                    .any(|file| paths.iter().any(|glob| glob_matches(glob, file)))
            });
        if matches {
            return Ok(());
        }
    }
    let reason = if on_branch {
        format!(
            "no trigger of pipeline {} wants the changed files",
            pipeline.name
        )
    } else {
        format!(
            "no trigger of pipeline {} wants branch {branch}",
            pipeline.name
        )
    };
    Err(Halt::Skipped { reason })
}

/// What steps take from the commit must be in the tree: better said now than after minutes of baking.
pub(super) fn present(pipeline: &Pipeline, tree: &Tree, path: &str) -> Result<(), Halt> {
    let missing: Vec<String> = pipeline
        .bake
        .steps
        .iter()
        .enumerate()
        .flat_map(|(place, step)| {
            // A path with an input in it is known only when it is filled in.
            let sources = step.action.sources().into_iter();
            let missing = sources.filter(|source| {
                !source.contains("${{") && tree.under(normal(source)).next().is_none()
            });
            missing.map(move |source| {
                format!(
                    "{path}:{}: bake.steps[{place}] needs {source}, which the commit does not have",
                    step.line
                )
            })
        })
        .collect();
    match missing.as_slice() {
        [] => Ok(()),
        [one] => Err(Halt::failed(one.clone())),
        several => Err(Halt::Failed {
            reason: format!("{path} needs {} things that are not there", several.len()),
            details: missing,
        }),
    }
}

/// A source path as the tree writes it.
pub(crate) fn normal(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    let path = path.strip_prefix("./").unwrap_or(path);
    if path == "." { "" } else { path }
}

/// Fills the inputs in.
pub(super) fn fill(
    pipeline: &Pipeline,
    inputs: &BTreeMap<String, String>,
    path: &str,
) -> Result<Pipeline, Halt> {
    pipeline::resolve(pipeline, inputs).map_err(|errors| {
        let details: Vec<String> = errors.iter().map(ToString::to_string).collect();
        match details.as_slice() {
            [one] => Halt::failed(format!("{path}: {one}")),
            _ => Halt::Failed {
                reason: format!("{path}: {} inputs are wrong", details.len()),
                details,
            },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "apiVersion: oast/v1\nname: web\nteam: shop\ntriggers:\n  - git: { branches: [main], paths: [\"web/**\"] }\nbake:\n  from: debian-12\n  steps:\n    - copy: { from: web/site, to: /var/www }\npublish: { image: web, channel: candidate }\n";

    fn team(name: &str) -> TeamName {
        TeamName::new(name).unwrap()
    }

    fn good() -> Pipeline {
        check("oast.yaml", FILE, &team("shop"), drop).unwrap()
    }

    #[test]
    fn every_problem_of_a_file_is_a_line_that_editors_understand() {
        let text = FILE
            .replace("name: web", "nam: web")
            .replace("debian-12", "debian-99");
        let Err(Halt::Failed { reason, details }) = check("oast.yaml", &text, &team("shop"), drop)
        else {
            panic!("a broken file was taken");
        };
        assert!(reason.contains("problems"), "{reason}");
        assert!(details.len() >= 2, "{details:?}");
        assert!(
            details.iter().all(|line| line.starts_with("oast.yaml:")),
            "{details:?}"
        );
        assert!(
            details.iter().any(|line| line.contains("error[OAST-P")),
            "{details:?}"
        );
    }

    #[test]
    fn a_pipeline_of_another_team_is_refused() {
        assert!(matches!(
            check("oast.yaml", FILE, &team("other"), drop),
            Err(Halt::Failed { reason, .. }) if reason.contains("write `team: other`")
        ));
    }

    #[test]
    fn triggers_want_their_branches_and_paths_only() {
        let pipeline = good();
        let site = ["web/site/index.html".to_owned()];
        let docs = ["docs/a.md".to_owned()];
        assert_eq!(wanted(&pipeline, "main", Some(&site)), Ok(()));
        assert_eq!(wanted(&pipeline, "main", None), Ok(()));
        let skipped = |result| matches!(result, Err(Halt::Skipped { .. }));
        assert!(skipped(wanted(&pipeline, "main", Some(&docs))));
        assert!(skipped(wanted(&pipeline, "dev", Some(&site))));
    }

    #[test]
    fn paths_read_as_the_tree_writes_them() {
        for (written, normal_form) in [("web/site/", "web/site"), ("./web", "web"), (".", "")] {
            assert_eq!(normal(written), normal_form);
        }
    }
}
