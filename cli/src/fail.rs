//! From an error to what a person reads and a script compares: a message with its reason, what to
//! type next, and an exit code. The only place that knows all three.
//!
//! Commands return any error; here it is looked through for what is known: our own [`Fail`], a
//! farm's status, a client that has no farm, a reader that went away.

use std::io::{self, Write};

use oast_daemon::exit::Exit;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::client::{ClientError, cause};
use crate::output::plain;

/// An error whose exit code and hint the command knows.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Fail {
    exit: Exit,
    message: String,
    hint: Option<String>,
}

impl Fail {
    /// An error that ends the process with that code.
    pub fn new(exit: Exit, message: impl Into<String>) -> Fail {
        Fail {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Fail {
        Fail::new(Exit::Usage, message)
    }

    /// It was tried and did not work.
    pub fn failed(message: impl Into<String>) -> Fail {
        Fail::new(Exit::Failed, message)
    }

    /// What to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Fail {
        self.hint = Some(hint.into());
        self
    }
}

/// What is shown of an error.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    exit: Exit,
    reason: Option<String>,
    message: String,
    hint: Option<String>,
}

/// Says on standard error what went wrong and returns the exit code.
pub fn report(err: &anyhow::Error) -> Exit {
    let Some(shown) = show(err) else {
        // Whoever read our output has seen enough (`| head`).
        return Exit::Ok;
    };
    let mut out = anstream::stderr().lock();
    let reason = shown
        .reason
        .map(|reason| format!("[{reason}]"))
        .unwrap_or_default();
    // Nothing can be done about a standard error that is gone.
    let _ = writeln!(out, "\u{1b}[1;31merror{reason}\u{1b}[0m: {}", shown.message);
    if let Some(hint) = shown.hint {
        let _ = writeln!(out, "  hint: {hint}");
    }
    shown.exit
}

fn show(err: &anyhow::Error) -> Option<Shown> {
    let broken_pipe = |err: &(dyn std::error::Error + 'static)| {
        err.downcast_ref::<io::Error>()
            .is_some_and(|err| err.kind() == io::ErrorKind::BrokenPipe)
    };
    // Only when it is our own output: a farm that hung up has a status on top.
    if err.chain().any(broken_pipe) && err.downcast_ref::<Status>().is_none() {
        return None;
    }
    if let Some(fail) = err.downcast_ref::<Fail>() {
        return Some(Shown {
            exit: fail.exit,
            reason: None,
            message: format!("{err:#}"),
            hint: fail.hint.clone(),
        });
    }
    if let Some(status) = err.downcast_ref::<Status>() {
        return Some(of_status(status));
    }
    if let Some(client) = err.downcast_ref::<ClientError>() {
        let hint = match client {
            ClientError::NoAddress => {
                "`oast quickstart` starts a farm and remembers it; `oast context list` shows the known ones"
            }
            ClientError::Address(_) => "such as --addr 127.0.0.1:7443",
            ClientError::Clear(_) => "such as --addr https://m1.example:7443 --ca ca.pem",
            ClientError::Authority(_) | ClientError::Trust(_) => {
                "`oast context set NAME --addr ADDRESS --ca FILE` keeps it; FILE is the ca.pem of a member"
            }
            ClientError::Token => {
                "OAST_TOKEN or the context's token was copied with something else"
            }
        };
        return Some(Shown {
            exit: Exit::Usage,
            reason: None,
            message: format!("{err:#}"),
            hint: Some(hint.to_owned()),
        });
    }
    Some(Shown {
        exit: Exit::Failed,
        reason: None,
        message: format!("{err:#}"),
        hint: None,
    })
}

fn of_status(status: &Status) -> Shown {
    let reason = status.get_details_error_info().map(|info| info.reason);
    let message = match (status.code(), reason.is_some()) {
        (Code::Unavailable, false) => {
            format!("no member of the farm answers: {}", plain(&cause(status)))
        }
        (Code::DeadlineExceeded, false) => "no member of the farm answers in time".to_owned(),
        _ if status.message().is_empty() => format!("the farm answered `{}`", status.code()),
        _ => plain(status.message()),
    };
    Shown {
        exit: exit_of(status.code()),
        hint: hint_for(status, reason.as_deref()).map(str::to_owned),
        reason,
        message,
    }
}

/// The exit code of a refused or failed call.
pub fn exit_of(code: Code) -> Exit {
    match code {
        Code::Ok => Exit::Ok,
        Code::Unavailable | Code::DeadlineExceeded => Exit::Unreachable,
        Code::Unauthenticated | Code::PermissionDenied => Exit::Denied,
        Code::NotFound => Exit::NotFound,
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        _ => Exit::Failed,
    }
}

fn hint_for(status: &Status, reason: Option<&str>) -> Option<&'static str> {
    let message = status.message();
    Some(match (status.code(), reason) {
        (Code::Unavailable, Some("NO_LEADER")) => {
            "the members elect a leader within seconds; `oast operator raft list-peers` shows them"
        }
        (Code::Unavailable | Code::DeadlineExceeded, _) => {
            "is the farm running? `oast context show` shows where it is looked for, `oast quickstart` starts one"
        }
        (Code::Unauthenticated, _) => {
            "a token comes from OAST_TOKEN or the context: `oast context list` shows the known farms"
        }
        (Code::PermissionDenied, _) => "`oast whoami` shows who you are to the farm",
        (Code::NotFound, _) if message.contains("no run ") => "`oast run list` shows the runs",
        (Code::NotFound, _) if message.contains("no image ") => {
            "`oast image list` shows the images"
        }
        (Code::NotFound, _) if message.contains("no fleet ") => {
            "`oast fleet list` shows the fleets"
        }
        (Code::NotFound, _) if message.contains("no rollout ") => {
            "`oast rollout list FLEET` shows the rollouts of a fleet"
        }
        (Code::NotFound, _)
            if message.contains("no team ") || message.contains("no repository ") =>
        {
            "`oast resource list` shows what there is; `oast apply -f FILE` makes it"
        }
        (Code::Aborted, Some("MOVED")) => {
            "somebody changed it meanwhile: the same command again shows the new state"
        }
        (Code::Unknown, Some("OUTCOME_UNKNOWN")) => {
            "the farm lost its leader while it answered: look before you try again"
        }
        (Code::ResourceExhausted, Some("OVERLOADED")) => "the same command again in a moment",
        (Code::ResourceExhausted, Some("NO_SPACE")) => {
            "free disk where the members keep their artifacts"
        }
        (Code::Unimplemented, _) => {
            "the members are of another version: `oast version` and `oast whoami` show both"
        }
        (Code::Internal, _) => "the member's own log says more",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    fn shown(err: impl Into<anyhow::Error>) -> Shown {
        show(&err.into()).expect("something to show")
    }

    fn status(code: Code, reason: &str, message: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, "oast.dev", []);
        Status::with_error_details(code, message, details)
    }

    #[test]
    fn every_kind_of_refusal_has_its_exit_code() {
        let exits = [
            (Code::Unavailable, 3),
            (Code::DeadlineExceeded, 3),
            (Code::Unauthenticated, 4),
            (Code::PermissionDenied, 4),
            (Code::NotFound, 5),
            (Code::InvalidArgument, 64),
            (Code::FailedPrecondition, 1),
            (Code::Aborted, 1),
            (Code::Internal, 1),
        ];
        for (code, exit) in exits {
            assert_eq!(exit_of(code).code(), exit, "{code:?}");
        }
    }

    #[test]
    fn a_status_shows_its_reason_and_what_to_type_next() {
        let shown = shown(status(Code::NotFound, "NOT_FOUND", "there is no run `r-9`"));
        assert_eq!(
            shown,
            Shown {
                exit: Exit::NotFound,
                reason: Some("NOT_FOUND".into()),
                message: "there is no run `r-9`".into(),
                hint: Some("`oast run list` shows the runs".into()),
            }
        );
    }

    #[test]
    fn a_status_cannot_steer_the_terminal() {
        let shown = shown(Status::internal("a\u{1b}]0;title\u{7}b"));
        assert!(!shown.message.contains('\u{1b}'), "{shown:?}");
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        let err = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("print");
        assert_eq!(show(&err), None);
    }

    #[test]
    fn our_own_failures_keep_their_code_under_context() {
        let err = anyhow::Error::from(Fail::usage("no").hint("yes"));
        let shown = show(&err).expect("something to show");
        assert_eq!(
            (shown.exit, shown.hint.as_deref()),
            (Exit::Usage, Some("yes"))
        );
    }
}
