//! Three members of the farm.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use oast_daemon::random;
use oast_proto::v1::{SubmitRunRequest, SubmitRunsRequest};
use oast_tests::api::Api;
use oast_tests::farm::{Farm, Plan};
use prost::Message;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::claim::{Claimer, stamp};
use crate::load::{Figure, closed, steady};

/// Submissions in a message of a stream: as many as etcd's transactions have puts.
const BATCH: u64 = super::etcd::TXN;
/// Teams that the submissions are spread over.
pub const TEAMS: usize = 200;
/// How long the members' certificates live.
const CERTIFICATES: &str = "30d";
const PIPELINE: &str = "apiVersion: oast/v1\nname: web\nteam: t0\nbake:\n  from: debian-12\n  steps:\n    - run: \"true\"\npublish: { image: web, channel: candidate }\n";

/// The farm and what a submission needs.
#[derive(Debug)]
pub struct Oast {
    farm: Farm,
    leader: usize,
    tree: String,
    /// Begins each request id, so that runs of the bench never share one.
    prefix: String,
}

impl Oast {
    /// Starts the members and makes the teams. With TLS between the members, or without, so that a
    /// worker of the bench needs no certificate.
    ///
    /// # Errors
    /// With the ends of the logs.
    pub async fn start(oast: &Path, tls: bool) -> Result<Oast> {
        let mut plan = Plan::new(oast);
        if tls {
            plan = plan.tls(CERTIFICATES);
        }
        let farm = plan.start().await?;
        for team in 0..TEAMS {
            farm.apply(&format!(
                "apiVersion: oast/v1\nkind: Team\nname: t{team}\nspec:\n  description: bench\n"
            ))
            .await?;
        }
        let leader = farm.leader().await?;
        let tree = farm.api(leader)?.upload(&[("oast.yaml", PIPELINE)]).await?;
        Ok(Oast {
            farm,
            leader,
            tree,
            prefix: random::request_id(),
        })
    }

    /// The processes.
    #[must_use]
    pub fn farm(&self) -> &Farm {
        &self.farm
    }

    /// The member that leads, from 1.
    #[must_use]
    pub fn leader(&self) -> usize {
        self.leader
    }

    /// Submits so many runs and waits until all are acknowledged.
    ///
    /// # Errors
    /// One was refused.
    pub async fn fill(&self, runs: u64, size: usize) -> Result<()> {
        let mut batches = JoinSet::new();
        for first in (0..runs).step_by(usize::try_from(BATCH)?) {
            if batches.len() >= super::CONNECTIONS {
                batches.join_next().await.context("a batch")???;
            }
            let numbers = first..runs.min(first + BATCH);
            let submissions = numbers
                .map(|number| submission("fill", &self.tree, number, size))
                .collect();
            let mut api = self.farm.api(self.leader)?.runs();
            batches.spawn(async move {
                let request = SubmitRunsRequest { submissions };
                let results = api.batch_submit_runs(request).await?.into_inner().results;
                for result in &results {
                    ensure!(result.error.is_none(), "{:?}", result.error);
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = batches.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// One submission, and how long it took. `number` is unique in the farm.
    pub fn timed(
        api: &Api,
        tree: &str,
        number: u64,
        size: usize,
    ) -> impl Future<Output = Result<Duration>> + Send + use<> {
        let mut runs = api.runs();
        let request = submission(&random::request_id(), tree, number, size);
        async move {
            let asked = Instant::now();
            runs.submit_run(request).await?;
            Ok(asked.elapsed())
        }
    }

    /// The pipeline that everything runs, uploaded.
    #[must_use]
    pub fn tree(&self) -> &str {
        &self.tree
    }

    fn apis(&self, clients: usize) -> Result<Vec<Api>> {
        (0..clients.clamp(1, super::CONNECTIONS))
            .map(|_| self.farm.api(self.leader))
            .collect()
    }

    /// Submissions one by one.
    ///
    /// # Errors
    /// One was refused.
    pub async fn unary(&self, clients: usize, time: Duration, size: usize) -> Result<Figure> {
        let apis: Vec<_> = self.apis(clients)?.iter().map(Api::runs).collect();
        let (tree, prefix) = (self.tree.clone(), self.prefix.clone());
        closed(clients, time, 1, move |client, number| {
            let mut runs = apis[client % apis.len()].clone();
            let request = submission(&prefix, &tree, number, size);
            async move {
                runs.submit_run(request).await?;
                Ok(())
            }
        })
        .await
    }

    /// Submissions by streams, [`BATCH`] in a message, one message of each stream on its way.
    ///
    /// # Errors
    /// One was refused.
    pub async fn streamed(&self, streams: usize, time: Duration, size: usize) -> Result<Figure> {
        let mut open = Vec::new();
        for api in self.apis(streams)?.iter().cycle().take(streams) {
            let (ask, asked) = mpsc::channel(1);
            let answers = api.runs().submit_runs(ReceiverStream::new(asked)).await?;
            open.push(Arc::new(Mutex::new((ask, answers.into_inner()))));
        }
        let (tree, prefix) = (self.tree.clone(), self.prefix.clone());
        closed(streams, time, BATCH, move |client, number| {
            let stream = Arc::clone(&open[client]);
            let submissions = (number..number + BATCH)
                .map(|number| submission(&prefix, &tree, number, size))
                .collect();
            async move {
                let (ask, answers) = &mut *stream.lock().await;
                ask.send(SubmitRunsRequest { submissions }).await?;
                let mut missing = BATCH;
                while missing > 0 {
                    let results = answers
                        .message()
                        .await?
                        .context("the stream ended")?
                        .results;
                    for result in &results {
                        ensure!(result.error.is_none(), "{:?}", result.error);
                    }
                    missing -= results.len() as u64;
                }
                Ok(())
            }
        })
        .await
    }

    /// From a submission to the worker's process that holds its first task.
    ///
    /// # Errors
    /// A call failed or a task was never begun.
    pub async fn starts(&self, a_second: u32, time: Duration, size: usize) -> Result<Figure> {
        let address = self.farm.members().swap_remove(self.leader - 1);
        let args = ["worker", address.as_str()];
        let worker = Claimer::start(&args, self.farm.token("worker")).await?;
        let apis: Vec<_> = self
            .apis(super::CONNECTIONS)?
            .iter()
            .map(Api::runs)
            .collect();
        let round = random::request_id();
        let asked = steady(a_second, time, |number| {
            let mut runs = apis[usize::try_from(number).unwrap_or(0) % apis.len()].clone();
            let request = submission(&round, &self.tree, number, size);
            async move {
                let at = stamp();
                let run = runs.submit_run(request).await?.into_inner().id;
                Ok((run, at))
            }
        })
        .await?;
        worker
            .figure(asked.into_iter().collect(), time.as_secs_f64())
            .await
    }

    /// Ends the processes.
    ///
    /// # Errors
    /// They do not end.
    pub async fn finish(self) -> Result<()> {
        self.farm.finish().await.context("end the farm")
    }
}

/// A submission of this encoded size, for one of the teams.
fn submission(prefix: &str, tree: &str, number: u64, size: usize) -> SubmitRunRequest {
    let mut request = SubmitRunRequest {
        request_id: format!("{prefix}-{number:x}"),
        team: format!("t{}", number % TEAMS as u64),
        tree: tree.to_owned(),
        ..SubmitRunRequest::default()
    };
    request.inputs.insert("note".into(), String::new());
    let room = size.saturating_sub(request.encoded_len() + 2);
    request.inputs.insert("note".into(), "x".repeat(room));
    request
}
