//! The process's metrics: typed handles in, Prometheus text out.
//!
//! [`Metrics`] is made once per process and handed to whatever counts. A handle is asked for by
//! [`Metric`], so no code spells a name, and asking with the wrong type is a bug that panics at
//! start. Label values are bounded: past [`MAX_SERIES`] combinations a metric counts under
//! `other` (and says so in `oast_metrics_overflow_total`), so a bad label costs detail, not memory.
//!
//! The text is the classic exposition format 0.0.4, which every scraper reads. No exemplars.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{CounterVec, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder};

mod catalogue;
mod process;

pub use catalogue::{FAST, Kind, Metric, SLOW, Spec};
pub use process::Role;

/// Label combinations one metric may have before the rest is counted together.
pub const MAX_SERIES: usize = 200;

/// The label value that stands for everything past [`MAX_SERIES`].
pub const OTHER: &str = "other";

/// All metrics of one process. Clones are the same registry.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    families: Mutex<BTreeMap<Metric, Family>>,
    refreshers: Mutex<Vec<Refresher>>,
}

/// Brings gauges up to date just before they are read.
type Refresher = Box<dyn Fn() + Send + Sync>;

#[derive(Clone)]
enum Vector {
    Counter(CounterVec),
    Gauge(GaugeVec),
    Histogram(HistogramVec),
}

/// A metric with its seen label combinations.
#[derive(Clone)]
struct Family {
    spec: Spec,
    vector: Vector,
    seen: Arc<Mutex<BTreeSet<Vec<String>>>>,
    /// Counts what went under [`OTHER`]; boxed because it is a family itself.
    overflow: Option<Box<Counters>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let families = lock(&self.inner.families);
        f.debug_struct("Metrics")
            .field("families", &families.len())
            .finish_non_exhaustive()
    }
}

/// Nothing that can panic half-way runs under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// An empty registry, for tests and for parts that are tested alone. A daemon calls
    /// [`Metrics::for_process`].
    #[must_use]
    pub fn new() -> Self {
        let inner = Inner {
            registry: Registry::new(),
            families: Mutex::new(BTreeMap::new()),
            refreshers: Mutex::new(Vec::new()),
        };
        Metrics {
            inner: Arc::new(inner),
        }
    }

    /// A counter without labels.
    #[must_use]
    pub fn counter(&self, metric: Metric) -> Counter {
        self.counters(metric).with(&[])
    }

    /// A counter with labels.
    #[must_use]
    pub fn counters(&self, metric: Metric) -> Counters {
        let family = self.family(metric);
        assert!(
            matches!(family.vector, Vector::Counter(_)),
            "{metric:?} is not a counter"
        );
        Counters(family)
    }

    /// A gauge without labels.
    #[must_use]
    pub fn gauge(&self, metric: Metric) -> Gauge {
        self.gauges(metric).with(&[])
    }

    /// A gauge with labels.
    #[must_use]
    pub fn gauges(&self, metric: Metric) -> Gauges {
        let family = self.family(metric);
        assert!(
            matches!(family.vector, Vector::Gauge(_)),
            "{metric:?} is not a gauge"
        );
        Gauges(family)
    }

    /// A histogram without labels.
    #[must_use]
    pub fn histogram(&self, metric: Metric) -> Histogram {
        self.histograms(metric).with(&[])
    }

    /// A histogram with labels.
    #[must_use]
    pub fn histograms(&self, metric: Metric) -> Histograms {
        let family = self.family(metric);
        assert!(
            matches!(family.vector, Vector::Histogram(_)),
            "{metric:?} is not a histogram"
        );
        Histograms(family)
    }

    /// Runs `refresh` before each scrape. It must be quick and must not block.
    pub fn on_scrape(&self, refresh: impl Fn() + Send + Sync + 'static) {
        lock(&self.inner.refreshers).push(Box::new(refresh));
    }

    /// Everything as Prometheus text 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        for refresh in lock(&self.inner.refreshers).iter() {
            refresh();
        }
        let families = self.inner.registry.gather();
        TextEncoder::new()
            .encode_to_string(&families)
            .expect("the catalogue's names and labels are valid, a test renders them all")
    }

    fn family(&self, metric: Metric) -> Family {
        let spec = metric.spec();
        // Only labelled metrics can overflow; the counter of overflows is bounded by the catalogue.
        let overflow = (metric != Metric::SeriesDropped && !spec.labels.is_empty())
            .then(|| Box::new(self.counters(Metric::SeriesDropped)));
        let mut families = lock(&self.inner.families);
        if let Some(family) = families.get(&metric) {
            return family.clone();
        }
        let opts = Opts::new(spec.name, spec.help);
        let valid = "the catalogue's names and labels are valid, a test makes them all";
        let vector = match spec.kind {
            Kind::Counter => Vector::Counter(CounterVec::new(opts, spec.labels).expect(valid)),
            Kind::Gauge => Vector::Gauge(GaugeVec::new(opts, spec.labels).expect(valid)),
            Kind::Histogram(bounds) => {
                let opts = HistogramOpts::from(opts).buckets(bounds.to_vec());
                Vector::Histogram(HistogramVec::new(opts, spec.labels).expect(valid))
            }
        };
        let collector: Box<dyn Collector> = match &vector {
            Vector::Counter(v) => Box::new(v.clone()),
            Vector::Gauge(v) => Box::new(v.clone()),
            Vector::Histogram(v) => Box::new(v.clone()),
        };
        self.inner
            .registry
            .register(collector)
            .expect("each metric is registered once");
        let family = Family {
            spec,
            vector,
            seen: Arc::default(),
            overflow,
        };
        families.insert(metric, family.clone());
        family
    }
}

impl Family {
    /// The values to count under: as given, or all `other` once there are too many.
    fn bounded<'a>(&self, values: &[&'a str]) -> Vec<&'a str> {
        let (name, labels) = (self.spec.name, self.spec.labels);
        assert_eq!(
            values.len(),
            labels.len(),
            "{name} has the labels {labels:?}"
        );
        let mut seen = lock(&self.seen);
        if seen.iter().any(|known| known.iter().eq(values.iter())) {
            return values.to_vec();
        }
        if seen.len() < MAX_SERIES {
            seen.insert(values.iter().map(|v| (*v).to_owned()).collect());
            return values.to_vec();
        }
        if let Some(overflow) = &self.overflow {
            overflow.with(&[name]).inc();
        }
        vec![OTHER; values.len()]
    }
}

/// A counter for each combination of label values.
#[derive(Clone)]
pub struct Counters(Family);

/// A gauge for each combination of label values.
#[derive(Clone)]
pub struct Gauges(Family);

/// A histogram for each combination of label values.
#[derive(Clone)]
pub struct Histograms(Family);

/// Only rises.
#[derive(Clone, Debug)]
pub struct Counter(prometheus::Counter);

/// Goes both ways.
#[derive(Clone, Debug)]
pub struct Gauge(prometheus::Gauge);

/// A distribution, in seconds by convention.
#[derive(Clone, Debug)]
pub struct Histogram(prometheus::Histogram);

macro_rules! debug_by_name {
    ($($family:ident),*) => {$(
        impl fmt::Debug for $family {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($family)).field(&self.0.spec.name).finish()
            }
        }
    )*};
}
debug_by_name!(Counters, Gauges, Histograms);

impl Counters {
    /// The counter for these label values, in the catalogue's order.
    #[must_use]
    pub fn with(&self, values: &[&str]) -> Counter {
        let values = self.0.bounded(values);
        match &self.0.vector {
            Vector::Counter(v) => Counter(v.with_label_values(&values)),
            Vector::Gauge(_) | Vector::Histogram(_) => unreachable!("checked when it was made"),
        }
    }
}

impl Gauges {
    /// The gauge for these label values, in the catalogue's order.
    #[must_use]
    pub fn with(&self, values: &[&str]) -> Gauge {
        let values = self.0.bounded(values);
        match &self.0.vector {
            Vector::Gauge(v) => Gauge(v.with_label_values(&values)),
            Vector::Counter(_) | Vector::Histogram(_) => unreachable!("checked when it was made"),
        }
    }
}

impl Histograms {
    /// The histogram for these label values, in the catalogue's order.
    #[must_use]
    pub fn with(&self, values: &[&str]) -> Histogram {
        let values = self.0.bounded(values);
        match &self.0.vector {
            Vector::Histogram(v) => Histogram(v.with_label_values(&values)),
            Vector::Counter(_) | Vector::Gauge(_) => unreachable!("checked when it was made"),
        }
    }
}

/// Counts and sizes as Prometheus's only number type.
#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is exact to 2^53, beyond any count here"
)]
fn float(n: u64) -> f64 {
    n as f64
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.0.inc();
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.inc_by(float(n));
    }

    /// The current value.
    #[must_use]
    pub fn get(&self) -> f64 {
        self.0.get()
    }
}

impl Gauge {
    /// Sets a count, an index or a number of bytes.
    pub fn set(&self, n: u64) {
        self.0.set(float(n));
    }

    /// Sets a measured value.
    pub fn set_f64(&self, value: f64) {
        self.0.set(value);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.0.inc();
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.0.dec();
    }

    /// The current value.
    #[must_use]
    pub fn get(&self) -> f64 {
        self.0.get()
    }
}

impl Histogram {
    /// Notes how long something took.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
