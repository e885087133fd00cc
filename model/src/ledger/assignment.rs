//! What a worker is told when it gets a lease: the task with everything it needs.

use super::{Ledger, Run};
use crate::bake::Trust;
use crate::fleet::{DeployImage, VersionRef};
use crate::ids::Token;
use crate::pipeline::Bake;
use crate::task::{Assignment, BatchAction, NamedImage, Origin, Task, TaskKind, TaskOwner, Work};

impl Ledger {
    /// The work under a live lease, or none if the lease is over or its owner is gone.
    pub fn assignment(&self, token: Token) -> Option<Assignment> {
        let lease = self.leases.get(&token)?;
        let task = self.tasks.get(&lease.task)?;
        let (run, work) = match (&task.owner, &task.kind) {
            (TaskOwner::Run(id), _) => (Some(*id), self.work_of_run(self.runs.get(id)?, task)?),
            (TaskOwner::Rollout(id), _) => (self.rollouts.get(id)?.run, self.work_of_batch(task)?),
            (TaskOwner::Fleet(_), _) => (None, self.work_of_batch(task)?),
        };
        Some(Assignment {
            task: task.id,
            token,
            attempt: u32::try_from(task.attempts.len()).unwrap_or(u32::MAX),
            run,
            team: task.team.clone(),
            work,
            secrets: std::collections::BTreeMap::new(),
        })
    }

    fn work_of_run(&self, run: &Run, task: &Task) -> Option<Work> {
        Some(match &task.kind {
            TaskKind::Source => Work::Source {
                origin: run.origin.clone(),
                path: run.path.clone(),
                team: run.team.clone(),
                check_triggers: run.cause.starts_with("push"),
                inputs: run.inputs.clone(),
            },
            TaskKind::Bake => {
                let pipeline = run.pipeline.as_ref()?;
                Work::Bake {
                    bake: Box::new(pipeline.bake.clone()),
                    tree: run.tree?,
                    trust: trust_of(run),
                    done: task.finished_layers().cloned().collect(),
                    image: pipeline.publish.image.to_string(),
                    images: self.named_images(run, &pipeline.bake),
                }
            }
            TaskKind::Test => Work::Test {
                tests: run.pipeline.as_ref()?.test.clone(),
                image: Box::new(run.baked.clone()?),
            },
            TaskKind::Publish(region) => Work::Publish {
                region: region.clone(),
                image: Box::new(run.baked.clone()?),
            },
            TaskKind::Batch(_) => return None,
        })
    }

    /// The images that a recipe names. Those of other teams are not there for it.
    fn named_images(&self, run: &Run, bake: &Bake) -> Vec<NamedImage> {
        let named = bake.images().into_iter().filter_map(|(image, channel)| {
            let number = *self.images.get(image)?.channels.get(channel)?;
            let version = VersionRef {
                image: image.clone(),
                number,
            };
            let record = self.versions.get(&version)?;
            (record.team == run.team).then(|| NamedImage {
                version,
                channel: channel.clone(),
                image: record.image.clone(),
            })
        });
        named.collect()
    }

    fn work_of_batch(&self, task: &Task) -> Option<Work> {
        let TaskKind::Batch(order) = &task.kind else {
            return None;
        };
        let fleet = self.fleets.get(&order.fleet)?;
        let image: Option<DeployImage> = match &order.action {
            BatchAction::Deploy(version) => Some(self.versions.get(version)?.deploy()),
            BatchAction::Restart => None,
        };
        // Going back is not gated: the version before was good.
        let gates = fleet
            .active
            .and_then(|id| self.rollouts.get(&id))
            .filter(|rollout| {
                matches!(&order.action, BatchAction::Deploy(version) if *version == rollout.to)
            })
            .map(|rollout| rollout.gates.clone())
            .unwrap_or_default();
        Some(Work::Batch {
            order: order.clone(),
            fleet: Box::new(fleet.spec.clone()),
            image,
            gates,
            healthy_deadline: fleet.strategy.healthy_deadline,
        })
    }
}

/// Watched branches may share layers; an upload feeds only its own team.
fn trust_of(run: &Run) -> Trust {
    match run.origin {
        Origin::Git { .. } => Trust::Protected,
        Origin::Upload { .. } => Trust::Upload(run.team.to_string()),
    }
}
