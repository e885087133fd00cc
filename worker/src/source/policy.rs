//! The operator's policies, read for every run.
//!
//! A file that is missing or wrong is the operator's, so the run is tried again and nobody's image
//! is made without the steps that must be in it.

use camino::Utf8Path;
use oast_model::document::Severity;
use oast_model::pipeline::{self, Policy};

use crate::runner::Halt;

/// Reads and checks the file.
pub(super) fn read(file: &Utf8Path) -> Result<Vec<Policy>, Halt> {
    let text = std::fs::read_to_string(file)
        .map_err(|err| Halt::errored(format!("read the operator's policies in {file}: {err}")))?;
    let checked = pipeline::parse_policies(file.as_str(), &text);
    let errors = checked.problems.iter();
    let first = errors
        .filter(|problem| problem.severity == Severity::Error)
        .map(ToString::to_string)
        .next();
    checked.value.ok_or_else(|| {
        let why = first.unwrap_or_else(|| "it cannot be read".to_owned());
        Halt::errored(format!("the operator's policies are wrong: {why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<Vec<Policy>, Halt> {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(folder.path()).unwrap().join("p.yaml");
        std::fs::write(&file, text).unwrap();
        read(&file)
    }

    #[test]
    fn each_document_is_a_policy() {
        let one = "apiVersion: oast/v1\nkind: Policy\nname: a\nafter:\n  - run: id\n";
        let both = format!(
            "{one}---\n{}teams: [shop]\n",
            one.replace("name: a", "name: b")
        );
        let policies = said(&both).unwrap();
        assert_eq!(policies.len(), 2);
        let step = &policies[1].after[0];
        assert_eq!(step.title(), "policy b: run id");
        assert_eq!(step.place().as_deref(), Some("line 11 of policy b"));
    }

    #[test]
    fn what_a_policy_cannot_have_is_refused_and_the_run_waits() {
        for (steps, why) in [
            ("  - env: { A: b }", "sets no `env`"),
            ("  - copy: { from: a, to: /a }", "has no repository"),
            ("  - run: { script: a.sh }", "has no repository"),
            (
                "  - run: id\n    secrets: [{ name: a, env: A }]",
                "no secrets",
            ),
            ("  - run: make ${{ inputs.a }}", "there is no input"),
        ] {
            let head = "apiVersion: oast/v1\nkind: Policy\nname: a\nbefore:\n";
            let Err(Halt::Errored { reason }) = said(&format!("{head}{steps}\n")) else {
                panic!("{steps} was taken");
            };
            assert!(reason.contains(why), "{reason}");
        }
        let missing = read(Utf8Path::new("/no/such/policies.yaml"));
        assert!(matches!(missing, Err(Halt::Errored { .. })));
    }
}
