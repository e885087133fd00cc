use super::*;

/// Voters 1 to 3, a learner 4 that joined, a learner 5 that did not; we are 1; 2 was at most 10
/// entries behind.
struct Scene {
    members: Members,
    conf: ConfState,
}

fn address(id: u64) -> String {
    format!("m{id}:1")
}

fn scene() -> Scene {
    let founders = (1..=3).map(|id| (id, address(id))).collect();
    let mut members = Members::founders(&founders);
    members.add(4, address(4));
    members.add(5, address(5));
    for id in 1..=4 {
        members.known.get_mut(&id).unwrap().stamp = 100 + id;
    }
    let conf = ConfState {
        voters: vec![1, 2, 3],
        learners: vec![4, 5],
        ..ConfState::default()
    };
    Scene { members, conf }
}

impl Scene {
    fn ground(&self, answered: &[u64]) -> Ground<'_> {
        Ground {
            us: 1,
            members: &self.members,
            conf: &self.conf,
            answered: answered.iter().copied().collect(),
            matched: BTreeMap::from([(2, 990), (3, 1_000), (4, 1_000)]),
            skewed: BTreeMap::new(),
            last: 1_000,
            promote_lag: 100,
            whole: true,
        }
    }

    fn plan(&self, change: &Change, answered: &[u64]) -> Result<Plan, ChangeError> {
        plan(change, "call", &self.ground(answered))
    }

    /// What a planned change does when it is committed.
    fn carry_out(&mut self, plan: Result<Plan, ChangeError>) -> Result<(), String> {
        let context = match plan.expect("a change that is not refused") {
            Plan::Configure(conf, _) => conf.context.to_vec(),
            Plan::Note(context, _) => context,
            other => panic!("no entry: {other:?}"),
        };
        self.members = judge(&read(&context)?, &self.members, &self.conf)?;
        Ok(())
    }
}

const ALL: &[u64] = &[1, 2, 3, 4];

fn refusal(change: &Change, answered: &[u64]) -> String {
    scene().plan(change, answered).unwrap_err().to_string()
}

fn promote_4(replaces: Option<u64>) -> Change {
    Change::Promote {
        member: 4,
        replaces,
        disk_lost: false,
    }
}

fn remove(member: u64) -> Change {
    Change::Remove {
        member,
        disk_lost: false,
    }
}

#[test]
fn every_refusal_says_the_way_out() {
    let table: &[(Change, &[u64], &str)] = &[
        (
            remove(2),
            &[1, 2],
            "start the others first, or remove those that are dead first",
        ),
        (promote_4(None), &[1, 4], "start the others first"),
        (
            promote_4(None),
            &[1, 2, 3],
            "start it, and see that the members reach it at m4:1",
        ),
        (remove(9), ALL, "its members are 1, 2, 3, 4, 5"),
        (Change::AddLearners(vec!["here".into()]), ALL, "host:port"),
        (
            Change::AddLearners(vec![address(2)]),
            ALL,
            "remove that member first",
        ),
        (
            Change::AddLearners(vec!["x:1".into(), "x:1".into()]),
            ALL,
            "member 6 has this address",
        ),
        (Change::Transfer(Some(4)), ALL, "promote it first"),
        (Change::Transfer(Some(3)), &[1, 2], "start it"),
        (Change::Transfer(None), &[1], "start another voter first"),
        (promote_4(Some(5)), ALL, "it is a learner"),
        (
            Change::Join {
                address: "x:1".into(),
                stamp: 7,
            },
            ALL,
            "oast operator raft add-learner x:1",
        ),
        (
            Change::Join {
                address: address(4),
                stamp: 7,
            },
            ALL,
            "oast operator raft remove-peer 4",
        ),
        (
            Change::Join {
                address: address(3),
                stamp: 7,
            },
            ALL,
            "another data directory",
        ),
    ];
    for (change, answered, part) in table {
        let said = refusal(change, answered);
        assert!(said.contains(part), "{change:?}: {said}");
    }
}

#[test]
fn a_learner_that_lags_is_not_promoted_and_the_lag_is_named() {
    let scene = scene();
    let mut ground = scene.ground(ALL);
    ground.matched.insert(4, 100);
    let refused = plan(&promote_4(None), "", &ground).unwrap_err();
    assert_eq!(
        refused,
        ChangeError::Lags {
            member: 4,
            lag: 900,
            allowed: 100
        }
    );
    ground.matched.insert(4, 900);
    assert!(matches!(
        plan(&promote_4(None), "", &ground),
        Ok(Plan::Configure(..))
    ));
}

#[test]
fn the_last_voter_stays() {
    let mut scene = scene();
    scene.conf.voters = vec![1];
    let refused = scene.plan(&remove(1), ALL).unwrap_err();
    assert_eq!(refused, ChangeError::LastVoter { member: 1 });
    // Learners may go whoever answers.
    assert!(scene.plan(&remove(4), &[1]).is_ok());
}

#[test]
fn a_dead_voter_can_be_removed_while_the_rest_is_a_majority() {
    let scene = scene();
    assert!(matches!(
        scene.plan(&remove(3), &[1, 2]),
        Ok(Plan::Configure(..))
    ));
    let replace = promote_4(Some(3));
    let Ok(Plan::Configure(conf, _)) = scene.plan(&replace, &[1, 2, 4]) else {
        panic!("it is one joint change");
    };
    assert_eq!(conf.changes.len(), 2);
    assert_eq!(conf.enter_joint(), Some(true));
}

#[test]
fn nobody_leaves_while_the_leader_lacks_history_unless_the_disk_is_gone() {
    let scene = scene();
    let mut ground = scene.ground(ALL);
    ground.whole = false;
    for change in [promote_4(Some(3)), remove(3), remove(5)] {
        let refused = plan(&change, "", &ground).unwrap_err();
        let ChangeError::History { member } = refused else {
            panic!("{change:?}: {refused}");
        };
        assert!(refused.to_string().contains("--disk-lost"), "{refused}");
        let gone = match change {
            Change::Remove { .. } => Change::Remove {
                member,
                disk_lost: true,
            },
            _ => Change::Promote {
                member: 4,
                replaces: Some(member),
                disk_lost: true,
            },
        };
        assert!(matches!(plan(&gone, "", &ground), Ok(Plan::Configure(..))));
    }
    // Whoever only comes takes nothing away, and the leader itself leaves only when another one leads.
    assert!(plan(&promote_4(None), "", &ground).is_ok());
    assert_eq!(plan(&remove(1), "", &ground), Ok(Plan::HandOverFirst(3)));
}

#[test]
fn the_leader_hands_over_before_it_leaves() {
    let scene = scene();
    // Member 3 has more than member 2.
    let planned = scene.plan(&remove(1), ALL);
    assert_eq!(planned, Ok(Plan::HandOverFirst(3)));
    // A clock that is wrong rules it out.
    let mut ground = scene.ground(ALL);
    ground.skewed.insert(3, 9_000);
    assert_eq!(plan(&remove(1), "", &ground), Ok(Plan::HandOverFirst(2)));
    let named = plan(&Change::Transfer(Some(3)), "", &ground).unwrap_err();
    assert_eq!(
        named,
        ChangeError::SkewedHeir {
            member: 3,
            offset_ms: 9_000
        }
    );
}

#[test]
fn an_id_is_never_used_again() {
    let mut scene = scene();
    let planned = scene.plan(&remove(5), ALL);
    scene.carry_out(planned).unwrap();
    scene.conf.learners = vec![4];
    scene.members.keep(&scene.conf);
    let again = plan(&remove(5), "again", &scene.ground(ALL));
    assert_eq!(again.unwrap_err(), ChangeError::Retired { member: 5 });
    // Its address is free again, and gets another id.
    let planned = plan(
        &Change::AddLearners(vec![address(5)]),
        "other",
        &scene.ground(ALL),
    );
    scene.carry_out(planned).unwrap();
    assert_eq!(scene.members.at(&address(5)), Some(6));
    // Two leaders that chose the same id: all members pass over the second.
    let late = wire::GroupChange {
        request_id: String::new(),
        change: Some(Wire::AddLearners(wire::AddLearners {
            members: vec![wire::NewMember {
                member: 6,
                address: "z:1".to_owned(),
            }],
        })),
    };
    let verdict = judge(&late, &scene.members, &scene.conf).unwrap_err();
    assert!(verdict.contains("id 6 was used before"), "{verdict}");
}

#[test]
fn a_repeated_call_gets_the_first_answer_and_takes_effect_once() {
    let mut scene = scene();
    let add = Change::AddLearners(vec!["x:1".to_owned()]);
    let first = scene.plan(&add, ALL);
    let twin = first.clone();
    scene.carry_out(first).unwrap();
    let again = scene.plan(&add, ALL);
    assert_eq!(again, Ok(Plan::Done(Changed { members: vec![6] })));
    // The first entry of a leader that was deposed comes after the second one's.
    assert_eq!(
        scene.carry_out(twin).unwrap_err(),
        "it was carried out already"
    );
}

#[test]
fn a_directory_joins_once_and_may_ask_again() {
    let mut scene = scene();
    let ask = |stamp| Change::Join {
        address: address(5),
        stamp,
    };
    let planned = plan(&ask(7), "", &scene.ground(ALL));
    scene.carry_out(planned).unwrap();
    let again = plan(&ask(7), "", &scene.ground(ALL));
    assert_eq!(again, Ok(Plan::Done(Changed { members: vec![5] })));
    let wiped = plan(&ask(8), "", &scene.ground(ALL)).unwrap_err();
    assert!(matches!(
        wiped,
        ChangeError::AnotherDirectory { member: 5, .. }
    ));
    // Two directories asked at the same time: the second entry is passed over.
    let late = bind(5, 8, &address(5));
    assert!(
        scene
            .carry_out(Ok(late))
            .unwrap_err()
            .contains("another data directory")
    );
}

#[test]
fn a_member_that_moved_is_found_at_its_new_address() {
    let mut scene = scene();
    scene.carry_out(Ok(bind(2, 102, "moved:1"))).unwrap();
    assert_eq!(scene.members.at("moved:1"), Some(2));
    let taken = scene.carry_out(Ok(bind(3, 103, "moved:1"))).unwrap_err();
    assert!(taken.contains("member 2's"), "{taken}");
}

#[test]
fn a_change_of_a_newer_binary_is_not_understood() {
    assert!(read(&[]).is_err());
    assert!(read(&[0xff; 9]).is_err());
}

#[test]
fn addresses_are_host_and_port() {
    for good in ["a:1", "10.0.0.1:7443", "[::1]:7443", "host.example:65535"] {
        assert!(is_address(good), "{good}");
    }
    for bad in [
        "",
        "a",
        ":1",
        "a:0",
        "a:65536",
        "a b:1",
        "http://a:1",
        "a:x",
        "u@a:1",
    ] {
        assert!(!is_address(bad), "{bad}");
    }
}
