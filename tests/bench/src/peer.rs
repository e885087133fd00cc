//! The systems under measurement. Each one starts its own three processes on loopback, in a
//! folder of its own, with its durability on, and is driven through its leader.

pub mod etcd;
pub mod oast;
pub mod postgres;

use tonic::transport::{Channel, Endpoint};

/// Most connections that a load is spread over.
const CONNECTIONS: usize = 16;

/// Lazy connections to one address for so many clients.
fn channels(uri: &str, clients: usize) -> anyhow::Result<Vec<Channel>> {
    let endpoint = Endpoint::from_shared(uri.to_owned())?.tcp_nodelay(true);
    Ok((0..clients.clamp(1, CONNECTIONS))
        .map(|_| endpoint.connect_lazy())
        .collect())
}
