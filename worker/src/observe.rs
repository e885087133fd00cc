//! Watching fleets for the leader, which plans from what is seen.
//!
//! One task per fleet holds the provider's watch and, while a batch soaks, asks the policy's
//! gates. Each change replaces the fleet's newest observation; the session sends what is newest
//! when it comes to it, so a slow connection skips states and never queues them.
//!
//! An observation is marked as *about a batch* only when the look at the provider began after the
//! leader had asked about that batch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use oast_daemon::clock::SharedClock;
use oast_daemon::metrics::{Counters, Metric, Metrics};
use oast_daemon::task::{TaskHandle, TaskKind, Tasks};
use oast_daemon::telemetry::chain;
use oast_model::codec;
use oast_model::fleet::{GateOutcome, GateReading, Observation, Probe, Watch};
use oast_model::pipeline::{Gate, PrometheusGate};
use oast_proto::worker::v1 as wire;
use tokio::sync::Notify;
use tracing::{debug, error};

use crate::fleet;
use crate::probe::{self, Measured, Subject};
use crate::provider::{FleetObservation, Provider};

/// Pause between two rounds of questions of a soaking batch.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// Pause between two questions to a metrics server.
const QUERY_INTERVAL: Duration = Duration::from_secs(1);

/// What an observer needs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The only provider there is yet.
    pub provider: Option<Arc<dyn Provider>>,
    /// For pauses.
    pub clock: SharedClock,
    /// Where tasks are registered.
    pub tasks: Tasks,
    /// What is counted.
    pub metrics: Metrics,
    /// The metrics server of gates that name none.
    pub prometheus: Option<String>,
}

/// Watches fleets. Clones are the same observer.
#[derive(Clone, Debug)]
pub struct Observer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    gates: Counters,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    fleets: BTreeMap<String, Watched>,
    /// Fleets whose newest observation was not sent yet.
    unsent: BTreeSet<String>,
    newest: BTreeMap<String, Observation>,
}

#[derive(Debug)]
struct Watched {
    spec: Watch,
    task: TaskHandle,
}

impl Observer {
    /// Watches nothing yet.
    pub fn new(options: Options) -> Observer {
        let gates = options.metrics.counters(Metric::GateEvaluations);
        Observer {
            inner: Arc::new(Inner {
                options,
                gates,
                state: Mutex::default(),
                changed: Notify::new(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics.
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches exactly these fleets from now on.
    pub fn watch(&self, fleets: Vec<wire::ObserveFleet>) {
        let mut wanted = BTreeMap::new();
        for asked in fleets {
            match codec::decode::<Watch>(&asked.spec) {
                Ok(spec) => drop(wanted.insert(asked.fleet, spec)),
                Err(err) => {
                    error!(fleet = asked.fleet, error = %chain(&err), "A fleet to watch cannot be read; this worker is older than the leader.");
                }
            }
        }
        let mut state = self.state();
        state.fleets.retain(|name, watched| {
            let same = wanted.get(name) == Some(&watched.spec);
            if !same {
                watched.task.cancel();
            }
            same
        });
        let State {
            fleets,
            unsent,
            newest,
        } = &mut *state;
        newest.retain(|name, _| wanted.contains_key(name));
        unsent.retain(|name| wanted.contains_key(name));
        for (name, spec) in wanted {
            fleets.entry(name.clone()).or_insert_with(|| Watched {
                task: self.start(name, spec.clone()),
                spec,
            });
        }
    }

    fn start(&self, name: String, spec: Watch) -> TaskHandle {
        let observer = self.clone();
        let tasks = self.inner.options.tasks.clone();
        tasks.spawn("observe-fleet", TaskKind::BACKGROUND, async move {
            Fleet {
                observer,
                name,
                spec,
                held: BTreeMap::new(),
            }
            .run()
            .await;
        })
    }

    /// The session is over: nothing is watched until the next leader asks.
    pub fn pause(&self) {
        let mut state = self.state();
        for watched in state.fleets.values() {
            watched.task.cancel();
        }
        *state = State::default();
    }

    /// A session began.
    pub fn resume(&self) {
        self.inner.changed.notify_one();
    }

    /// Ends when there may be something to send. A hint.
    pub async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    /// The newest observation of each fleet that was not sent yet.
    pub fn take(&self) -> Vec<wire::Observation> {
        let mut state = self.state();
        let State { unsent, newest, .. } = &mut *state;
        std::mem::take(unsent)
            .into_iter()
            .filter_map(|fleet| {
                let body = codec::encode(newest.get(&fleet)?).into();
                Some(wire::Observation { fleet, body })
            })
            .collect()
    }

    /// Records what was seen; nothing happens when it is what was seen before.
    fn publish(&self, fleet: &str, watch: &Watch, observation: Observation) {
        let mut state = self.state();
        // A task that was replaced meanwhile has nothing to say any more.
        let current = state.fleets.get(fleet).is_none_or(|w| w.spec == *watch);
        if !current || state.newest.get(fleet) == Some(&observation) {
            return;
        }
        state.newest.insert(fleet.to_owned(), observation);
        state.unsent.insert(fleet.to_owned());
        drop(state);
        self.inner.changed.notify_one();
    }
}

/// One fleet being watched.
struct Fleet {
    observer: Observer,
    name: String,
    spec: Watch,
    /// Since when a metric has been within its limits, by gate.
    held: BTreeMap<u16, Duration>,
}

impl Fleet {
    async fn run(mut self) {
        let Some(provider) = self.observer.inner.options.provider.clone() else {
            let error = format!(
                "this worker reaches no {} provider; configure [local_cloud]",
                self.spec.fleet.provider.as_str()
            );
            self.publish(Observation {
                error: Some(error),
                ..Observation::default()
            });
            return;
        };
        let fleet_name = self.spec.fleet.name.to_string();
        let mut stream = provider.watch(&fleet_name);
        let clock = self.observer.inner.options.clock.clone();
        // The first item of a watch is asked for after this, so it is younger than the probe.
        let mut seen: Option<FleetObservation> = None;
        let mut readings = Vec::new();
        let mut next_round = clock.monotonic();
        loop {
            let probing = self.spec.probe.is_some() && seen.is_some();
            tokio::select! {
                // Biased: a change is said before the next round of questions begins.
                biased;
                item = stream.next() => match item {
                    Some(Ok(now)) => {
                        self.tell(&now, &readings);
                        seen = Some(now);
                    }
                    Some(Err(err)) => {
                        debug!(fleet = self.name, error = %chain(&err), "The provider does not answer; it is asked again.");
                        self.publish(Observation {
                            error: Some(chain(&err).to_string()),
                            ..Observation::default()
                        });
                    }
                    None => {
                        stream = provider.watch(&fleet_name);
                        clock.sleep(PROBE_INTERVAL).await;
                    }
                },
                () = clock.sleep_until(next_round), if probing => {
                    if let (Some(now), Some(probe)) = (seen.clone(), self.spec.probe.clone()) {
                        // The watch waits meanwhile; a round takes one time-out at most.
                        readings = self.round(&probe, &now).await;
                        self.tell(&now, &readings);
                    }
                    next_round = clock.monotonic() + PROBE_INTERVAL;
                }
            }
        }
    }

    fn tell(&self, seen: &FleetObservation, readings: &[GateReading]) {
        let probe = self.spec.probe.as_ref();
        self.publish(Observation {
            readings: readings.to_vec(),
            probed: probe.map(|probe| (probe.rollout, probe.batch)),
            ..fleet::observation(&self.spec.fleet, seen)
        });
    }

    fn publish(&self, observation: Observation) {
        self.observer.publish(&self.name, &self.spec, observation);
    }

    /// Asks every gate once, all at the same time.
    async fn round(&mut self, probe: &Probe, seen: &FleetObservation) -> Vec<GateReading> {
        let view = fleet::observation(&self.spec.fleet, seen);
        let options = &self.observer.inner.options;
        let subjects: Vec<Subject> = probe
            .instances
            .iter()
            .map(|name| Subject {
                name: name.clone(),
                direct: view.instance(name).and_then(|instance| instance.direct),
                port: self.spec.fleet.serve.port,
            })
            .collect();
        let pages: FuturesUnordered<_> = probe
            .http_gates()
            .flat_map(|(gate, check)| {
                subjects
                    .iter()
                    .map(move |subject| probe::http_gate(&*options.clock, gate, check, subject))
            })
            .collect();
        let metrics = probe.gates.iter().zip(0_u16..).filter_map(|(gate, place)| {
            let Gate::Prometheus(gate) = gate else {
                return None;
            };
            Some(self.metric(place, gate))
        });
        let (mut readings, metrics): (Vec<GateReading>, Vec<_>) =
            futures_util::future::join(pages.collect(), join_all(metrics)).await;
        let now = options.clock.monotonic();
        for (place, gate, outcome, measured) in metrics {
            let reading = self.hold(place, &gate, outcome, measured, now);
            readings.push(reading);
        }
        readings.sort_by(|a, b| (a.gate, &a.instance).cmp(&(b.gate, &b.instance)));
        for reading in &readings {
            let result = match reading.outcome {
                GateOutcome::Open => "open",
                GateOutcome::Shut => "shut",
                GateOutcome::Unknown => "unknown",
            };
            self.observer.inner.gates.with(&[result]).inc();
        }
        readings
    }

    async fn metric(
        &self,
        place: u16,
        gate: &PrometheusGate,
    ) -> (u16, PrometheusGate, GateOutcome, String) {
        let options = &self.observer.inner.options;
        let url = gate.url.as_ref().or(options.prometheus.as_ref());
        let (outcome, measured) = match url {
            None => (
                GateOutcome::Unknown,
                "no metrics server: give the gate a `url`, or the worker `prometheus`".to_owned(),
            ),
            Some(url) => match probe::query(&*options.clock, url, &gate.query).await {
                Measured::Value(value) => {
                    let (good, words) = probe::within(gate, value);
                    let outcome = if good {
                        GateOutcome::Open
                    } else {
                        GateOutcome::Shut
                    };
                    (outcome, words)
                }
                Measured::Nothing(why) => (GateOutcome::Unknown, why),
            },
        };
        // A metrics server is shared with people: rounds with a metric gate are slower.
        options
            .clock
            .sleep(QUERY_INTERVAL.saturating_sub(PROBE_INTERVAL))
            .await;
        (place, gate.clone(), outcome, measured)
    }

    /// A metric opens its gate only after it has been good for as long as the gate says.
    fn hold(
        &mut self,
        place: u16,
        gate: &PrometheusGate,
        outcome: GateOutcome,
        measured: String,
        now: Duration,
    ) -> GateReading {
        let mut reading = GateReading {
            gate: place,
            instance: None,
            outcome,
            measured,
        };
        if outcome != GateOutcome::Open {
            self.held.remove(&place);
            return reading;
        }
        let since = *self.held.entry(place).or_insert(now);
        let held = now.saturating_sub(since);
        if held < gate.hold.duration() {
            reading.outcome = GateOutcome::Unknown;
            reading.measured = format!(
                "{}, good for {} s of {}",
                reading.measured,
                held.as_secs(),
                gate.hold
            );
        }
        reading
    }
}
