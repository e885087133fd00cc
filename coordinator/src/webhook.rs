//! `POST /webhook/github/<repository>`: GitHub tells of a push.
//!
//! The signature is checked over the bytes as they came, before anything is parsed. The answer
//! waits until the farm has taken notice, which is one replicated command: a delivery that was
//! answered is never lost, one that was not is delivered again by hand or found by the poll. The
//! delivery's id is the request id in the ledger, so a second delivery starts nothing.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hmac::{Hmac, KeyInit, Mac};
use oast_daemon::telemetry::chain;
use oast_model::ledger::{Answer, Command, Rejected, Request};
use oast_model::names::RepositoryName;
use oast_model::pipeline::rules::glob_matches;
use oast_model::principal::Principal;
use oast_model::resource::Repository;
use serde::Deserialize;
use sha2::Sha256;
use tokio::sync::Semaphore;

use crate::api::Api;
use crate::farm::WriteError;

/// Largest payload that GitHub sends.
const PAYLOAD_MAX: usize = 25 << 20;
/// Deliveries read at the same time: a bound on memory that strangers can fill.
const AT_ONCE: usize = 4;
/// Longest delivery id in bytes.
const DELIVERY_MAX: usize = 96;
/// Before the hex digits of the signature.
const SIGNATURE_PREFIX: &str = "sha256=";
/// Before the branch in a ref.
const BRANCH_PREFIX: &str = "refs/heads/";

/// What is read of a `push` event.
#[derive(Debug, Deserialize)]
struct Push {
    #[serde(rename = "ref")]
    reference: String,
    after: String,
    #[serde(default)]
    deleted: bool,
}

/// What a payload asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// A branch shows this commit now.
    Moved { branch: String, commit: String },
    /// Nothing, and why.
    Nothing(&'static str),
}

#[derive(Clone)]
struct Hook {
    api: Api,
    slots: Arc<Semaphore>,
}

/// An answer: a code and one line.
type Said = (StatusCode, String);

/// The endpoint.
pub fn routes(api: Api) -> Router {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    Router::new()
        .route("/webhook/github/{repository}", post(github))
        .with_state(Hook { api, slots })
}

async fn github(
    State(hook): State<Hook>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match hook.deliver(&name, &headers, body).await {
        Ok(answer) | Err(answer) => answer.into_response(),
    }
}

impl Hook {
    async fn deliver(&self, name: &str, headers: &HeaderMap, body: Body) -> Result<Said, Said> {
        let busy = |_| {
            let why = "too many deliveries at once: deliver it again";
            say(StatusCode::SERVICE_UNAVAILABLE, why)
        };
        let _slot = self.slots.try_acquire().map_err(busy)?;
        let repository = self.repository(name)?;
        let event = text(headers, "x-github-event")?;
        let delivery = text(headers, "x-github-delivery")?;
        let graphic = delivery.bytes().all(|byte| byte.is_ascii_graphic());
        if delivery.len() > DELIVERY_MAX || !graphic {
            return Err(say(StatusCode::BAD_REQUEST, "a strange delivery id"));
        }
        let signature = headers.get("x-hub-signature-256");
        let signature = signature
            .and_then(|value| value.to_str().ok())
            .and_then(parse_signature)
            .ok_or_else(unsigned)?;
        let payload = to_bytes(body, PAYLOAD_MAX)
            .await
            .map_err(|_| say(StatusCode::PAYLOAD_TOO_LARGE, "more than 25 MiB"))?;
        let key = self.key(&repository).await?;
        if !signed(trimmed(&key), &payload, &signature) {
            return Err(unsigned());
        }
        drop(key);
        let asked = match event {
            "ping" => return Ok(say(StatusCode::OK, "pong")),
            "push" => read(&payload, &repository).map_err(|err| {
                let why = format!("this is no push event: {err}");
                say(StatusCode::BAD_REQUEST, why)
            })?,
            _ => Asked::Nothing("only push events start runs"),
        };
        match asked {
            Asked::Nothing(why) => Ok(say(StatusCode::ACCEPTED, why)),
            Asked::Moved { branch, commit } => {
                self.observe(repository, branch, commit, delivery).await
            }
        }
    }

    fn repository(&self, name: &str) -> Result<Repository, Said> {
        let known = name.parse::<RepositoryName>().ok().and_then(|name| {
            let view = self.api.farm.view();
            view.repositories().get(&name).map(|r| r.spec.clone())
        });
        known.ok_or_else(|| {
            let why = format!("there is no repository `{name}`: make it with `oast apply -f`");
            say(StatusCode::NOT_FOUND, why)
        })
    }

    async fn key(
        &self,
        repository: &Repository,
    ) -> Result<oast_daemon::secret::Secret<Vec<u8>>, Said> {
        let Some(reference) = repository.webhook_secret.clone() else {
            let why = format!(
                "repository `{}` takes no webhooks: it has no `webhookSecret`",
                repository.name
            );
            return Err(say(StatusCode::FORBIDDEN, why));
        };
        let (secrets, team) = (self.api.secrets.clone(), repository.team.clone());
        let secret = reference.secret.clone();
        let read = self
            .api
            .tasks
            .blocking("read-secret", move || secrets.get(&team, &secret))
            .await;
        let failed = |why: String| {
            tracing::error!(error = why, "A webhook's secret cannot be read.");
            let why = "the webhook's secret cannot be read here: see the member's log";
            say(StatusCode::SERVICE_UNAVAILABLE, why)
        };
        match read {
            Ok(Ok(Some(value))) => Ok(value),
            Ok(Ok(None)) => {
                let why = format!(
                    "secret `{}` of team `{}` has no value: `oast secret set`",
                    reference.secret, repository.team
                );
                Err(say(StatusCode::FORBIDDEN, why))
            }
            Ok(Err(err)) => Err(failed(chain(&err).to_string())),
            Err(lost) => Err(failed(chain(&lost).to_string())),
        }
    }

    async fn observe(
        &self,
        repository: Repository,
        branch: String,
        commit: String,
        delivery: &str,
    ) -> Result<Said, Said> {
        let request = Request {
            principal: Principal::farm(),
            request_id: Some(format!("github:{}:{delivery}", repository.name)),
            command: Command::ObserveRefs {
                repository: repository.name,
                refs: BTreeMap::from([(branch, commit)]),
            },
        };
        let later = |why: String| say(StatusCode::SERVICE_UNAVAILABLE, why);
        match self.api.farm.write(&request).await {
            Ok(written) => Ok(match written.answer {
                Answer::Run(run) => say(StatusCode::ACCEPTED, format!("run {run}")),
                _ => say(StatusCode::ACCEPTED, "nothing new"),
            }),
            Err(WriteError::Rejected(Rejected::NotFound { .. })) => {
                let why = "the repository was deleted meanwhile";
                Err(say(StatusCode::NOT_FOUND, why))
            }
            Err(err) => Err(later(err.to_string())),
        }
    }
}

/// Reads a push event that is known to come from GitHub.
fn read(payload: &[u8], repository: &Repository) -> Result<Asked, String> {
    let push: Push = serde_json::from_slice(payload).map_err(|err| err.to_string())?;
    let Some(branch) = push.reference.strip_prefix(BRANCH_PREFIX) else {
        return Ok(Asked::Nothing("tags start no runs"));
    };
    if push.deleted {
        return Ok(Asked::Nothing("the branch was deleted"));
    }
    let id = &push.after;
    let hex = id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !hex || !matches!(id.len(), 40 | 64) {
        return Err("`after` is no commit id".to_owned());
    }
    let globs = &repository.branches;
    if !globs.is_empty() && !globs.iter().any(|glob| glob_matches(glob, branch)) {
        return Ok(Asked::Nothing("the repository does not watch this branch"));
    }
    Ok(Asked::Moved {
        branch: branch.to_owned(),
        commit: push.after,
    })
}

/// Whether the key signed the payload; takes the same time wherever they differ.
fn signed(key: &[u8], payload: &[u8], signature: &[u8]) -> bool {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return false;
    };
    mac.update(payload);
    mac.verify_slice(signature).is_ok()
}

fn parse_signature(text: &str) -> Option<Vec<u8>> {
    let hex = text.strip_prefix(SIGNATURE_PREFIX)?;
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    let digits = (0..hex.len()).step_by(2);
    digits
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
        .collect()
}

/// A secret that was typed into a pipe ends with a line break that GitHub's copy has not.
fn trimmed(key: &oast_daemon::secret::Secret<Vec<u8>>) -> &[u8] {
    let mut key: &[u8] = key.expose();
    while let [rest @ .., b'\n' | b'\r'] = key {
        key = rest;
    }
    key
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Result<&'h str, Said> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.ok_or_else(|| {
        let why = format!("the header {name} is missing");
        say(StatusCode::BAD_REQUEST, why)
    })
}

fn unsigned() -> Said {
    let why =
        "the payload is not signed with this repository's webhook secret (X-Hub-Signature-256)";
    say(StatusCode::UNAUTHORIZED, why)
}

fn say(code: StatusCode, why: impl Into<String>) -> Said {
    let mut line = why.into();
    line.push('\n');
    (code, line)
}
