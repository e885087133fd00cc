//! What the process says about itself: `/livez`, `/healthz`, `/readyz` and `/metrics`.
//!
//! Parts register under a name and say how they are. `/livez` and `/healthz` fail only when a part
//! is [`State::Broken`] (restarting may help); `/readyz` fails until every part is
//! [`State::Ready`] (send nobody here yet). The answers list every part with its reason, one a
//! line, so that `curl` is all one needs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::metrics::Metrics;

/// How one part of the process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It does its work.
    Ready,
    /// Not yet or not now; the reason is for people.
    NotReady(String),
    /// It will not come back by itself.
    Broken(String),
}

/// The parts of a process and how they are. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

/// One part's own line in [`Health`].
#[derive(Clone, Debug)]
pub struct Part {
    name: &'static str,
    health: Health,
}

impl Health {
    /// Registers a part, which is not ready until it says so.
    #[must_use]
    pub fn part(&self, name: &'static str) -> Part {
        let part = Part {
            name,
            health: self.clone(),
        };
        part.not_ready("starting");
        part
    }

    /// Whether every part is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.all(|state| *state == State::Ready)
    }

    /// Whether no part is broken.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.all(|state| !matches!(state, State::Broken(_)))
    }

    fn all(&self, holds: impl Fn(&State) -> bool) -> bool {
        self.parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .all(holds)
    }
}

/// One part a line: its name and how it is.
impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, state) in parts.iter() {
            match state {
                State::Ready => writeln!(f, "{name}: ready")?,
                State::NotReady(why) => writeln!(f, "{name}: not ready: {why}")?,
                State::Broken(why) => writeln!(f, "{name}: broken: {why}")?,
            }
        }
        Ok(())
    }
}

impl Part {
    /// It does its work.
    pub fn ready(&self) {
        self.set(State::Ready);
    }

    /// Not yet or not now.
    pub fn not_ready(&self, why: impl Into<String>) {
        self.set(State::NotReady(why.into()));
    }

    /// It will not come back by itself.
    pub fn broken(&self, why: impl Into<String>) {
        self.set(State::Broken(why.into()));
    }

    fn set(&self, state: State) {
        let mut parts = self
            .health
            .parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        parts.insert(self.name, state);
    }
}

/// The four pages, to be merged into the process's router.
pub fn routes(metrics: Metrics, health: Health) -> Router {
    let pages = Router::new()
        .route("/livez", get(live))
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .with_state(health);
    Router::new()
        .route("/metrics", get(scrape))
        .with_state(metrics)
        .merge(pages)
}

async fn scrape(Extract(metrics): Extract<Metrics>) -> Response {
    let kind = (CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([kind, (CACHE_CONTROL, "no-store")], metrics.render()).into_response()
}

async fn live(Extract(health): Extract<Health>) -> Response {
    page(health.is_live(), &health)
}

async fn ready(Extract(health): Extract<Health>) -> Response {
    page(health.is_ready(), &health)
}

fn page(good: bool, health: &Health) -> Response {
    let (code, word) = match good {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "failing"),
    };
    let headers = [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
    ];
    (code, headers, format!("{word}\n{health}")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_ready_is_still_alive_and_broken_is_not() {
        let health = Health::default();
        assert!(health.is_ready() && health.is_live());
        let raft = health.part("raft");
        assert!(!health.is_ready() && health.is_live());
        raft.ready();
        health.part("store").broken("disk is gone");
        assert!(!health.is_live());
        assert_eq!(
            health.to_string(),
            "raft: ready\nstore: broken: disk is gone\n"
        );
    }
}
