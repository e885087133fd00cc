//! What a status tells a program: its stable reason, and whether another try may help.
//!
//! Members put `google.rpc.ErrorInfo` into every status of their own, so a status without one was
//! made by the connection. Used by every client and between members, so that all of them judge
//! alike.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What may help after a failed call that is safe to repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Another member may answer. With the time after which this one wants to be asked again.
    Elsewhere(Option<Duration>),
    /// Nobody answers sooner: the farm itself is full.
    Later(Duration),
    /// The answer stands.
    Never,
}

/// The stable reason, if a member gave one.
pub fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// When the member wants to be asked again.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// Judges a failed call.
pub fn advice(status: &Status) -> Advice {
    let after = retry_after(status);
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Advice::Elsewhere(after),
        Code::ResourceExhausted => after.map_or(Advice::Never, Advice::Later),
        // A connection that broke in the middle.
        Code::Unknown | Code::Internal if reason(status).is_none() => Advice::Elsewhere(after),
        _ => Advice::Never,
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn what_a_member_says_stands_and_what_the_connection_says_does_not() {
        let details = |after: Option<u64>| {
            let mut details = ErrorDetails::with_error_info("WHY", "oast.dev", []);
            details.set_retry_info(after.map(Duration::from_secs));
            details
        };
        let said = |code, after| Status::with_error_details(code, "no", details(after));
        let second = Duration::from_secs(1);
        let rows = [
            (
                said(Code::Unavailable, Some(1)),
                Advice::Elsewhere(Some(second)),
            ),
            (Status::unavailable("refused"), Advice::Elsewhere(None)),
            (Status::deadline_exceeded("late"), Advice::Elsewhere(None)),
            (
                said(Code::ResourceExhausted, Some(1)),
                Advice::Later(second),
            ),
            (said(Code::ResourceExhausted, None), Advice::Never),
            (Status::unknown("transport error"), Advice::Elsewhere(None)),
            (said(Code::Unknown, None), Advice::Never),
            (Status::internal("h2"), Advice::Elsewhere(None)),
            (said(Code::Internal, None), Advice::Never),
            (said(Code::InvalidArgument, None), Advice::Never),
            (Status::unauthenticated("who"), Advice::Never),
        ];
        for (status, wanted) in rows {
            assert_eq!(advice(&status), wanted, "{status:?}");
        }
    }
}
