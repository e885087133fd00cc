//! Careful clients, and the judgement about what they were told: every acknowledged submission is
//! there once, on every member, and nothing is there that was not asked for.
//!
//! A client asks with the same request id at one member after the other until it is answered. The
//! number of a submission travels as the commit of its run, so that a run that was made twice is
//! seen to be.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oast_model::digest::Digest;
use oast_proto::v1::{GetRunRequest, ListRunsRequest, Run, SubmitRunRequest};

use crate::api::call;
use crate::farm::{Farm, START};
use crate::wait::{Seen, seen, until};

/// How long a client waits for one member before it asks another.
const PATIENCE: Duration = Duration::from_secs(2);
/// Runs in a page of a list.
const PAGE: u32 = 500;
/// How long everything may take to end once nothing is broken any more.
pub const HEALED: Duration = Duration::from_secs(180);

/// Somebody who submits one run after the other.
#[derive(Clone, Debug)]
pub struct Client {
    /// Names its requests; no two clients of a farm have the same.
    pub name: String,
    pub team: &'static str,
    /// What is run.
    pub tree: String,
    /// Each run gets the input `mark`, of this many different ones; 0: no input.
    pub marks: u64,
    /// Time between an answer and the next submission.
    pub pace: Duration,
}

/// A submission that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    pub run: String,
    /// The commit that it was submitted with.
    pub commit: String,
    pub mark: String,
}

impl Client {
    /// Submits until it is over. Whatever was begun is acknowledged in the end.
    ///
    /// # Errors
    /// A submission found no member that takes it.
    pub async fn submit_until(&self, farm: &Farm, over: &AtomicBool) -> Result<Vec<Acknowledged>> {
        let mut acknowledged = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let number = acknowledged.len() as u64;
            acknowledged.push(self.submit(farm, number).await?);
            tokio::time::sleep(self.pace).await;
        }
        Ok(acknowledged)
    }

    /// As a careful client does it: the same id again, at another member, until it is answered.
    ///
    /// # Errors
    /// Nobody took it in time.
    pub async fn submit(&self, farm: &Farm, number: u64) -> Result<Acknowledged> {
        let members = farm.members().len();
        let mut turn = usize::try_from(number)? % members;
        let submission = self.submission(number);
        let what = submission.request_id.clone();
        let run = until(&what, START, async || {
            turn = turn % members + 1;
            let mut request = call(submission.clone());
            request.set_timeout(PATIENCE);
            let answer = farm.api(turn)?.runs().submit_run(request).await;
            Ok(match answer {
                Ok(run) => Seen::This(run.into_inner().id),
                Err(status) => Seen::NotYet(format!("member {turn}: {status}")),
            })
        });
        Ok(Acknowledged {
            run: run.await?,
            commit: submission.commit,
            mark: submission.inputs.get("mark").cloned().unwrap_or_default(),
        })
    }

    /// Its submission of that number.
    #[must_use]
    pub fn submission(&self, number: u64) -> SubmitRunRequest {
        let what = format!("submission {} {number}", self.name);
        let commit = Digest::of(what.as_bytes()).to_string()[..40].to_owned();
        let mark = number.checked_rem(self.marks);
        let mark = mark.map(|mark| ("mark".to_owned(), format!("mark-{mark}")));
        SubmitRunRequest {
            request_id: what,
            team: self.team.to_owned(),
            tree: self.tree.clone(),
            commit,
            inputs: mark.into_iter().collect(),
            ..SubmitRunRequest::default()
        }
    }
}

/// Waits for the end of a run, as a member shows it.
///
/// # Errors
/// It did not end in time.
pub async fn ended(farm: &Farm, run: &str, member: usize, limit: Duration) -> Result<Run> {
    until(&format!("the end of run {run}"), limit, async || {
        let request = GetRunRequest {
            run: run.to_owned(),
        };
        let run = farm.api(member)?.runs().get_run(call(request)).await?;
        let run = run.into_inner();
        let tasks: Vec<String> = run
            .tasks
            .iter()
            .map(|task| format!("{} {} {}", task.kind, task.phase, task.waiting))
            .collect();
        Ok(seen(run.ended.then(|| run.clone()), tasks.join(", ")))
    })
    .await
}

/// Compares what was acknowledged with what each member has of that team.
///
/// # Errors
/// Something is lost, doubled, or another's.
pub async fn judge(farm: &Farm, team: &str, acknowledged: &[Acknowledged]) -> Result<()> {
    let wanted: BTreeMap<&str, &str> = acknowledged
        .iter()
        .map(|one| (one.commit.as_str(), one.run.as_str()))
        .collect();
    ensure!(
        wanted.len() == acknowledged.len(),
        "the clients' own numbers are not unique"
    );
    for member in 1..=farm.members().len() {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for run in all_runs(farm, team, member).await? {
            found.entry(run.commit).or_default().push(run.id);
        }
        for (commit, run) in &wanted {
            let there = found.remove(*commit).unwrap_or_default();
            ensure!(
                there == [*run],
                "member {member} has {there:?} for a submission acknowledged as {run}"
            );
        }
        ensure!(
            found.is_empty(),
            "member {member} has runs that nobody was told of: {found:?}"
        );
    }
    Ok(())
}

async fn all_runs(farm: &Farm, team: &str, member: usize) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut token = String::new();
    loop {
        let request = ListRunsRequest {
            team: team.to_owned(),
            page_size: PAGE,
            page_token: token,
            ..ListRunsRequest::default()
        };
        let page = farm.api(member)?.runs().list_runs(call(request)).await;
        let page = page
            .with_context(|| format!("list the runs of team {team} at member {member}"))?
            .into_inner();
        runs.extend(page.runs);
        token = page.next_page_token;
        if token.is_empty() {
            return Ok(runs);
        }
    }
}
