//! What a run is to be: how many steps, tests, regions, which fleet, and how good its image is.
//! A run carries its recipe as a text, in its inputs or in the name of its commit.

use std::collections::BTreeMap;

use oast_model::names::TeamName;
use oast_model::pipeline::{
    ApiVersion, Arch, Bake, Base, BootTest, Concurrency, CronTrigger, Disk, Distribution, Engine,
    Gate, HttpCheck, OnFailure, Pipeline, Publish, Rollout, Step, Strategy, Test, Trigger,
};
use oast_model::task::Origin;
use oast_model::units::{Amount, TimeSpan};

use crate::cloud::Quality;
use crate::rng::Rng;

/// Regions that images are published in.
pub const REGIONS: usize = 2;
/// Input that carries a recipe.
pub const INPUT: &str = "recipe";

/// One run's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Steps above the base.
    pub steps: usize,
    /// It is tested.
    pub test: bool,
    /// Regions that it is published in.
    pub regions: usize,
    /// It is rolled out.
    pub rollout: bool,
    /// With a gate.
    pub gate: bool,
    /// A failed rollout waits for a person.
    pub pause: bool,
    /// How good the image is.
    pub quality: Quality,
    /// It has a calendar.
    pub cron: bool,
    /// Its source task finds nothing to do.
    pub skip: bool,
}

/// A name that follows the rule.
///
/// # Panics
/// When it does not.
pub fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a good name")
}

impl Recipe {
    /// A recipe at random; so many of 1000 are rolled out.
    pub fn random(rng: &mut Rng, rollouts: u64) -> Recipe {
        Recipe {
            steps: rng.index(3),
            test: rng.chance(300),
            regions: rng.index(REGIONS + 1),
            rollout: rng.chance(rollouts),
            gate: rng.chance(400),
            pause: rng.chance(150),
            quality: match rng.below(10) {
                0 => Quality::Sick,
                1 => Quality::Shut,
                _ => Quality::Good,
            },
            cron: rng.chance(100),
            skip: rng.chance(30),
        }
    }

    /// As a text.
    pub fn text(&self) -> String {
        let flag = |on: bool| if on { 'y' } else { 'n' };
        let quality = match self.quality {
            Quality::Good => 'g',
            Quality::Sick => 's',
            Quality::Shut => 'c',
        };
        let mut text = format!("{}{}{quality}", self.steps, self.regions);
        let flags = [
            self.test,
            self.rollout,
            self.gate,
            self.pause,
            self.cron,
            self.skip,
        ];
        text.extend(flags.map(flag));
        text
    }

    fn parse(text: &str) -> Option<Recipe> {
        let chars: Vec<char> = text.chars().collect();
        let number = |place: usize| chars.get(place)?.to_digit(10);
        let flag = |place: usize| Some(*chars.get(place)? == 'y');
        Some(Recipe {
            steps: number(0)? as usize,
            regions: number(1)? as usize,
            quality: match chars.get(2)? {
                's' => Quality::Sick,
                'c' => Quality::Shut,
                _ => Quality::Good,
            },
            test: flag(3)?,
            rollout: flag(4)?,
            gate: flag(5)?,
            pause: flag(6)?,
            cron: flag(7)?,
            skip: flag(8)?,
        })
    }

    /// The recipe of a run.
    pub fn of(origin: &Origin, inputs: &BTreeMap<String, String>) -> Recipe {
        let text = match origin {
            Origin::Git { commit, .. } => commit.as_str(),
            Origin::Upload { .. } => inputs.get(INPUT).map_or("", String::as_str),
        };
        Recipe::parse(text).unwrap_or(Recipe {
            steps: 0,
            test: false,
            regions: 0,
            rollout: false,
            gate: false,
            pause: false,
            quality: Quality::Good,
            cron: false,
            skip: false,
        })
    }

    /// How good the image of a bake becomes: its package list says so.
    pub fn quality_of(bake: &Bake) -> Quality {
        match bake.packages.first().map(String::as_str) {
            Some("sick") => Quality::Sick,
            Some("shut") => Quality::Shut,
            _ => Quality::Good,
        }
    }

    /// The pipeline that the source task finds.
    pub fn pipeline(&self, team: &TeamName) -> Pipeline {
        let number = team.as_str().trim_start_matches("team-");
        let packages = match self.quality {
            Quality::Good => "good",
            Quality::Sick => "sick",
            Quality::Shut => "shut",
        };
        let step = |place: usize| Step {
            name: Some(format!("step {place}")),
            ..Step::new(oast_model::pipeline::Action::Workdir(format!(
                "/srv/{place}"
            )))
        };
        let gate = HttpCheck {
            port: None,
            path: "/".to_owned(),
            status: 200,
            contains: None,
            timeout: TimeSpan::from_secs(1),
        };
        let rollout = Rollout {
            fleet: name(&format!("fleet-{number}")),
            strategy: Strategy {
                canary: Amount::Count(1),
                batch: Amount::Percent(50),
                max_unavailable: Amount::Count(1),
                max_surge: Amount::Count(0),
                soak: TimeSpan::from_millis(500),
                healthy_deadline: TimeSpan::from_secs(3),
            },
            gates: self.gate.then_some(Gate::Http(gate)).into_iter().collect(),
            on_failure: match self.pause {
                true => OnFailure::Pause,
                false => OnFailure::Rollback,
            },
        };
        let cron = CronTrigger {
            cron: "* * * * *".to_owned(),
            timezone: "UTC".to_owned(),
        };
        Pipeline {
            api_version: ApiVersion::V1,
            name: name("web"),
            team: team.clone(),
            inputs: BTreeMap::new(),
            priority: None,
            concurrency: self.test.then(|| Concurrency {
                group: "tested".to_owned(),
                max: 2,
                cancel_in_progress: self.pause,
            }),
            triggers: self
                .cron
                .then_some(Trigger::Cron(cron))
                .into_iter()
                .collect(),
            bake: Bake {
                from: Base::Distribution {
                    distribution: Distribution::Debian,
                    release: "12".to_owned(),
                },
                engine: Engine::Disk,
                arch: Arch::Amd64,
                mirror: None,
                sources: Vec::new(),
                packages: vec![packages.to_owned()],
                disk: Disk::default(),
                env: BTreeMap::new(),
                steps: (0..self.steps).map(step).collect(),
            },
            test: match self.test {
                true => vec![Test::Boot(BootTest {
                    timeout: TimeSpan::from_secs(60),
                    checks: Vec::new(),
                })],
                false => Vec::new(),
            },
            publish: Publish {
                image: name(&format!("image-{number}")),
                channel: name("candidate"),
                regions: (0..self.regions)
                    .map(|place| name(&format!("region-{place}")))
                    .collect(),
            },
            rollout: self.rollout.then_some(rollout).into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_reads_back_as_it_is_written() {
        let mut rng = Rng::new(5);
        for _ in 0..200 {
            let recipe = Recipe::random(&mut rng, 450);
            assert_eq!(Recipe::parse(&recipe.text()), Some(recipe));
        }
    }
}
