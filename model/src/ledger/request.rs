//! Answers by request id, so that a retry after a lost answer does nothing twice.
//!
//! An answer is remembered for [`REQUEST_MEMORY`] by the time of commands, and at most
//! [`REQUESTS_MAX`] for a team; a team that has reached that is told to wait, because to forget a younger
//! answer would break the promise. This also bounds how much a team can submit in a day.
//! A request counts for the team that its principal is bound to, else for the team that its command is
//! about; what is left (administration of the whole farm) counts for the principal.

use std::sync::Arc;
use std::time::Duration;

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use super::{Answer, Context, Ledger, Rejected, Request};
use crate::names::TeamName;
use crate::table::Table;
use crate::time::Timestamp;

/// How long an answer is remembered.
pub const REQUEST_MEMORY: Duration = Duration::from_secs(24 * 60 * 60);
/// How many answers are remembered for one team.
pub const REQUESTS_MAX: usize = 100_000;
/// Most answers forgotten on one command, so that no command is slow.
const FORGET_MAX: usize = 32;

/// Whose request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestKey {
    /// Name of the principal.
    #[serde(with = "shared")]
    pub principal: Arc<str>,
    /// The id that it chose.
    #[serde(with = "shared")]
    pub id: Arc<str>,
}

/// Shared texts are stored as any text. They are shared because the maps that they are keys of copy
/// keys with every change.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &Arc<str>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(from).map(Arc::from)
    }
}

/// A request that shall be remembered.
pub(super) struct Asked {
    key: RequestKey,
    kind: u32,
    team: Option<TeamName>,
}

impl Asked {
    pub(super) fn of(request: &Request) -> Option<Asked> {
        let id = request.request_id.clone()?;
        let team = request.principal.team.as_ref();
        Some(Asked {
            key: RequestKey {
                principal: request.principal.name.as_str().into(),
                id: id.into(),
            },
            kind: request.command.kind(),
            team: team.or_else(|| request.command.team()).cloned(),
        })
    }

    fn scope(&self) -> Scope {
        Scope::of(self.team.as_ref(), &self.key.principal)
    }
}

/// A request's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// When it was applied.
    pub at: Timestamp,
    /// The kind of command: the same id for another kind is a mistake.
    pub kind: u32,
    /// What was answered.
    pub result: Result<Answer, Rejected>,
    /// The team that the principal acts for, or that the command is about; absent for the whole farm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<TeamName>,
}

/// Who shares a number of answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Team(TeamName),
    Principal(Arc<str>),
}

impl Scope {
    fn of(team: Option<&TeamName>, principal: &Arc<str>) -> Scope {
        match team {
            Some(team) => Scope::Team(team.clone()),
            None => Scope::Principal(Arc::clone(principal)),
        }
    }
}

/// Remembered requests by scope and age. Derived from the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ages {
    scopes: OrdMap<Scope, OrdSet<(Timestamp, RequestKey)>>,
    /// The oldest of each scope.
    oldest: OrdSet<(Timestamp, Scope)>,
}

impl Ages {
    pub(super) fn of(requests: &Table<RequestKey, Remembered>) -> Ages {
        let mut ages = Ages::default();
        for (key, kept) in requests.iter() {
            let scope = Scope::of(kept.team.as_ref(), &key.principal);
            ages.insert(scope, kept.at, key.clone());
        }
        ages
    }

    fn first(&self, scope: &Scope) -> Option<&(Timestamp, RequestKey)> {
        self.scopes.get(scope)?.get_min()
    }

    fn count(&self, scope: &Scope) -> usize {
        self.scopes.get(scope).map_or(0, OrdSet::len)
    }

    fn insert(&mut self, scope: Scope, at: Timestamp, key: RequestKey) {
        let before = self.first(&scope).map(|(at, _)| *at);
        self.scopes
            .entry(scope.clone())
            .or_default()
            .insert((at, key));
        self.reorder(scope, before);
    }

    fn remove(&mut self, scope: Scope, at: Timestamp, key: RequestKey) {
        let before = self.first(&scope).map(|(at, _)| *at);
        let Some(set) = self.scopes.get_mut(&scope) else {
            return;
        };
        set.remove(&(at, key));
        if set.is_empty() {
            self.scopes.remove(&scope);
        }
        self.reorder(scope, before);
    }

    /// Keeps the order of scopes after one of them changed.
    fn reorder(&mut self, scope: Scope, before: Option<Timestamp>) {
        let now = self.first(&scope).map(|(at, _)| *at);
        if now == before {
            return;
        }
        if let Some(before) = before {
            self.oldest.remove(&(before, scope.clone()));
        }
        if let Some(now) = now {
            self.oldest.insert((now, scope));
        }
    }
}

fn over(at: Timestamp, now: Timestamp) -> bool {
    now.since(at) >= REQUEST_MEMORY
}

impl Ledger {
    /// The answer that this request had before, or why it can have none.
    pub(super) fn remembered(
        &self,
        asked: &Asked,
        now: Timestamp,
    ) -> Option<Result<Answer, Rejected>> {
        let before = self.requests.get(&asked.key);
        let Some(before) = before.filter(|kept| !over(kept.at, now)) else {
            return self.memory_full(&asked.scope(), now).map(Err);
        };
        if before.kind != asked.kind {
            return Some(Err(Rejected::WrongState(format!(
                "request id `{}` was used for another kind of request",
                asked.key.id
            ))));
        }
        Some(before.result.clone())
    }

    fn memory_full(&self, scope: &Scope, now: Timestamp) -> Option<Rejected> {
        if self.ages.count(scope) < REQUESTS_MAX {
            return None;
        }
        // One that is over makes room, although nobody came to forget it yet.
        let (oldest, _) = self.ages.first(scope).filter(|(at, _)| !over(*at, now))?;
        let whose = match scope {
            Scope::Team(team) => format!("team `{team}`"),
            Scope::Principal(name) => format!("`{name}`"),
        };
        let wait = REQUEST_MEMORY.saturating_sub(now.since(*oldest));
        Some(Rejected::Exhausted(format!(
            "{REQUESTS_MAX} requests of {whose} are remembered, which is the most: the oldest is forgotten in {} s; wait, or send no request id",
            wait.as_secs() + 1
        )))
    }

    /// Refusals that a later retry may overcome are not remembered.
    pub(super) fn remember(
        &mut self,
        cx: &Context,
        asked: Asked,
        result: &Result<Answer, Rejected>,
    ) {
        if result.is_err() {
            return;
        }
        let scope = asked.scope();
        let Asked { key, kind, team } = asked;
        if self.ages.count(&scope) >= REQUESTS_MAX
            && let Some((at, oldest)) = self.ages.first(&scope).cloned()
        {
            self.requests.remove(&oldest);
            self.ages.remove(scope.clone(), at, oldest);
        }
        // One of the same id that is over and was not forgotten yet.
        if let Some(old) = self.requests.get(&key) {
            let stale = Scope::of(old.team.as_ref(), &key.principal);
            self.ages.remove(stale, old.at, key.clone());
        }
        self.ages.insert(scope, cx.now, key.clone());
        self.requests.insert(
            key,
            Remembered {
                at: cx.now,
                kind,
                result: result.clone(),
                team,
            },
        );
    }

    pub(super) fn forget_old_requests(&mut self, now: Timestamp) {
        for _ in 0..FORGET_MAX {
            let Some((at, scope)) = self.ages.oldest.get_min().cloned() else {
                return;
            };
            if !over(at, now) {
                return;
            }
            let first = self.ages.first(&scope).cloned();
            let (at, key) = first.expect("an ordered scope remembers something");
            self.requests.remove(&key);
            self.ages.remove(scope, at, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Command;
    use crate::principal::{Principal, PrincipalKind, Role};

    fn admin() -> Principal {
        Principal {
            name: "root".into(),
            kind: PrincipalKind::User,
            role: Role::Admin,
            team: None,
        }
    }

    fn secret(team: &str, id: &str) -> Request {
        Request {
            principal: admin(),
            request_id: Some(id.into()),
            command: Command::SetSecret {
                team: team.parse().expect("a good name"),
                name: "token".parse().expect("a good name"),
            },
        }
    }

    fn team(name: &str) -> Request {
        let team = crate::resource::Team::new(name.parse().expect("a good name"));
        Request {
            principal: admin(),
            request_id: None,
            command: Command::ApplyResource {
                resource: Box::new(crate::resource::Resource::Team(team)),
                expected: None,
            },
        }
    }

    #[test]
    fn a_team_whose_memory_is_full_waits_until_the_oldest_is_forgotten_and_others_do_not() {
        let mut ledger = Ledger::new();
        let began = Timestamp::from_millis(1_000);
        let init = Command::InitFarm {
            name: "test".into(),
            admin: "h".into(),
            worker: "w".into(),
        };
        let request = Request {
            principal: Principal::farm(),
            request_id: None,
            command: init,
        };
        ledger.apply(began, request).result.expect("a new farm");
        for name in ["full", "other"] {
            ledger.apply(began, team(name)).result.expect("root may");
        }
        let first = ledger.apply(began, secret("full", "first")).result;
        assert!(first.is_ok());
        // The rest as `remember` leaves it, without a command for each.
        let kept = ledger.requests.iter().next().map(|(_, kept)| kept.clone());
        let kept = kept.expect("the first is remembered");
        for place in 1..REQUESTS_MAX {
            let key = RequestKey {
                principal: "root".into(),
                id: place.to_string().into(),
            };
            ledger.requests.insert(key, kept.clone());
        }
        ledger.finish_loading();

        let later = began + Duration::from_secs(60);
        let refused = ledger.apply(later, secret("full", "new")).result;
        let Err(Rejected::Exhausted(why)) = refused else {
            panic!("{refused:?}")
        };
        assert!(
            why.contains("team `full`") && why.contains("86341 s"),
            "{why}"
        );
        // What was answered is answered again, and nobody else is kept waiting.
        assert_eq!(ledger.apply(later, secret("full", "first")).result, first);
        let other = ledger.apply(later, secret("other", "new")).result;
        assert!(other.is_ok(), "{other:?}");
        let day = began + REQUEST_MEMORY;
        assert!(ledger.apply(day, secret("full", "new")).result.is_ok());
        assert!(ledger.index_holds());
    }
}
