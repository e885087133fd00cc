//! Images: look, and take a version's disk away.

use oast_artifacts::vhd;
use oast_model::fleet::VersionRef;
use oast_model::ledger::{ImageRecord, ImageVersion, Ledger};
use oast_model::names::{ChannelName, ImageName, TeamName};
use oast_model::principal::Verb;
use oast_proto::v1;
use oast_proto::v1::export_chunk::Content;
use oast_proto::v1::images_server::Images;
use serde::Deserialize;
use tonic::{Code, Response, Status};

use super::auth::{Caller, caller};
use super::page::Page;
use super::runs::{optional_name, parse};
use super::{Answers, Api, convert, page, status};
use crate::notary::BILL_MAX;

/// Largest list of an image's packages.
const PACKAGES_BYTES: u64 = 64 << 20;

/// Bytes of a document in one message.
const PART: usize = 1 << 20;

/// Versions of an image in a list unless asked for fewer or more.
const VERSIONS: usize = 20;

/// One package, as the bake lists it in the artifact store.
#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    arch: String,
}

#[tonic::async_trait]
impl Images for Api {
    async fn list_images(
        &self,
        request: tonic::Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let team = optional_name::<TeamName>("team", &asked.team)?;
        let name = optional_name::<ImageName>("name", &asked.name)?;
        if let Some(team) = &team {
            caller.may(Verb::View, Some(team))?;
        }
        let size = page::size(asked.page_size, page::PAGE, page::PAGE_MAX);
        let of = ("images", &asked.team, &asked.name);
        let page: Page<ImageName> = Page::read(&of, &asked.page_token, size)?;
        let most = page::size(asked.versions, VERSIONS, page::PAGE_MAX);
        let look = self.look(&caller).await?;
        let view = &look.view;
        let wanted = |image: &ImageRecord| {
            team.as_ref().is_none_or(|team| *team == image.team)
                && name.as_ref().is_none_or(|name| *name == image.name)
                && caller.sees(&image.team)
        };
        let mut images: Vec<&ImageRecord> = view
            .images()
            .iter()
            .filter(|(name, image)| {
                page.last.as_ref().is_none_or(|last| *name > last) && wanted(image)
            })
            .map(|(_, image)| image)
            .take(size + 1)
            .collect();
        let more = images.len() > size;
        images.truncate(size);
        let last = images.last().filter(|_| more);
        let next_page_token = page.next(last.map(|last| last.name.clone()));
        let images = images.into_iter().map(|image| {
            let newest = match asked.before_version {
                0 => image.newest,
                before => image.newest.min(before - 1),
            };
            let numbers = (1..=newest).rev();
            let versions = numbers.filter_map(|number| {
                let version = VersionRef {
                    image: image.name.clone(),
                    number,
                };
                let version = view.versions().get(&version)?;
                Some(convert::version(version, Some(image)))
            });
            convert::image(image, versions.take(most))
        });
        let images = images.collect();
        Ok(Response::new(v1::ListImagesResponse {
            images,
            next_page_token,
            seq: view.seq().as_u64(),
        }))
    }

    async fn get_image_version(
        &self,
        request: tonic::Request<v1::GetImageVersionRequest>,
    ) -> Result<Response<v1::ImageVersion>, Status> {
        let caller = caller(&request)?;
        let view = self.look(&caller).await?.view;
        let version = find(&view, &request.get_ref().version, &caller)?;
        let image = view.images().get(&version.version.image);
        let mut message = convert::version(version, image);
        let (store, blob) = (self.artifacts.clone(), version.image.packages);
        let list = self
            .blocking("read-packages", move || {
                store.read_blob(blob, PACKAGES_BYTES)
            })
            .await?
            .map_err(|err| status::internal(&err))?;
        let packages: Vec<Package> =
            serde_json::from_slice(&list).map_err(|err| status::internal(&err))?;
        message.packages = packages
            .into_iter()
            .map(|package| v1::Package {
                name: package.name,
                version: package.version,
                arch: package.arch,
            })
            .collect();
        Ok(Response::new(message))
    }

    type ReadDocumentStream = Answers<v1::ExportChunk>;

    async fn read_document(
        &self,
        request: tonic::Request<v1::ReadDocumentRequest>,
    ) -> Result<Response<Answers<v1::ExportChunk>>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let view = self.farm.read().await?;
        let image = find(&view, &asked.version, &caller)?.image.clone();
        let blob = match asked.document.as_str() {
            "cyclonedx" => image.bills.map(|bills| bills.cyclonedx),
            "spdx" => image.bills.map(|bills| bills.spdx),
            "provenance" => image.provenance,
            "key" => {
                let key = self.notary.public().to_pem();
                return Ok(Response::new(self.document(key.into_bytes())));
            }
            _ => {
                let known = "one of cyclonedx, spdx, provenance, key";
                return Err(status::invalid("document", known));
            }
        };
        let Some(blob) = blob else {
            let message = format!(
                "{} was baked before versions had a document `{}`; bake it again",
                asked.version, asked.document
            );
            return Err(status::error(
                Code::FailedPrecondition,
                "NO_DOCUMENT",
                message,
            ));
        };
        let store = self.artifacts.clone();
        let bytes = self
            .blocking("read-document", move || store.read_blob(blob, BILL_MAX))
            .await?
            .map_err(|err| status::internal(&err))?;
        Ok(Response::new(self.document(bytes)))
    }

    type ExportImageStream = Answers<v1::ExportChunk>;

    async fn export_image(
        &self,
        request: tonic::Request<v1::ExportImageRequest>,
    ) -> Result<Response<Answers<v1::ExportChunk>>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let view = self.farm.read().await?;
        let image = find(&view, &asked.version, &caller)?.image.clone();
        let store = self.artifacts.clone();
        let manifest = self
            .blocking("read-manifest", move || store.manifest(image.disk))
            .await?
            .map_err(|err| status::internal(&err))?;
        let raw = manifest.len();
        let (header, footer) = match asked.format.as_str() {
            "raw" => {
                let digest = image.disk_digest.to_string();
                (v1::ExportHeader { size: raw, digest }, None)
            }
            "vhd" if raw == 0 || raw % vhd::ALIGNMENT != 0 => {
                let message = format!("a VHD needs whole MiB, the disk has {raw} bytes");
                return Err(status::error(
                    Code::FailedPrecondition,
                    "NOT_ALIGNED",
                    message,
                ));
            }
            "vhd" => {
                let footer = vhd::footer(raw, image.disk_digest);
                let size = raw + footer.len() as u64;
                let digest = String::new();
                (v1::ExportHeader { size, digest }, Some(footer))
            }
            _ => return Err(status::invalid("format", "one of raw, vhd")),
        };
        let api = self.clone();
        Ok(Response::new(self.stream(
            "export-image",
            move |sender| async move {
                let send = |content| {
                    let sender = sender.clone();
                    let chunk = v1::ExportChunk {
                        content: Some(content),
                    };
                    async move { sender.send(Ok(chunk)).await.is_ok() }
                };
                if !send(Content::Header(header)).await {
                    return Ok(());
                }
                let mut zeros = 0_u64;
                for (place, chunk) in manifest.chunks().iter().enumerate() {
                    let Some(digest) = *chunk else {
                        zeros += manifest.chunk_len(place) as u64;
                        continue;
                    };
                    if zeros > 0 && !send(Content::ZeroBytes(std::mem::take(&mut zeros))).await {
                        return Ok(());
                    }
                    let store = api.artifacts.clone();
                    let bytes = api
                        .blocking("read-chunk", move || store.chunk(digest))
                        .await?
                        .map_err(|err| status::internal(&err))?;
                    if !send(Content::Data(bytes.into())).await {
                        return Ok(());
                    }
                }
                if zeros > 0 && !send(Content::ZeroBytes(zeros)).await {
                    return Ok(());
                }
                if let Some(footer) = footer {
                    send(Content::Data(footer.to_vec().into())).await;
                }
                Ok(())
            },
        )))
    }
}

impl Api {
    fn document(&self, bytes: Vec<u8>) -> Answers<v1::ExportChunk> {
        self.stream("read-document", move |sender| async move {
            let header = Content::Header(v1::ExportHeader {
                size: bytes.len() as u64,
                digest: blake3::hash(&bytes).to_string(),
            });
            let bytes = bytes::Bytes::from(bytes);
            let parts = (0..bytes.len())
                .step_by(PART)
                .map(|at| Content::Data(bytes.slice(at..bytes.len().min(at + PART))));
            for content in std::iter::once(header).chain(parts) {
                let chunk = v1::ExportChunk {
                    content: Some(content),
                };
                if sender.send(Ok(chunk)).await.is_err() {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// `name`, `name:number` or `name@channel`.
pub(super) fn find<'l>(
    ledger: &'l Ledger,
    text: &str,
    caller: &Caller,
) -> Result<&'l ImageVersion, Status> {
    let (name, number) = if let Some((name, channel)) = text.split_once('@') {
        let name: ImageName = parse("version", name)?;
        let channel: ChannelName = parse("version", channel)?;
        let image = ledger.images().get(&name);
        let number = image.and_then(|image| image.channels.get(&channel));
        (name, number.copied())
    } else if text.contains(':') {
        let VersionRef { image, number } = parse("version", text)?;
        (image, Some(number))
    } else {
        let name: ImageName = parse("version", text)?;
        let newest = ledger.images().get(&name).map(|image| image.newest);
        (name, newest)
    };
    let missing = || status::not_found("image version", text);
    let number = number.ok_or_else(missing)?;
    let version = VersionRef {
        image: name,
        number,
    };
    let version = ledger.versions().get(&version);
    let version = version.filter(|version| caller.sees(&version.team));
    version.ok_or_else(missing)
}
