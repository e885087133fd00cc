//! Random faults in real processes under a running load: whatever was acknowledged is there once,
//! and is done once.
//!
//! Members are killed, frozen and cut off, in one direction or both, and their disks fail; workers are
//! killed and frozen. `OAST_FAULT_SEED` has a failure again as far as real processes allow, `OAST_FAULT_ROUNDS` and
//! `OAST_FAULT_FREEZE_MS` make it longer and rougher than CI has time for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use oast_proto::v1::ListResourcesRequest;
use oast_tests::api::call;
use oast_tests::counter::Counter;
use oast_tests::dice::Dice;
use oast_tests::farm::{FREEZE, Farm, GO_ON, Plan, START};
use oast_tests::faults::{self, EIO, ENOSPC};
use oast_tests::load::{Acknowledged, Client, HEALED, ended, judge};
use oast_tests::need;
use oast_tests::wait::{seen, until};

/// Work is baked; the crowd's runs end in their source task, one at a time.
const TEAMS: [&str; 2] = [
    "apiVersion: oast/v1\nkind: Team\nname: demo\nspec: {}\n",
    "apiVersion: oast/v1\nkind: Team\nname: crowd\nspec: { quota: { slots: 1 } }\n",
];
/// Rounds unless asked for more.
const ROUNDS: u64 = 50;
/// Longest freeze in milliseconds unless asked for more: longer than a lease lives (3 s).
const FREEZE_MS: u64 = 4_000;
/// Different steps among the work: each leaves a disk on the workers that baked it.
const MARKS: u64 = 4;
/// Clients of the crowd.
const CROWD: usize = 3;
const MEMBERS: [&str; 3] = ["member-1", "member-2", "member-3"];
const WORKERS: [&str; 2] = ["worker-1", "worker-2"];

/// What is done to a farm in one round.
#[derive(Debug)]
enum Fault {
    /// SIGKILL, and a new start after that time.
    Kill(Vec<&'static str>, Duration),
    /// SIGSTOP, and SIGCONT after that time.
    Freeze(&'static str, Duration),
    /// Nothing gets from the first to the second of each pair for that time; 0 is the test and the
    /// workers.
    Cut(Vec<(usize, usize)>, Duration),
    /// The disk of a member fails with that number for that time.
    Disk(&'static str, faults::Fault, i32, Duration),
}

#[tokio::test(flavor = "multi_thread")]
async fn under_random_faults_what_was_acknowledged_is_done_once() -> Result<()> {
    let test = "under_random_faults_what_was_acknowledged_is_done_once";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    if !need::have(need::program("cc"), "a C compiler", test) {
        return Ok(());
    }
    let mut dice = Dice::from_env("OAST_FAULT_SEED");
    let rounds = number("OAST_FAULT_ROUNDS", ROUNDS)?;
    let freeze = number("OAST_FAULT_FREEZE_MS", FREEZE_MS)?;
    let counter = Counter::start()?;
    let everything = ["source", "bake", "test", "publish"];
    let cuts = need::have(need::root() && need::program("nft"), "root and nft", test);
    let mut plan = Plan::new(&oast);
    if cuts {
        plan = plan.networks();
    }
    let farm = plan
        .faulty_disks()
        .worker(&everything)
        .worker(&everything)
        .worker_extra(&format!(
            "[bake]\nproxy_allow = [\"{}\"]\n",
            counter.address()
        ))
        .package_cache(need::cache())
        .start()
        .await?;
    for team in TEAMS {
        farm.apply(team).await?;
    }
    let api = farm.api(1)?;
    let work = Client {
        name: "work".into(),
        team: "demo",
        tree: api.upload(&[("oast.yaml", &pipeline(&counter))]).await?,
        marks: MARKS,
        pace: Duration::from_secs(1),
    };
    let tree = api.upload(&[("oast.yaml", "name: [")]).await?;
    let crowd: Vec<Client> = (0..CROWD)
        .map(|number| Client {
            name: format!("crowd-{number}"),
            team: "crowd",
            tree: tree.clone(),
            marks: 0,
            pace: Duration::from_millis(200),
        })
        .collect();
    // The base is baked in peace; what follows takes it from the cache.
    let first = Client {
        name: "first".into(),
        ..work.clone()
    };
    let first = first.submit(&farm, 0).await?;
    farm.explain(ended(&farm, &first.run, 1, START * 3).await)?;

    let over = AtomicBool::new(false);
    let began = Instant::now();
    let load = async {
        let (work, a, b, c) = tokio::join!(
            work.submit_until(&farm, &over),
            crowd[0].submit_until(&farm, &over),
            crowd[1].submit_until(&farm, &over),
            crowd[2].submit_until(&farm, &over),
        );
        anyhow::Ok((work?, [a?, b?, c?].concat()))
    };
    let faults = async {
        let done = rounds_of(&farm, &mut dice, rounds, (freeze, cuts)).await;
        over.store(true, Ordering::Relaxed);
        done
    };
    let (load, broken) = tokio::join!(load, faults);
    farm.explain(broken)?;
    let (mut work, crowd) = farm.explain(load)?;
    work.push(first);
    let broken = began.elapsed();
    let judged = judge_all(&farm, &work, &crowd, &counter).await;
    farm.explain(judged)?;
    println!(
        "{rounds} rounds in {broken:.0?}, {} submissions of which {} were baked: nothing lost, nothing twice; all had ended {:.0?} later",
        work.len() + crowd.len(),
        work.len(),
        began.elapsed() - broken,
    );
    farm.finish().await
}

fn number(variable: &str, usual: u64) -> Result<u64> {
    let given = std::env::var(variable).ok();
    let number = given.map(|text| text.parse().context(variable.to_owned()));
    number.unwrap_or(Ok(usual))
}

/// A step that tells the counter what it was given.
fn pipeline(counter: &Counter) -> String {
    format!(
        r#"apiVersion: oast/v1
name: web
team: demo
inputs:
  mark: {{ type: string, required: true }}
bake:
  from: debian-12
  steps:
    - env: {{ MARK: "${{{{ inputs.mark }}}}" }}
    - run:
        shell: /bin/bash -e
        command: |
          exec 3<>/dev/tcp/127.0.0.1/${{http_proxy##*:}}
          printf 'GET http://{}/%s HTTP/1.0\r\n\r\n' "$MARK" >&3
          head -n 1 <&3 | grep -q ' 200 '
publish: {{ image: web, channel: candidate }}
"#,
        counter.address()
    )
}

async fn rounds_of(
    farm: &Farm,
    dice: &mut Dice,
    rounds: u64,
    (freeze, cuts): (u64, bool),
) -> Result<()> {
    for round in 1..=rounds {
        let fault = match cuts && dice.below(4) == 0 {
            true => cut(dice),
            false => fault(dice, freeze),
        };
        let began = Instant::now();
        match &fault {
            Fault::Kill(names, pause) => {
                for name in names {
                    farm.kill(name).await?;
                }
                tokio::time::sleep(*pause).await;
                for name in names {
                    farm.begin(name).await?;
                }
            }
            Fault::Freeze(name, time) => {
                farm.signal(name, FREEZE)?;
                tokio::time::sleep(*time).await;
                farm.signal(name, GO_ON)?;
            }
            Fault::Cut(pairs, time) => {
                farm.cut(pairs).await?;
                tokio::time::sleep(*time).await;
                farm.mend().await?;
            }
            Fault::Disk(name, fault, number, time) => {
                farm.fault(name, Some((*fault, *number)))?;
                tokio::time::sleep(*time).await;
                farm.fault(name, None)?;
            }
        }
        healed(farm)
            .await
            .with_context(|| format!("after {fault:?}"))?;
        println!(
            "round {round}: {fault:?}, healed after {:.1?}",
            began.elapsed()
        );
    }
    Ok(())
}

/// Waits until every process lives and every member answers. Who stopped by itself is started
/// again.
async fn healed(farm: &Farm) -> Result<()> {
    let wait = until("everybody lives and answers", START, async || {
        for name in farm.names() {
            if farm.life(&name).pid.is_none() {
                farm.begin(&name).await?;
            }
        }
        for id in 1..=MEMBERS.len() {
            let mut list = call(ListResourcesRequest::default());
            list.set_timeout(Duration::from_secs(2));
            let answer = farm.api(id)?.resources().list_resources(list).await;
            if let Err(status) = answer {
                return Ok(seen(None, format!("member {id}: {status}")));
            }
        }
        Ok(seen(Some(()), ""))
    });
    wait.await
}

fn fault(dice: &mut Dice, freeze: u64) -> Fault {
    let pause = Duration::from_millis(dice.below(500));
    match dice.below(20) {
        0..=5 => Fault::Kill(vec![dice.one(&MEMBERS)], pause),
        6..=8 => Fault::Kill(vec![dice.one(&WORKERS)], pause),
        9..=10 => Fault::Kill(vec![dice.one(&MEMBERS), dice.one(&WORKERS)], pause),
        11 => Fault::Kill(MEMBERS[1..].to_vec(), pause),
        12..=13 => Fault::Kill(MEMBERS.to_vec(), pause),
        14 => Fault::Disk(dice.one(&MEMBERS), faults::Fault::Sync, EIO, pause),
        15 => Fault::Disk(dice.one(&MEMBERS), faults::Fault::Write, EIO, pause),
        16..=17 => Fault::Disk(dice.one(&MEMBERS), faults::Fault::Write, ENOSPC, pause),
        18 => Fault::Freeze(dice.one(&MEMBERS), frozen(dice, freeze)),
        _ => Fault::Freeze(dice.one(&WORKERS), frozen(dice, freeze)),
    }
}

/// One member is heard by nobody, hears nobody, or both; or one way between two members is cut.
fn cut(dice: &mut Dice) -> Fault {
    let one = dice.one(&[1, 2, 3]);
    let others: Vec<usize> = (0..=MEMBERS.len()).filter(|other| *other != one).collect();
    let out = others.iter().map(|other| (one, *other));
    let back = others.iter().map(|other| (*other, one));
    let pairs = match dice.below(4) {
        0 => out.collect(),
        1 => back.collect(),
        2 => out.chain(back).collect(),
        _ => vec![(one, one % MEMBERS.len() + 1)],
    };
    Fault::Cut(pairs, Duration::from_millis(300 + dice.below(2_500)))
}

fn frozen(dice: &mut Dice, most: u64) -> Duration {
    Duration::from_millis(most / 4 + dice.below(most - most / 4))
}

async fn judge_all(
    farm: &Farm,
    work: &[Acknowledged],
    crowd: &[Acknowledged],
    counter: &Counter,
) -> Result<()> {
    let mut attempts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut versions = BTreeSet::new();
    for one in work {
        let run = ended(farm, &one.run, 1, HEALED).await?;
        ensure!(run.phase == "succeeded", "{one:?}: {run:?}");
        versions.insert(run.version.clone());
        let bake = run.tasks.iter().find(|task| task.kind == "bake");
        *attempts.entry(&one.mark).or_default() += bake.context("a bake")?.attempts.len();
    }
    // An attempt that was cut between the step's deed and its record does the step again; what
    // was recorded is never done again.
    for (mark, counted) in counter.counts() {
        let most = attempts.get(mark.as_str()).copied().unwrap_or_default();
        ensure!(
            (1..=most).contains(&(counted as usize)),
            "{mark}: the step ran {counted} times in {most} attempts"
        );
    }
    for one in crowd {
        let run = ended(farm, &one.run, 1, HEALED).await?;
        ensure!(run.phase == "failed", "{one:?}: {run:?}");
    }
    judge(farm, "demo", work).await?;
    judge(farm, "crowd", crowd).await?;
    // One version of the image for each run, and no other.
    let wanted: BTreeSet<String> = (1..=work.len()).map(|n| format!("web:{n}")).collect();
    ensure!(
        versions == wanted,
        "{} runs published {versions:?}",
        work.len()
    );
    Ok(())
}
