//! `oast image diff`: what became of an image.

use std::fmt::Write as _;

use oast_daemon::exit::Exit;
use oast_proto::v1;
use oast_worker::inspect::diff::{
    self, Change, FileChange, PackageChange, Sizes, compare_packages,
};
use serde::Serialize;

use super::subject::Subject;
use crate::context::Connect;
use crate::fail::Fail;
use crate::output::{Output, bytes, plain};

/// What is compared.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Times are not compared. Names in the boot partition are in their short form."
)]
pub struct Diff {
    /// web (the newest), web:3 or web@channel; or a file, raw or VHD: with a dot or slash in its name
    #[arg(value_name = "FROM")]
    from: String,
    /// The same
    #[arg(value_name = "TO")]
    to: String,
    /// Only the lists of packages and the sizes that the farm has recorded: no disk is fetched
    #[arg(long)]
    packages: bool,
    /// End with 2 when there are changes
    #[arg(long)]
    detailed_exitcode: bool,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

/// What `-o json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Compared {
    from: Side,
    to: Side,
    changes: bool,
    packages: Vec<PackageChange>,
    /// None where no disk was looked into.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<FileChange>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<Vec<FileChange>>,
}

#[derive(Debug, Serialize)]
struct Side {
    image: String,
    sizes: Sizes,
}

/// Compares.
pub async fn run(args: &Diff) -> anyhow::Result<Exit> {
    let mut client = None;
    let from = Subject::find(&args.from, &args.connect, &mut client).await?;
    let to = Subject::find(&args.to, &args.connect, &mut client).await?;
    let compared = if args.packages {
        by_record(&from, &to)?
    } else {
        let old = from.open(client.as_ref()).await?;
        let found = match (&from, &to) {
            // One disk under two names need not come twice.
            (Subject::Version(from), Subject::Version(to)) if from.digest == to.digest => {
                diff::diff(&old.disk, &old.disk)?
            }
            _ => diff::diff(&old.disk, &to.open(client.as_ref()).await?.disk)?,
        };
        Compared {
            changes: found.has_changes(),
            from: side(&from, found.from),
            to: side(&to, found.to),
            packages: found.packages,
            files: Some(found.files),
            boot: Some(found.boot),
        }
    };
    args.output
        .one(&compared.to.image, &compared, || told(&compared))?;
    Ok(match args.detailed_exitcode && compared.changes {
        true => Exit::Changes,
        false => Exit::Ok,
    })
}

fn side(subject: &Subject, sizes: Sizes) -> Side {
    Side {
        image: subject.name().to_owned(),
        sizes,
    }
}

fn by_record(from: &Subject, to: &Subject) -> anyhow::Result<Compared> {
    let (Subject::Version(old), Subject::Version(new)) = (from, to) else {
        return Err(Fail::usage(
            "--packages compares what the farm has recorded, and a file has no record",
        )
        .hint("leave --packages out: files are looked into")
        .into());
    };
    let list = |version: &v1::ImageVersion| -> Vec<(String, String, String)> {
        let packages = version.packages.iter();
        packages
            .map(|package| {
                (
                    package.name.clone(),
                    package.arch.clone(),
                    package.version.clone(),
                )
            })
            .collect()
    };
    let packages = compare_packages(&list(old), &list(new));
    let sizes = |version: &v1::ImageVersion| Sizes {
        disk: version.disk_size,
        ..Sizes::default()
    };
    Ok(Compared {
        changes: old.digest != new.digest,
        from: side(from, sizes(old)),
        to: side(to, sizes(new)),
        packages,
        files: None,
        boot: None,
    })
}

fn told(compared: &Compared) -> String {
    let mut text = format!("{} -> {}\n", compared.from.image, compared.to.image);
    heading(
        &mut text,
        "packages",
        compared.packages.iter().map(|package| package.change),
    );
    let width = compared
        .packages
        .iter()
        .map(|package| package.name.len())
        .max()
        .unwrap_or(0);
    for package in &compared.packages {
        let versions = match (package.from.as_str(), package.to.as_str()) {
            ("", version) | (version, "") => version.to_owned(),
            (from, to) => format!("{from} -> {to}"),
        };
        let _ = writeln!(
            text,
            "  {:10}  {:width$}  {}",
            package.change.word(),
            plain(&package.name),
            plain(&versions)
        );
    }
    for (what, files) in [
        ("files", &compared.files),
        ("boot partition", &compared.boot),
    ] {
        let Some(files) = files else { continue };
        heading(&mut text, what, files.iter().map(|file| file.change));
        for file in files {
            let _ = writeln!(
                text,
                "  {:10}  {}{}",
                file.change.word(),
                plain(&file.path),
                plain(&detail(file))
            );
        }
    }
    let (from, to) = (compared.from.sizes, compared.to.sizes);
    let _ = writeln!(text, "disk: {}", step(from.disk, to.disk));
    if compared.files.is_some() {
        let _ = writeln!(text, "all files: {}", step(from.files, to.files));
    }
    text
}

fn heading(text: &mut String, what: &str, changes: impl Iterator<Item = Change>) {
    let changes: Vec<_> = changes.collect();
    let all = [
        Change::Added,
        Change::Removed,
        Change::Upgraded,
        Change::Downgraded,
        Change::Changed,
    ];
    let parts = all.into_iter().filter_map(|change| {
        let number = changes.iter().filter(|one| **one == change).count();
        (number > 0).then(|| format!("{number} {}", change.word()))
    });
    let parts: Vec<_> = parts.collect();
    let said = match parts.is_empty() {
        true => "no changes".to_owned(),
        false => parts.join(", "),
    };
    let _ = writeln!(text, "{what}: {said}");
}

fn detail(file: &FileChange) -> String {
    let sizes = match file.change {
        Change::Added => bytes(file.to),
        Change::Removed => bytes(file.from),
        _ if file.from == file.to => String::new(),
        _ => step(file.from, file.to),
    };
    let what = file.what.join(", ");
    match (what.is_empty(), sizes.is_empty()) {
        (true, true) => String::new(),
        (false, true) => format!("  {what}"),
        (true, false) => format!("  {sizes}"),
        (false, false) => format!("  {what} ({sizes})"),
    }
}

fn step(from: u64, to: u64) -> String {
    match from == to {
        true => bytes(to),
        false => format!(
            "{} -> {} ({}{})",
            bytes(from),
            bytes(to),
            if to > from { "+" } else { "-" },
            bytes(to.abs_diff(from)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_reads_as_a_list_of_what_happened() {
        let package = |name: &str, change, from: &str, to: &str| PackageChange {
            name: name.to_owned(),
            arch: "amd64".to_owned(),
            change,
            from: from.to_owned(),
            to: to.to_owned(),
        };
        let side = |image: &str, files| Side {
            image: image.to_owned(),
            sizes: Sizes {
                disk: 2 << 30,
                files,
                paths: 10,
            },
        };
        let compared = Compared {
            from: side("web:1", 1000),
            to: side("web:2", 1002),
            changes: true,
            packages: vec![
                package("curl", Change::Removed, "7.88", ""),
                package("nginx", Change::Upgraded, "1.22", "1.24"),
            ],
            files: Some(vec![FileChange {
                path: "/srv/index.html".to_owned(),
                change: Change::Changed,
                what: vec!["content".to_owned(), "mode 0644 -> 0600".to_owned()],
                from: 4,
                to: 6,
            }]),
            boot: Some(Vec::new()),
        };
        assert_eq!(
            told(&compared),
            "web:1 -> web:2\n\
             packages: 1 removed, 1 upgraded\n  \
             removed     curl   7.88\n  \
             upgraded    nginx  1.22 -> 1.24\n\
             files: 1 changed\n  \
             changed     /srv/index.html  content, mode 0644 -> 0600 (4 B -> 6 B (+2 B))\n\
             boot partition: no changes\n\
             disk: 2.0 GiB\n\
             all files: 1000 B -> 1002 B (+2 B)\n"
        );
    }
}
