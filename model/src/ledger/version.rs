//! The cluster version, and what a restore does to the numbers.
//!
//! ```text
//! every member supports N, nobody holds it --RaiseVersion{N}--> farm.version = N
//! ```
//!
//! The version rises one command at a time and never falls. A command kind is proposed only when
//! the version is at least [`Command::since`]; a changed behaviour of `apply` asks
//! [`Ledger::has_version`], because the same bytes must do the same on an old and a new binary.
//! A new binary therefore changes nothing until every member runs it, and a member that was left
//! out stops instead of guessing (CONTRIBUTING, "Change what is replicated").
//!
//! An *era* is a stretch of numbers that this farm's state contains. A restore begins a new one,
//! so that a number from a stretch that was lost is told apart from one that is still good.

use serde::{Deserialize, Serialize};

use super::{Answer, Command, Farm, Ledger, Rejected};
use crate::ids::Seq;
use crate::principal::{Principal, Verb};

/// The highest cluster version that this binary supports.
pub const VERSION: u32 = 2;

/// Last kind of each version, from version 1 on. The last line grows with
/// [`Command::LAST_KIND`] until it is released, then a new line begins.
const LAST_KINDS: [u32; VERSION as usize] = [26, Command::LAST_KIND];

/// Numbers that were issued before a restore and are part of this farm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Era {
    /// Where it began.
    pub first: Seq,
    /// The last number that survived.
    pub last: Seq,
}

/// A watch position that this farm never reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForeignPosition {
    /// It was issued after what the farm was restored to.
    #[error(
        "position {position} is from another epoch: the farm was restored to what it was at {kept} and goes on from {begun}; watch again from the beginning"
    )]
    AnotherEpoch {
        /// What was shown.
        position: Seq,
        /// Last number before the present epoch that is still good.
        kept: Seq,
        /// Where the present epoch began.
        begun: Seq,
    },
    /// It was never issued.
    #[error(
        "position {position} was never reached: the farm is at {last}; watch again from the beginning"
    )]
    NotYet {
        /// What was shown.
        position: Seq,
        /// The last number.
        last: Seq,
    },
}

/// Leaves a field out of the stored record, so that a farm that does not use it keeps its bytes.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What the table with this tag holds, in words for people.
pub fn table_name(tag: u8) -> Option<&'static str> {
    const NAMES: [&str; 18] = [
        "farm",
        "tokens",
        "teams",
        "repositories",
        "refs",
        "crons",
        "fleets",
        "secrets",
        "runs",
        "tasks",
        "leases",
        "workers",
        "layers",
        "images",
        "versions",
        "rollouts",
        "requests",
        "join tokens",
    ];
    match tag {
        super::FINISHED => Some("finished"),
        tag => NAMES.get(usize::from(tag)).copied(),
    }
}

impl Command {
    /// The cluster version from which on this kind may be proposed.
    pub fn since(&self) -> u32 {
        let version = LAST_KINDS.partition_point(|last| *last < self.kind()) + 1;
        u32::try_from(version).unwrap_or(u32::MAX)
    }
}

impl Ledger {
    /// Whether behaviours of this version are in force.
    pub fn has_version(&self, version: u32) -> bool {
        version <= 1 || self.farm().version >= version
    }

    /// Whether `position` was issued by this farm and what it stood for is still there. Only
    /// meaningful on a state that is at least as new as the position's holder saw.
    ///
    /// # Errors
    /// [`ForeignPosition`], to be shown to whoever resumes from there.
    pub fn knows(&self, position: Seq) -> Result<(), ForeignPosition> {
        let farm = self.farm();
        let kept = farm.eras.last().map(|era| era.last).unwrap_or_default();
        if position > farm.seq {
            return Err(ForeignPosition::NotYet {
                position,
                last: farm.seq,
            });
        }
        let past = |era: &Era| era.first <= position && position <= era.last;
        if position >= farm.begun || farm.eras.iter().any(past) {
            return Ok(());
        }
        Err(ForeignPosition::AnotherEpoch {
            position,
            kept,
            begun: farm.begun,
        })
    }

    /// Goes on in `epoch`: every number from here on is higher than any before. Not a command:
    /// only for a state that nobody replicates yet.
    ///
    /// # Panics
    /// When the epoch is not higher than the present one.
    pub fn begin_epoch(&mut self, epoch: u64) {
        let farm = own(self);
        let begun = Seq::begin(epoch).expect("the second of a restore fits into an epoch");
        assert!(
            begun > farm.seq,
            "epoch {epoch} does not come after {}",
            farm.seq
        );
        farm.eras.push(Era {
            first: farm.begun,
            last: farm.seq,
        });
        farm.begun = begun;
        farm.seq = begun;
    }
}

fn own(ledger: &mut Ledger) -> &mut Farm {
    ledger
        .farm
        .get_mut(&0)
        .expect("the farm's own record always exists")
}

pub(super) fn raise(ledger: &mut Ledger, to: u32) -> Result<Answer, Rejected> {
    let farm = own(ledger);
    if to <= farm.version {
        return Ok(Answer::Unchanged);
    }
    if farm.version_held {
        return Err(Rejected::WrongState(format!(
            "the cluster version is held at {}",
            farm.version
        )));
    }
    farm.version = to;
    Ok(Answer::Done)
}

pub(super) fn hold(ledger: &mut Ledger, who: &Principal, held: bool) -> Result<Answer, Rejected> {
    ledger.allow(who, Verb::Manage, None)?;
    let farm = own(ledger);
    if farm.version_held == held {
        return Ok(Answer::Unchanged);
    }
    farm.version_held = held;
    Ok(Answer::Done)
}

#[cfg(test)]
mod tests {
    use super::super::Request;
    use super::*;
    use crate::principal::{PrincipalKind, Role};
    use crate::time::Timestamp;

    fn farm() -> Ledger {
        let mut ledger = Ledger::new();
        let init = Command::InitFarm {
            name: "test".into(),
            admin: "h".into(),
            worker: "w".into(),
        };
        assert_eq!(ask(&mut ledger, Principal::farm(), init), Ok(Answer::Done));
        ledger
    }

    fn ask(
        ledger: &mut Ledger,
        principal: Principal,
        command: Command,
    ) -> Result<Answer, Rejected> {
        let request = Request {
            principal,
            request_id: None,
            command,
        };
        ledger.apply(Timestamp::from_millis(1), request).result
    }

    fn user(role: Role) -> Principal {
        Principal {
            name: "ann".into(),
            kind: PrincipalKind::User,
            role,
            team: None,
        }
    }

    #[test]
    fn the_version_rises_once_and_never_falls() {
        let mut ledger = farm();
        assert!(ledger.has_version(1) && !ledger.has_version(2));
        let raise = |to| Command::RaiseVersion { to };
        assert_eq!(
            ask(&mut ledger, Principal::farm(), raise(2)),
            Ok(Answer::Done)
        );
        assert!(ledger.has_version(2));
        for to in [2, 1] {
            assert_eq!(
                ask(&mut ledger, Principal::farm(), raise(to)),
                Ok(Answer::Unchanged)
            );
        }
        assert_eq!(ledger.farm().version, 2);
    }

    #[test]
    fn only_the_leader_raises_and_only_an_administrator_holds() {
        let mut ledger = farm();
        let raise = Command::RaiseVersion { to: 2 };
        let hold = |held| Command::HoldVersion { held };
        for who in [user(Role::Admin), Principal::worker("w")] {
            let refused = ask(&mut ledger, who, raise.clone());
            assert!(matches!(refused, Err(Rejected::Denied(_))), "{refused:?}");
        }
        for who in [
            user(Role::Operator),
            user(Role::Viewer),
            Principal::worker("w"),
        ] {
            let refused = ask(&mut ledger, who, hold(true));
            assert!(matches!(refused, Err(Rejected::Denied(_))), "{refused:?}");
        }
        let admin = || user(Role::Admin);
        assert_eq!(ask(&mut ledger, admin(), hold(true)), Ok(Answer::Done));
        assert_eq!(ask(&mut ledger, admin(), hold(true)), Ok(Answer::Unchanged));
        let held = ask(&mut ledger, Principal::farm(), raise.clone());
        assert!(matches!(held, Err(Rejected::WrongState(_))), "{held:?}");
        assert_eq!(ask(&mut ledger, admin(), hold(false)), Ok(Answer::Done));
        assert_eq!(ask(&mut ledger, Principal::farm(), raise), Ok(Answer::Done));
    }

    #[test]
    fn kinds_belong_to_versions_in_order() {
        assert_eq!(Command::HoldVersion { held: true }.since(), 1);
        assert!(LAST_KINDS.is_sorted());
        assert_eq!(LAST_KINDS.last(), Some(&Command::LAST_KIND));
        for (key, _) in farm().records() {
            assert!(table_name(key[0]).is_some(), "table {}", key[0]);
        }
    }

    #[test]
    fn positions_from_a_lost_stretch_are_told_apart() {
        let mut ledger = farm();
        let raise = |to| Command::RaiseVersion { to };
        for _ in 0..9 {
            let _ = ask(&mut ledger, Principal::farm(), raise(1));
        }
        let kept = ledger.seq();
        assert_eq!(kept, Seq::from_u64(10));
        ledger.begin_epoch(100);
        let first = ledger.seq().next();
        let _ = ask(&mut ledger, Principal::farm(), raise(1));
        assert_eq!(ledger.seq(), first, "the first command of the new epoch");
        assert!(first > kept);
        for good in [Seq::ZERO, Seq::from_u64(1), kept, first] {
            assert_eq!(ledger.knows(good), Ok(()), "{good}");
        }
        let lost = Seq::from_u64(11);
        let why = ledger.knows(lost).expect_err("issued after the snapshot");
        assert!(why.to_string().contains("from another epoch"), "{why}");
        assert!(matches!(
            ledger.knows(first.next()),
            Err(ForeignPosition::NotYet { .. })
        ));
        // A second restore keeps both stretches apart.
        ledger.begin_epoch(200);
        assert_eq!(ledger.knows(kept), Ok(()));
        assert_eq!(ledger.knows(first), Ok(()));
        assert!(ledger.knows(lost).is_err());
        assert!(ledger.knows(first.next()).is_err());
    }

    #[test]
    fn a_farm_that_was_never_restored_keeps_the_bytes_of_its_record() {
        let farm = Farm {
            name: "test".into(),
            ..Farm::default()
        };
        let bytes = crate::codec::encode(&farm);
        let text = String::from_utf8_lossy(&bytes);
        for field in ["version", "eras", "begun"] {
            assert!(!text.contains(field), "{field}");
        }
        let same: Farm = crate::codec::decode(&bytes).expect("readable");
        assert_eq!(same, farm);
    }
}
