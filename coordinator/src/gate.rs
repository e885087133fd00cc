//! Who may call what on the farm's port, by the certificate that they show.
//!
//! ```text
//! nobody   joins, and nothing else
//! worker   speaks the worker protocol and renews its certificate
//! member   everything: peers' messages, and calls of people that are passed on with their tokens
//! ```
//!
//! This comes before every other check and replaces none: tokens and roles of people are judged
//! as on the port for people.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use oast_daemon::tls::{Name, Role};
use tonic::Code;

use crate::api::status;

/// Only calls that join.
const JOIN: &str = "/oast.worker.v1.Certificates/Join";
/// What workers call.
const WORKERS: [&str; 2] = ["/oast.worker.v1.Workers/", "/oast.worker.v1.Certificates/"];

/// Why a caller may not call this; none when it may.
fn refusal(path: &str, caller: Option<&Name>) -> Option<(Code, String)> {
    let workers = WORKERS.iter().any(|service| path.starts_with(service));
    match caller {
        Some(name) if name.role() == Role::Member => None,
        Some(_) if workers => None,
        None if path == JOIN => None,
        Some(name) => Some((
            Code::PermissionDenied,
            format!(
                "{} may not call {path}: a worker's certificate speaks the worker protocol only; people use the member's other port",
                name.short()
            ),
        )),
        None => Some((
            Code::Unauthenticated,
            "this port is for members and workers of the farm, who show a certificate: a new worker joins with `oast worker --join TOKEN`, people use the member's other port".to_owned(),
        )),
    }
}

/// Lets a call through or answers it.
pub async fn check(request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Name>();
    match refusal(request.uri().path(), caller) {
        None => next.run(request).await,
        Some((code, message)) => {
            let reason = match code {
                Code::Unauthenticated => "NO_CERTIFICATE",
                _ => "WRONG_ROLE",
            };
            let status = status::error(code, reason, message);
            status.into_http::<axum::body::Body>().into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_calls_what_is_its_own() {
        let name = |role| Name::new("acme", role, "x1").expect("a name");
        let member = name(Role::Member);
        let worker = name(Role::Worker);
        let rows = [
            ("/oast.peer.v1.Peer/Deliver", [true, false, false]),
            ("/oast.worker.v1.Workers/Session", [true, true, false]),
            ("/oast.worker.v1.Certificates/Renew", [true, true, false]),
            ("/oast.worker.v1.Certificates/Join", [true, true, true]),
            ("/oast.worker.v1.Certificates/JoinX", [true, true, false]),
            ("/oast.v1.Operator/InitFarm", [true, false, false]),
            ("/metrics", [true, false, false]),
            ("/", [true, false, false]),
        ];
        for (path, wanted) in rows {
            let found =
                [Some(&member), Some(&worker), None].map(|caller| refusal(path, caller).is_none());
            assert_eq!(found, wanted, "{path}");
        }
    }
}
