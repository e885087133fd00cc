//! The one place where the cloud's errors become gRPC codes.

use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use oast_daemon::telemetry::chain;

use crate::local_cloud::cloud::CloudError;
use crate::local_cloud::runtime::BootError;

/// Trailer of FAILED_PRECONDITION that carries the current etag. Without it the precondition was
/// another one than `if_match`.
pub const ETAG_TRAILER: &str = "oast-current-etag";

/// The status of an error; the whole chain is in its message.
pub(super) fn of(err: CloudError) -> Status {
    let text = chain(&err).to_string();
    match err {
        CloudError::NotFound(_) | CloudError::Gone(_) => Status::not_found(text),
        CloudError::Exists(_) => Status::already_exists(text),
        CloudError::Etag { current, .. } => {
            let mut trailers = MetadataMap::new();
            if let Ok(value) = current.to_string().parse() {
                trailers.insert(ETAG_TRAILER, value);
            }
            Status::with_metadata(Code::FailedPrecondition, text, trailers)
        }
        CloudError::Invalid(_) => Status::invalid_argument(text),
        CloudError::Quota(_) => Status::resource_exhausted(text),
        CloudError::Deleting(_) | CloudError::Listen(_) | CloudError::Conflict(_) => {
            Status::failed_precondition(text)
        }
        CloudError::Boot(BootError::Refused(_)) => Status::failed_precondition(text),
        CloudError::Boot(BootError::Layers { .. } | BootError::System { .. })
        | CloudError::Store(_) => Status::internal(text),
        CloudError::Stopping => Status::unavailable(text),
    }
}
