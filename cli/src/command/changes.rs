//! `oast watch --all`: every change of the farm as it happens, from any position.
//!
//! The position is the number of the last command that was told. Whatever breaks, the watch goes
//! on behind it at another member, so that nothing is lost or told twice; the position at the end
//! is said, to go on with later.

use std::time::Duration;

use oast_daemon::clock::{Clock, SystemClock, timeout};
use oast_daemon::exit::Exit;
use oast_proto::{fault, v1};
use tonic::{Code, Status, Streaming};

use crate::client::{Client, Member, may_be_tried_again};
use crate::fail::Fail;
use crate::output::{Format, Output, note, plain};
use crate::shape::{Change, What};

/// A member says how far it is every 5 s; after this long without a word another one is asked.
const SILENCE: Duration = Duration::from_secs(16);
/// Pause before a broken watch is taken up again.
const PAUSE: Duration = Duration::from_millis(100);

/// Tells changes until Ctrl-C or the time limit.
pub async fn follow(
    client: &Client,
    filter: v1::WatchFilter,
    from: u64,
    output: Output,
    limit: Option<Duration>,
) -> anyhow::Result<Exit> {
    let mut told = Told { at: from, output };
    let late = async {
        match limit {
            Some(limit) => SystemClock.sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let exit = tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Exit::Interrupted,
        () = late => Exit::TimedOut,
        failed = told.follow(client, &filter) => return Err(failed),
    };
    if told.at > 0 {
        note(format!(
            "Go on from here: oast watch --all --from {}",
            told.at
        ));
    }
    Ok(exit)
}

struct Told {
    at: u64,
    output: Output,
}

impl Told {
    /// Only ever ends with an error.
    async fn follow(&mut self, client: &Client, filter: &v1::WatchFilter) -> anyhow::Error {
        let members = client.addresses().len();
        let mut compacted = 0;
        loop {
            let request = v1::WatchRequest {
                from_seq: self.at,
                filter: Some(filter.clone()),
            };
            let opened = client
                .open(|member: Member| {
                    let request = request.clone();
                    async move { member.changes().watch(request).await }
                })
                .await;
            let broken = match opened {
                Ok((stream, member)) => {
                    let before = self.at;
                    let broken = self.tell(stream).await;
                    client.turn_from(&member);
                    if self.at > before {
                        compacted = 0;
                    }
                    broken
                }
                Err(status) => Err(status.into()),
            };
            let Err(err) = broken else {
                SystemClock.sleep(PAUSE).await;
                continue;
            };
            let Some(status) = err.downcast_ref::<Status>() else {
                return err;
            };
            if fault::reason(status).as_deref() == Some("COMPACTED") {
                // A member that was started anew keeps less than the others.
                compacted += 1;
                if compacted < members {
                    client.turn();
                    continue;
                }
            }
            if status.code() == Code::OutOfRange {
                return Fail::failed(plain(status.message()))
                    .hint("`oast list runs` shows what is; `oast watch --all` follows from now on")
                    .into();
            }
            // What a member says itself stands; what the connection says may be over.
            if !may_be_tried_again(status) && fault::reason(status).is_some() {
                return err;
            }
            SystemClock.sleep(PAUSE).await;
        }
    }

    /// Ends without an error when another member is to be asked.
    async fn tell(&mut self, mut stream: Streaming<v1::WatchResponse>) -> anyhow::Result<()> {
        let first = self.at == 0;
        loop {
            let message = match timeout(&SystemClock, SILENCE, stream.message()).await {
                Ok(message) => message?,
                Err(_) => return Ok(()),
            };
            let Some(message) = message else {
                return Ok(());
            };
            if first && self.at == 0 && self.output.is_text() {
                note(format!("Changes after {}; Ctrl-C ends it.", message.seq));
            }
            for change in message.changes {
                if let Some(change) = Change::read(change) {
                    self.print(&change)?;
                }
            }
            self.at = message.seq;
        }
    }

    fn print(&self, change: &Change) -> std::io::Result<()> {
        // One value a line in every form of JSON: it never ends.
        let output = match self.output.format {
            Format::Json => Output {
                format: Format::Jsonl,
            },
            _ => self.output,
        };
        let (kind, name, what) = match &change.what {
            What::Run(run) => {
                let about = if run.reason.is_empty() {
                    &run.subject
                } else {
                    &run.reason
                };
                ("run", &run.id, format!("{}  {}", run.phase, about))
            }
            What::Rollout(rollout) => {
                let what = format!("{}  {} to {}", rollout.phase, rollout.fleet, rollout.to);
                ("rollout", &rollout.id, what)
            }
            What::Fleet(fleet) => ("fleet", &fleet.name, format!("target {}", fleet.target)),
            What::DeletedFleet(name) => ("fleet", name, "deleted".to_owned()),
        };
        let line = || {
            let what = what.lines().next().unwrap_or_default();
            let what = plain(what).replace('_', " ");
            format!(
                "{:<10} {kind:<7} {:<10} {}\n",
                change.seq,
                plain(name),
                what.trim_end()
            )
        };
        output.one(name, change, line)
    }
}
