use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::{ManualClock, SystemClock};
use crate::task::Tasks;

/// Touches a metric so that it shows up in the text.
fn touch(metrics: &Metrics, metric: Metric) {
    let spec = metric.spec();
    let values = vec!["x"; spec.labels.len()];
    match spec.kind {
        Kind::Counter => metrics.counters(metric).with(&values).inc(),
        Kind::Gauge => metrics.gauges(metric).with(&values).set(1),
        Kind::Histogram(_) => {
            metrics
                .histograms(metric)
                .with(&values)
                .observe(Duration::from_millis(3));
        }
    }
}

#[test]
fn the_catalogue_matches_its_golden_list() {
    let mut list = String::new();
    for spec in Metric::ALL.iter().map(|metric| metric.spec()) {
        let labels = spec.labels.join(",");
        list.push_str(&[spec.name, spec.kind.word(), &labels, spec.help].join(" | "));
        list.push('\n');
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/metrics.txt");
    if std::env::var_os("OAST_BLESS").is_some() {
        std::fs::write(golden, &list).expect("the golden file can be written");
    }
    let stored = std::fs::read_to_string(golden).expect("the golden file is there");
    assert_eq!(
        stored, list,
        "run the test with OAST_BLESS=1 and review the difference"
    );
}

#[test]
fn names_follow_the_conventions() {
    let mut names = BTreeSet::new();
    for spec in Metric::ALL.iter().map(|metric| metric.spec()) {
        let name = spec.name;
        assert!(names.insert(name), "{name} is there twice");
        assert!(
            name.starts_with("oast_") || name.starts_with("process_"),
            "{name}"
        );
        assert_eq!(
            spec.kind == Kind::Counter,
            name.ends_with("_total"),
            "{name}"
        );
        assert!(
            !matches!(spec.kind, Kind::Histogram(_)) || name.ends_with("_seconds"),
            "{name}"
        );
        assert!(spec.help.ends_with('.'), "{name}");
        for label in spec.labels {
            assert!(
                !label.ends_with("_id") && *label != "id",
                "{name} has an unbounded label"
            );
        }
    }
}

#[test]
fn every_metric_can_be_made_and_rendered() {
    let metrics = Metrics::new();
    for metric in Metric::ALL {
        touch(&metrics, *metric);
    }
    let text = metrics.render();
    for spec in Metric::ALL.iter().map(|metric| metric.spec()) {
        let line = format!("# TYPE {} {}\n", spec.name, spec.kind.word());
        assert!(text.contains(&line), "{line}");
    }
}

#[test]
fn too_many_label_values_are_counted_together() {
    let metrics = Metrics::new();
    let runs = metrics.counters(Metric::RunsTotal);
    for n in 0..MAX_SERIES + 5 {
        runs.with(&[&format!("o{n}")]).inc();
    }
    runs.with(&["o3"]).inc();
    let text = metrics.render();
    assert!(
        text.contains("oast_runs_total{outcome=\"other\"} 5\n"),
        "{text}"
    );
    assert!(
        text.contains("oast_runs_total{outcome=\"o3\"} 2\n"),
        "{text}"
    );
    let dropped = "oast_metrics_overflow_total{metric=\"oast_runs_total\"} 5\n";
    assert!(text.contains(dropped), "{text}");
    assert_eq!(text.matches("oast_runs_total{").count(), MAX_SERIES + 1);
}

#[test]
fn two_askers_share_one_counter() {
    let metrics = Metrics::new();
    metrics.counter(Metric::StaleTokens).inc();
    metrics.clone().counter(Metric::StaleTokens).add(2);
    assert!(metrics.render().contains("oast_stale_tokens_total 3\n"));
}

#[test]
#[should_panic(expected = "StaleTokens is not a gauge")]
fn asking_with_the_wrong_type_is_a_bug() {
    let _ = Metrics::new().gauge(Metric::StaleTokens);
}

#[test]
fn the_process_set_is_real() {
    let clock = ManualClock::default();
    let tasks = Tasks::new(SystemClock::shared(), CancellationToken::new());
    let shared = Arc::new(clock.clone());
    let metrics = Metrics::for_process(Role::Worker, "0.1.0", shared, &tasks);
    clock.advance(Duration::from_millis(1500));
    let text = metrics.render();
    let value = |name: &str| -> f64 {
        let line = text
            .lines()
            .find(|l| l.starts_with(name))
            .expect("the metric is there");
        line.rsplit(' ')
            .next()
            .expect("a value")
            .parse()
            .expect("a number")
    };
    assert!(
        text.contains("oast_build_info{role=\"worker\",version=\"0.1.0\"} 1\n"),
        "{text}"
    );
    assert!((value("oast_process_uptime_seconds ") - 1.5).abs() < 1e-9);
    assert!(value("process_resident_memory_bytes ") > 1e6);
    assert!(value("process_open_fds ") >= 3.0);
    assert!(value("process_max_fds ") >= value("process_open_fds "));
    assert!(value("process_cpu_seconds_total ") >= 0.0);
    assert!((value("process_start_time_seconds ") - 1_767_225_600.0).abs() < 1e-9);
}
