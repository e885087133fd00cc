//! What people are told about their mistakes, for reading and for review.

use std::fmt::Write as _;
use std::path::Path;

use oast_model::document::Diagnostic;
use oast_model::{pipeline, resource};

const DEFAULTS: [(&str, &str); 5] = [
    ("apiVersion:", "apiVersion: oast/v1\n"),
    ("name:", "name: web\n"),
    ("team:", "team: demo\n"),
    ("bake:", "bake: { from: debian-12 }\n"),
    ("publish:", "publish: { image: web, channel: candidate }\n"),
];

fn said(problems: &[Diagnostic]) -> String {
    let mut text = String::new();
    for problem in problems {
        writeln!(text, "{problem}").expect("a String takes everything");
        if let Some(hint) = &problem.hint {
            writeln!(text, "  hint: {hint}").expect("a String takes everything");
        }
    }
    if problems.is_empty() {
        "right\n".to_owned()
    } else {
        text
    }
}

/// Runs every case of a file and compares, or writes, what is said. Gives the number of cases.
fn golden(name: &str, answer: impl Fn(&str, &str) -> String) -> usize {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(name);
    let stored = std::fs::read_to_string(&path).expect("the cases");
    let mut cases = stored.split("\n=== ");
    let mut written = cases.next().unwrap_or_default().to_owned();
    let mut count = 0;
    for case in cases {
        let (title, rest) = case.split_once('\n').expect("a title");
        let (input, _) = rest.split_once("----\n").expect("a line of four hyphens");
        write!(
            written,
            "\n=== {title}\n{input}----\n{}",
            answer(title, input)
        )
        .expect("a String");
        count += 1;
    }
    if updating() {
        std::fs::write(&path, &written).expect("write");
    } else {
        let differs = stored
            .lines()
            .zip(written.lines())
            .enumerate()
            .find(|(_, (a, b))| a != b);
        if let Some((line, (a, b))) = differs {
            panic!("{name}:{}: stored {a:?}, said now {b:?}", line + 1);
        }
        assert_eq!(stored.lines().count(), written.lines().count(), "{name}");
    }
    count
}

#[test]
fn mistakes_in_pipelines_are_explained() {
    let cases = golden("pipeline_mistakes.txt", |title, input| {
        let mut text = input.to_owned();
        if !title.contains("as it stands") {
            for (key, line) in DEFAULTS {
                if !input.lines().any(|line| line.starts_with(key)) {
                    text.push_str(line);
                }
            }
        }
        let checked = pipeline::parse("oast.yaml", &text);
        assert_eq!(
            checked.value.is_some(),
            !said(&checked.problems).contains("error["),
            "{title}"
        );
        said(&checked.problems)
    });
    assert!(cases >= 25, "{cases} cases");
}

#[test]
fn mistakes_in_resources_are_explained_and_secrets_not_shown() {
    golden("resource_mistakes.txt", |_, input| {
        let said = said(&resource::parse("farm.yaml", input).problems);
        assert!(
            !said.contains("topsecret") && !said.contains("hunter2"),
            "{said}"
        );
        said
    });
}

#[expect(
    clippy::disallowed_methods,
    reason = "a switch for whoever runs the test"
)]
fn updating() -> bool {
    std::env::var_os("OAST_UPDATE_GOLDEN").is_some()
}
