//! Layers that the farm already has.
//!
//! Asked of the members, whose ledger knows every finished step. Without a session the question
//! waits a while and then the answer is "none": a step is then done again, which costs time and
//! changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use oast_artifacts::Digest;
use oast_daemon::clock::{SharedClock, timeout};
use oast_daemon::secret::Secret;
use oast_daemon::telemetry::chain;
use oast_model::bake::Layer;
use oast_model::codec;
use oast_proto::worker::v1 as wire;
use oast_proto::worker::v1::workers_client::WorkersClient;
use tokio::sync::watch;
use tonic::transport::Channel;
use tracing::{debug, warn};

use crate::session::authorized;

/// Time for all tries: a leader is elected within this.
const PATIENCE: Duration = Duration::from_secs(8);
/// Time for one answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Says which layers are known.
#[tonic::async_trait]
pub trait Finder: std::fmt::Debug + Send + Sync + 'static {
    /// The known layers among `keys`, by key.
    async fn find(&self, keys: &[Digest]) -> BTreeMap<Digest, Layer>;
}

/// Asks over the session's connection.
#[derive(Clone, Debug)]
pub struct Members {
    /// The channel to the leader while there is one.
    pub channel: watch::Receiver<Option<Channel>>,
    /// Our access token, where we have no certificate.
    pub token: Option<Secret<String>>,
    /// For patience.
    pub clock: SharedClock,
}

#[tonic::async_trait]
impl Finder for Members {
    async fn find(&self, keys: &[Digest]) -> BTreeMap<Digest, Layer> {
        if keys.is_empty() {
            return BTreeMap::new();
        }
        match timeout(&*self.clock, PATIENCE, self.ask(keys)).await {
            Ok(found) => found,
            Err(late) => {
                warn!(error = %chain(&late), "Nobody says which layers are known; steps may be done again.");
                BTreeMap::new()
            }
        }
    }
}

impl Members {
    async fn ask(&self, keys: &[Digest]) -> BTreeMap<Digest, Layer> {
        let asked = wire::FindLayersRequest {
            keys: keys.iter().map(ToString::to_string).collect(),
        };
        let mut channel = self.channel.clone();
        loop {
            let open = match channel.wait_for(Option::is_some).await {
                Ok(open) => open.clone(),
                // The session is gone for good: the worker stops.
                Err(_) => return BTreeMap::new(),
            };
            if let Some(open) = open {
                let mut request = authorized(self.token.as_ref(), asked.clone());
                request.set_timeout(ANSWER);
                match WorkersClient::new(open).find_layers(request).await {
                    Ok(answer) => return read(answer.into_inner()),
                    Err(status) => {
                        debug!(code = ?status.code(), reason = status.message(), "Layers could not be looked up; asking again.");
                    }
                }
            }
            self.clock.sleep(PAUSE).await;
        }
    }
}

fn read(answer: wire::FindLayersResponse) -> BTreeMap<Digest, Layer> {
    let layers = answer.layers.iter().filter_map(|body| {
        let layer: Layer = codec::decode(body)
            .inspect_err(|err| warn!(error = %chain(err), "A known layer cannot be read."))
            .ok()?;
        Some((layer.key, layer))
    });
    layers.collect()
}
