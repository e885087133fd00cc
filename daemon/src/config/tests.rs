use std::time::Duration;

use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Demo {
    lease_ttl: TimeSpan,
    heartbeat: TimeSpan,
    cache: ByteSize,
    slots: u32,
    log: Inner,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Inner {
    filter: String,
}

impl Default for Demo {
    fn default() -> Self {
        Demo {
            lease_ttl: TimeSpan::from_secs(30),
            heartbeat: TimeSpan::from_secs(5),
            cache: ByteSize::from_bytes(64 << 20),
            slots: 2,
            log: Inner::default(),
        }
    }
}

impl Validate for Demo {
    fn validate(&self, problems: &mut Problems) {
        problems.require(self.slots > 0, "slots", "must be at least 1");
        let relation = format!("must be shorter than lease_ttl ({})", self.lease_ttl);
        problems.require(self.heartbeat < self.lease_ttl, "heartbeat", relation);
    }
}

const KEYS: [EnvKey; 3] = [
    COMMON_ENV[0],
    EnvKey {
        var: "OAST_SLOTS",
        field: "slots",
        kind: EnvKind::Toml,
    },
    EnvKey {
        var: "OAST_LEASE_TTL",
        field: "lease_ttl",
        kind: EnvKind::Text,
    },
];

fn read(text: &str, env: &[(&str, &str)]) -> Result<Demo, String> {
    let lookup = |name: &str| {
        env.iter()
            .find(|(var, _)| *var == name)
            .map(|(_, value)| (*value).to_owned())
    };
    parse(text, "worker.toml", &KEYS, &lookup).map_err(|e| e.to_string())
}

#[test]
fn the_file_is_read_and_the_environment_wins() {
    let text = "lease_ttl = \"1m\"\ncache = \"4GiB\"\nslots = 3\n[log]\nfilter = \"info\"\n";
    let demo = read(text, &[("OAST_SLOTS", "7"), ("OAST_LOG", "debug")]).expect("valid");
    assert_eq!(demo.lease_ttl.duration(), Duration::from_secs(60));
    assert_eq!((demo.cache.bytes(), demo.slots), (4 << 30, 7));
    assert_eq!(demo.log.filter, "debug");
}

#[test]
fn a_variable_may_fill_a_table_the_file_does_not_have() {
    assert_eq!(
        read("", &[("OAST_LOG", "warn")]).expect("valid").log.filter,
        "warn"
    );
}

#[test]
fn an_unknown_key_is_named_with_file_line_and_column() {
    let error = read("slots = 1\n\n[log]\n  fliter = \"x\"\n", &[]).expect_err("a typing error");
    assert!(
        error.starts_with("worker.toml:4:3: unknown field `fliter`"),
        "{error}"
    );
    // The same place when an unrelated variable is set.
    let error = read(
        "slots = 1\n\n[log]\n  fliter = \"x\"\n",
        &[("OAST_SLOTS", "2")],
    );
    assert!(
        error
            .expect_err("a typing error")
            .starts_with("worker.toml:4:3:")
    );
}

#[test]
fn a_bare_integer_is_not_a_duration() {
    let error = read("lease_ttl = 30", &[]).expect_err("no unit");
    assert!(
        error.starts_with("worker.toml:1:13: invalid type: integer"),
        "{error}"
    );
    let error = read("lease_ttl = \"30 secs\"", &[]).expect_err("a bad unit");
    assert!(
        error.contains("a number with a unit, such as 30s"),
        "{error}"
    );
}

#[test]
fn a_bad_variable_is_named() {
    let error = read("", &[("OAST_SLOTS", "many")]).expect_err("not a number");
    assert!(
        error.starts_with("environment variable OAST_SLOTS=\"many\" for slots:"),
        "{error}"
    );
    let error = read("", &[("OAST_LEASE_TTL", "soon")]).expect_err("not a duration");
    assert!(
        error.starts_with("worker.toml with OAST_LEASE_TTL: "),
        "{error}"
    );
}

#[test]
fn every_broken_relation_is_reported_at_once() {
    let error = read("slots = 0\nheartbeat = \"2m\"", &[]).expect_err("two problems");
    assert_eq!(
        error,
        "worker.toml: slots: must be at least 1; \
         heartbeat: must be shorter than lease_ttl (30s)"
    );
}

#[test]
fn a_missing_file_is_named() {
    let path = Path::new("/nonexistent/worker.toml");
    let error = load::<Demo>(Some(path), &[], &|_| None).expect_err("no such file");
    assert_eq!(
        error.to_string(),
        "cannot read configuration file /nonexistent/worker.toml"
    );
}
