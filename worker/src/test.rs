//! Tries an image before it is published.
//!
//! The *static* tier proves everything that can be proved without starting the image: partition
//! tables, boot loader and root file system of the disk as it is in the store. The *boot* tier
//! needs a machine to start it on, which this version of the worker does not have; it says so
//! instead of passing.

use std::sync::Arc;

use camino::Utf8PathBuf;
use oast_artifacts::ArtifactStore;
use oast_daemon::task::Tasks;
use oast_daemon::telemetry::chain;
use oast_model::bake::BakedImage;
use oast_model::pipeline::Test;

use crate::bake::disk::Disks;
use crate::image::{self, CheckError};
use crate::publish;
use crate::runner::{Attempt, Halt};

/// Does test tasks.
#[derive(Clone, Debug)]
pub struct Tester {
    /// Holds the images.
    pub store: ArtifactStore,
    /// Disks at hand.
    pub disks: Arc<Disks>,
    /// Where a disk that is not at hand is put while it is tried.
    pub work_folder: Utf8PathBuf,
    /// For blocking work.
    pub tasks: Tasks,
}

impl Tester {
    /// Does every test in order; one line for each that passed.
    pub async fn run(
        &self,
        attempt: &Attempt,
        tests: &[Test],
        image: &BakedImage,
    ) -> Result<Vec<String>, Halt> {
        let mut passed = Vec::new();
        for (test, number) in tests.iter().zip(0_u16..) {
            let line = match test {
                Test::Static(_) => self.check(image).await?,
                Test::Boot(_) => {
                    return Err(Halt::failed(
                        "test: boot is not done by this version; use `static: {}`, and gates of the rollout for what the running image must answer",
                    ));
                }
            };
            attempt.log.engine(number, &line);
            passed.push(line);
        }
        Ok(passed)
    }

    async fn check(&self, image: &BakedImage) -> Result<String, Halt> {
        let tester = self.clone();
        let image = image.clone();
        let checking = move || tester.check_disk(&image);
        self.tasks.blocking("check-disk", checking).await?
    }

    fn check_disk(&self, image: &BakedImage) -> Result<String, Halt> {
        publish::check(&self.store, image).map_err(|err| Halt::error(&err))?;
        let (path, _kept) = match self.disks.of(image.disk) {
            Some((path, pin)) => (path, (Some(pin), None)),
            None => {
                let folder = tempfile::tempdir_in(&self.work_folder)
                    .map_err(|err| Halt::errored(format!("make a folder for the disk: {err}")))?;
                let path = Utf8PathBuf::from_path_buf(folder.path().join("disk.raw"))
                    .map_err(|_| Halt::errored("the data directory's path is not UTF-8"))?;
                self.store
                    .materialize(image.disk, &path)
                    .map_err(|err| Halt::error(&err))?;
                (path, (None, Some(folder)))
            }
        };
        match image::check(&path) {
            Ok(checked) => Ok(format!(
                "static: partition table, boot loader and root file system of {} bytes are sound",
                checked.disk_bytes
            )),
            Err(err @ CheckError::Bad { .. }) => Err(Halt::failed(chain(&err).to_string())),
            Err(err) => Err(Halt::error(&err)),
        }
    }
}
