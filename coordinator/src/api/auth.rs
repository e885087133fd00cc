//! Who calls: from a bearer token to a principal, before any service sees the request.
//!
//! The farm stores hashes of tokens; the token itself is only in the caller's hands, and in
//! [`Caller`] for the time of the call, because a call may have to go on to the leader.

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use oast_daemon::secret::Secret;
use oast_model::digest::Digest;
use oast_model::names::TeamName;
use oast_model::principal::{Principal, PrincipalKind, Role, Verb, authorize};
use tonic::Status;

use super::{Api, forward, status};

/// The only call that needs no token: there is none yet.
const INIT_FARM: &str = "/oast.v1.Operator/InitFarm";
/// Longest token that is looked at.
const TOKEN_MAX: usize = 512;

/// Who calls, as an extension of the request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What they may do.
    pub principal: Principal,
    /// What they showed, to go on to the leader with.
    pub(super) token: Secret<String>,
    /// Another member has passed the call on already.
    pub(super) forwarded: bool,
}

impl Caller {
    /// A caller that is known without a request.
    pub fn of(principal: Principal, token: Secret<String>) -> Caller {
        Caller {
            principal,
            token,
            forwarded: false,
        }
    }

    /// Whether they may do this.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`.
    pub fn may(&self, verb: Verb, team: Option<&TeamName>) -> Result<(), Status> {
        authorize(&self.principal, verb, team).map_err(|denied| status::denied(&denied))
    }

    /// Whether lists show them what belongs to this team.
    pub fn sees(&self, team: &TeamName) -> bool {
        authorize(&self.principal, Verb::View, Some(team)).is_ok()
    }
}

/// The hash under which the ledger knows a token.
pub fn hash(token: &str) -> String {
    Digest::of(token.as_bytes()).to_string()
}

/// Who made this call.
pub(super) fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| status::unauthenticated("this call needs `authorization: Bearer <token>`"))
}

impl Api {
    /// Who holds this token.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, or `UNAVAILABLE` when the farm cannot say.
    pub async fn identify(&self, token: &str) -> Result<Principal, Status> {
        if self.peer_token.matches(token.as_bytes()) {
            // A member that asks for a page or passes something on.
            return Ok(Principal {
                name: "member".into(),
                kind: PrincipalKind::User,
                role: Role::Viewer,
                team: None,
            });
        }
        let unknown = || {
            let message = "this token is not known here: it was revoked or is another farm's";
            Err(status::unauthenticated(message))
        };
        if token.is_empty() || token.len() > TOKEN_MAX {
            return unknown();
        }
        let hash = hash(token);
        if let Some(found) = self.farm.view().token(&hash) {
            return Ok(found.principal.clone());
        }
        // It may have been made on another member a moment ago.
        match self.farm.read().await?.token(&hash) {
            Some(found) => Ok(found.principal.clone()),
            None => unknown(),
        }
    }

    /// Who sent a request with these headers.
    ///
    /// # Errors
    /// As [`Api::identify`].
    pub async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Status> {
        let shown = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        let bearer = shown.and_then(|shown| {
            let (scheme, rest) = shown.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
        });
        let Some(token) = bearer else {
            let message = "this call needs `authorization: Bearer <token>`";
            return Err(status::unauthenticated(message));
        };
        Ok(Caller {
            principal: self.identify(token).await?,
            token: Secret::new(token.to_owned()),
            forwarded: headers.contains_key(forward::FORWARDED),
        })
    }
}

/// Puts the [`Caller`] into the request or answers it.
pub(super) async fn authenticate(
    State(api): State<Api>,
    mut request: Request,
    next: Next,
) -> Response {
    if request.uri().path() != INIT_FARM {
        match api.caller(request.headers()).await {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
            }
            Err(status) => return status.into_http::<axum::body::Body>().into_response(),
        }
    }
    next.run(request).await
}
