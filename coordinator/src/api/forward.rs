//! Calls that only the leader can answer, passed on from whichever member was asked.
//!
//! The caller's own token travels along, so the leader decides as if it had been asked itself. A
//! call is passed on once: two members that each take the other for the leader answer
//! `UNAVAILABLE` instead of passing it back and forth.

use tonic::Status;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use super::auth::Caller;
use super::{Api, status};

/// Marks a call that was passed on.
pub(super) const FORWARDED: &str = "oast-forwarded";

impl Api {
    /// Where to pass a call on to; none when this member leads and answers itself.
    pub(super) fn elsewhere(&self, caller: &Caller) -> Result<Option<Channel>, Status> {
        if self.farm.leading().is_some() {
            return Ok(None);
        }
        if caller.forwarded {
            return Err(status::no_leader());
        }
        let channel = self.farm.leader_channel();
        channel.map(Some).ok_or_else(status::no_leader)
    }
}

/// The same call for the leader.
pub(super) fn pass_on<T>(message: T, caller: &Caller) -> Result<tonic::Request<T>, Status> {
    let mut request = tonic::Request::new(message);
    let shown = format!("Bearer {}", caller.token.expose());
    let mut shown = MetadataValue::try_from(shown)
        .map_err(|_| status::unauthenticated("the token is no header value"))?;
    shown.set_sensitive(true);
    request.metadata_mut().insert("authorization", shown);
    let mark = MetadataValue::from_static("1");
    request.metadata_mut().insert(FORWARDED, mark);
    Ok(request)
}
