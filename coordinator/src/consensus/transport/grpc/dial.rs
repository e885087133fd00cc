//! The one place where a member's connection to another is made.

use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::links::LinkOptions;

/// An address does not make an endpoint.
#[derive(Debug, thiserror::Error)]
#[error("reach a member at {address}: write host:port")]
pub struct AddressError {
    /// As configured.
    address: String,
    /// Cause.
    #[source]
    source: tonic::transport::Error,
}

/// Shows who we are with every call.
#[derive(Clone)]
pub(super) struct Badge(Option<AsciiMetadataValue>);

impl Interceptor for Badge {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A connection that is made when it is first used, and made again when it was lost.
pub(super) type PeerChannel = InterceptedService<Channel, Badge>;

/// A connection to the member at `address`, `host:port`. Must be called inside the runtime.
///
/// # Errors
/// [`AddressError`].
pub(super) fn dial(address: &str, options: &LinkOptions) -> Result<PeerChannel, AddressError> {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|source| AddressError {
            address: address.to_owned(),
            source,
        })?;
    let channel = endpoint
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(options.keep_alive)
        .keep_alive_timeout(options.keep_alive)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(options.dialer.connector());
    Ok(InterceptedService::new(
        channel,
        Badge(options.authorization.clone()),
    ))
}
