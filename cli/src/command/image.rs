//! `oast image`: what was baked, and taking a disk away.

use std::fmt::Write as _;
use std::path::PathBuf;

use oast_daemon::exit::Exit;
use oast_proto::v1;

use super::block_on;
use crate::client::Client;
use crate::context::Connect;
use crate::output::{Output, ago, bytes, count, facts, plain, short, table};
use crate::shape;

mod diff;
mod export;
mod lint;
mod proof;
mod subject;

pub use proof::vouched;

/// Look at images and take them away
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List images with their newest versions
    List {
        /// Every version, not only the newest ones
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        connect: Connect,
        #[command(flatten)]
        output: Output,
    },
    /// Show a version of an image
    Show {
        /// web (the newest), web:3 or web@channel
        #[arg(value_name = "NAME[:V|@CHANNEL]")]
        version: String,
        /// With every package in it
        #[arg(long)]
        packages: bool,
        #[command(flatten)]
        connect: Connect,
        #[command(flatten)]
        output: Output,
    },
    /// Print what a version is made of
    Sbom {
        /// web (the newest), web:3 or web@channel
        #[arg(value_name = "NAME[:V|@CHANNEL]")]
        version: String,
        /// The form
        #[arg(long, value_enum, default_value_t = proof::Form::Cyclonedx)]
        format: proof::Form,
        #[command(flatten)]
        connect: Connect,
    },
    /// Print the signed statement of where a version came from (in-toto, SLSA v1)
    Provenance {
        /// web (the newest), web:3 or web@channel
        #[arg(value_name = "NAME[:V|@CHANNEL]")]
        version: String,
        /// The public key that judges it, instead
        #[arg(long)]
        key: bool,
        #[command(flatten)]
        connect: Connect,
    },
    /// Prove that a version is what the farm signed: its disk, its bills of material, its origin
    Verify(proof::Verify),
    /// Say how two images differ: packages, files, sizes
    Diff(diff::Diff),
    /// Judge whether a cloud takes an image
    Lint(lint::Lint),
    /// Write a version's disk to a file
    Export {
        /// web (the newest), web:3 or web@channel
        #[arg(value_name = "NAME[:V|@CHANNEL]")]
        version: String,
        /// What the file is to be
        #[arg(long, value_enum, default_value_t = export::Format::Raw)]
        format: export::Format,
        /// The file to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Replace the file if it is there
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connect: Connect,
    },
}

/// Lists, shows, compares, judges, exports or proves.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    block_on(async {
        match &args.command {
            Command::List {
                all,
                connect,
                output,
            } => list(connect, *output, *all).await,
            Command::Show {
                version,
                packages,
                connect,
                output,
            } => show(connect, *output, version, *packages).await,
            Command::Sbom {
                version,
                format,
                connect,
            } => {
                let document = match format {
                    proof::Form::Cyclonedx => "cyclonedx",
                    proof::Form::Spdx => "spdx",
                };
                proof::print(connect, version, document).await
            }
            Command::Provenance {
                version,
                key,
                connect,
            } => {
                let document = if *key { "key" } else { "provenance" };
                proof::print(connect, version, document).await
            }
            Command::Verify(args) => proof::judge(args).await,
            Command::Diff(args) => diff::run(args).await,
            Command::Lint(args) => lint::run(args).await,
            Command::Export {
                version,
                format,
                output,
                force,
                connect,
            } => {
                let client = connect.client()?;
                // A typing mistake is told before anything is written.
                let found = get(&client, version).await?;
                export::export(&client, &found.version, *format, output, *force).await
            }
        }
    })
}

/// Versions of one image in the short list.
const NEWEST: u32 = 5;
/// Most versions that a member sends at once.
const VERSIONS_MAX: u32 = 500;

async fn list_page(
    client: &Client,
    request: v1::ListImagesRequest,
) -> Result<v1::ListImagesResponse, tonic::Status> {
    client
        .call(|member| {
            let request = request.clone();
            async move { member.images().list_images(request).await }
        })
        .await
}

/// Gets the versions that did not fit.
async fn complete(client: &Client, image: &mut v1::Image) -> Result<(), tonic::Status> {
    while let Some(oldest) = image.versions.last() {
        let number = oldest.version.rsplit(':').next();
        let before = number.and_then(|number| number.parse().ok()).unwrap_or(1);
        if before <= 1 || image.versions.len() >= image.version_count as usize {
            return Ok(());
        }
        let request = v1::ListImagesRequest {
            name: image.name.clone(),
            versions: VERSIONS_MAX,
            before_version: before,
            ..v1::ListImagesRequest::default()
        };
        let page = list_page(client, request).await?;
        let more = page.images.into_iter().flat_map(|image| image.versions);
        let had = image.versions.len();
        image.versions.extend(more);
        if image.versions.len() == had {
            return Ok(());
        }
    }
    Ok(())
}

/// Lists images.
pub async fn list(connect: &Connect, output: Output, all: bool) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let team = connect.said_team().unwrap_or_default();
    let versions = match output.is_text() && !all {
        true => NEWEST,
        false => VERSIONS_MAX,
    };
    let mut images = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListImagesRequest {
            team: team.clone(),
            versions,
            page_token,
            ..v1::ListImagesRequest::default()
        };
        let page = list_page(&client, request).await?;
        for mut image in page.images {
            if all {
                complete(&client, &mut image).await?;
            }
            images.push(shape::Image::from(image));
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let empty = "There are no images yet: `oast run` bakes one.";
    output.list(
        &images,
        |image| &image.name,
        empty,
        |images| {
            let rows = images
                .iter()
                .flat_map(|image| image.versions.iter())
                .map(|version| {
                    [
                        version.version.clone(),
                        version.channels.join(" "),
                        version.team.clone(),
                        version.base.clone(),
                        version.arch.clone(),
                        bytes(version.disk_size),
                        version.package_count.to_string(),
                        version.run.clone(),
                        short(&version.commit).to_owned(),
                        ago(version.published_at_ms),
                    ]
                });
            let mut text = table(
                [
                    "VERSION",
                    "CHANNELS",
                    "TEAM",
                    "BASE",
                    "ARCH",
                    "DISK",
                    "PACKAGES",
                    "RUN",
                    "COMMIT",
                    "PUBLISHED",
                ],
                rows,
            );
            let hidden: usize = images
                .iter()
                .map(|image| (image.version_count as usize).saturating_sub(image.versions.len()))
                .sum();
            if hidden > 0 {
                let _ = writeln!(
                    text,
                    "and {} more: --all shows them",
                    count(hidden, "older version")
                );
            }
            text
        },
    )?;
    Ok(Exit::Ok)
}

/// Shows a version.
pub async fn show(
    connect: &Connect,
    output: Output,
    version: &str,
    packages: bool,
) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let version = shape::ImageVersion::from(get(&client, version).await?);
    output.one(&version.version, &version, || detail(&version, packages))?;
    Ok(Exit::Ok)
}

async fn get(client: &Client, version: &str) -> Result<v1::ImageVersion, tonic::Status> {
    client
        .call(|member| {
            let version = version.to_owned();
            async move {
                member
                    .images()
                    .get_image_version(v1::GetImageVersionRequest { version })
                    .await
            }
        })
        .await
}

fn yes(is: bool) -> String {
    if is { "CycloneDX, SPDX" } else { "none" }.to_owned()
}

fn detail(version: &shape::ImageVersion, packages: bool) -> String {
    let mut text = facts(&[
        ("Version", version.version.clone()),
        ("Team", version.team.clone()),
        ("Channels", version.channels.join(", ")),
        ("Base", version.base.clone()),
        ("Arch", version.arch.clone()),
        ("Disk", bytes(version.disk_size)),
        ("blake3", version.digest.clone()),
        ("Layers", version.layers.len().to_string()),
        ("Packages", version.package_count.to_string()),
        ("SBOM", yes(version.bills)),
        (
            "Provenance",
            if version.provenance {
                "signed".to_owned()
            } else {
                "none".to_owned()
            },
        ),
        ("Regions", version.regions.join(", ")),
        ("Run", version.run.clone()),
        ("Commit", version.commit.clone()),
        ("Published", ago(version.published_at_ms)),
    ]);
    if packages {
        text.push('\n');
        let rows = version.packages.iter().map(|package| {
            [
                package.name.clone(),
                package.version.clone(),
                package.arch.clone(),
            ]
        });
        text.push_str(&table(["PACKAGE", "VERSION", "ARCH"], rows));
    }
    for layer in version
        .layers
        .iter()
        .take(if packages { usize::MAX } else { 0 })
    {
        let _ = writeln!(text, "layer {}", plain(layer));
    }
    text
}
