//! Who calls: from a bearer token to a principal, before any service sees the request.
//!
//! The farm stores hashes of tokens; the token itself is only in the caller's hands, and in
//! [`Caller`] for the time of the call, because a call may have to go on to the leader.
//!
//! Here too, because it is the same for every call: its deadline, how old an answer it accepts,
//! and how old the answer was in the end.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use oast_daemon::clock::timeout;
use oast_daemon::secret::Secret;
use oast_model::digest::Digest;
use oast_model::names::TeamName;
use oast_model::principal::{Principal, PrincipalKind, Role, Verb, authorize};
use tonic::{Code, Status};

use super::{Api, forward, status};
use crate::farm::{Look, Patience};

/// The only call that needs no token: there is none yet.
const INIT_FARM: &str = "/oast.v1.Operator/InitFarm";
/// Longest token that is looked at.
const TOKEN_MAX: usize = 512;
/// Calls whose messages come as slowly as the client sends them: no deadline but the client's.
const SLOW: [&str; 1] = ["/oast.v1.Runs/UploadTree"];
/// How long a call may take when the client does not say.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// How long a call may take at most, whatever the client says.
const CALL_DEADLINE_MAX: Duration = Duration::from_secs(3600);
/// gRPC's header for a deadline.
const GRPC_TIMEOUT: &str = "grpc-timeout";
/// How old an answer may be: milliseconds, or `any`.
const MAX_STALENESS: &str = "oast-max-staleness-ms";
/// How old an answer may be at most, in the answer.
const STALENESS: &str = "oast-staleness-ms";
/// Number of the last command that an answer shows.
const APPLIED_SEQ: &str = "oast-applied-seq";

/// Who calls, as an extension of the request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What they may do.
    pub principal: Principal,
    /// What they showed, to go on to the leader with.
    pub(super) token: Secret<String>,
    /// How many members have passed the call on already.
    pub(super) hops: u32,
    /// How old an answer may be.
    pub(super) patience: Patience,
    /// Monotonic time at which nobody waits any more.
    pub(super) deadline: Option<Duration>,
    /// What the answer shows, once a service has looked.
    seen: Arc<OnceLock<Seen>>,
}

/// Which state an answer shows.
#[derive(Clone, Copy, Debug)]
struct Seen {
    seq: u64,
    age: Option<Duration>,
}

impl Caller {
    /// A caller that is known without a request.
    pub fn of(principal: Principal, token: Secret<String>) -> Caller {
        Caller {
            principal,
            token,
            hops: 0,
            patience: Patience::Linearizable,
            deadline: None,
            seen: Arc::default(),
        }
    }

    /// The same caller behind a stream: the call's time was for its beginning.
    pub(super) fn lasting(self) -> Caller {
        Caller {
            deadline: None,
            ..self
        }
    }

    /// Notes which state the answer shows; the first look counts, it is the oldest.
    pub(super) fn note(&self, look: &Look) {
        let seq = look.view.seq().as_u64();
        let _ = self.seen.set(Seen { seq, age: look.age });
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
        let hops = headers.get(forward::HOPS);
        let hops = hops.and_then(|hops| hops.to_str().ok()?.parse().ok());
        Ok(Caller {
            hops: hops.unwrap_or(0),
            patience: patience(headers)?,
            ..Caller::of(self.identify(token).await?, Secret::new(token.to_owned()))
        })
    }
}

/// How old an answer may be, if the caller says it.
fn patience(headers: &HeaderMap) -> Result<Patience, Status> {
    let Some(said) = headers.get(MAX_STALENESS) else {
        return Ok(Patience::Linearizable);
    };
    match said.to_str() {
        Ok("any") => Ok(Patience::Any),
        Ok(text) => match text.parse() {
            Ok(ms) => Ok(Patience::Stale(Duration::from_millis(ms))),
            Err(_) => Err(status::invalid(MAX_STALENESS, "milliseconds or `any`")),
        },
        Err(_) => Err(status::invalid(MAX_STALENESS, "milliseconds or `any`")),
    }
}

/// The client's deadline: at most eight digits and a unit.
pub(super) fn grpc_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(said) = headers.get(GRPC_TIMEOUT) else {
        return Ok(None);
    };
    let wrong = || status::invalid(GRPC_TIMEOUT, "up to 8 digits and one of H M S m u n");
    let text = said.to_str().map_err(|_| wrong())?;
    let (digits, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(wrong)?;
    let plain = !digits.is_empty() && digits.len() <= 8;
    if !plain || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return Err(wrong()),
    }))
}

/// Puts the [`Caller`] into the request or answers it, and minds the call's deadline.
pub(super) async fn authenticate(
    State(api): State<Api>,
    mut request: Request,
    next: Next,
) -> Response {
    let answer = |status: Status| status.into_http::<axum::body::Body>().into_response();
    let clock = api.farm.clock().clone();
    let limit = match grpc_timeout(request.headers()) {
        Ok(Some(said)) => Some(said.min(CALL_DEADLINE_MAX)),
        Ok(None) if SLOW.contains(&request.uri().path()) => None,
        Ok(None) => Some(CALL_DEADLINE),
        Err(status) => return answer(status),
    };
    let deadline = limit.map(|limit| clock.monotonic().saturating_add(limit));
    let open = request.uri().path() == INIT_FARM;
    let served = async {
        let mut seen = None;
        if !open {
            match api.caller(request.headers()).await {
                Ok(caller) => {
                    let caller = Caller { deadline, ..caller };
                    seen = Some(Arc::clone(&caller.seen));
                    request.extensions_mut().insert(caller);
                }
                Err(status) => return answer(status),
            }
        }
        let mut response = next.run(request).await;
        if let Some(seen) = seen.and_then(|seen| seen.get().copied()) {
            seen.state(response.headers_mut());
        }
        response
    };
    // Ends with the head of the answer: a stream goes on until its client ends it.
    match limit {
        None => served.await,
        Some(limit) => match timeout(&*clock, limit, served).await {
            Ok(response) => response,
            Err(_) => {
                let message = format!("not answered within {limit:?}");
                answer(status::error(Code::DeadlineExceeded, "DEADLINE", message))
            }
        },
    }
}

impl Seen {
    fn state(self, headers: &mut HeaderMap) {
        headers.insert(APPLIED_SEQ, self.seq.into());
        if let Some(age) = self.age {
            let ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            headers.insert(STALENESS, ms.into());
        }
    }
}
