//! `oast validate`: everything that is wrong with files, before anything runs.
//!
//! Needs no farm. A document with `kind:` is a resource, any other a pipeline.
//! The result goes to standard output in every form, because here the problems
//! are the result; the exit code is 1 when a file cannot be used.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use oast_daemon::exit::Exit;
use oast_model::document::{Code, Diagnostic, Place, Severity, yaml};
use oast_model::{pipeline, resource};

/// Problems drawn with their source; the rest is counted. Other forms list all.
const DRAWN_MAX: usize = 50;
/// The width of drawings where the output is no terminal.
const WIDTH: usize = 100;

/// Check pipeline and resource files, without a farm
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The files, `-` for standard input
    #[arg(default_value = pipeline::PIPELINE_PATH)]
    files: Vec<PathBuf>,
    /// How the problems are printed
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How problems are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Drawn with the lines around them, for people.
    Text,
    /// `file:line:column: error[code]: message`, for editors.
    Compact,
    /// One JSON object.
    Json,
    /// Annotations of GitHub Actions.
    Github,
}

/// What a file turned out to be.
#[derive(Debug)]
struct Report {
    file: String,
    text: String,
    kind: &'static str,
    problems: Vec<Diagnostic>,
}

/// Checks the files and prints what is wrong.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let reports: Vec<Report> = args.files.iter().map(|file| check(file)).collect();
    let mut out = anstream::stdout().lock();
    let broken = reports
        .iter()
        .flat_map(|r| &r.problems)
        .any(|p| p.severity == Severity::Error);
    match args.output {
        Output::Text => drawn(&mut out, &reports)?,
        Output::Compact => problems(&reports).try_for_each(|problem| writeln!(out, "{problem}"))?,
        Output::Github => {
            problems(&reports).try_for_each(|p| writeln!(out, "{}", annotation(p)))?
        }
        Output::Json => writeln!(out, "{:#}", json(&reports, !broken))?,
    }
    out.flush()?;
    Ok(if broken { Exit::Failed } else { Exit::Ok })
}

fn problems(reports: &[Report]) -> impl Iterator<Item = &Diagnostic> {
    reports.iter().flat_map(|report| &report.problems)
}

fn check(path: &Path) -> Report {
    let file = if path == Path::new("-") {
        "<stdin>".to_owned()
    } else {
        path.display().to_string()
    };
    match read(path) {
        Ok(text) => {
            let (kind, problems) = judge(&file, &text);
            Report {
                file,
                text,
                kind,
                problems,
            }
        }
        Err(error) => {
            let hint = (error.kind() == std::io::ErrorKind::NotFound)
                .then(|| "`oast init` writes a first pipeline".to_owned());
            let problem = Diagnostic {
                code: Code::Unreadable,
                severity: Severity::Error,
                file: file.clone(),
                place: Place {
                    line: 1,
                    column: 1,
                    ..Place::default()
                },
                path: String::new(),
                message: format!("the file {file} cannot be read: {error}"),
                hint,
            };
            Report {
                file,
                text: String::new(),
                kind: "unknown",
                problems: vec![problem],
            }
        }
    }
}

/// Reads a file that is a text of bounded size; what is larger is left to the parser to refuse.
pub fn read(path: &Path) -> std::io::Result<String> {
    let limit = u64::try_from(yaml::FILE_BYTES_MAX)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(limit)
            .read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(path)?
            .take(limit)
            .read_to_end(&mut bytes)?;
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let message = format!("it is not UTF-8 text, from byte {at} on");
        std::io::Error::new(std::io::ErrorKind::InvalidData, message)
    })
}

fn judge(file: &str, text: &str) -> (&'static str, Vec<Diagnostic>) {
    let documents = yaml::parse(file, text).documents;
    if documents
        .iter()
        .any(|document| document.get("kind").is_some())
    {
        ("resources", resource::parse(file, text).problems)
    } else {
        ("pipeline", pipeline::parse(file, text).problems)
    }
}

/// Draws the problems of a file on standard error, for commands whose result is another.
pub fn complain(file: &str, text: &str, problems: Vec<Diagnostic>) -> anyhow::Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let report = Report {
        file: file.to_owned(),
        text: text.to_owned(),
        kind: "file",
        problems,
    };
    let terminal = std::io::stderr().is_terminal();
    let text = draw(&[report], theme(terminal))?;
    anstream::stderr().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// Whether the terminal shows more than ASCII.
pub fn unicode() -> bool {
    unicode_locale(environment)
}

fn drawn(out: &mut impl Write, reports: &[Report]) -> anyhow::Result<()> {
    let theme = theme(std::io::stdout().is_terminal());
    out.write_all(draw(reports, theme)?.as_bytes())?;
    Ok(())
}

fn theme(terminal: bool) -> GraphicalTheme {
    match (terminal, unicode()) {
        (true, true) => GraphicalTheme::unicode(),
        (true, false) => GraphicalTheme {
            characters: miette::ThemeCharacters::ascii(),
            ..GraphicalTheme::unicode()
        },
        (false, true) => GraphicalTheme::unicode_nocolor(),
        (false, false) => GraphicalTheme::none(),
    }
}

/// Draws the reports as one text.
fn draw(reports: &[Report], theme: GraphicalTheme) -> anyhow::Result<String> {
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(WIDTH)
        .with_context_lines(1);
    let mut text = String::new();
    let mut left = DRAWN_MAX;
    for report in reports {
        let source = NamedSource::new(&report.file, report.text.clone());
        for problem in report.problems.iter().take(left) {
            handler.render_report(
                &mut text,
                &Drawn {
                    problem,
                    source: &source,
                    len: report.text.len(),
                },
            )?;
            text.push('\n');
        }
        left = left.saturating_sub(report.problems.len());
    }
    let count = |severity| problems(reports).filter(|p| p.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let files = plural(reports.len(), "file");
    let line = if errors + warnings == 0 {
        format!("{files} checked, nothing wrong\n")
    } else {
        let all = problems(reports).count();
        let more = if all > DRAWN_MAX {
            format!(" ({} not shown: -o compact)", all - DRAWN_MAX)
        } else {
            String::new()
        };
        format!(
            "{files} checked: {}, {}{more}\n",
            plural(errors, "error"),
            plural(warnings, "warning")
        )
    };
    text.push_str(&line);
    Ok(text)
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

/// Whether the locale can show more than ASCII, by the variables that decide in POSIX's order.
fn unicode_locale(lookup: impl Fn(&str) -> Option<String>) -> bool {
    let decisive = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| lookup(name).filter(|v| !v.is_empty()));
    decisive.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the locale is the terminal's, not configuration of ours"
)]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A diagnostic as miette draws it.
#[derive(Debug)]
struct Drawn<'a> {
    problem: &'a Diagnostic,
    source: &'a NamedSource<String>,
    len: usize,
}

impl std::fmt::Display for Drawn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for Drawn<'_> {}

impl miette::Diagnostic for Drawn<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        Some(Box::new(self.problem.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.problem.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        self.problem.hint.as_ref().map(|hint| Box::new(hint) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        // A file that could not be read has nothing to show.
        (self.len > 0).then_some(self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let Place { offset, length, .. } = self.problem.place;
        let offset = offset.min(self.len.saturating_sub(1));
        let length = length.min(self.len - offset);
        let label = Some(self.problem.path.clone()).filter(|path| !path.is_empty());
        Some(Box::new(std::iter::once(LabeledSpan::new(
            label, offset, length,
        ))))
    }
}

/// `::error file=...,line=...::message`, as GitHub's runners read it from the log.
fn annotation(problem: &Diagnostic) -> String {
    let data = |text: &str| {
        text.replace('%', "%25")
            .replace('\r', "%0D")
            .replace('\n', "%0A")
    };
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let hint = problem
        .hint
        .as_ref()
        .map(|hint| format!("\n{hint}"))
        .unwrap_or_default();
    format!(
        "::{} file={},line={},col={},title={}::{}",
        problem.severity.as_str(),
        property(&problem.file),
        problem.place.line,
        problem.place.column,
        problem.code,
        data(&format!("{}{hint}", problem.message)),
    )
}

fn json(reports: &[Report], ok: bool) -> serde_json::Value {
    let files: Vec<_> = reports
        .iter()
        .map(|r| {
            let ok = r.problems.iter().all(|p| p.severity != Severity::Error);
            serde_json::json!({ "file": r.file, "kind": r.kind, "ok": ok })
        })
        .collect();
    let problems: Vec<&Diagnostic> = problems(reports).collect();
    serde_json::json!({ "ok": ok, "files": files, "problems": problems })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: &str = "apiVersion: oast/v1\nname: web\nteam: demo\nbkae: { from: debian-12 }\npublish: { image: web, channel: c }\n";

    fn report(text: &str) -> Report {
        let (kind, problems) = judge("oast.yaml", text);
        Report {
            file: "oast.yaml".to_owned(),
            text: text.to_owned(),
            kind,
            problems,
        }
    }

    #[test]
    fn a_problem_is_drawn_at_its_place_with_its_hint() {
        let text = draw(&[report(BAD)], GraphicalTheme::none()).expect("a drawing");
        for part in [
            "OAST-P0101",
            "oast.yaml:4:1",
            "bkae: { from",
            "did you mean `bake`?",
            "1 file checked: 1 error",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn every_place_can_be_drawn_even_at_the_end_of_the_text() {
        for bad in [
            "",
            "a",
            "a: [",
            "\u{e9}\u{e9}: \"",
            "name: web\n\tteam: x\n",
            "x: *y",
        ] {
            let text = draw(&[report(bad)], GraphicalTheme::none()).expect("a drawing");
            assert!(text.contains("error"), "{text}");
        }
    }

    #[test]
    fn annotations_cannot_be_broken_out_of() {
        let problem = Diagnostic {
            file: "a,b:c\n::error::x".to_owned(),
            message: "100%\n::stop-commands::".to_owned(),
            ..report(BAD).problems.remove(0)
        };
        let line = annotation(&problem);
        assert_eq!(line.lines().count(), 1);
        assert!(line.starts_with("::error file=a%2Cb%3Ac%0A%3A%3Aerror%3A%3Ax,line=4,col=1,title=OAST-P0101::100%25%0A"), "{line}");
    }

    #[test]
    fn a_document_with_a_kind_is_a_resource() {
        assert_eq!(report("kind: Team\n").kind, "resources");
        assert_eq!(report("name: web\n").kind, "pipeline");
    }

    #[test]
    fn the_locale_decides_by_its_first_word() {
        let set = |pairs: &'static [(&str, &str)]| {
            move |name: &str| {
                pairs
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, v)| (*v).to_owned())
            }
        };
        assert!(unicode_locale(set(&[("LANG", "en_GB.UTF-8")])));
        assert!(!unicode_locale(set(&[
            ("LC_ALL", "C"),
            ("LANG", "en_GB.UTF-8")
        ])));
        assert!(!unicode_locale(set(&[])));
    }
}
