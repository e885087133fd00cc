//! A worker's session with the farm, as the benches play it.

use std::time::Duration;

use anyhow::{Context, Result};
use oast_proto::worker::v1 as wire;
use oast_proto::worker::v1::from_worker::Message as Up;
use oast_proto::worker::v1::to_worker::Message as Down;
use oast_proto::worker::v1::workers_client::WorkersClient;
use tokio::sync::mpsc;
use tokio::time::Interval;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// Who plays a worker, for source tasks alone.
#[derive(Clone, Debug)]
pub struct Player {
    pub name: String,
    pub incarnation: u64,
    pub slots: u32,
    /// Between two signs of life.
    pub heartbeat: Duration,
    /// Messages on the way to the farm.
    pub outbox: usize,
}

/// A worker that is connected.
#[derive(Debug)]
pub struct Session {
    up: mpsc::Sender<wire::FromWorker>,
    down: Streaming<wire::ToWorker>,
    beat: Interval,
    beats: u64,
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// The farm refused.
    pub async fn begin(channel: Channel, token: &str, player: Player) -> Result<Session> {
        let (up, outbox) = mpsc::channel(player.outbox);
        let mut request = tonic::Request::new(ReceiverStream::new(outbox));
        let bearer = format!("Bearer {token}").parse()?;
        request.metadata_mut().insert("authorization", bearer);
        let hello = Up::Hello(wire::Hello {
            name: player.name,
            incarnation: player.incarnation,
            arch: "x86_64".into(),
            capabilities: vec!["source".into()],
            slots: player.slots,
            version: env!("CARGO_PKG_VERSION").into(),
            ..wire::Hello::default()
        });
        say(&up, hello).await?;
        let answer = WorkersClient::new(channel).session(request).await?;
        Ok(Session {
            up,
            down: answer.into_inner(),
            beat: tokio::time::interval(player.heartbeat),
            beats: 0,
        })
    }

    /// The next thing that the farm says; signs of life go out meanwhile.
    ///
    /// # Errors
    /// The session is over.
    pub async fn next(&mut self) -> Result<Option<Down>> {
        loop {
            tokio::select! {
                message = self.down.message() => {
                    return Ok(message?.context("the farm ended the session")?.message);
                }
                _ = self.beat.tick() => {
                    self.beats += 1;
                    // It renews every lease of the session, also those that it does not name.
                    let beat = wire::Heartbeat { number: self.beats, ..wire::Heartbeat::default() };
                    say(&self.up, Up::Heartbeat(beat)).await?;
                }
            }
        }
    }

    /// Tells the farm something.
    ///
    /// # Errors
    /// The session is over.
    pub async fn say(&self, message: Up) -> Result<()> {
        say(&self.up, message).await
    }
}

async fn say(up: &mpsc::Sender<wire::FromWorker>, message: Up) -> Result<()> {
    let message = wire::FromWorker {
        message: Some(message),
    };
    up.send(message).await.context("the session is over")
}
