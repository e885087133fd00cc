//! The commands that talk to a farm, one file each, and what they share.

use std::future::Future;

use tokio::runtime::Builder;

pub mod apply;
mod changes;
pub mod completion;
pub mod context;
pub mod doctor;
pub mod fleet;
mod follow;
pub mod image;
pub mod logs;
pub mod noun;
pub mod operator;
pub mod pki;
pub mod resource;
pub mod retry;
pub mod rollout;
pub mod run;
pub mod secret;
mod story;
pub mod watch;
pub mod whoami;
pub mod worker;
pub mod worker_token;

/// Runs a command's work. One thread is enough for a client.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
