//! The one place where a domain error becomes a gRPC status.
//!
//! Every status carries `google.rpc.ErrorInfo` with a stable reason, so that clients need not
//! read the message; what may be tried again says after how long.

use std::collections::HashMap;
use std::time::Duration;

use oast_daemon::telemetry::chain;
use oast_model::ledger::Rejected;
use oast_model::principal::Denied;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::archive::ArchiveError;
use crate::consensus::replica::ReadError;
use crate::farm::WriteError;
use crate::secrets::SecretError;

/// Whose reasons these are.
const DOMAIN: &str = "oast.dev";
/// When a client may try again after an overload or without a leader.
const RETRY: Duration = Duration::from_secs(1);

/// A status with a reason.
pub fn error(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    if matches!(code, Code::Unavailable | Code::ResourceExhausted) {
        details.set_retry_info(Some(RETRY));
    }
    Status::with_error_details(code, message, details)
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
            WriteError::NoLeader => error(Code::Unavailable, "NO_LEADER", message),
            WriteError::Unknown => error(Code::Unknown, "OUTCOME_UNKNOWN", message),
            WriteError::Overloaded => error(Code::ResourceExhausted, "OVERLOADED", message),
            WriteError::TooLarge(_) => error(Code::InvalidArgument, "TOO_LARGE", message),
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
