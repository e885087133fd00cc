//! The story: four pushes, what becomes of them, and what is killed meanwhile.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use oast_daemon::clock::{Clock, SystemClock, timeout};
use oast_daemon::isolate::Farm;
use oast_daemon::task::{TaskKind, Tasks};
use oast_proto::v1::{
    Fleet, GetFleetRequest, GetRolloutRequest, ListPeersRequest, ListRunsRequest, Rollout, Run,
    WatchRunRequest,
};
use tokio::sync::watch;

use super::example;
use super::ground::LEASE_TTL;
use super::load::Load;
use super::repository::Repository;
use super::ui::{RunTeller, Ui};
use super::witness::{Counter, Observer};
use crate::client::Client;

/// The fleet of the example.
pub const FLEET: &str = "web-prod";
/// Longest wait for something that should come.
const WAIT: Duration = Duration::from_secs(300);
/// Pause between two looks at something that cannot be watched.
const LOOK: Duration = Duration::from_millis(20);
/// SIGKILL.
const KILL: i32 = 9;

/// Everything that plays a part.
pub struct Stage {
    /// The farm's processes.
    pub farm: Farm,
    /// The API.
    pub client: Client,
    /// The user's repository.
    pub repository: Repository,
    /// The fleet as last observed.
    pub fleet: watch::Receiver<Fleet>,
    /// The built-in client.
    pub load: Load,
    /// Asks instances directly.
    pub observer: Observer,
    /// Is told by the slow steps.
    pub counter: Counter,
    /// Where it is told.
    pub ui: Ui,
    /// Tells one quickstart from the one before on the same data.
    pub mark: String,
    /// The number that the site named last, when this data was used before.
    pub last: u32,
}

/// What one push came to.
#[derive(Clone, Debug, Default)]
pub struct Chapter {
    /// The run.
    pub run: Run,
    /// Its rollout.
    pub rollout: Rollout,
    /// From the commit until the image was published.
    pub image_ready: Duration,
    /// From the commit until every instance ran it, or ran the one before again.
    pub settled: Duration,
    /// From the commit until the fleet's address served it.
    pub first_page: Option<Duration>,
}

/// What was killed and what it cost.
#[derive(Clone, Debug)]
pub struct Loss {
    /// What was killed, and when.
    pub what: String,
    /// Until the work went on.
    pub lost: Duration,
}

impl Stage {
    /// Push 1: everything is new.
    pub async fn first(&self, version: &str) -> anyhow::Result<Chapter> {
        self.ui
            .chapter("Push 1: a Debian image with a web server, from nothing");
        example::set_version(self.repository.folder(), version)?;
        self.load.expect(version);
        self.play("Serve the site", version, true).await
    }

    /// Push 2: the site changes.
    pub async fn second(&self, version: &str) -> anyhow::Result<Chapter> {
        self.ui
            .chapter("Push 2: the site changes, the fleet keeps serving");
        example::set_version(self.repository.folder(), version)?;
        self.load.expect(version);
        self.play("Change the site", version, true).await
    }

    /// Push 3: the site is broken.
    pub async fn third(&self, version: &str) -> anyhow::Result<Chapter> {
        self.ui.chapter("Push 3: a broken site");
        example::set_version(self.repository.folder(), version)?;
        example::break_page(self.repository.folder())?;
        self.play("Break the site", version, false).await
    }

    /// Push 4: a slow bake and a rollout, while a worker and the leader are killed in each.
    pub async fn fourth(&self, version: &str) -> anyhow::Result<(Chapter, Vec<Loss>)> {
        self.ui
            .chapter("Push 4: SIGKILL of a worker and of the leader, mid-bake and mid-rollout");
        example::set_version(self.repository.folder(), version)?;
        example::mend_page(self.repository.folder())?;
        example::add_slow_steps(self.repository.folder(), self.counter.address(), &self.mark)?;
        self.load.expect(version);
        let play = self.play("Mend the site, add slow steps", version, true);
        let kills = self.kill_everything();
        // Both or the first error of either.
        tokio::try_join!(play, kills)
    }

    /// Pushes and follows the run to its end.
    async fn play(&self, message: &str, version: &str, good: bool) -> anyhow::Result<Chapter> {
        let clock = SystemClock;
        let pushed = clock.monotonic();
        let commit = self.repository.push(message).await?;
        self.ui
            .say(format!("  pushed {}", &commit[..commit.len().min(10)]));
        let mut run = self.run_of(&commit).await?;
        let mut teller = RunTeller::new(&self.ui);
        let mut chapter = Chapter::default();
        let first_page = self.first_page(version, pushed, good);
        let follow = async {
            loop {
                teller.run(&run);
                if !run.version.is_empty() && chapter.image_ready.is_zero() {
                    chapter.image_ready = clock.monotonic() - pushed;
                }
                if let Some(rollout) = run.rollouts.last() {
                    chapter.rollout = self.rollout(rollout).await?;
                    teller.rollout(&chapter.rollout);
                }
                if run.ended {
                    break;
                }
                run = self.next_change(&run).await?;
            }
            chapter.run = run;
            anyhow::Ok(())
        };
        let page = beside(follow, first_page).await?;
        chapter.first_page = page.flatten();
        let wanted = if good {
            &chapter.run.version
        } else {
            &chapter.rollout.from
        };
        if good && chapter.run.phase != "succeeded" {
            bail!(
                "run {} {}: {}\n{}",
                chapter.run.id,
                chapter.run.phase,
                chapter.run.reason,
                chapter.run.details.join("\n")
            );
        }
        if good {
            let line = crate::command::image::vouched(&self.client, &chapter.run.version).await?;
            self.ui.say(format!("  {line}"));
        }
        self.settled_on(wanted).await?;
        chapter.settled = clock.monotonic() - pushed;
        self.ui.say(format!(
            "  run {} {}: {}",
            chapter.run.id, chapter.run.phase, chapter.run.reason
        ));
        Ok(chapter)
    }

    /// When the fleet's own address first served the version.
    async fn first_page(&self, version: &str, pushed: Duration, good: bool) -> Option<Duration> {
        let clock = SystemClock;
        while good && clock.monotonic() - pushed < WAIT {
            if self.load.counts().versions.contains_key(version) {
                return Some(clock.monotonic() - pushed);
            }
            clock.sleep(LOOK).await;
        }
        None
    }

    /// The run that a commit started.
    async fn run_of(&self, commit: &str) -> anyhow::Result<Run> {
        let clock = SystemClock;
        let end = clock.monotonic() + WAIT;
        while clock.monotonic() < end {
            let request = ListRunsRequest {
                page_size: 10,
                ..ListRunsRequest::default()
            };
            let list = self
                .client
                .call(|member| {
                    let request = request.clone();
                    async move { member.runs().list_runs(request).await }
                })
                .await
                .context("list the runs")?;
            if let Some(run) = list.runs.into_iter().find(|run| run.commit == commit) {
                return Ok(run);
            }
            clock.sleep(LOOK).await;
        }
        bail!("commit {commit} was pushed and started no run: see the members' logs")
    }

    /// The run as soon as it differs from what is known, through whichever member lives.
    async fn next_change(&self, known: &Run) -> anyhow::Result<Run> {
        let clock = SystemClock;
        let end = clock.monotonic() + WAIT;
        while clock.monotonic() < end {
            let request = WatchRunRequest {
                run: known.id.clone(),
                after_seq: known.seq,
            };
            // A member that was killed takes its streams along: ask another.
            let next = async {
                let mut stream = self
                    .client
                    .member()
                    .runs()
                    .watch_run(request)
                    .await?
                    .into_inner();
                stream.message().await
            };
            match timeout(&clock, Duration::from_secs(2), next).await {
                Ok(Ok(Some(run))) if run.seq > known.seq || run.ended => return Ok(run),
                Ok(Ok(_)) => clock.sleep(LOOK).await,
                Ok(Err(_)) => {
                    self.client.turn();
                    clock.sleep(LOOK).await;
                }
                Err(_) => {}
            }
        }
        bail!(
            "run {} made no progress for {WAIT:?}: {}",
            known.id,
            known.phase
        )
    }

    async fn rollout(&self, id: &str) -> anyhow::Result<Rollout> {
        let request = GetRolloutRequest {
            rollout: id.to_owned(),
        };
        self.client
            .call(|member| {
                let request = request.clone();
                async move { member.fleets().get_rollout(request).await }
            })
            .await
            .with_context(|| format!("read rollout {id}"))
    }

    /// Waits until every instance runs `version` and serves.
    async fn settled_on(&self, version: &str) -> anyhow::Result<()> {
        let mut fleet = self.fleet.clone();
        let settled = fleet.wait_for(|fleet| {
            fleet.observed
                && fleet.instances.len() == usize::try_from(fleet.total).unwrap_or(usize::MAX)
                && fleet.instances.iter().all(|instance| {
                    instance.version == version && instance.healthy && instance.in_rotation
                })
        });
        match timeout(&SystemClock, WAIT, settled).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => bail!("the fleet is no longer watched"),
            Err(_) => bail!("the fleet did not come to run {version} within {WAIT:?}"),
        }
    }

    /// The open run of the last push with its tasks.
    async fn open_run(&self) -> anyhow::Result<Option<Run>> {
        let request = ListRunsRequest {
            page_size: 1,
            open: true,
            ..ListRunsRequest::default()
        };
        let list = self
            .client
            .call(|member| {
                let request = request.clone();
                async move { member.runs().list_runs(request).await }
            })
            .await
            .context("list the runs")?;
        let Some(run) = list.runs.into_iter().next() else {
            return Ok(None);
        };
        let request = oast_proto::v1::GetRunRequest { run: run.id };
        let run = self
            .client
            .call(|member| {
                let request = request.clone();
                async move { member.runs().get_run(request).await }
            })
            .await
            .context("read the run")?;
        Ok(Some(run))
    }

    async fn kill_everything(&self) -> anyhow::Result<Vec<Loss>> {
        let mut losses = Vec::new();
        let (worker, token) = self.baking("slow-2", 0).await?;
        losses.push(
            self.kill_worker(&worker, "mid-bake", self.baking("slow-2", token))
                .await?,
        );
        losses.push(self.kill_leader("mid-bake", "slow-3").await?);
        let (worker, token) = self.rolling(0, 1).await?;
        losses.push(
            self.kill_worker(&worker, "mid-rollout", self.rolling(token, 1))
                .await?,
        );
        let after = self.rolling(0, 3).await?.1;
        losses.push(self.kill_leader_in_rollout(after).await?);
        Ok(losses)
    }

    /// Kills a worker, waits until another lease goes on with its work, and starts it again.
    async fn kill_worker(
        &self,
        worker: &str,
        when: &str,
        resumed: impl Future<Output = anyhow::Result<(String, u64)>>,
    ) -> anyhow::Result<Loss> {
        let clock = SystemClock;
        self.ui.say(format!(
            "  ⚡ SIGKILL {worker} {when} (its leases end after {LEASE_TTL} of silence)"
        ));
        self.farm.kill(worker, KILL)?;
        let killed = clock.monotonic();
        let (other, _) = resumed.await?;
        let lost = clock.monotonic() - killed;
        self.ui.say(format!(
            "  {other} goes on after {:.1} s",
            lost.as_secs_f64()
        ));
        self.farm.restart(worker)?;
        Ok(Loss {
            what: format!("worker {worker}, {when}"),
            lost,
        })
    }

    async fn kill_leader(&self, when: &str, step: &str) -> anyhow::Result<Loss> {
        self.baking(step, 0).await?;
        self.replace_leader(when).await
    }

    async fn kill_leader_in_rollout(&self, _token: u64) -> anyhow::Result<Loss> {
        self.replace_leader("mid-rollout").await
    }

    /// Kills the leader and waits until another member leads.
    async fn replace_leader(&self, when: &str) -> anyhow::Result<Loss> {
        let clock = SystemClock;
        let leader = self.leader(0).await?;
        let name = format!("member-{leader}");
        self.ui
            .say(format!("  ⚡ SIGKILL {name}, the leader, {when}"));
        self.farm.kill(&name, KILL)?;
        let killed = clock.monotonic();
        let next = self.leader(leader).await?;
        let lost = clock.monotonic() - killed;
        self.ui.say(format!(
            "  member-{next} leads after {:.1} s",
            lost.as_secs_f64()
        ));
        self.farm.restart(&name)?;
        Ok(Loss {
            what: format!("the leader, {when}"),
            lost,
        })
    }

    /// Who leads, if it is not `other`.
    async fn leader(&self, other: u64) -> anyhow::Result<u64> {
        let clock = SystemClock;
        let end = clock.monotonic() + WAIT;
        while clock.monotonic() < end {
            let mut operator = self.client.member().operator();
            let asked = operator.list_peers(ListPeersRequest::default());
            match timeout(&clock, Duration::from_secs(1), asked).await {
                Ok(Ok(peers)) => {
                    let leader = peers.into_inner().leader;
                    if leader != 0 && leader != other {
                        return Ok(leader);
                    }
                }
                _ => self.client.turn(),
            }
            clock.sleep(LOOK).await;
        }
        bail!("no member leads")
    }

    /// The worker that runs a bake step under a token above `above`.
    async fn baking(&self, title: &str, above: u64) -> anyhow::Result<(String, u64)> {
        let clock = SystemClock;
        let end = clock.monotonic() + WAIT;
        while clock.monotonic() < end {
            if let Some(run) = self.open_run().await?
                && let Some(found) = step_running(&run, title, above)
            {
                // A moment into the step, so that there is something to interrupt.
                clock.sleep(Duration::from_millis(500)).await;
                return Ok(found);
            }
            clock.sleep(LOOK).await;
        }
        bail!("step {title} did not run")
    }

    /// The worker that replaces instances in batch `from` or a later one, under a token above `above`.
    async fn rolling(&self, above: u64, from: usize) -> anyhow::Result<(String, u64)> {
        let clock = SystemClock;
        let end = clock.monotonic() + WAIT;
        while clock.monotonic() < end {
            let run = self.open_run().await?;
            if let Some(rollout) = run.as_ref().and_then(|run| run.rollouts.last()) {
                let rollout = self.rollout(rollout).await?;
                let found = rollout
                    .batches
                    .iter()
                    .skip(from)
                    .filter(|batch| above > 0 || batch.phase == "running")
                    .flat_map(|batch| &batch.attempts)
                    .filter(|attempt| attempt.token > above)
                    .find(|attempt| above > 0 || attempt.ended_at_ms == 0);
                if let Some(attempt) = found {
                    return Ok((attempt.worker.clone(), attempt.token));
                }
            } else if run.is_none() {
                bail!("the run ended before its rollout was seen");
            }
            clock.sleep(LOOK).await;
        }
        bail!("no batch ran")
    }
}

/// Follows the story; what else is watched for ends with it.
async fn beside(
    story: impl Future<Output = anyhow::Result<()>>,
    watched: impl Future<Output = Option<Duration>>,
) -> anyhow::Result<Option<Option<Duration>>> {
    let mut story = std::pin::pin!(story);
    let mut watched = std::pin::pin!(watched);
    let mut seen = None;
    loop {
        tokio::select! {
            biased;
            told = &mut story => return told.map(|()| seen),
            value = &mut watched, if seen.is_none() => seen = Some(value),
        }
    }
}

fn step_running(run: &Run, title: &str, above: u64) -> Option<(String, u64)> {
    let task = run.tasks.iter().find(|task| task.kind == "bake")?;
    let step = task.steps.iter().find(|step| step.title == title)?;
    if step.phase != "running" || step.token <= above {
        return None;
    }
    let attempt = task
        .attempts
        .iter()
        .find(|attempt| attempt.token == step.token)?;
    Some((attempt.worker.clone(), attempt.token))
}

/// Follows the fleet in the background, also across members, and tells the observer.
pub fn follow_fleet(client: &Client, observer: &Observer, tasks: &Tasks) -> watch::Receiver<Fleet> {
    let (tell, fleet) = watch::channel(Fleet::default());
    let (client, observer) = (client.clone(), observer.clone());
    tasks.spawn("fleet-follower", TaskKind::BACKGROUND, async move {
        let clock = SystemClock;
        loop {
            let request = GetFleetRequest {
                fleet: FLEET.into(),
            };
            if let Ok(stream) = client.member().fleets().watch_fleet(request).await {
                let mut stream = stream.into_inner();
                while let Ok(Some(fleet)) = stream.message().await {
                    observer.watch(direct_addresses(&fleet));
                    if tell.send(fleet).is_err() {
                        return;
                    }
                }
            }
            client.turn();
            clock.sleep(Duration::from_millis(100)).await;
        }
    });
    fleet
}

fn direct_addresses(fleet: &Fleet) -> BTreeMap<String, SocketAddr> {
    fleet
        .instances
        .iter()
        .filter_map(|instance| Some((instance.name.clone(), instance.direct.parse().ok()?)))
        .collect()
}
