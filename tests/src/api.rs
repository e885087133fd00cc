//! The farm's API at one member, with one token.

use std::time::Duration;

use anyhow::{Context, Result};
use oast_proto::peer::v1::peer_client::PeerClient;
use oast_proto::v1::changes_client::ChangesClient;
use oast_proto::v1::fleets_client::FleetsClient;
use oast_proto::v1::images_client::ImagesClient;
use oast_proto::v1::operator_client::OperatorClient;
use oast_proto::v1::resources_client::ResourcesClient;
use oast_proto::v1::runs_client::RunsClient;
use oast_proto::v1::upload_tree_request::Message;
use oast_proto::v1::worker_tokens_client::WorkerTokensClient;
use oast_proto::v1::{UploadFile, UploadTreeRequest};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long one call may take unless it streams.
pub const CALL: Duration = Duration::from_secs(12);

/// Shows the token.
#[derive(Clone, Debug)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, Bearer>;

/// One member's services.
#[derive(Clone, Debug)]
pub struct Api {
    channel: Channel,
    bearer: Bearer,
}

macro_rules! services {
    ($($name:ident: $client:ident;)*) => {
        impl Api {
            $(
                /// The service of that name.
                #[must_use]
                pub fn $name(&self) -> $client<Authorized> {
                    $client::with_interceptor(self.channel.clone(), self.bearer.clone())
                        .max_decoding_message_size(64 << 20)
                }
            )*
        }
    };
}

services! {
    runs: RunsClient;
    images: ImagesClient;
    fleets: FleetsClient;
    resources: ResourcesClient;
    operator: OperatorClient;
    peer: PeerClient;
    changes: ChangesClient;
    worker_tokens: WorkerTokensClient;
}

impl Api {
    /// Connects when it is first used.
    ///
    /// # Errors
    /// The address is none.
    pub fn new(address: &str, token: Option<&str>) -> Result<Api> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let bearer = match token {
            Some(token) => Some(format!("Bearer {token}").parse().context("a token")?),
            None => None,
        };
        Ok(Api {
            channel: endpoint
                .connect_timeout(Duration::from_secs(2))
                .connect_lazy(),
            bearer: Bearer(bearer),
        })
    }

    /// Stores a tree of small files and returns its name.
    ///
    /// # Errors
    /// The member refused it or did not answer.
    pub async fn upload(&self, files: &[(&str, &str)]) -> Result<String> {
        let mut files = files.to_vec();
        files.sort_unstable();
        let messages: Vec<UploadTreeRequest> = files
            .into_iter()
            .flat_map(|(path, text)| {
                let file = UploadFile {
                    path: path.into(),
                    mode: 0o644,
                    size: text.len() as u64,
                    symlink: String::new(),
                };
                let chunk = text.as_bytes().to_vec();
                [Message::File(file), Message::Chunk(chunk.into())]
            })
            .map(|message| UploadTreeRequest {
                message: Some(message),
            })
            .collect();
        let stream = tokio_stream(messages);
        let answer = self.runs().upload_tree(stream).await?;
        Ok(answer.into_inner().tree)
    }
}

/// A ready stream of messages.
fn tokio_stream<T: Send + 'static>(items: Vec<T>) -> impl tonic::IntoStreamingRequest<Message = T> {
    tokio_stream::iter(items)
}

/// A request with the deadline of a call.
pub fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL);
    request
}
