//! A fleet's changes, from the watches of its sets.
//!
//! Works in rounds: a round lists the fleet's sets, watches each, and ends when a watch fails or
//! when it is time to look for sets that were added or removed. Ends only when it is dropped.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{Stream, StreamExt};
use tonic::{Request, Status};

use oast_daemon::clock::timeout;
use oast_proto::localcloud::v1 as wire;

use super::LocalProvider;
use super::convert::observation;
use crate::provider::{FleetObservation, ProviderError};

/// Time after which a round looks for sets that were added or removed.
const NEW_SETS: Duration = Duration::from_secs(2);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(250);

type Item = Result<FleetObservation, ProviderError>;
type Watches = SelectAll<BoxStream<'static, Result<wire::SetState, Status>>>;

struct Watch {
    provider: LocalProvider,
    fleet: String,
    round: Option<Round>,
    last: Option<FleetObservation>,
}

struct Round {
    known: BTreeMap<String, wire::SetState>,
    watches: Watches,
    until: Duration,
}

pub(super) fn fleet(provider: LocalProvider, fleet: String) -> impl Stream<Item = Item> {
    let watch = Watch {
        provider,
        fleet,
        round: None,
        last: None,
    };
    futures_util::stream::unfold(watch, |mut watch| async move {
        let item = watch.next().await;
        Some((item, watch))
    })
}

impl Watch {
    async fn next(&mut self) -> Item {
        loop {
            let Some(round) = &mut self.round else {
                match self.provider.begin(&self.fleet).await {
                    Ok(round) => {
                        let seen = round.observation();
                        self.round = Some(round);
                        if let Some(seen) = self.news(seen) {
                            return Ok(seen);
                        }
                    }
                    Err(err) => {
                        // The next good observation is news, even if it says what the last one said.
                        self.last = None;
                        self.provider.clock.sleep(PAUSE).await;
                        return Err(err);
                    }
                }
                continue;
            };
            let clock = &*self.provider.clock;
            let left = round.until.saturating_sub(clock.monotonic());
            match timeout(clock, left, round.change()).await {
                Ok(Ok(())) => {
                    let seen = round.observation();
                    if let Some(seen) = self.news(seen) {
                        return Ok(seen);
                    }
                }
                // A set went away, or the cloud did: a new round finds out which.
                Ok(Err(_)) => {
                    self.provider.clock.sleep(PAUSE).await;
                    self.round = None;
                }
                Err(_) => self.round = None,
            }
        }
    }

    fn news(&mut self, seen: FleetObservation) -> Option<FleetObservation> {
        if self.last.as_ref() == Some(&seen) {
            return None;
        }
        self.last = Some(seen.clone());
        Some(seen)
    }
}

impl Round {
    async fn change(&mut self) -> Result<(), Status> {
        match self.watches.next().await {
            Some(state) => {
                let state = state?;
                if let Some(name) = name_of(&state) {
                    self.known.insert(name, state);
                }
                Ok(())
            }
            // No set yet: only time brings one.
            None => std::future::pending().await,
        }
    }

    fn observation(&self) -> FleetObservation {
        observation(self.known.values())
    }
}

impl LocalProvider {
    async fn begin(&self, fleet: &str) -> Result<Round, ProviderError> {
        let mut round = Round {
            known: BTreeMap::new(),
            watches: SelectAll::new(),
            until: self.clock.monotonic() + NEW_SETS,
        };
        for state in self.states(fleet).await? {
            let Some(set) = name_of(&state) else { continue };
            let call = Request::new(wire::WatchRequest { set: set.clone() });
            round
                .watches
                .push(match self.client.clone().watch(call).await {
                    Ok(answer) => answer.into_inner().boxed(),
                    Err(status) => futures_util::stream::once(async { Err(status) }).boxed(),
                });
            round.known.insert(set, state);
        }
        Ok(round)
    }
}

fn name_of(state: &wire::SetState) -> Option<String> {
    Some(state.set.as_ref()?.spec.as_ref()?.name.clone())
}
