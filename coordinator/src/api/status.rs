//! The one place where a domain error becomes a gRPC status.
//!
//! Every status carries `google.rpc.ErrorInfo` with a stable reason, so that clients need not
//! read the message; what may be tried again says after how long. [`REASONS`] lists all of them
//! and docs/api.md explains them; a test keeps the two equal.

use std::collections::HashMap;
use std::time::Duration;

use oast_daemon::telemetry::chain;
use oast_model::ledger::{ForeignPosition, Rejected};
use oast_model::principal::Denied;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::archive::ArchiveError;
use crate::consensus::replica::ReadError;
use crate::farm::{LookError, WriteError};
use crate::secrets::SecretError;

/// Whose reasons these are.
pub const DOMAIN: &str = "oast.dev";
/// When a client may try again after an overload or without a leader.
const RETRY: Duration = Duration::from_secs(1);
/// When a client may try again after a limit of what the farm remembers or keeps open.
const RETRY_FULL: Duration = Duration::from_secs(60);

/// Every reason there is, with its code.
pub const REASONS: [(&str, Code); 42] = [
    ("ADDRESS_TAKEN", Code::AlreadyExists),
    ("ANOTHER_EPOCH", Code::OutOfRange),
    ("BOOTSTRAP", Code::PermissionDenied),
    ("BRANCH_NOT_SEEN", Code::FailedPrecondition),
    ("CHANGE_PENDING", Code::FailedPrecondition),
    ("CLUSTER_VERSION", Code::FailedPrecondition),
    ("COMPACTED", Code::OutOfRange),
    ("DEADLINE", Code::DeadlineExceeded),
    ("DENIED", Code::PermissionDenied),
    ("EXHAUSTED", Code::ResourceExhausted),
    ("FORBIDDEN", Code::FailedPrecondition),
    ("FUTURE", Code::OutOfRange),
    ("HANDING_OVER", Code::Unavailable),
    ("INCOMPLETE", Code::Unavailable),
    ("INTERNAL", Code::Internal),
    ("INVALID", Code::InvalidArgument),
    ("ISSUER_OVER", Code::FailedPrecondition),
    ("MEMBER_RETIRED", Code::FailedPrecondition),
    ("MOVED", Code::Aborted),
    ("NOT_ALIGNED", Code::FailedPrecondition),
    ("NOT_FOUND", Code::NotFound),
    ("NOT_INVITED", Code::FailedPrecondition),
    ("NOT_READY", Code::FailedPrecondition),
    ("NO_CERTIFICATE", Code::Unauthenticated),
    ("NO_DOCUMENT", Code::FailedPrecondition),
    ("NO_ISSUER", Code::FailedPrecondition),
    ("NO_LEADER", Code::Unavailable),
    ("NO_QUORUM", Code::FailedPrecondition),
    ("NO_SPACE", Code::ResourceExhausted),
    ("NO_TLS", Code::FailedPrecondition),
    ("OUTCOME_UNKNOWN", Code::Unknown),
    ("OVERLOADED", Code::ResourceExhausted),
    ("PASSED_OVER", Code::Aborted),
    ("REQUEST_ID_REUSED", Code::FailedPrecondition),
    ("STALE", Code::Unavailable),
    ("STALE_TOKEN", Code::FailedPrecondition),
    ("STOPPING", Code::Unavailable),
    ("TOKEN_USED", Code::FailedPrecondition),
    ("TOO_LARGE", Code::InvalidArgument),
    ("UNAUTHENTICATED", Code::Unauthenticated),
    ("WRONG_ROLE", Code::PermissionDenied),
    ("WRONG_STATE", Code::FailedPrecondition),
];

/// A status with a reason, which must be one of [`REASONS`].
pub fn error(code: Code, reason: &str, message: impl Into<String>) -> Status {
    explained(code, reason, message, [])
}

/// The same with facts for programs.
pub fn explained<const N: usize>(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    facts: [(&str, String); N],
) -> Status {
    debug_assert!(
        REASONS.contains(&(reason, code)),
        "{reason} ({code:?}) belongs into REASONS and docs/api.md"
    );
    let facts: HashMap<String, String> = facts
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, facts);
    details.set_retry_info(match (code, reason) {
        (_, "EXHAUSTED") => Some(RETRY_FULL),
        // Somebody has to make room first.
        (_, "NO_SPACE") => None,
        (Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded, _) => Some(RETRY),
        _ => None,
    });
    Status::with_error_details(code, message, details)
}

/// The same status, naming the request that it is about.
pub fn about(status: Status, request_id: &str, member: u64) -> Status {
    let mut details = status.get_error_details();
    details.set_request_info(request_id, format!("member {member}"));
    Status::with_error_details(status.code(), status.message(), details)
}

/// A field of the request is wrong.
pub fn invalid(field: &str, message: impl Into<String>) -> Status {
    let message = message.into();
    let violations = vec![FieldViolation::new(field, message.clone())];
    invalid_fields(message, violations)
}

/// Several places of the request are wrong.
pub fn invalid_fields(message: impl Into<String>, violations: Vec<FieldViolation>) -> Status {
    let mut details = ErrorDetails::with_error_info("INVALID", DOMAIN, HashMap::new());
    details.set_bad_request(violations);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// What was named is not there, or not visible to who asks.
pub fn not_found(kind: &str, name: impl std::fmt::Display) -> Status {
    let message = format!("there is no {kind} `{name}`");
    error(Code::NotFound, "NOT_FOUND", message)
}

/// Nobody said who asks, or the token is not known.
pub fn unauthenticated(message: impl Into<String>) -> Status {
    error(Code::Unauthenticated, "UNAUTHENTICATED", message)
}

/// The principal may not do this.
pub fn denied(denied: &Denied) -> Status {
    error(Code::PermissionDenied, "DENIED", denied.to_string())
}

/// Nobody leads, or the leader is not known here.
pub fn no_leader() -> Status {
    let message = "no member leads at the moment: try again";
    error(Code::Unavailable, "NO_LEADER", message)
}

/// Something here failed; the reason is for the operator as much as for the caller.
pub fn internal(err: &(dyn std::error::Error + 'static)) -> Status {
    let message = chain(err).to_string();
    tracing::error!(error = message, "A call failed.");
    error(Code::Internal, "INTERNAL", message)
}

/// A watch resumes from where this farm never was.
pub fn foreign_position(err: &ForeignPosition) -> Status {
    let reason = match err {
        ForeignPosition::AnotherEpoch { .. } => "ANOTHER_EPOCH",
        ForeignPosition::NotYet { .. } => "FUTURE",
    };
    error(Code::OutOfRange, reason, err.to_string())
}

/// The ledger's refusal.
pub fn rejected(rejected: &Rejected) -> Status {
    let (code, reason) = match rejected {
        Rejected::Denied(_) => (Code::PermissionDenied, "DENIED"),
        Rejected::NotFound { .. } => (Code::NotFound, "NOT_FOUND"),
        Rejected::StaleToken { .. } => (Code::FailedPrecondition, "STALE_TOKEN"),
        Rejected::WrongState(_) => (Code::FailedPrecondition, "WRONG_STATE"),
        Rejected::Moved { .. } => (Code::Aborted, "MOVED"),
        Rejected::Forbidden(_) => (Code::FailedPrecondition, "FORBIDDEN"),
        Rejected::Exhausted(_) => (Code::ResourceExhausted, "EXHAUSTED"),
    };
    error(code, reason, rejected.to_string())
}

impl From<WriteError> for Status {
    fn from(err: WriteError) -> Status {
        let message = err.to_string();
        match err {
            WriteError::Rejected(refusal) => rejected(&refusal),
            WriteError::NoLeader { .. } => error(Code::Unavailable, "NO_LEADER", message),
            WriteError::Late { .. } => error(Code::DeadlineExceeded, "DEADLINE", message),
            WriteError::Unknown => error(Code::Unknown, "OUTCOME_UNKNOWN", message),
            WriteError::Overloaded => error(Code::ResourceExhausted, "OVERLOADED", message),
            WriteError::NoSpace => error(Code::ResourceExhausted, "NO_SPACE", message),
            WriteError::TooLarge(_) => error(Code::InvalidArgument, "TOO_LARGE", message),
            WriteError::TooNew(_) => error(Code::FailedPrecondition, "CLUSTER_VERSION", message),
        }
    }
}

impl From<ReadError> for Status {
    fn from(err: ReadError) -> Status {
        let (code, reason) = match err {
            ReadError::Unavailable => (Code::Unavailable, "NO_LEADER"),
            ReadError::Overloaded => (Code::ResourceExhausted, "OVERLOADED"),
            ReadError::Stopped => (Code::Unavailable, "STOPPING"),
        };
        error(code, reason, err.to_string())
    }
}

impl From<LookError> for Status {
    fn from(err: LookError) -> Status {
        match err {
            LookError::Read(err) => err.into(),
            LookError::Stale { age, .. } => {
                let ms = age.map_or_else(String::new, |age| age.as_millis().to_string());
                let facts = [("staleness_ms", ms)];
                explained(Code::Unavailable, "STALE", err.to_string(), facts)
            }
        }
    }
}

impl From<ArchiveError> for Status {
    fn from(err: ArchiveError) -> Status {
        internal(&err)
    }
}

impl From<SecretError> for Status {
    fn from(err: SecretError) -> Status {
        match err {
            SecretError::Size(_) => invalid("value", err.to_string()),
            err => internal(&err),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_in_the_documentation_with_its_code_and_no_other_does() {
        let page = include_str!("../../../docs/api.md");
        let rows = page.lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            let (reason, code) = (cells.next()?.trim_matches('`'), cells.next()?);
            Some((reason.to_owned(), code.to_owned()))
        });
        let mut known = Vec::new();
        for (reason, code) in REASONS {
            known.push((reason.to_owned(), format!("{code:?}")));
        }
        assert_eq!(rows.collect::<Vec<_>>(), known);
    }

    #[test]
    fn a_status_about_a_request_keeps_what_it_said() {
        let status = about(no_leader(), "req-1", 2);
        let details = status.get_error_details();
        assert_eq!(
            details.error_info().map(|info| info.reason.as_str()),
            Some("NO_LEADER")
        );
        assert_eq!(
            details.retry_info().and_then(|info| info.retry_delay),
            Some(RETRY)
        );
        let request = details.request_info().expect("it names the request");
        assert_eq!(
            (request.request_id.as_str(), request.serving_data.as_str()),
            ("req-1", "member 2")
        );
    }
}
