//! Who gets work: shares, quotas, bands, groups, the reserve, and why a task waits.
//!
//! Seeds of failing cases are printed by proptest; shares are what an operator would count.

use std::time::Duration;

use oast_model::class::Kind;
use oast_model::ledger::{Command, Ledger};
use oast_model::pipeline::Pipeline;
use oast_model::priority::{Band, Priority};
use oast_model::schedule::{Rules, Waiting, waiting};
use oast_model::task::{Outcome, Report};
use proptest::prelude::*;

#[path = "scheduling/farm.rs"]
mod farm;
#[path = "scheduling/random.rs"]
mod random;

use farm::{Farm, pipeline, team};

fn name(place: usize) -> String {
    format!("team-{place}")
}

/// A farm in which every team always wants more.
fn crowded(weights: &[u32], slots: u32) -> Farm {
    let mut farm = Farm::new();
    for (place, weight) in weights.iter().enumerate() {
        farm.team(&name(place), *weight, None);
    }
    farm.worker("w", slots);
    for _ in 0..slots + 2 {
        for place in 0..weights.len() {
            farm.submit(&name(place), None);
        }
    }
    farm
}

fn why(farm: &Farm, run: oast_model::ids::RunId) -> Waiting {
    let tasks = &farm.ledger.runs().get(&run).expect("open").tasks;
    let task = tasks.last().and_then(|id| farm.ledger.tasks().get(id));
    waiting(
        &farm.ledger,
        task.expect("a run has a task"),
        &farm.sessions,
        &farm.rules,
        farm.now,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever ends when: each team holds its share, rounded down or up.
    #[test]
    fn every_team_holds_its_share_to_one_slot(
        weights in proptest::collection::vec(1u32..=5, 2..6),
        slots in 1u32..12,
        ends in proptest::collection::vec(any::<prop::sample::Index>(), 60),
    ) {
        let mut farm = crowded(&weights, slots);
        let total: u32 = weights.iter().sum();
        let mut live = Vec::new();
        for end in ends {
            live.extend(farm.turn().into_iter().map(|(token, grant)| (token, grant.team)));
            prop_assert_eq!(live.len(), slots as usize, "no slot stays empty");
            for (place, weight) in weights.iter().enumerate() {
                let held = farm.held(&name(place));
                let (least, most) = (slots * weight / total, (slots * weight).div_ceil(total));
                prop_assert!(
                    (least..=most).contains(&held),
                    "team {} of weight {} of {} holds {} of {} slots", place, weight, total, held, slots
                );
            }
            let (token, of) = live.swap_remove(end.index(live.len()));
            farm.end(token);
            farm.submit(of.as_str(), None);
        }
    }

    /// In the long run fractions of a slot go round by weight: between any two teams the counts
    /// differ from their weights by at most one grant of each.
    #[test]
    fn one_slot_goes_round_by_weight(
        weights in proptest::collection::vec(1u32..=5, 2..6),
    ) {
        let mut farm = crowded(&weights, 1);
        let mut grants = vec![0u32; weights.len()];
        for _ in 0..200 {
            let granted = farm.turn();
            prop_assert_eq!(granted.len(), 1);
            let (token, grant) = &granted[0];
            let place = (0..weights.len()).find(|p| name(*p) == grant.team.as_str()).expect("known");
            grants[place] += 1;
            farm.end(*token);
            farm.submit(&name(place), None);
            for (a, b) in (0..weights.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
                let difference = (grants[a] * weights[b]).abs_diff(grants[b] * weights[a]);
                prop_assert!(
                    difference <= weights[a] + weights[b],
                    "{:?} grants for weights {:?}", grants, weights
                );
            }
        }
    }

    /// A team that wants little is served although others want everything, in every band.
    #[test]
    fn nobody_is_starved_in_a_band(
        weights in proptest::collection::vec(1u32..=5, 2..6),
        slots in 1u32..4,
        wave in 1u32..4,
    ) {
        let mut farm = crowded(&weights, slots);
        farm.team("small", 1, None);
        let total: u32 = weights.iter().sum::<u32>() + 1;
        let mut live = std::collections::VecDeque::new();
        for _ in 0..wave {
            live.extend(farm.turn());
            let run = farm.submit("small", None);
            // Everything that is held ends once, then every share comes round.
            let mut patience = slots + total + 1;
            while why(&farm, run) != Waiting::Next && farm.held("small") == 0 {
                prop_assert!(patience > 0, "{:?}", why(&farm, run));
                patience -= 1;
                let (token, grant) = live.pop_front().expect("slots are held");
                farm.end(token);
                farm.submit(grant.team.as_str(), None);
                live.extend(farm.turn());
            }
            while let Some(place) = live.iter().position(|(_, grant)| grant.team.as_str() == "small") {
                let (token, _) = live.remove(place).expect("just found");
                farm.end(token);
            }
        }
    }
}

#[test]
fn the_same_state_gives_the_same_grants_in_the_same_order() {
    let mut farm = crowded(&[1, 2, 3], 4);
    farm.worker("v", 3);
    farm.worker("x", 3);
    let first = farm.wanted();
    assert_eq!(first.len(), 10);
    assert_eq!(farm.wanted(), first);
    let mut turned = farm.clone();
    turned.sessions.reverse();
    assert_eq!(turned.wanted(), first);
    turned.reload();
    assert_eq!(turned.wanted(), first);
}

#[test]
fn a_higher_band_is_served_before_every_lower_one() {
    let mut farm = Farm::new();
    farm.team("a", 1, None);
    farm.team("b", 1, None);
    farm.worker("w", 1);
    farm.submit("a", Some(Priority::Batch));
    farm.submit("a", None);
    farm.submit("b", Some(Priority::Interactive));
    farm.submit("a", Some(Priority::Interactive));
    let mut bands = Vec::new();
    for _ in 0..4 {
        let granted = farm.turn();
        assert_eq!(granted.len(), 1);
        bands.push(granted[0].1.band);
        farm.end(granted[0].0);
    }
    let expected = [
        Band::Interactive,
        Band::Interactive,
        Band::Normal,
        Band::Batch,
    ];
    assert_eq!(bands, expected);
}

#[test]
fn a_quota_is_held_by_the_scheduler_and_by_apply() {
    let mut farm = Farm::new();
    farm.team("a", 1, Some((1, 1)));
    farm.worker("w", 8);
    let runs: Vec<_> = (0..4).map(|_| farm.submit("a", None)).collect();
    let granted = farm.turn();
    assert_eq!(granted.len(), 2, "its own slot and a borrowed one");
    assert_eq!(
        why(&farm, runs[3]).to_string(),
        "team `a` holds 2 slots; its quota is 1 and 1 borrowed"
    );
    // A leader that does not know better is refused.
    let mut third = granted[0].1.clone();
    third.task = farm.ledger.runs().get(&runs[3]).expect("open").tasks[0];
    assert!(farm.grant(&third).is_err());
    assert!(farm.ledger.quota_violations().is_empty());
    // A lower quota takes nothing away and binds what comes after.
    farm.team("a", 1, Some((1, 0)));
    assert_eq!(farm.held("a"), 2);
    assert!(farm.ledger.quota_violations().is_empty());
    farm.end(granted[0].0);
    assert!(farm.turn().is_empty());
    farm.end(granted[1].0);
    assert_eq!(farm.turn().len(), 1);
}

#[test]
fn borrowers_come_after_teams_within_their_quota() {
    let mut farm = Farm::new();
    farm.team("a", 1, Some((1, 3)));
    farm.team("b", 1, Some((3, 0)));
    farm.worker("w", 4);
    for _ in 0..4 {
        farm.submit("a", None);
    }
    for _ in 0..4 {
        farm.submit("b", None);
    }
    farm.turn();
    assert_eq!((farm.held("a"), farm.held("b")), (1, 3));
}

#[test]
fn slots_are_kept_for_repairs_and_the_reason_says_so() {
    let mut farm = Farm::new();
    farm.rules = Rules { reserve: 2 };
    farm.team("a", 1, None);
    farm.worker("w", 8);
    let runs: Vec<_> = (0..9).map(|_| farm.submit("a", None)).collect();
    assert_eq!(farm.turn().len(), 6);
    assert_eq!(why(&farm, runs[8]), Waiting::Reserve(2));
    // Workers that carry out no batches keep nothing back.
    farm.specialist("v", 2, &["source"]);
    assert_eq!(farm.turn().len(), 2);
    // A small farm keeps nothing back.
    let mut small = Farm::new();
    small.rules = Rules { reserve: 2 };
    small.team("a", 1, None);
    small.worker("w", 3);
    for _ in 0..4 {
        small.submit("a", None);
    }
    assert_eq!(small.turn().len(), 3);
}

fn last_task(farm: &Farm, run: oast_model::ids::RunId) -> oast_model::ids::TaskId {
    let run = farm.ledger.runs().get(&run).expect("open");
    *run.tasks.last().expect("a run has a task")
}

fn grouped(farm: &mut Farm, more: &str) -> oast_model::ids::RunId {
    let run = farm.submit("a", None);
    let granted = farm.turn();
    let (token, _) = granted
        .iter()
        .find(|(_, grant)| grant.kind == Kind::Source)
        .expect("its source task");
    let read: Pipeline = pipeline("a", more);
    farm.source_done(*token, read);
    run
}

#[test]
fn runs_of_a_group_go_on_one_after_the_other() {
    let more = "concurrency: { group: deploy }\n";
    let mut farm = Farm::new();
    farm.team("a", 1, None);
    farm.worker("w", 8);
    let first = grouped(&mut farm, more);
    let bake = farm.turn();
    assert_eq!(bake.len(), 1);
    let second = grouped(&mut farm, more);
    let third = grouped(&mut farm, more);
    assert!(farm.wanted().is_empty());
    assert_eq!(
        why(&farm, second).to_string(),
        format!("run {first} holds the concurrency group `deploy`")
    );
    // Apply refuses what the scheduler would not ask for.
    let mut early = bake[0].1.clone();
    early.task = last_task(&farm, second);
    assert!(farm.grant(&early).is_err());
    farm.end(bake[0].0);
    let next = farm.turn();
    assert_eq!(next.len(), 1);
    assert_eq!(last_task(&farm, second), next[0].1.task);
    assert!(matches!(why(&farm, third), Waiting::Group { run: Some(run), .. } if run == second));
    assert!(farm.ledger.index_holds());
}

#[test]
fn a_newer_run_ends_the_older_ones_of_its_group() {
    let more = "concurrency: { group: deploy, cancelInProgress: true }\n";
    let mut farm = Farm::new();
    farm.team("a", 1, None);
    farm.worker("w", 8);
    let first = grouped(&mut farm, more);
    assert_eq!(farm.turn().len(), 1, "the first bakes");
    let second = grouped(&mut farm, more);
    assert!(farm.ledger.runs().get(&first).is_none());
    assert!(farm.ledger.leases().is_empty());
    assert_eq!(farm.turn().len(), 1, "the second bakes");
    assert!(farm.ledger.runs().get(&second).is_some());
    assert!(farm.ledger.index_holds());
}

#[test]
fn a_task_that_waits_says_how_many_come_first() {
    let mut farm = Farm::new();
    farm.team("a", 1, None);
    farm.team("b", 1, None);
    let lonely = farm.submit("a", None);
    assert_eq!(why(&farm, lonely), Waiting::NoWorker);
    farm.specialist("v", 1, &["bake"]);
    assert_eq!(
        why(&farm, lonely).to_string(),
        "no connected worker can do a source task"
    );
    farm.worker("w", 1);
    farm.submit("a", None);
    farm.submit("b", None);
    let last = farm.submit("a", None);
    farm.turn();
    assert_eq!(
        why(&farm, last).to_string(),
        "the one worker that can do it is busy; after 1 task of its team in band normal, where the share of 1 other team is due first"
    );
}

#[test]
fn a_grant_on_its_way_counts_until_it_is_refused() {
    let mut farm = Farm::new();
    farm.team("a", 1, Some((1, 0)));
    farm.team("b", 1, None);
    farm.worker("w", 2);
    for _ in 0..2 {
        farm.submit("a", None);
        farm.submit("b", None);
    }
    let wanted = farm.wanted();
    assert_eq!(wanted.len(), 2);
    let before = farm.overlay.clone();
    for grant in &wanted {
        farm.overlay.assume(grant.clone());
    }
    assert!(farm.wanted().is_empty(), "every slot is on its way");
    for grant in &wanted {
        farm.overlay.settle(grant.task, false);
    }
    assert!(farm.overlay.is_empty() && before.is_empty());
    assert_eq!(farm.wanted(), wanted, "as if it had never been");
}

#[test]
fn a_task_after_an_error_is_ready_when_its_time_has_come_without_any_command() {
    let mut farm = Farm::new();
    farm.team("a", 1, None);
    farm.worker("w", 2);
    let run = farm.submit("a", None);
    let (token, _) = farm.turn()[0].clone();
    let outcome = Outcome::Errored {
        reason: "the disk is full".into(),
    };
    farm.report(token, Report::Finished(outcome)).expect("live");
    assert!(farm.wanted().is_empty());
    assert!(matches!(why(&farm, run), Waiting::Backoff(_)));
    let due = farm.ledger.index().next_ready(farm.now).expect("it waits");
    farm.now = due;
    assert_eq!(farm.wanted().len(), 1);
    assert_eq!(why(&farm, run), Waiting::Next);
    assert!(farm.ledger.index_holds());
}

#[test]
fn finished_runs_are_pruned_once_and_never_while_something_refers_to_them() {
    use oast_model::ledger::{Pruned, RUN};
    use oast_model::resource::Retention;
    use oast_model::retention::{Ended, Sweep};

    let mut farm = Farm::new();
    farm.team("a", 1, None);
    farm.worker("w", 4);
    let mut records = Vec::new();
    for number in 1..=5 {
        let run = farm.submit("a", None);
        let (token, _) = farm.turn()[0].clone();
        farm.end(token);
        records.push(Ended {
            number,
            kind: RUN,
            id: run.0,
            team: team("a"),
            at: farm.now,
        });
    }
    let open = farm.submit("a", None);
    farm.drain();
    assert_eq!(
        farm.ledger.finished().get(&team("a")).map(|kept| kept.runs),
        Some(5)
    );
    let policy = Retention { runs: 3, days: 7 };
    let sweep = |farm: &Farm, records: &[Ended]| {
        Sweep::begin(&farm.ledger, &policy)
            .judge(&farm.ledger, &policy, records, farm.now)
            .0
    };
    let gone = sweep(&farm, &records);
    assert_eq!(
        gone.iter().map(|gone| gone.number).collect::<Vec<_>>(),
        [1, 2]
    );
    let before = farm.ledger.farm().history;
    farm.decide(Command::PruneHistory { records: gone });
    assert_ne!(farm.ledger.farm().history, before);
    assert_eq!(farm.drain().pruned, [1, 2]);
    assert!(sweep(&farm, &records[2..]).is_empty());
    farm.pass(Duration::from_secs(8 * 24 * 60 * 60));
    assert_eq!(sweep(&farm, &records[2..]).len(), 3, "all are too old");
    // What something refers to is not among the newest three, and no newer one goes in its place.
    let kept = Ended {
        id: open.0,
        ..records[0].clone()
    };
    let with_kept = [&[kept], &records[1..]].concat();
    let fewer = Retention { runs: 2, days: 365 };
    let gone = Sweep::begin(&farm.ledger, &fewer)
        .judge(&farm.ledger, &fewer, &with_kept, farm.now)
        .0;
    assert_eq!(gone, []);
    let forged = Pruned {
        number: 6,
        kind: RUN,
        id: open.0,
        team: team("a"),
    };
    let command = Command::PruneHistory {
        records: vec![forged],
    };
    assert!(
        farm.ask(oast_model::principal::Principal::farm(), None, command)
            .is_err(),
        "it is open"
    );
}

/// The other tests would pass on an index that is never right.
#[test]
fn an_index_that_missed_something_is_found() {
    let farm = crowded(&[1], 1);
    assert!(farm.ledger.index_holds());
    let mut stale = Ledger::for_loading();
    let mut drained = farm.ledger.clone();
    drained.drain();
    for (key, value) in drained.records() {
        stale.load(&key, &value).expect("readable");
    }
    assert!(!stale.index_holds(), "it was never built");
}

/// A run whose bake failed at its last step, as the history keeps it.
fn failed_run(farm: &mut Farm) -> oast_model::ledger::RunRecord {
    use oast_model::bake::Layer;
    use oast_model::digest::Digest;
    use oast_model::pipeline::{Action, Run, Step};

    let run = farm.submit("a", Some(Priority::Interactive));
    let (token, _) = farm.turn()[0].clone();
    let mut read = pipeline("a", "");
    for command in ["install", "configure", "check"] {
        read.bake.steps.push(Step {
            name: Some(command.into()),
            ..Step::new(Action::Run(Run::new(command.to_owned())))
        });
    }
    farm.source_done(token, read);
    let (token, grant) = farm.turn()[0].clone();
    for (step, key) in (0..).zip(["base", "install", "configure"]) {
        farm.report(token, Report::StepStarted { step })
            .expect("next");
        let layer = Layer {
            key: Digest::of(key.as_bytes()),
            parent: None,
            manifest: Digest::of(b"manifest"),
            size: 1,
            title: key.into(),
            worker: grant.worker.clone(),
            made_at: farm.now,
        };
        let done = Report::StepFinished {
            step,
            layer,
            cached: false,
            took_ms: 1,
        };
        farm.report(token, done).expect("next");
    }
    farm.drain();
    farm.end(token);
    let mut history = farm.drain().history;
    let record = history.pop().expect("the run ended");
    assert_eq!(record.id, run.0);
    oast_model::codec::decode(&record.bytes).expect("a run's record")
}

#[test]
fn a_retry_goes_on_behind_the_finished_steps_of_the_old_run() {
    use oast_model::ledger::{Answer, RetryProblem, RetryRun};
    use oast_model::principal::Principal;
    use oast_model::task::{StepPhase, Work};

    let mut farm = Farm::new();
    farm.team("a", 1, None);
    farm.worker("w", 1);
    let record = failed_run(&mut farm);
    let old = record.run.id;

    let whatever_failed = RetryRun::of(&record, None).expect("it failed");
    assert_eq!(whatever_failed.steps.len(), 3, "base and two steps");
    let second = RetryRun::of(&record, Some("2")).expect("it has a second step");
    assert_eq!(second.steps.len(), 2, "base and the first step");
    let by_title = RetryRun::of(&record, Some(&record.tasks[1].steps[2].title));
    assert_eq!(by_title.map(|retry| retry.steps), Ok(second.steps.clone()));
    assert!(matches!(
        RetryRun::of(&record, Some("4")),
        Err(RetryProblem::NoSuchStep { last: 3, .. })
    ));

    let command = Command::RetryRun(Box::new(second));
    let Answer::Run(run) = farm.decide(command) else {
        panic!("no run")
    };
    let new = farm.ledger.runs().get(&run).expect("open");
    assert_eq!(new.retry_of, Some(old));
    assert_eq!(
        (new.tree, new.priority),
        (record.run.tree, Some(Priority::Interactive))
    );
    let granted = farm.turn();
    let (token, grant) = &granted[0];
    assert_eq!((grant.kind, grant.band), (Kind::Bake, Band::Interactive));
    let task = farm.ledger.tasks().get(&grant.task).expect("leased");
    let done: Vec<bool> = task
        .steps
        .iter()
        .map(|step| matches!(step.phase, StepPhase::Done { cached: true, .. }))
        .collect();
    assert_eq!(done, [true, true, false, false]);
    let assignment = farm.ledger.assignment(*token).expect("work");
    assert!(matches!(assignment.work, Work::Bake { done, .. } if done.len() == 2));
    assert!(farm.ledger.index_holds());

    // Neither an open run nor one that never was.
    let mut wrong = whatever_failed.clone();
    wrong.run = run;
    for retry in [
        wrong.clone(),
        RetryRun {
            run: oast_model::ids::RunId(oast_model::ids::Seq::from_u64(1 << 40)),
            ..wrong
        },
    ] {
        let command = Command::RetryRun(Box::new(retry));
        assert!(farm.ask(Principal::farm(), None, command).is_err());
    }
}
