//! Images: lineages, their versions, their channels.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Context, Ledger, Rejected, Run};
use crate::bake::BakedImage;
use crate::fleet::{DeployImage, VersionRef};
use crate::ids::RunId;
use crate::names::{ChannelName, ImageName, RegionName, TeamName, WorkerName};
use crate::task::TaskKind;
use crate::time::Timestamp;

/// A lineage of versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its name.
    pub name: ImageName,
    /// The team whose pipeline first published it.
    pub team: TeamName,
    /// Number of the newest version.
    pub newest: u32,
    /// What each channel points to.
    pub channels: BTreeMap<ChannelName, u32>,
}

/// An immutable result with where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVersion {
    /// Its name.
    pub version: VersionRef,
    /// Its owner.
    pub team: TeamName,
    /// The content.
    pub image: BakedImage,
    /// The run that made it.
    pub run: RunId,
    /// The commit it was made from.
    pub commit: Option<String>,
    /// Who baked it, and so has its layers at hand.
    #[serde(default)]
    pub baked_by: Option<WorkerName>,
    /// When it was published.
    pub published_at: Timestamp,
    /// Where it is usable.
    pub regions: Vec<RegionName>,
}

impl ImageVersion {
    /// What an instance needs of it.
    pub fn deploy(&self) -> DeployImage {
        DeployImage {
            version: self.version.clone(),
            layers: self.image.layers.clone(),
            disk: self.image.disk,
        }
    }
}

/// Gives the run's image the next number of its lineage and moves the channel.
pub(super) fn publish(
    ledger: &mut Ledger,
    cx: &Context,
    run: &Run,
    image: BakedImage,
) -> Result<VersionRef, Rejected> {
    let publish = &run
        .pipeline
        .as_ref()
        .expect("a run that publishes has a pipeline")
        .publish;
    let record = ledger.images.get(&publish.image).cloned();
    let mut record = record.unwrap_or_else(|| ImageRecord {
        name: publish.image.clone(),
        team: run.team.clone(),
        newest: 0,
        channels: BTreeMap::new(),
    });
    if record.team != run.team {
        return Err(Rejected::Forbidden(format!(
            "image `{}` belongs to team `{}`: publish under another name",
            record.name, record.team
        )));
    }
    record.newest += 1;
    let version = VersionRef {
        image: record.name.clone(),
        number: record.newest,
    };
    // A run that was started earlier and ends later must not move the channel back.
    let newer = record.channels.get(&publish.channel).is_some_and(|number| {
        let current = VersionRef {
            image: record.name.clone(),
            number: *number,
        };
        ledger
            .versions
            .get(&current)
            .is_some_and(|current| current.run > run.id)
    });
    if !newer {
        record
            .channels
            .insert(publish.channel.clone(), version.number);
    }
    ledger.images.insert(record.name.clone(), record);
    ledger.versions.insert(
        version.clone(),
        ImageVersion {
            version: version.clone(),
            team: run.team.clone(),
            image,
            run: run.id,
            commit: run.origin.commit().map(str::to_owned),
            baked_by: baker(ledger, run),
            published_at: cx.now,
            regions: publish.regions.clone(),
        },
    );
    Ok(version)
}

fn baker(ledger: &Ledger, run: &Run) -> Option<WorkerName> {
    let mut tasks = run.tasks.iter().filter_map(|id| ledger.tasks.get(id));
    let bake = tasks.find(|task| task.kind == TaskKind::Bake)?;
    Some(bake.attempts.last()?.worker.clone())
}
