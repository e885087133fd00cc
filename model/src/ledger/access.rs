//! The farm's beginning and its access tokens.

use serde::{Deserialize, Serialize};

use super::{Answer, Context, Ledger, Rejected};
use crate::names::TeamName;
use crate::principal::{Principal, PrincipalKind, Role, Verb};
use crate::time::Timestamp;

/// Most access tokens that a farm keeps.
pub const TOKENS_MAX: usize = 10_000;

/// What an access token allows. The token itself is known to its holder only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessToken {
    /// Who uses it.
    pub principal: Principal,
    /// When it was made.
    pub created_at: Timestamp,
}

impl AccessToken {
    /// A person's or a script's.
    pub fn user(name: String, role: Role, team: Option<TeamName>, now: Timestamp) -> AccessToken {
        AccessToken {
            principal: Principal {
                name,
                kind: PrincipalKind::User,
                role,
                team,
            },
            created_at: now,
        }
    }
}

/// Names the farm and admits its first administrator and its workers. A repeat with
/// the same values is harmless; a farm is never renamed.
pub(super) fn init(
    ledger: &mut Ledger,
    cx: &Context,
    name: String,
    admin: String,
    worker: String,
) -> Result<Answer, Rejected> {
    if ledger.farm().name == name && ledger.tokens.contains(&admin) {
        return Ok(Answer::Unchanged);
    }
    if !ledger.farm().name.is_empty() {
        return Err(Rejected::WrongState(format!(
            "this farm is already called `{}`",
            ledger.farm().name
        )));
    }
    if name.is_empty() {
        return Err(Rejected::Forbidden("a farm needs a name".into()));
    }
    ledger
        .farm
        .get_mut(&0)
        .expect("the farm's own record always exists")
        .name = name;
    ledger.tokens.insert(
        admin,
        AccessToken::user("admin".into(), Role::Admin, None, cx.now),
    );
    let worker_token = AccessToken {
        principal: Principal::worker("worker"),
        created_at: cx.now,
    };
    ledger.tokens.insert(worker, worker_token);
    Ok(Answer::Done)
}

/// Admits somebody.
pub(super) fn create(
    ledger: &mut Ledger,
    _cx: &Context,
    who: &Principal,
    hash: String,
    token: AccessToken,
) -> Result<Answer, Rejected> {
    ledger.allow(who, Verb::Manage, token.principal.team.as_ref())?;
    if ledger.tokens.contains(&hash) {
        return Err(Rejected::WrongState("this token is in use already".into()));
    }
    let name = &token.principal.name;
    if ledger
        .tokens
        .iter()
        .any(|(_, other)| other.principal.name == *name)
    {
        return Err(Rejected::WrongState(format!(
            "there is a token called `{name}` already: revoke it first or choose another name"
        )));
    }
    if ledger.tokens.len() >= TOKENS_MAX {
        return Err(Rejected::Exhausted(format!(
            "a farm keeps at most {TOKENS_MAX} tokens"
        )));
    }
    ledger.tokens.insert(hash, token);
    Ok(Answer::Done)
}

/// Ends every token of that name.
pub(super) fn revoke(ledger: &mut Ledger, who: &Principal, name: &str) -> Result<Answer, Rejected> {
    let found = ledger
        .tokens
        .iter()
        .find(|(_, token)| token.principal.name == name)
        .map(|(hash, token)| (hash.clone(), token.principal.team.clone()));
    let Some((hash, team)) = found else {
        ledger.allow(who, Verb::Manage, None)?;
        return Err(Rejected::NotFound {
            kind: "token".into(),
            name: name.into(),
        });
    };
    ledger.allow(who, Verb::Manage, team.as_ref())?;
    ledger.tokens.remove(&hash);
    Ok(Answer::Done)
}
