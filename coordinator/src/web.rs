//! The read-only pages: what runs, what the instances show, one run with its live log.
//!
//! ```text
//! GET /                     fleets, then runs, newest first
//! GET /runs/<id>            one run: tasks, steps, attempts, the log
//! GET /runs/<id>/log        the log as text, or as JSON lines that go on while the run does
//! GET /assets/<name>        one style sheet, one script
//! ```
//!
//! Pages need no token, because the port is loopback only; so a request that names another host
//! is refused, or any website could read them through a name that resolves to loopback. They
//! are whole without the script, which only fetches the page again and follows the log.

mod asset;
mod home;
mod log;
mod page;
mod run;
#[cfg(test)]
mod tests;
mod words;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{HOST, HeaderName};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use oast_daemon::secret::Secret;
use oast_model::principal::{Principal, PrincipalKind, Role};

use crate::api::Api;
use crate::api::auth::Caller;

/// Nothing but our own files, no frames, no forms.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The pages.
pub fn routes(api: Api) -> Router {
    Router::new()
        .route("/", get(home::home))
        .route("/runs/{id}", get(run::run))
        .route("/runs/{id}/log", get(log::log))
        .route("/assets/{name}", get(asset::asset))
        .with_state(api)
        .layer(from_fn(guard))
}

/// Whoever reads a page: a viewer of everything, known to the leader as one of its members.
fn reader(api: &Api) -> Caller {
    let principal = Principal {
        name: "page".into(),
        kind: PrincipalKind::User,
        role: Role::Viewer,
        team: None,
    };
    Caller::of(principal, Secret::new(api.peer_token.expose().clone()))
}

/// A request as a service sees it that comes from a page.
fn ask<T>(api: &Api, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.extensions_mut().insert(reader(api));
    request
}

async fn guard(request: Request, next: Next) -> Response {
    let named = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    let named = named.or_else(|| request.uri().host()).unwrap_or_default();
    if !is_loopback(named) {
        let why = "these pages answer on loopback addresses only\n";
        return (StatusCode::MISDIRECTED_REQUEST, why).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ] {
        let (name, value) = (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
        headers.insert(name, value);
    }
    response
}

/// Whether a `Host` header names this machine itself.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let address = name.parse::<std::net::IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|ip| ip.is_loopback())
}
