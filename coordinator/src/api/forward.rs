//! Calls that only the leader can answer, passed on from whichever member was asked.
//!
//! The caller's own token travels along, so the leader decides as if it had been asked itself. A
//! call counts how often it was passed on and is passed on once: two members that each take the
//! other for the leader answer `UNAVAILABLE` instead of passing it back and forth. The deadline
//! travels along too.

use tonic::Status;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use super::auth::Caller;
use super::{Api, status};

/// How often a call was passed on.
pub(super) const HOPS: &str = "oast-hops";
/// How often a call may be passed on.
const HOPS_MAX: u32 = 1;

impl Api {
    /// Where to pass a call on to; none when this member leads and answers itself.
    pub(super) fn elsewhere(&self, caller: &Caller) -> Result<Option<Channel>, Status> {
        if self.farm.leading().is_some() {
            return Ok(None);
        }
        if caller.hops >= HOPS_MAX {
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
    request
        .metadata_mut()
        .insert(HOPS, (caller.hops + 1).into());
    Ok(request)
}

impl Api {
    /// [`pass_on`] for a call that is answered at once: with what is left of its time.
    pub(super) fn pass_on<T>(
        &self,
        message: T,
        caller: &Caller,
    ) -> Result<tonic::Request<T>, Status> {
        let mut request = pass_on(message, caller)?;
        if let Some(deadline) = caller.deadline {
            let now = self.farm.clock().monotonic();
            request.set_timeout(deadline.saturating_sub(now));
        }
        Ok(request)
    }
}
