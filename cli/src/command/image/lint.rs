//! `oast image lint`: whether a cloud takes an image, before anybody uploads it.

use std::fmt::Write as _;

use oast_daemon::exit::Exit;
use oast_worker::inspect::lint::{Fit, Report, Severity, Way, azure};
use serde::Serialize;

use super::subject::Subject;
use crate::context::Connect;
use crate::output::{Output, count, facts, plain};

/// What is judged, and for whom.
#[derive(Debug, clap::Args)]
#[command(after_help = "Ends with 1 when there is an error; warnings alone end with 0.")]
pub struct Lint {
    /// web (the newest), web:3 or web@channel; or a file, raw or VHD: with a dot or slash in its name
    #[arg(value_name = "IMAGE|FILE")]
    image: String,
    /// By what Azure wants of a Linux image that is brought along
    #[arg(long, required = true)]
    azure: bool,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

/// What `-o json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Judged {
    image: String,
    cloud: &'static str,
    errors: usize,
    warnings: usize,
    #[serde(flatten)]
    report: Report,
}

/// Judges.
pub async fn run(args: &Lint) -> anyhow::Result<Exit> {
    let mut client = None;
    let subject = Subject::find(&args.image, &args.connect, &mut client).await?;
    let opened = subject.open(client.as_ref()).await?;
    let way = match subject {
        Subject::Version(_) => Way::Exported,
        Subject::File(_) => Way::AsIs,
    };
    let mut report = azure(&opened.disk, way);
    if let Subject::Version(version) = &subject {
        // The file is gone when this is read.
        for finding in &mut report.findings {
            finding.place = finding
                .place
                .replace(opened.disk.path.as_str(), &version.version);
        }
    }
    let number = |severity| {
        report
            .findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    };
    let judged = Judged {
        image: subject.name().to_owned(),
        cloud: "azure",
        errors: number(Severity::Error),
        warnings: number(Severity::Warning),
        report,
    };
    args.output.one(&judged.image, &judged, || told(&judged))?;
    Ok(match judged.report.has_errors() {
        true => Exit::Failed,
        false => Exit::Ok,
    })
}

fn told(judged: &Judged) -> String {
    let mut text = String::new();
    for finding in &judged.report.findings {
        let word = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let _ = writeln!(
            text,
            "{word}[{}]: {}: {}",
            finding.rule,
            plain(&finding.place),
            plain(&finding.reason)
        );
        let _ = writeln!(text, "  fix: {}", plain(&finding.fix));
    }
    if !judged.report.findings.is_empty() {
        text.push('\n');
    }
    text += &facts(&[
        ("Image", judged.image.clone()),
        (
            "Found",
            format!(
                "{}, {}",
                count(judged.errors, "error"),
                count(judged.warnings, "warning")
            ),
        ),
        ("Generation", fits(&judged.report.generations)),
        ("Security type", fits(&judged.report.security_types)),
        ("OS state", fits(&judged.report.os_states)),
        ("Disk controller", fits(&judged.report.controllers)),
    ]);
    for fit in [
        &judged.report.generations,
        &judged.report.security_types,
        &judged.report.os_states,
        &judged.report.controllers,
    ]
    .into_iter()
    .flatten()
    .filter(|fit| !fit.fits)
    {
        let _ = writeln!(text, "not {}: {}", fit.name, plain(&fit.why));
    }
    text
}

fn fits(all: &[Fit]) -> String {
    let fits = all
        .iter()
        .filter(|fit| fit.fits)
        .map(|fit| match fit.why.as_str() {
            "" => fit.name.to_owned(),
            why => format!("{} ({why})", fit.name),
        });
    let fits: Vec<_> = fits.collect();
    match fits.is_empty() {
        true => "none".to_owned(),
        false => fits.join(", "),
    }
}
