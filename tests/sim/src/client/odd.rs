//! What is asked for seldom: everything beside submissions, registers and pushes.

use oast_model::digest::Digest;
use oast_model::ids::{RolloutId, RunId, Seq};
use oast_model::ledger::{Command, JoinToken, JoinWorker, RetryRun, RunRecord, SubmitRun};
use oast_model::names::TeamName;
use oast_model::principal::Role;
use oast_model::resource::{Fleet, Resource, ResourceKind};
use oast_model::task::Origin;

use super::{TEAMS, fleet, init, limited, repository};
use crate::recipe::name;
use crate::rng::Rng;
use crate::world::World;

/// An id that nothing has.
fn nothing() -> Seq {
    Seq::from_u64(1 << 40)
}

/// A run once more: a finished one, an open one, or one that never was.
fn retry(rng: &mut Rng, finished: &[RunRecord], open: &[RunId], team: TeamName) -> Command {
    let from = rng.chance(300).then_some("1");
    let old = match finished.is_empty() || rng.chance(200) {
        true => None,
        false => RetryRun::of(rng.pick(finished), from).ok(),
    };
    let retry = old.unwrap_or_else(|| RetryRun {
        run: match open.is_empty() || rng.chance(500) {
            true => RunId(nothing()),
            false => *rng.pick(open),
        },
        submit: SubmitRun {
            team,
            repository: None,
            origin: Origin::Upload {
                tree: Digest::of(b"again"),
                commit: None,
                dirty: false,
            },
            path: "oast.yaml".to_owned(),
            cause: "retry".to_owned(),
            inputs: [].into(),
            priority: None,
        },
        source: None,
        steps: Vec::new(),
        baked: None,
    });
    Command::RetryRun(Box::new(retry))
}

/// Tokens for workers, and workers that use them. Few, so that they are used twice.
fn join(rng: &mut Rng) -> Command {
    let token = Digest::of(&[rng.below(4) as u8]).to_string();
    match rng.below(5) {
        0 | 1 => Command::CreateJoinToken {
            hash: token,
            worker: None,
            ttl_ms: rng.range(1_000, 60_000),
        },
        2 => Command::RevokeJoinToken {
            id: JoinToken::id(&token).to_owned(),
        },
        _ => {
            let worker = rng.below(2);
            Command::JoinWorker(JoinWorker {
                token,
                worker: name(&format!("joiner-{worker}")),
                request_id: format!("join-{worker}"),
                key: Digest::of(b"key"),
                chain: vec![vec![1, 2, 3]],
            })
        }
    }
}

impl World {
    /// Everything that happens seldom.
    pub fn odd_job(&mut self, client: usize) -> (Role, Command) {
        let open: Vec<RunId> = self.oracle.ledger().runs().keys().copied().collect();
        let rollouts: Vec<RolloutId> = self.oracle.ledger().rollouts().keys().copied().collect();
        let versions: Vec<_> = self.oracle.ledger().versions().keys().cloned().collect();
        let (records, finished) = (self.oracle.prunable(), self.oracle.finished().cloned());
        let finished: Vec<RunRecord> = finished.collect();
        let supported = self.members.iter().map(|member| member.supports).min();
        let client = &mut self.clients[client];
        let rng = &mut client.rng;
        let role = match rng.below(10) {
            0 => Role::Viewer,
            1 => Role::Operator,
            _ => Role::Admin,
        };
        let number = rng.below(TEAMS + 1);
        let team: TeamName = name(&format!("team-{number}"));
        let token = format!("token-{}", rng.below(6));
        let command = match rng.below(32) {
            0 => Command::CreateToken {
                hash: format!("hash-{token}"),
                name: token,
                role: Role::Viewer,
                team: None,
            },
            1 => Command::CreateToken {
                hash: format!("hash-{}", rng.below(1000)),
                name: token,
                role: Role::Viewer,
                team: None,
            },
            2 | 3 => Command::RevokeToken { name: token },
            4 => Command::SetSecret {
                team,
                name: name("key"),
            },
            5..8 => Command::CancelRun {
                run: match (rng.below(4), open.is_empty(), client.runs.last()) {
                    (0, _, Some(run)) => *run,
                    (1, ..) | (_, true, _) => RunId(nothing()),
                    _ => *rng.pick(&open),
                },
                reason: "not needed".to_owned(),
            },
            8..10 => Command::BeginRollout {
                fleet: name(&format!("fleet-{number}")),
                version: match (rng.below(4), versions.is_empty()) {
                    (0, _) => None,
                    (1, _) | (_, true) => Some("none:7".parse().expect("a version")),
                    _ => Some(rng.pick(&versions).clone()),
                },
            },
            10..13 => Command::AbortRollout {
                rollout: match (rng.below(4), rollouts.is_empty()) {
                    (0, _) | (_, true) => RolloutId(nothing()),
                    _ => *rng.pick(&rollouts),
                },
                reason: "a person looked".to_owned(),
            },
            13 => Command::ApplyResource {
                resource: Box::new(fleet(number, 2 + rng.below(3) as u32, 1_000)),
                expected: None,
            },
            14 => Command::ApplyResource {
                resource: Box::new(repository(number, "main")),
                expected: Some(rng.below(3)),
            },
            15 => Command::ApplyResource {
                // Two fleets on one address.
                resource: Box::new(match fleet(rng.below(TEAMS), 2, 1_000) {
                    Resource::Fleet(spec) => Resource::Fleet(Fleet {
                        name: name("intruder"),
                        ..spec
                    }),
                    other => other,
                }),
                expected: None,
            },
            16 => Command::DeleteResource {
                kind: ResourceKind::Fleet,
                name: format!("fleet-{number}"),
            },
            17 => Command::DeleteResource {
                kind: ResourceKind::Repository,
                name: format!("repository-{number}"),
            },
            18 => Command::DeleteResource {
                kind: ResourceKind::Team,
                name: format!("team-{number}"),
            },
            19 | 20 => retry(rng, &finished, &open, team),
            21 | 22 => Command::PruneHistory { records },
            23..26 => join(rng),
            29 => Command::ApplyResource {
                resource: Box::new(limited(rng.range(1, 3) as u32, rng.below(2) as u32)),
                expected: None,
            },
            26 | 27 => Command::HoldVersion {
                held: rng.chance(700),
            },
            // One that every member supports, as the leader would.
            28 | 30 => Command::RaiseVersion {
                to: supported.unwrap_or(0),
            },
            _ => match rng.chance(500) {
                true => init(),
                false => Command::InitFarm {
                    name: "other".to_owned(),
                    admin: "x".to_owned(),
                    worker: "y".to_owned(),
                },
            },
        };
        (role, command)
    }
}
